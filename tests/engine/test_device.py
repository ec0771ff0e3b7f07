"""Which device is chosen, and what is said when it can't be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine import device, make_engine
from engine.config import ConfigError, EngineConfig
from engine.device import choose_device, gpu_problem
from engine.models import ModelError
from engine.models.shapes import SHAPES

WIDE = replace(SHAPES["tiny"], head_dim=32)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a GPU into this machine, as far as the choice looks."""

    def put(capability: int, name: str = "NVIDIA Test") -> None:
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
        monkeypatch.setattr(device, "capability", lambda: capability)

    return put


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def config(**settings: Any) -> EngineConfig:
    return EngineConfig(**{"model": "llama-110m", **settings})


def test_without_a_gpu_auto_is_the_cpu(no_gpu: None) -> None:
    assert choose_device(config()) == "cpu"
    engine = make_engine(EngineConfig(pool_tokens=64))
    assert engine.executor.device == "cpu"
    assert engine.config.overlap is False


def test_auto_is_a_gpu_that_can_do_what_is_asked_else_the_cpu(gpu: Callable[..., None]) -> None:
    gpu(90)
    assert choose_device(config()) == "cuda"
    assert choose_device(config(weights="fp8")) == choose_device(config(weights="int8")) == "cuda"
    assert choose_device(config(dtype="float16", kv_dtype="fp8_e4m3", deterministic=True)) == "cuda"
    assert choose_device(config(device="cpu")) == "cpu"
    assert choose_device(config(dtype="float64")) == "cpu"
    assert choose_device(config(model="tiny")) == "cpu"  # heads of 16
    gpu(75)
    assert choose_device(config()) == "cpu"


@pytest.mark.parametrize(
    ("capability", "settings", "says"),
    [
        (75, {"device": "cuda"}, "NVIDIA Test is sm_75: the kernels need sm_80 or newer.*engine.device=cpu"),
        (75, {"dtype": "bf16", "deterministic": True}, "sm_75"),
        (86, {"kv_dtype": "fp8_e4m3"}, "fp8_e4m3 needs sm_89 or newer, NVIDIA Test is sm_86.*int8"),
        (90, {"device": "cuda", "dtype": "float64"}, "dtype=float64 isn't for GPUs: .*bfloat16.*engine.device=cpu"),
        (90, {"device": "cuda", "model": "tiny"}, "tiny has head_dim=16, the GPU kernels take 32 to 256"),
        (90, {"device": "cpu", "dtype": "float16"}, "dtype=float16 runs on a GPU only: .*float32"),
        (90, {"device": "cpu", "kv_dtype": "int8"}, "kv_dtype=int8 runs on a GPU only.*auto"),
        (86, {"weights": "fp8"}, "model.weights=fp8 needs sm_89 or newer, NVIDIA Test is sm_86.*model.weights=int8"),
        (90, {"device": "cpu", "weights": "fp8"}, "model.weights=fp8 runs on a GPU only.*model.weights=int8"),
        (90, {"device": "cpu", "deterministic": True}, "deterministic=true is for GPUs.*float64"),
    ],
)
def test_what_a_device_cannot_do_is_refused(
    gpu: Callable[..., None], capability: int, settings: dict[str, Any], says: str
) -> None:
    gpu(capability)
    with pytest.raises(ConfigError, match=says):
        choose_device(config(**settings))


def test_a_vocabulary_beyond_the_sampler_is_refused() -> None:
    assert gpu_problem(config(), WIDE, "", 90) is None
    why = gpu_problem(config(), replace(WIDE, vocab_size=2**19), "", 90)
    assert why is not None
    assert "vocab_size=524288" in why


@pytest.mark.parametrize(
    ("cuda", "says"), [(None, r"built without CUDA.*engine.device=cpu"), ("12.8", "sees no NVIDIA GPU.*nvidia-smi")]
)
def test_a_missing_gpu_is_explained(no_gpu: None, monkeypatch: pytest.MonkeyPatch, cuda: str | None, says: str) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(ConfigError, match=says):
        choose_device(config(device="cuda"))
    with pytest.raises(ConfigError, match=r"runs on a GPU only.*auto found no GPU"):
        choose_device(config(dtype="fp16"))


def test_a_missing_triton_is_explained(gpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(90)
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="triton isn't installed"):
        choose_device(config(device="cuda"))


def test_an_unknown_model_is_told_before_anything_else(gpu: Callable[..., None]) -> None:
    gpu(90)
    with pytest.raises(ModelError, match="no model 'nothing'"):
        choose_device(config(model="nothing"))
