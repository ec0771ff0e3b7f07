"""docs/add_a_model.md does what it says: a family of one file and one line gives the answers of transformers."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from engine.cost import PrefillCost
from engine.models import ModelError, families
from engine.models.config import config_from_hf
from engine.models.family import Family
from engine.models.load import load_gpu_model, load_model
from engine.models.weights import save_random, tensor_shapes
from tests.engine.gpu_twins import DEVICE, Driver, cuda_executor

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "add_a_model.md").read_text()
SNIPPETS = re.findall(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The table of families, put back afterwards."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    return families.FAMILIES


@pytest.fixture
def arcee(table: dict[str, str], tmp_path: Path) -> tuple[Any, Path]:
    """A model of transformers, and its folder."""
    table["arcee"] = "examples.arcee:ARCEE"
    torch.manual_seed(3)
    config = transformers.ArceeConfig(**SIZES, mlp_bias=True, attention_bias=True)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    return model.double(), tmp_path


def test_the_example_is_shown_as_it_is() -> None:
    shown = {file: text for _, file, text in SNIPPETS if file}
    assert shown == {"examples/arcee.py": (ROOT / "examples" / "arcee.py").read_text()}


def test_the_snippets_run_in_their_order(table: dict[str, str]) -> None:
    names: dict[str, Any] = {"__name__": "snippet"}
    python = [text for language, file, text in SNIPPETS if language == "python" and not file]
    assert len(python) == 2
    for snippet in python:
        exec(compile(snippet, "docs/add_a_model.md", "exec"), names)
    assert len(names["request"].output) == 20
    assert table["arcee"] == "examples.arcee:ARCEE"


def test_every_method_of_the_table_is_there() -> None:
    named = re.findall(r"^\| `(\w+)\(", PAGE, re.MULTILINE)
    assert named == ["read", "write", "mlp_shapes", "mlp", "mlp_gpu", "stored", "gpu_problem"]
    assert all(callable(getattr(Family, name)) for name in named)


def test_the_example_gives_the_logits_of_transformers_with_the_kernels(arcee: tuple[Any, Path]) -> None:
    model, folder = arcee
    tokens = [5, 17, 3, 99, 42, 8, 77, 60, 1, 2, 13]
    driver = Driver(cuda_executor(load_gpu_model(str(folder), "float32", device=DEVICE), n_pages=64))
    request = driver.request(tokens, prompt_logprobs=0)
    found = torch.cat([*driver.logits([(request, 0, 7)]), *driver.logits([(request, 7, 11)])])
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0]
    assert (found.double().cpu() - expected).abs().max() < 1e-4


def test_the_example_counts_what_a_token_is_multiplied_with(arcee: tuple[Any, Path]) -> None:
    model, folder = arcee
    config = load_model(str(folder)).config
    matrices = sum(w.numel() for name, w in model.named_parameters() if ".layers." in name and w.ndim == 2)
    assert config.n_layer_parameters == matrices
    assert PrefillCost.of(config, flops=1.0).per_token == 2 * matrices


def test_the_example_is_exported_as_transformers_reads_it(arcee: tuple[Any, Path], tmp_path: Path) -> None:
    config = config_from_hf({**SIZES, "model_type": "arcee", "architectures": ["ArceeForCausalLM"]})
    save_random(config, 4, torch.float32, tmp_path / "random")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "random")
    assert theirs.config.hidden_act == "relu2"
    assert {name: tuple(w.shape) for name, w in theirs.state_dict().items()} == tensor_shapes(config)
    with pytest.raises(ModelError, match=r"hidden_act='silu'.*'relu2'"):
        config_from_hf({**SIZES, "model_type": "arcee", "hidden_act": "silu"})


def test_installed_packages_bring_families(table: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("arcee", "examples.arcee:ARCEE", families.GROUP)
    monkeypatch.setattr(families, "entry_points", lambda group: [point] if group == families.GROUP else [])
    config = config_from_hf({**SIZES, "model_type": "arcee"})
    assert (config.family, type(config).__name__) == ("arcee", "ArceeConfig")
    with pytest.raises(ModelError, match=r"'gpt2'.*llama, .*mixtral, .*arcee"):
        config_from_hf({**SIZES, "model_type": "gpt2"})


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("examples.nothing:ARCEE", "can't be imported.*nothing"),
        ("examples.arcee:NOTHING", "can't be imported.*NOTHING"),
        ("examples.arcee:Arcee", r"engine\.models\.family\.Family"),
        ("engine.models.mixtral:MIXTRAL", "with that model_type"),
    ],
)
def test_a_line_that_names_no_family_is_told(table: dict[str, str], target: str, says: str) -> None:
    table["arcee"] = target
    with pytest.raises(ModelError, match=says):
        config_from_hf({**SIZES, "model_type": "arcee"})
