"""The results on disk: one JSON file, written whole after every figure, and the Markdown table made of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.bench.gpu.figure import Figure, target_text, with_unit

JSON, MARKDOWN = "results.json", "results.md"
REHEARSAL = "This was a rehearsal on a CPU: it shows that every line runs. No figure below means anything."


class Results:
    """Reads and writes `results.json` in a folder. One process writes at a time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / JSON
        self.content: dict[str, Any] = {"stages": {}}
        if self.path.is_file():
            self.content = json.loads(self.path.read_text(encoding="utf-8"))

    def begin(self, stage: str, now: float, limit_s: float) -> None:
        fresh = {"status": "running", "begun": now, "limit_s": limit_s, "figures": [], "failures": [], "skipped": []}
        self.content["stages"][stage] = fresh
        self.write()

    def add(self, stage: str, figure: Figure) -> None:
        met = {"met": None} if self.content.get("rehearsal") else {}
        self.content["stages"][stage]["figures"].append({**figure.as_json(), **met})
        self.write()

    def failed(self, stage: str, case: str, why: str) -> None:
        self.content["stages"][stage]["failures"].append({"case": case, "why": why})
        self.write()

    def skipped(self, stage: str, case: str, why: str) -> None:
        self.content["stages"][stage]["skipped"].append({"case": case, "why": why})

    def end(self, stage: str, now: float, status: str = "done") -> None:
        entry = self.content["stages"][stage]
        entry["status"] = status
        entry["seconds"] = now - entry["begun"]
        self.write()

    def status(self, stage: str) -> str:
        return self.content["stages"].get(stage, {}).get("status", "waiting")

    def write(self) -> None:
        write_text(self.path, json.dumps(self.content, indent=1))
        write_text(self.path.with_name(MARKDOWN), markdown(self.content))

    @property
    def wrong(self) -> list[str]:
        """What makes the run fail: cases that raised, stages that didn't end. A missed target isn't among them."""
        found = []
        for name, stage in self.content["stages"].items():
            found += [f"{name}, {failure['case']}: {failure['why'].splitlines()[-1]}" for failure in stage["failures"]]
            if stage["status"] != "done":
                found.append(f"{name}: {stage['status']}")
        return found

    @property
    def missed(self) -> list[str]:
        """Targets that were missed, in words."""
        return [
            f"{name}, {figure['name']}: {_measured(figure)}, target {target_text(figure)}"
            for name, stage in self.content["stages"].items()
            for figure in stage["figures"]
            if figure["met"] is False
        ]


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def markdown(content: Mapping[str, Any]) -> str:
    """The tables, a section a stage."""
    environment = content.get("environment") or {}
    lines = [f"# {environment.get('gpu') or 'GPU benchmark'}, {content.get('date', '')}", ""]
    if content.get("rehearsal"):
        lines += [f"**{REHEARSAL}**", ""]
    lines += [", ".join(f"{name} {value}" for name, value in environment.items() if value is not None), ""]
    lines += [
        "A floor is the larger of bytes over the copy bandwidth and operations over the bf16 matrix rate, both "
        "measured in this run; bytes and operations are counted, not measured. Share = floor / time.",
        "",
    ]
    for name, stage in content["stages"].items():
        seconds = stage.get("seconds")
        took = "" if seconds is None else f", {seconds:.0f} s"
        lines += [f"## {name} ({stage['status']}{took})", "", *_table(stage["figures"])]
        lines += [f"- not run: {skip['case']}: {skip['why']}" for skip in stage["skipped"]]
        for failure in stage["failures"]:
            lines += [f"- failed: {failure['case']}", "", "  ```", *_indented(failure["why"]), "  ```"]
        lines.append("")
    return "\n".join(lines)


def _table(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    if not figures:
        return []
    lines = [
        "| what | measured | floor | share | target | met | others | error | note |",
        "|---|---:|---:|---:|---|---|---|---:|---|",
    ]
    for figure in figures:
        floor, share, error = figure["floor_s"], figure["share_of_floor"], figure["error"]
        others = "; ".join(f"{name} {with_unit(value, figure['unit'])}" for name, value in figure["beside"].items())
        cells = (
            figure["name"],
            with_unit(figure["value"], figure["unit"]),
            "" if floor is None else with_unit(floor, "s"),
            "" if share is None else f"{share:.1%}",
            target_text(figure),
            {True: "yes", False: "**no**", None: ""}[figure["met"]],
            others,
            "" if error is None else f"{error:.1e}",
            figure["note"],
        )
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def _measured(figure: Mapping[str, Any]) -> str:
    share = figure["share_of_floor"]
    if figure["target_is"] == "share" and share is not None:
        return f"{share:.1%} of the floor"
    return with_unit(figure["value"], figure["unit"])


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]
