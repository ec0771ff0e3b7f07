"""Weights: drawn from a seed, exported, read back, and refused when anything about them is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from engine import hub
from engine.models import ModelError, load_model
from engine.models import weights as weights_module
from engine.models.config import ModelConfig
from engine.models.shapes import SHAPES, named_shape
from engine.models.weights import RandomWeights, save_random, tensor_shapes

SMALL = replace(SHAPES["tiny"], n_layers=1, hidden_size=48, n_heads=3, n_kv_heads=1, tied_embeddings=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_random(SMALL, 3, torch.float32, tmp_path / "model")
    return tmp_path / "model"


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_the_same_seed_gives_the_same_weights() -> None:
    name, shape = "model.layers.0.mlp.up_proj.weight", (7, 5)
    first, again, other = (RandomWeights(seed).get(name, shape) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, RandomWeights(1).get("model.layers.1.mlp.up_proj.weight", shape))


def test_named_shapes_have_the_sizes_they_promise() -> None:
    def parameters(config: ModelConfig) -> int:
        return sum(torch.Size(shape).numel() for shape in tensor_shapes(config).values())

    assert 100_000 < parameters(SHAPES["tiny"]) < 1_000_000
    assert parameters(SHAPES["llama-110m"]) == 124_668_672
    assert 6.5e9 < parameters(SHAPES["llama-7b"]) < 7e9
    assert load_model("tiny", vocab_size=300).config.vocab_size == 300
    with pytest.raises(ModelError, match=r"did you mean 'tiny'.*llama-110m"):
        named_shape("tinny")


def test_transformers_loads_the_same_weights_from_an_export(folder: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, RandomWeights(3).get(name, tuple(tensor.shape)))
    ours = load_model(str(folder))
    assert ours.config == replace(SMALL, max_context=SMALL.max_position_embeddings)


@pytest.mark.parametrize("shard_size", ["20KB", "60KB"])
def test_shards_hold_the_same_model_as_one_file(folder: Path, tmp_path: Path, shard_size: str) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size=shard_size)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    one, many = load_model(str(folder), "float64"), load_model(str(tmp_path / "shards"), "float64")
    assert torch.equal(one.blocks[0].mlp.down.weight, many.blocks[0].mlp.down.weight)
    assert torch.equal(one.head.weight, many.head.weight)

    shard = sorted((tmp_path / "shards").glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(ModelError, match=f"{shard.name}.*missing"):
        load_model(str(tmp_path / "shards"))
    (tmp_path / "shards" / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ModelError, match="index"):
        load_model(str(tmp_path / "shards"))


def test_a_missing_tensor_is_named(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.__delitem__("model.layers.0.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"'model.layers.0.mlp.up_proj.weight' is missing"):
        load_model(str(folder))


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(47)}))
    with pytest.raises(ModelError, match=r"model.safetensors.*'model.norm.weight'.*\[47\].*\[48\]"):
        load_model(str(folder))


def test_integer_weights_are_refused(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(48, dtype=torch.int8)}))
    with pytest.raises(ModelError, match=r"model.norm.weight.*quantised"):
        load_model(str(folder))


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_file_is_named(folder: Path, damage: str) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes({"truncated": data[: len(data) // 2], "garbage": b"\xff" * 4096, "empty": b""}[damage])
    with pytest.raises(ModelError, match=r"model.safetensors: truncated or corrupt"):
        load_model(str(folder))


def test_pickle_files_are_never_loaded(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"pytorch_model.bin.*never loaded"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("contents", "message"), [("{", "JSON"), ("[]", "object"), ('{"model_type": "gpt2"}', "gpt2"), (None, "missing")]
)
def test_a_bad_config_is_named(folder: Path, contents: str | None, message: str) -> None:
    path = folder / "config.json"
    path.unlink() if contents is None else path.write_text(contents)
    with pytest.raises(ModelError, match=message):
        load_model(str(folder))


def test_a_config_for_another_size_is_caught(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 100}))
    with pytest.raises(ModelError, match=r"mlp.gate_proj.weight"):
        load_model(str(folder))


@pytest.mark.parametrize("name", ["/no/such/folder", "./here", "nothing", "a/b/c"])
def test_what_is_no_model_is_said_to_be_none(name: str) -> None:
    with pytest.raises(ModelError, match=f"no model .*{name}.*tiny, llama-110m"):
        load_model(name)


def test_a_file_is_no_model(folder: Path) -> None:
    with pytest.raises(ModelError, match="this is a file"):
        load_model(str(folder / "config.json"))


def test_a_hub_out_of_reach_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(name: str, patterns: Any) -> Path:
        raise hub.HubError(f"{name!r} is out of reach")

    monkeypatch.setattr(hub, "fetch", fetch)
    with pytest.raises(ModelError, match=r"owner/model.*out of reach"):
        load_model("owner/model")


def test_a_hub_model_is_loaded_from_where_it_was_put(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "fetch", lambda *_: folder)
    assert load_model("owner/model").config.hidden_size == SMALL.hidden_size


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'float8'.*bfloat16"):
        load_model("tiny", "float8")


def test_a_full_disk_leaves_no_half_written_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: Any, path: Path, metadata: Any = None) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights_module, "save_file", full)
    with pytest.raises(ModelError, match="No space left"):
        save_random(SMALL, 0, torch.float32, tmp_path / "model")
    assert list((tmp_path / "model").iterdir()) == []
    shutil.rmtree(tmp_path / "model")


def test_only_what_can_be_exported_truly_is(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="sliding windows"):
        save_random(replace(SMALL, windows=(8,)), 0, torch.float32, tmp_path)
