"""A measured cell made into the files that it leaves."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from omegaconf import OmegaConf

from experiments import plots
from experiments.config import DEFAULT_PARALLEL
from experiments.metrics import Measured, summarise
from experiments.outputs import Write, write_bytes, write_text
from experiments.report import render_run

if TYPE_CHECKING:
    from experiments.cell import Cell


def summary_of(cell: Cell, measured: Sequence[Measured], environment: dict[str, Any], command: str) -> dict[str, Any]:
    """summary.json: what was run, its figures, and under which conditions."""
    config, data = cell.config, cell.workload.data
    figures = summarise(measured)
    if not cell.answers_count:
        figures["score"] = None
    timed = config.rate is None and config.parallel is None and all(job.at is not None for job in cell.workload.jobs())
    return _plain(
        {
            "workload": config.workload_label,
            "policy": config.policy_label,
            "system": config.system["name"],
            "model": config.model.get("path") or config.model["name"],
            "outputs": cell.workload.outputs,
            "random_weights": cell.system.random_weights,
            "device": cell.system.device,
            "seed": config.seed,
            "repeats": len(measured),
            "load": {
                "parallel": None if config.rate is not None or timed else config.parallel or DEFAULT_PARALLEL,
                "rate": config.rate,
                "timed": timed,
            },
            **figures,
            "pool_tokens": cell.system.pool_tokens,
            "data": {
                "source": data.origin,
                "path": data.path or None,
                "sha256": data.sha256 or None,
                "note": data.note,
            },
            "environment": environment,
            "config_hash": config.hash,
            "command": command,
        }
    )


def files_of(cell: Cell, measured: Sequence[Measured], summary: dict[str, Any]) -> dict[str, Write]:
    """Name and writer of every file of the run's folder."""
    settings = {**cell.config.settings, "resolved": cell.system.resolved()}
    config_text = OmegaConf.to_yaml(OmegaConf.create(json.loads(json.dumps(settings, default=str))))
    requests = pd.concat([one.requests for one in measured], ignore_index=True)
    figures = plots.draw(measured, cell.system.pool_tokens)
    report = render_run(summary, {name: plots.svg(figure) for name, figure in figures.items()}, config_text)
    return {
        "config.yaml": write_text(config_text),
        "requests.parquet": lambda path: requests.to_parquet(path, index=False),
        "events.parquet": cell.system.write_log,
        "summary.json": write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n"),
        "report.html": write_text(report),
        **{f"plots/{name}.png": write_bytes(plots.png(figure)) for name, figure in figures.items()},
    }


def _plain(value: Any) -> Any:
    """Numbers that JSON knows: NaN and infinity become null, numpy's become Python's."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
