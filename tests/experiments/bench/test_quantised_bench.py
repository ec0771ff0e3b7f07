"""The benchmark of 8-bit weights measures the loss that transformers would, and its file says what was run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.models.quantise import is_quantised
from engine.models.weights import RandomWeights
from experiments.bench.quantised import main
from experiments.bench.quantised_loss import (
    EXACT,
    VARIANTS,
    Dequantised,
    Variant,
    bytes_of,
    load,
    losses,
    random_texts,
    stories,
)
from experiments.bench.quantised_speed import Load, rounds_of

SMALLEST = ["--shape=tiny", "--texts=2", "--text-tokens=12", "--prompt-tokens=9", "--new-tokens=3", "--rounds=1"]


def test_it_runs_without_a_trained_model_and_writes_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RADIXLAB_MODELS", raising=False)
    out = tmp_path / "results" / "quantised.json"
    assert main([*SMALLEST, f"--out={out}"]) == 0
    content: dict[str, Any] = json.loads(out.read_text())
    loss = {row["variant"]: row for row in content["loss"]}
    assert list(loss) == [variant.name for variant in VARIANTS]
    assert all(row["n_positions"] == 2 * 11 and row["perplexity"] is None for row in loss.values())
    assert loss["float32"]["kl"]["value"] == 0
    assert 0 < loss["int8, float32"]["kl"]["value"] < loss["fp8, float32"]["kl"]["value"]
    assert loss["int8, bfloat16"]["weight_bytes"] < loss["bfloat16"]["weight_bytes"] < loss["float32"]["weight_bytes"]
    speed = {(row["variant"], row["batch"]) for row in content["speed"]}
    assert speed == {(v.name, batch) for v in VARIANTS if v.kind != "fp8" for batch in (1, 8)}
    assert all(row["prefill_s"][0] > 0 and row["decode_s"][0] > 0 for row in content["speed"])


def test_a_folder_without_the_trained_model_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALLEST, f"--models={tmp_path}"]) == 1
    assert "stories260k" in capsys.readouterr().out


def test_perplexity_and_divergence_are_those_of_transformers(models_dir: Path) -> None:
    folder = models_dir / "stories260k"
    int8 = Variant("int8, float32", "float32", "int8")
    models = [load(str(folder), variant) for variant in (EXACT, int8)]
    texts = stories(models[0], folder, 2, max_tokens=30)
    assert len(texts) == 3
    exact, found = losses(models, texts, trained=True)

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    rounded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            if is_quantised(name):
                parameter.copy_(Dequantised(_Of(parameter), "int8").get(name, tuple(parameter.shape)))
        nll, kl, same = [], [], []
        for text in texts:
            ids = torch.from_numpy(text)[None]
            p, q = (torch.log_softmax(model(ids).logits[0, :-1].double(), -1) for model in (theirs, rounded))
            nll.append(-p.gather(1, ids[0, 1:, None]))
            kl.append((p.exp() * (p - q)).sum(-1))
            same.append(p.argmax(-1) == q.argmax(-1))
    assert exact.perplexity == pytest.approx(math.exp(torch.cat(nll).mean()), rel=1e-5)
    assert found.kl.value == pytest.approx(torch.cat(kl).mean().item(), rel=1e-2)
    assert found.top_1.value == pytest.approx(torch.cat(same).double().mean().item(), abs=0.02)
    assert found.perplexity is not None
    assert found.perplexity_ratio.value == pytest.approx(found.perplexity / exact.perplexity)


class _Of:
    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def has(self, name: str) -> bool:
        return True

    def get(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return self._tensor


def test_a_story_continues_the_models_own_and_each_seed_has_another(models_dir: Path) -> None:
    folder = models_dir / "stories260k"
    known, first, second = stories(load(str(folder), EXACT), folder, 2, max_tokens=20)
    assert known[0] == first[0] == second[0] == 1
    assert len(first) == len(second) == 21
    assert first.tolist() != second.tolist()
    assert len(known) > 100


def test_fp8_is_computed_from_the_weights_as_they_are_after_quantising() -> None:
    model = load("tiny", Variant("fp8", "float32", "fp8"))
    assert all(block.mlp.down.scale is None for block in model.blocks)
    plain = RandomWeights(0).get("model.layers.0.mlp.down_proj.weight", (96, 256))
    rounded = Dequantised(RandomWeights(0), "fp8").get("model.layers.0.mlp.down_proj.weight", (96, 256))
    assert 0 < (rounded - plain).abs().max() <= plain.abs().max() / 16
    x = torch.eye(256)
    assert torch.allclose(model.blocks[0].mlp.down(x), rounded.T, atol=1e-6)


def test_decodes_and_prompts_are_timed_apart() -> None:
    runs = rounds_of({"a": load("tiny", EXACT), "b": load("tiny", VARIANTS[2])}, Load(2, 8, 4), 2)
    assert {name: len(found) for name, found in runs.items()} == {"a": 2, "b": 2}
    assert all(run.prefill > 0 and run.decode > 0 for found in runs.values() for run in found)


def test_bytes_are_of_what_is_stored() -> None:
    whole, in_8_bits = (bytes_of("llama-110m", variant) for variant in (VARIANTS[1], VARIANTS[3]))
    embedding = 2 * 32000 * 768
    assert whole == 2 * 124_668_672
    assert in_8_bits == pytest.approx(embedding + (whole - embedding) / 2, rel=5e-3)
    assert len(random_texts(512, 3, 7)[2]) == 7
