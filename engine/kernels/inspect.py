"""Compiles every kernel for chips that needn't be there, checks the code and shows it: no GPU is needed.

    python -m engine.kernels.inspect [--kernel NAME] [--chips 80 86 90 100] [--all-tiles] [--json FILE] [--write]

Ends with 1 if a chosen tile spills, needs more shared memory than a block may have, or multiplies matrices without the
matrix units, and says which; with 2 if nothing could be inspected. `--write` writes `docs/kernels_compiled.md`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import triton
from rich.console import Console
from rich.progress import track
from rich.table import Table

from engine.kernels.catalogue import NAMES
from engine.kernels.chips import CHIPS
from engine.kernels.compiled_table import COLUMNS, cells, page, table_rows
from engine.kernels.inspection import Finding, inspect

WRITTEN_CHIPS = (80, 86, 90, 100)
LEGIBLE = 200
"""Characters of a row."""
PAGE = Path(__file__).parents[2] / "docs" / "kernels_compiled.md"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if triton.knobs.runtime.interpret:
        print(
            "TRITON_INTERPRET is set: interpreted kernels can't be compiled. Unset it and run again.", file=sys.stderr
        )
        return 2
    if options.write and (options.kernel or options.chips != list(WRITTEN_CHIPS)):
        print("--write writes the table of all kernels and chips: leave out --kernel and --chips", file=sys.stderr)
        return 2
    findings = list(
        track(
            inspect(options.kernel or NAMES, options.chips, all_tiles=options.all_tiles, processes=options.processes),
            description="compiling",
            console=Console(stderr=True),
            transient=True,
        )
    )
    if options.json:
        options.json.write_text(json.dumps(as_json(findings), indent=1), encoding="utf-8")
    else:
        Console(width=max(Console().width, LEGIBLE)).print(_table(findings))
    if options.write:
        PAGE.write_text(page(findings), encoding="utf-8")
    return _verdict(findings)


def as_json(findings: Sequence[Finding]) -> dict[str, object]:
    return {
        "triton": triton.__version__,
        "findings": [found._asdict() | {"code": found.code and found.code._asdict()} for found in findings],
        "rows": {file: table_rows(found for found in findings if found.file == file) for file in NAMES},
    }


def _verdict(findings: Sequence[Finding]) -> int:
    wrong = [(found, problem) for found in findings for problem in found.problems]
    for found, problem in wrong:
        name = found.code.kernel if found.code else found.file
        print(f"{name} [{found.case}] sm_{found.capability}, {found.choice} {found.tile}: {problem}", file=sys.stderr)
    print(f"{len(findings)} launches compiled, {len(wrong)} problems", file=sys.stderr)
    if not findings:
        return 2
    return 1 if wrong else 0


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(*COLUMNS, title=f"compiled by Triton {triton.__version__}")
    for found in findings:
        if found.code:
            table.add_row(*cells(found), style="red" if found.problems else "")
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m engine.kernels.inspect", description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", action="append", choices=NAMES, help="only this kernel file; may be repeated")
    parser.add_argument("--chips", nargs="+", type=int, choices=sorted(CHIPS), default=list(WRITTEN_CHIPS))
    parser.add_argument("--all-tiles", action="store_true", help="all tiles that tuning may choose, too")
    parser.add_argument("--json", type=Path, help="write what was found there instead of a table")
    parser.add_argument("--write", action="store_true", help="write docs/kernels_compiled.md")
    parser.add_argument("--processes", type=int, default=2)
    return parser


if __name__ == "__main__":
    sys.exit(main())
