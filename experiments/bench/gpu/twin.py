"""transformers over the very tensors of our model, and its continuous batching."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.clock import stopwatch
from engine.models.config import config_to_hf
from engine.models.llama_gpu import LlamaGpu, SwiGLU
from engine.request import Tokens

NO_END = -1
"""End-of-sequence id that no token has."""
BLOCK_TOKENS = 256
"""transformers' own size of a page."""
SPARE_BLOCKS = 8


class PeerRun(NamedTuple):
    seconds: float
    """From the first request made to the last one finished, as transformers stamps them."""
    whole_s: float
    """Of the call, its thread's start and stop included."""
    outputs: list[list[int]]


Serve = Callable[[Sequence[Tokens], int], PeerRun]


def twin(model: LlamaGpu) -> Any:
    """A LlamaForCausalLM that shares the weights: views of our joined projections, nothing is copied."""
    from transformers import LlamaConfig, LlamaForCausalLM

    contents = config_to_hf(model.config, str(model.dtype).removeprefix("torch."))
    config = LlamaConfig(**{k: v for k, v in contents.items() if k not in ("architectures", "model_type")})
    with torch.device("meta"):
        peer = LlamaForCausalLM(config)
    peer.load_state_dict(dict(tensors(model)), assign=True)
    # Its buffers are made from the configuration and in no state: they are still without memory.
    peer.model.rotary_emb = type(peer.model.rotary_emb)(config).to(model.device)
    left = [name for name, tensor in [*peer.named_parameters(), *peer.named_buffers()] if tensor.is_meta]
    if left:
        raise RuntimeError(f"these tensors of transformers' model have no memory: {', '.join(left)}")
    return peer.eval()


def tensors(model: LlamaGpu) -> Iterator[tuple[str, Tensor]]:
    """Our weights by their Hugging Face names."""
    c = model.config
    queries, keys = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    yield "model.embed_tokens.weight", model.embedding
    yield "model.norm.weight", model.norm
    yield "lm_head.weight", weight_of(model.head)  # the embedding where they are tied
    for i, block in enumerate(model.blocks):
        at = f"model.layers.{i}"
        yield f"{at}.input_layernorm.weight", block.attention_norm
        yield f"{at}.post_attention_layernorm.weight", block.mlp_norm
        q, k, v = weight_of(block.qkv).split([queries, keys, keys])
        yield from ((f"{at}.self_attn.{name}_proj.weight", part) for name, part in zip("qkv", (q, k, v)))
        yield f"{at}.self_attn.o_proj.weight", weight_of(block.out)
        if not isinstance(block.mlp, SwiGLU):
            raise TypeError(f"layer {i} is no SwiGLU block; transformers' Llama has no other")
        gate, up = weight_of(block.mlp.gate_up).chunk(2)
        yield f"{at}.mlp.gate_proj.weight", gate
        yield f"{at}.mlp.up_proj.weight", up
        yield f"{at}.mlp.down_proj.weight", weight_of(block.mlp.down)


def weight_of(projection: Any) -> Tensor:
    """The matrix that `build_gpu` bound to a product."""
    weight = projection.keywords["weight"]
    if not isinstance(weight, Tensor):
        raise TypeError(f"a projection's weight is {type(weight).__name__}, not a tensor")
    return weight


@contextmanager
def serving(peer: Any, prompts: Sequence[Tokens], new_tokens: int, max_batch_tokens: int) -> Iterator[Serve]:
    """serve(prompts, new_tokens) -> PeerRun, with one pool and one set of graphs for all calls.

    prompts, new_tokens: the largest of the calls to come; all of them fit into its KV pool at once.
    """
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    blocks = sum(-(-(len(prompt) + new_tokens) // BLOCK_TOKENS) for prompt in prompts)
    batching = ContinuousBatchingConfig(
        num_blocks=blocks + blocks // 4 + SPARE_BLOCKS, max_batch_tokens=max_batch_tokens
    )

    def serve(prompts: Sequence[Tokens], new_tokens: int) -> PeerRun:
        generation = GenerationConfig(
            max_new_tokens=new_tokens, do_sample=False, eos_token_id=NO_END, pad_token_id=0, use_cache=True
        )
        begun = stopwatch()
        answers = peer.generate_batch(
            [prompt.tolist() for prompt in prompts],
            generation_config=generation,
            continuous_batching_config=batching,
            persistent_manager=True,
        )
        whole = stopwatch() - begun
        found = list(answers.values())
        failed = [answer.error for answer in found if answer.error is not None]
        if failed or len(found) != len(prompts):
            raise RuntimeError(f"{len(found)} of {len(prompts)} requests came back, {len(failed)} failed: {failed[:1]}")
        seconds = max(answer.lifespan[1] for answer in found) - min(answer.created_time for answer in found)
        return PeerRun(seconds, whole, [list(answer.generated_tokens) for answer in found])

    for name in ("transformers", "ContinuousBatchingLogger"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield serve
    finally:
        peer.destroy_cached_continuous_batching_manager()
