"""`docs/kernels_compiled.md`: what every kernel compiles to with its default tiles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby

import triton

from engine.kernels.chips import CHIPS, KIB
from engine.kernels.inspection import DEFAULT, Finding

COLUMNS = (
    "case",
    "kernel",
    "chip",
    "tile",
    "registers",
    "spills",
    "shared KiB",
    "blocks",
    "matrix instructions",
    "asynchronous copies",
    "16-byte / narrower",
)
TITLE = "# What the kernels compile to"
VERSION = "Compiled by Triton "


def cells(found: Finding) -> list[str]:
    """One row, for a launch that compiled."""
    code = found.code
    assert code is not None
    return [
        found.case if found.choice == DEFAULT else f"{found.case} ({found.choice})",
        code.kernel,
        f"sm_{found.capability}",
        found.tile,
        str(code.registers),
        str(code.spills),
        f"{code.shared / KIB:.1f}",
        str(code.blocks),
        _counts(code.matrix),
        _counts(code.copies),
        f"{code.wide} / {code.narrow}",
    ]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "-"


def row(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"


def page(findings: Iterable[Finding]) -> str:
    """The page, from findings of all kernel files in their order."""
    findings = list(findings)
    chips = [f"sm_{chip} ({CHIPS[chip].example})" for chip in sorted({found.capability for found in findings})]
    lines = [
        TITLE,
        "",
        f"{VERSION}{triton.__version__} with the default tiles for {', '.join(chips)}; not run.",
        "Written by `python -m engine.kernels.inspect --write`. Instructions are counted in the code, loops once:",
        "matrix products, asynchronous copies from device to shared memory, accesses to device memory of 16 bytes a",
        "thread and of less. `blocks` is how many programs one processor holds at once. Cases with the same code share",
        "a row.",
    ]
    for file, of_file in groupby(findings, lambda found: found.file):
        lines += ["", f"## {file}", "", row(COLUMNS), row("---" for _ in COLUMNS), *table_rows(of_file)]
    return "\n".join([*lines, ""])


def table_rows(findings: Iterable[Finding]) -> list[str]:
    """Of the default tiles. Of cases that have the same code, the first stands for all."""
    rows: dict[tuple[str, ...], str] = {}
    for found in findings:
        if found.code and found.choice == DEFAULT:
            texts = cells(found)
            rows.setdefault(tuple(texts[1:]), row(texts))
    return list(rows.values())


def version_on(page: str) -> str:
    """The version of Triton whose code a page describes."""
    return page.partition(VERSION)[2].split()[0]


def rows_on(page: str, file: str, capability: int) -> list[str]:
    """Those of one kernel file and chip."""
    section = page.partition(f"\n## {file}\n")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if f" | sm_{capability} | " in line]
