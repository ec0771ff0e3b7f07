"""The benchmark against transformers, on a small shape and a few prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.models.shapes import SHAPES
from experiments.bench import peer_hf
from experiments.bench.radix_prompts import mmlu_prompts


def test_prompts_are_those_of_the_published_figures(data_dir: Path) -> None:
    prompts = mmlu_prompts(data_dir)
    assert (len(prompts), sum(map(len, prompts))) == (120, 58_464)


def test_both_systems_agree_and_the_result_is_written(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES, "small", replace(SHAPES["tiny"], vocab_size=32000))
    out = tmp_path / "deep" / "result.json"
    arguments = ["--data", str(data_dir), "--model", "small", "--requests", "5", "--rounds", "2", "--out", str(out)]
    assert peer_hf.main([*arguments, "--dtypes", "float32", "--new-tokens", "3"]) == 0
    result = json.loads(out.read_text())
    assert [cell["system"] for cell in result["cells"]] == ["ours, cache on", "ours, cache off", "transformers"]
    on, off, theirs = result["cells"]
    assert on["first_tokens_equal"] == off["first_tokens_equal"] == 5
    assert on["prompt_tokens_computed"] < off["prompt_tokens_computed"] == result["prompt_tokens"]
    assert theirs["times_transformers"] == pytest.approx(1.0)
    assert result["environment"]["torch"]
    assert [path.name for path in out.parent.iterdir()] == ["result.json"]


def test_wrong_first_tokens_are_found(data_dir: Path) -> None:
    prompts = mmlu_prompts(data_dir)[:2]
    model = peer_hf.load_model("tiny", vocab_size=32000)
    ours = peer_hf.OursOnCpu(model, "none", prompts, 4096)
    run = ours(prompts, 1)
    assert peer_hf.disagreements(run, run, prompts, ours, 1e-3) == []
    other = run._replace(outputs=[[(run.outputs[0][0] + 1) % 32000], run.outputs[1]])
    (wrong,) = peer_hf.disagreements(run, other, prompts, ours, 1e-3)
    assert wrong.startswith("prompt 0:")


def test_without_data_it_says_what_to_give(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)
    assert peer_hf.main([]) == 1
    assert "--data" in capsys.readouterr().out
