"""What a run is told: the composed configuration, checked, and the hash that names it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import conf
from engine.config import ConfigError
from engine.policies.names import closest

DEFAULT_PARALLEL = 64
POLICY_PARTS = ("eviction", "retention", "schedule", "admission", "routing")
UNHASHED = ("outputs", "force", "debug", "cells")
"""Settings that don't change what is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One cell, or several that are compared when `cells` isn't empty."""

    workload: str
    """A name, or path/to/file.py:Class."""
    workload_args: dict[str, Any]
    policy: dict[str, Any]
    """name; eviction, retention, schedule, admission, routing, each with its `_args`."""
    model: dict[str, Any]
    """name, path, dtype, weights, seed, tokenizer."""
    system: dict[str, Any]
    """name and the adapter's own settings."""
    engine: dict[str, Any]
    """Settings of the engine that were given; the engine knows the rest."""
    parallel: int | None
    rate: float | None
    repeats: int
    warmup: bool
    seed: int
    outputs: Path
    force: bool
    debug: bool
    cells: tuple[tuple[str, ...], ...]
    settings: dict[str, Any]
    """All of the above as plain data, as config.yaml keeps it."""

    @property
    def workload_label(self) -> str:
        """Short name of the workload, fit for a folder."""
        return label(self.workload)

    @property
    def policy_label(self) -> str:
        """The bundle's name, and what was overridden in it: `lru+eviction=lfu`."""
        bundle = _bundle(self.policy["name"])
        changed = [
            f"{part}={label(self.policy[part])}" for part in POLICY_PARTS if self.policy[part] != bundle.get(part)
        ]
        for part in POLICY_PARTS:
            changed += [f"{key}={label(value)}" for key, value in sorted(self.policy[f"{part}_args"].items())]
        cache = self.engine.get("cache") or "radix"
        if cache != ("none" if self.policy["name"] == "none" else "radix"):
            changed.append(f"cache={cache}")
        return "+".join([label(self.policy["name"]), *changed])

    @property
    def hash(self) -> str:
        """Ten hex digits: equal for equal settings, data folder and contents of the outside files they name."""
        told = {key: value for key, value in self.settings.items() if key not in UNHASHED}
        files = {value: _digest(path) for value in _strings(told) if (path := outside_file(value)) is not None}
        data = None if self.workload_args.get("data_dir") else os.environ.get("RADIXLAB_DATA")
        text = json.dumps([told, files, data], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> RunConfig:
        """Checks plain data (a resolved Hydra config). Raises ConfigError."""
        data = json.loads(json.dumps(settings, default=str))
        _known("", data, _ALLOWED)
        for group in ("workload", "policy", "model", "system", "engine"):
            if not isinstance(data.get(group), dict):
                raise ConfigError(
                    f"{group}={data.get(group)!r} is not a group of settings; choose one by name, e.g. {group}=NAME"
                )
        _known("policy.", data["policy"], ("name", *POLICY_PARTS, *(f"{part}_args" for part in POLICY_PARTS)))
        _known("model.", data["model"], ("name", "path", "dtype", "weights", "seed", "tokenizer"))
        for group in ("workload", "policy", "model", "system"):
            _need(isinstance(data[group].get("name"), str), f"{group}.name", data[group].get("name"), "a name")
        policy = {"name": data["policy"]["name"]}
        for part in POLICY_PARTS:
            policy[part] = data["policy"].get(part)
            args = data["policy"].get(f"{part}_args") or {}
            _need(isinstance(args, dict), f"policy.{part}_args", args, f"settings, e.g. +policy.{part}_args.alpha=0.5")
            policy[f"{part}_args"] = args
        parallel, rate, repeats, seed = (data.get(key) for key in ("parallel", "rate", "repeats", "seed"))
        _need(
            parallel is None or (_whole(parallel) and parallel >= 1), "parallel", parallel, "a whole number, 1 or more"
        )
        _need(rate is None or (_number(rate) and rate > 0), "rate", rate, "programs per second, above 0")
        _need(_whole(repeats) and repeats >= 1, "repeats", repeats, "a whole number, 1 or more")
        _need(_whole(seed) and 0 <= seed < 2**31, "seed", seed, "a whole number from 0 to 2**31-1")
        for key in ("warmup", "force", "debug"):
            _need(isinstance(data.get(key), bool), key, data.get(key), "true or false")
        if parallel is not None and rate is not None:
            raise ConfigError(
                f"parallel={parallel} and rate={rate} were both given: a closed loop keeps parallel=N programs going, "
                "an open loop starts rate=R of them a second; give one"
            )
        cells = data.get("cells") or []
        _need(
            isinstance(cells, list), "cells", cells, "a list of overrides each, e.g. [['policy=lru'],['policy=fcfs']]"
        )
        return cls(
            workload=data["workload"]["name"],
            workload_args={key: value for key, value in data["workload"].items() if key != "name"},
            policy=policy,
            model=data["model"],
            system=data["system"],
            engine={key: value for key, value in data["engine"].items() if value is not None},
            parallel=parallel,
            rate=None if rate is None else float(rate),
            repeats=repeats,
            warmup=data["warmup"],
            seed=seed,
            outputs=Path(data["outputs"]),
            force=data["force"],
            debug=data["debug"],
            cells=tuple(tuple(cell) if isinstance(cell, list) else (str(cell),) for cell in cells),
            settings=data,
        )


_ALLOWED = (
    *("workload", "policy", "model", "system", "engine", "parallel", "rate", "repeats", "warmup", "seed"),
    *("outputs", "force", "debug", "cells"),
)


def label(value: Any) -> str:
    """A short form fit for a folder name: `path/to/mine.py:MyPolicy` is `MyPolicy`."""
    text = str(value)
    if outside_file(text) is not None or ".py:" in text:
        text = text.rsplit(":", 1)[1]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)


def outside_file(value: str) -> Path | None:
    """The file of `path/to/file.py:Class`; None when `value` isn't of that form."""
    path, colon, name = value.rpartition(":")
    return Path(path) if colon and path.endswith(".py") and name.isidentifier() else None


def _known(prefix: str, data: Mapping[str, Any], allowed: Iterable[str]) -> None:
    names = list(allowed)
    for key in data:
        if key not in names:
            raise ConfigError(f"unknown setting {prefix + key!r}{closest(key, names)} allowed: {', '.join(names)}")


def _need(ok: bool, name: str, value: Any, allowed: str) -> None:
    if not ok:
        raise ConfigError(f"{name}={value!r} is not allowed: it must be {allowed}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _strings(data: Any) -> list[str]:
    if isinstance(data, dict):
        return [text for value in data.values() for text in _strings(value)]
    if isinstance(data, list):
        return [text for value in data for text in _strings(value)]
    return [data] if isinstance(data, str) else []


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "unreadable"


def _bundle(name: str) -> dict[str, Any]:
    """The shipped bundle of that name; empty for a bundle from somebody's own configuration folder."""
    from omegaconf import OmegaConf

    path = Path(next(iter(conf.__path__))) / "policy" / f"{name}.yaml"
    if not path.is_file():
        return {}
    loaded: Any = OmegaConf.to_container(OmegaConf.load(path))
    return loaded.get("policy", loaded)
