"""Which device an engine runs on, and why it can't run on another."""

from __future__ import annotations

import importlib.util

import torch

from engine.config import ConfigError, EngineConfig
from engine.models.config import ModelConfig
from engine.models.families import family_named
from engine.models.load import find_model
from engine.models.weights import DTYPES, GPU_DTYPES

LEAST_CAPABILITY = 80
"""Asynchronous copies and bfloat16 matrix instructions come with sm_80 (A100, RTX 30, A10)."""
FP8_CAPABILITY = 89


def choose_device(config: EngineConfig) -> str:
    """`cpu` or `cuda`. `auto` is a GPU where there is one that can do what is asked, else the CPU.

    Raises ConfigError when the device can't do what is asked, ModelError when the model isn't to be found.
    """
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        if (why := cpu_problem(config)) is not None:
            raise ConfigError(why)
        return "cpu"
    why = missing_gpu()
    if why is None:
        model, _ = find_model(config.model, config.model_seed, max_context=config.max_context)
        why = gpu_problem(config, model, torch.cuda.get_device_name(), capability())
    if why is None:
        return "cuda"
    if config.device == "auto" and cpu_problem(config) is None:
        return "cpu"
    raise ConfigError(why)


def capability() -> int:
    """Of the GPU: 80, 86, 89, 90, ..."""
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def cpu_problem(config: EngineConfig) -> str | None:
    """Why the CPU can't do what is asked."""
    if config.dtype in GPU_DTYPES and config.dtype not in DTYPES:
        return (
            f"model.dtype={config.dtype} runs on a GPU only: on the CPU choose one of {', '.join(DTYPES)}"
            f"{_no_gpu(config)}"
        )
    if config.weights == "fp8":
        return f"model.weights=fp8 runs on a GPU only: on the CPU use model.weights=int8 or null{_no_gpu(config)}"
    if config.kv_dtype != "auto":
        return f"engine.kv_dtype={config.kv_dtype} runs on a GPU only: on the CPU leave it at auto{_no_gpu(config)}"
    if config.deterministic:
        return (
            "engine.deterministic=true is for GPUs; on the CPU use model.dtype=float64, whose answers don't depend on "
            f"the batch either{_no_gpu(config)}"
        )
    return None


def missing_gpu() -> str | None:
    """Why there is no GPU to run on."""
    if torch.version.cuda is None:
        return (
            f"engine.device=cuda: this PyTorch ({torch.__version__}) is built without CUDA; install a CUDA build "
            "(https://pytorch.org), or use engine.device=cpu"
        )
    if not torch.cuda.is_available():
        return (
            "engine.device=cuda: PyTorch sees no NVIDIA GPU; look at `nvidia-smi` and CUDA_VISIBLE_DEVICES, or use "
            "engine.device=cpu"
        )
    if importlib.util.find_spec("triton") is None:
        return "engine.device=cuda: the package triton isn't installed; `pip install triton`, or use engine.device=cpu"
    return None


def gpu_problem(config: EngineConfig, model: ModelConfig, name: str, capability: int) -> str | None:
    """Why that GPU can't do what is asked."""
    if capability < LEAST_CAPABILITY:
        return (
            f"{name} is sm_{capability}: the kernels need sm_{LEAST_CAPABILITY} or newer (A100, A10, RTX 30 and on); "
            "use another GPU, or engine.device=cpu"
        )
    if config.dtype not in GPU_DTYPES:
        return f"model.dtype={config.dtype} isn't for GPUs: choose one of {', '.join(GPU_DTYPES)}, or engine.device=cpu"
    if config.kv_dtype == "fp8_e4m3" and capability < FP8_CAPABILITY:
        return (
            f"engine.kv_dtype=fp8_e4m3 needs sm_{FP8_CAPABILITY} or newer, {name} is sm_{capability}: use "
            "engine.kv_dtype=int8 or auto"
        )
    if config.weights == "fp8" and capability < FP8_CAPABILITY:
        return (
            f"model.weights=fp8 needs sm_{FP8_CAPABILITY} or newer, {name} is sm_{capability}: use model.weights=int8"
        )
    from engine.kernels.kv_load import HEAD_DIMS
    from engine.kernels.sample import MAX_VOCAB

    for what, size, allowed in (
        ("head_dim", model.head_dim, HEAD_DIMS),
        ("vocab_size", model.vocab_size, range(1, MAX_VOCAB + 1)),
    ):
        if size not in allowed:
            return (
                f"{config.model} has {what}={size}, the GPU kernels take {allowed[0]} to {allowed[-1]}: use another "
                "model, or engine.device=cpu"
            )
    return family_named(model.family).gpu_problem(deterministic=config.deterministic)


def _no_gpu(config: EngineConfig) -> str:
    return " (engine.device=auto found no GPU that could do it)" if config.device == "auto" else ""
