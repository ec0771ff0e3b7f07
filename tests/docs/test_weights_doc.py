"""docs/weights.md: its snippet runs and prints what it says, its figures are those of the results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
RESULTS: dict[str, Any] = json.loads((ROOT / "experiments" / "results" / "quantised.json").read_text())


def test_the_snippet_runs_and_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    exec(compile(snippet, "docs/weights.md", "exec", dont_inherit=True), {"__name__": "snippet"})
    said = snippet.rstrip().rpartition("# ")[2]
    assert capsys.readouterr().out.strip() == said


SHOWN = [
    row
    for row in RESULTS["loss"]
    if row["variant"] != "float32" and (row["model"], row["variant"]) != ("llama-110m", "int8, float32")
]


@pytest.mark.parametrize("row", SHOWN, ids=lambda row: f"{row['model']}, {row['variant']}")
def test_losses_are_those_of_the_results(row: dict[str, Any]) -> None:
    trained, random = PAGE.partition("| llama-110m")[0], PAGE.partition("| llama-110m")[2]
    page = trained if row["model"] == "stories260k" else random
    kind, _, dtype = row["variant"].partition(", ")
    what = f"{kind}, computed in {dtype}" if dtype else kind
    (line,) = [line for line in page.splitlines() if f"{what} |" in line][:1]
    mantissa, exponent = f"{row['kl']['value']:.1e}".split("e")
    assert f"| {mantissa}e{int(exponent)} |" in line
    assert f"| {row['top_1']['value']:.1%} |".replace("%", " %") in line
    if row["perplexity"] is not None:
        ratio = row["perplexity_ratio"]
        assert f"{ratio['value']:.4f} [{ratio['low']:.4f}, {ratio['high']:.4f}]" in line


def test_speeds_are_those_of_the_results() -> None:
    told = " ".join(PAGE.split())
    for row in RESULTS["speed"]:
        if row["variant"] == "int8, bfloat16":
            for what in ("prefill", "decode"):
                ratio = row[f"{what}_over_dtype"]
                assert f"{what} {ratio['value']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]" in told
