"""The benchmark of a layer of experts, on a small shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.bench import moe


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_systems_find_the_same_and_the_result_is_written(tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "deep" / "moe.json"
    arguments = ["--model", "mixtral-tiny", "--tokens", "1", "20", "--rounds", "2", "--least-s", "0", "--out", str(out)]
    assert moe.main([*arguments, "--dtypes", dtype]) == 0
    result = json.loads(out.read_text())
    names = [moe.OURS, "token by token", "transformers: grouped_mm", "transformers: eager"]
    assert [(cell["tokens"], cell["system"]) for cell in result["cells"]] == [(n, s) for n in (1, 20) for s in names]
    for cell in result["cells"]:
        assert (cell["error"] is None) == (cell["compared_tokens"] == 0)
        assert cell["error"] is None or cell["error"] < moe.TOLERANCE[dtype]
        assert len(cell["seconds"]) == 2
        assert (cell["times_ours"] == pytest.approx(1.0)) or cell["system"] != moe.OURS
    assert result["cells"][-1]["compared_tokens"] > 15


def test_a_layer_that_is_wrong_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(moe.SparseMoE, "plus", lambda *given: given[-1] * 1.5)
    arguments = ["--model", "mixtral-tiny", "--tokens", "20", "--rounds", "2", "--least-s", "0"]
    assert moe.main([*arguments, "--out", str(tmp_path / "moe.json")]) == 1
    assert "float32, 20 tokens, ours: grouped" in capsys.readouterr().out
