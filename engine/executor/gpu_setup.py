"""From a configuration to a CUDA executor: whether the model fits, what the busiest step takes, a pool of the rest."""

from __future__ import annotations

import gc

import numpy as np
import torch

from engine.config import ConfigError, EngineConfig
from engine.executor.base import Batch, Row
from engine.executor.cuda import CudaExecutor
from engine.executor.eyes import ENCODINGS_BYTES
from engine.executor.gpu_graphs import ladder
from engine.executor.gpu_memory import Budget, check_weights, pool_pages
from engine.executor.gpu_pool import bytes_per_token, kv_dtype_named
from engine.models.llama_gpu import LlamaGpu
from engine.models.llava import vision_parameters
from engine.models.load import find_model, load_gpu_model
from engine.models.quantise import weight_bytes
from engine.models.weights import GPU_DTYPES, dtype_named, tensor_shapes
from engine.pictures import Picture, PlacedPicture, keys_of
from engine.request import Request, SamplingParams, Status

GRAPH_BYTES = 4 << 20
"""What the driver keeps for one graph of some hundred launches."""
WORST = SamplingParams(max_tokens=1, temperature=1.0, top_p=0.9, repetition_penalty=1.1, logprobs=1)
"""What takes most memory to sample."""
GREEDY = SamplingParams(max_tokens=1, temperature=0.0)
"""What is asked for most: other kernels, which no request should have to wait for."""


def load_and_set_up(config: EngineConfig) -> CudaExecutor:
    """Loads the model on the GPU and makes its executor. Raises ModelError, and ConfigError when it doesn't fit."""
    device = torch.device("cuda")
    shape, _ = find_model(config.model, config.model_seed, max_context=config.max_context)
    dtype = dtype_named(config.dtype, GPU_DTYPES)
    # What turns pictures into embeddings isn't quantised.
    needed = weight_bytes(tensor_shapes(shape), dtype, config.weights) + vision_parameters(shape) * dtype.itemsize
    free, _ = torch.cuda.mem_get_info()
    check_weights(needed, free, torch.cuda.get_device_name(), config.model)
    model = load_gpu_model(
        config.model,
        config.dtype,
        config.model_seed,
        device=device,
        deterministic=config.deterministic,
        kind=config.weights,
        max_context=config.max_context,
    )
    return set_up(model, config, device)


def set_up(model: LlamaGpu, config: EngineConfig, device: torch.device) -> CudaExecutor:
    """The executor of a loaded model, with a pool of `config.pool_tokens` or as large as memory allows.

    device: the model's; on the CPU (kernels under the interpreter) `pool_tokens` must be given.
    Raises ConfigError when the pool doesn't fit.
    """
    n_pages = None if config.pool_tokens is None else config.pool_tokens // config.page_size
    if device.type == "cuda":
        n_pages = _pages(model, config, device, n_pages)
    elif n_pages is None:
        raise ConfigError("engine.pool_tokens=null: without a GPU whose memory could be measured it must be given")
    return _executor(model, config, device, n_pages, cuda_graphs=config.cuda_graphs)


def _executor(
    model: LlamaGpu, config: EngineConfig, device: torch.device, n_pages: int, *, cuda_graphs: bool
) -> CudaExecutor:
    return CudaExecutor(
        model,
        n_pages=n_pages,
        page_size=config.page_size,
        device=device,
        max_running=config.max_running,
        kv_dtype=config.kv_dtype,
        cuda_graphs=cuda_graphs,
    )


def _pages(model: LlamaGpu, config: EngineConfig, device: torch.device, wanted: int | None) -> int:
    """As many as are wanted, if they fit; None: as many as fit."""
    step, decodes = _peak(model, config, device, config.max_batch_tokens), 0
    if config.cuda_graphs:
        decodes = _peak(model, config, device, config.max_running)
        decodes += 2 * len(ladder(config.max_running)) * GRAPH_BYTES
    free, total = torch.cuda.mem_get_info(device)
    if model.vision is not None:
        step += ENCODINGS_BYTES
    budget = Budget(total, total - free, step, decodes)
    stored = kv_dtype_named(config.kv_dtype, model.dtype)
    return pool_pages(
        budget,
        model.config,
        bytes_each=bytes_per_token(model.config, stored),
        page_size=config.page_size,
        memory_fraction=config.memory_fraction,
        name=torch.cuda.get_device_name(device),
        wanted=wanted,
    )


def _peak(model: LlamaGpu, config: EngineConfig, device: torch.device, n_tokens: int) -> int:
    """Bytes that an executor without a pool takes for a step of that many tokens.

    Compiles the kernels of such steps by the way, so that no request has to wait for that.
    """
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    executor = _executor(model, config, device, 1, cuda_graphs=False)
    for params in (WORST, GREEDY):
        busiest_step(executor, n_tokens, config.max_running, params)
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_reserved(device) - before
    del executor
    gc.collect()
    torch.cuda.empty_cache()
    return peak


def busiest_step(executor: CudaExecutor, n_tokens: int, max_running: int, params: SamplingParams = WORST) -> None:
    """Runs a step of `n_tokens` new tokens in `max_running` rows (fewer if need be), all over the pool's first page.

    Most rows decode at the end of a full context, the others are prompts: of a model that sees, all pictures as far as
    they fit. What is in the page afterwards means nothing.
    """
    longest = executor.max_context
    n_decodes = min(max_running, n_tokens)
    if n_tokens > n_decodes:
        n_decodes = max(0, max_running - -(-n_tokens // longest))
    rows = [_row(executor, longest - 1, 1, params) for _ in range(n_decodes)]
    left = n_tokens - n_decodes
    while left > 0 and len(rows) <= max_running:
        rows.append(_row(executor, 0, min(left, longest), params))
        left -= longest
    executor.collect(executor.sample(executor.launch(Batch(0, tuple(rows)))))
    for row in rows:
        row.request.status = Status.FINISHED


def _row(executor: CudaExecutor, start: int, n_new: int, params: SamplingParams) -> Row:
    tokens = np.zeros(start + n_new, np.int64)
    pages = np.zeros(-(-len(tokens) // executor.page_size), np.int32)
    request = Request(
        id=-1, key=tokens, params=params, tokens=tokens, n_tokens=len(tokens), pages=pages, status=Status.RUNNING
    )
    vision = executor.model.config.vision
    if vision is not None and start == 0 and n_new > vision.n_tokens:
        blank = Picture(b"blank", np.zeros((3, vision.image_size, vision.image_size), np.float32))
        firsts = range(0, n_new - vision.n_tokens, vision.n_tokens)  # the last token isn't a picture's
        request.pictures = tuple(PlacedPicture(first, vision.n_tokens, blank) for first in firsts)
        tokens[: len(firsts) * vision.n_tokens] = np.tile(keys_of(blank, vision.n_tokens), len(firsts))
    return Row(request, start, n_new, sample=True)
