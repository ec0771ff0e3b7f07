"""An engine for this machine, from its configuration. The one place where torch and a model come in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.clock import Clock
from engine.config import EngineConfig
from engine.cost import PrefillCost
from engine.engine import Engine
from engine.pictures import PictureReader
from engine.tokenizer import Tokenizer, builtin_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from engine.executor.cpu import CpuExecutor
    from engine.executor.cuda import CudaExecutor
    from engine.models.config import ModelConfig


def make_engine(config: EngineConfig, *, clock: Clock | None = None, keep_history: bool = True) -> Engine:
    """An engine on this machine's hardware for `config.model`. Imports torch.

    `keep_history`: see `Engine`. Raises ModelError, TokenizerError, PolicyError or ConfigError.
    """
    from engine.device import choose_device

    executor = _cuda_executor(config) if choose_device(config) == "cuda" else _cpu_executor(config)
    model = executor.model.config
    cost = PrefillCost.of(model)
    return Engine(
        executor,
        _tokenizer(config),
        config,
        clock=clock,
        eos=model.eos_token_ids,
        cost=cost,
        keep_history=keep_history,
        pictures=_pictures(config, model),
    )


def _pictures(config: EngineConfig, model: ModelConfig) -> PictureReader | None:
    """What reads pictures for the model, if it sees."""
    if model.vision is None:
        return None
    from engine.models.load import model_folder
    from engine.models.preprocess import picture_reader
    from engine.models.shapes import SHAPES

    return picture_reader(model, None if config.model in SHAPES else model_folder(config.model))


def _cpu_executor(config: EngineConfig) -> CpuExecutor:
    from engine.executor.cpu import CpuExecutor, default_pool_tokens
    from engine.models.load import load_model

    model = load_model(
        config.model, config.dtype, config.model_seed, kind=config.weights, max_context=config.max_context
    )
    tokens = config.pool_tokens if config.pool_tokens is not None else default_pool_tokens(model.config, model.dtype)
    return CpuExecutor(model, n_pages=tokens // config.page_size, page_size=config.page_size)


def _cuda_executor(config: EngineConfig) -> CudaExecutor:
    from engine.executor.gpu_setup import load_and_set_up

    return load_and_set_up(config)


def _tokenizer(config: EngineConfig) -> Tokenizer:
    """The one that is named; else the model folder's own; else, for random weights, the built-in one."""
    from engine.models.shapes import SHAPES

    if config.tokenizer is not None:
        return load_tokenizer(config.tokenizer)
    return builtin_tokenizer() if config.model in SHAPES else load_tokenizer(config.model)
