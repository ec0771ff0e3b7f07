"""The Llama family on a GPU: the same decoder as `llama`, with what lies between two products fused into one kernel.

Touvron et al., arXiv 2302.13971. The residual stream x is updated where its norm is taken, so each layer reads

    q     = rope(qkv(h)), K and V to their pages          h = norm(x)
    x    += out(attention(q))                             h = norm(x)
    x    += mlp(h)                                        h = norm(x)

Products are the vendor's, but for `deterministic`: then they are ours, whose bits don't depend on the batch. With 8-bit
weights they are ours in any case, and so are those of a mixture's experts, whose bits never depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.matmul_invariant import matmul_invariant
from engine.kernels.matmul_quantized import matmul_quantized
from engine.kernels.moe import moe
from engine.kernels.paged import PagedKV
from engine.kernels.rms_norm import rms_norm
from engine.kernels.rope_and_store import rope_and_store, rotary_tables
from engine.kernels.route import route
from engine.kernels.silu_mul import silu_mul
from engine.models.config import ModelConfig, ModelError
from engine.models.families import family_named
from engine.models.llama import Given
from engine.models.llava import Vision
from engine.models.rotary import Rotary
from engine.models.weights import Stacked, Tensors

Projection = Callable[[Tensor], Tensor]
"""[tokens, inputs] -> [tokens, outputs]"""


class Product(Protocol):
    def __call__(self, x: Tensor, /, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [tokens, inputs], weight [outputs, inputs], bias [outputs] or None -> [tokens, outputs]."""


class Attention(Protocol):
    """Where K and V of a step live, and the answers to its queries."""

    slots: Tensor
    """int64 [tokens]: where each new token's K and V go; -1: nowhere."""
    wanted: Tensor | None
    """int64 [queries]: the packed tokens that the last layer answers, in the order of its queries. None: all."""

    def layer(self, layer: int) -> PagedKV:
        """The layer's part of the pool."""

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """q [queries, heads, head_dim] -> like q. In the last layer they are those of `wanted`."""


class Block(NamedTuple):
    """Weights of one layer."""

    attention_norm: Tensor
    qkv: Projection
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Projection
    mlp_norm: Tensor
    mlp: Projection


class SwiGLU:
    """down(SiLU(gate(h)) * up(h)), gate and up in one product."""

    def __init__(self, gate_up: Projection, down: Projection) -> None:
        self.gate_up, self.down = gate_up, down

    def __call__(self, h: Tensor) -> Tensor:
        return self.down(silu_mul(self.gate_up(h)))


class Experts:
    """A mixture of experts (Mixtral, arXiv 2401.04088): each token goes through those that its router likes best.

    The host doesn't learn which: a step of any routing is the same launches.
    """

    def __init__(self, router: Projection, gate_up: Stacked, down: Stacked, k: int) -> None:
        """gate_up.weight [experts, 2 * inner, hidden], down.weight [experts, hidden, inner], with scales in 8 bits."""
        self.router, self.gate_up, self.down, self.k = router, gate_up, down, k

    def __call__(self, h: Tensor) -> Tensor:
        up, down = self.gate_up, self.down
        chosen, shares = route(self.router(h), self.k)
        return moe(h, up.weight, down.weight, chosen, shares, gate_up_scale=up.scale, down_scale=down.scale)


class LlamaGpu:
    """One model, ready to run. `load_gpu_model` makes it."""

    def __init__(
        self,
        config: ModelConfig,
        embedding: Tensor,
        blocks: Sequence[Block],
        norm: Tensor,
        head: Projection,
        *,
        deterministic: bool = False,
    ) -> None:
        self.config = config
        self.dtype = embedding.dtype
        self.device = embedding.device
        self.embedding = embedding
        self.blocks = blocks
        self.norm = norm
        self.head = head
        self.deterministic = deterministic
        """A token's logits have the same bits whatever is computed beside it, if its attention does."""
        self.vision: Vision | None = None
        """What turns pictures into embeddings, in a model that sees them."""
        self.cos, self.sin = rotary_tables(Rotary(config, torch.float32), config.max_context, self.device)

    def turn_between(self, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, float32 [tokens, head_dim / 2] each, of what turns `old` positions (int64) into `new` ones.

        Of the tables' own angles, by the addition theorems; the tables' factor cancels out.
        """
        c, s, d, t = self.cos[old], self.sin[old], self.cos[new], self.sin[new]
        square = c * c + s * s
        return (d * c + t * s) / square, (t * c - d * s) / square

    @torch.inference_mode()
    def forward(self, tokens: Tensor, positions: Tensor, attention: Attention, given: Given | None = None) -> Tensor:
        """Logits that follow the tokens that `attention.wanted` names.

        tokens, positions: int64 [n]; given: embeddings that aren't those of the tokens in their places. Returns
        [wanted, vocab] in the model's dtype.
        """
        c = self.config
        x = F.embedding(tokens, self.embedding)
        if given is not None:
            x.index_copy_(0, given.at, given.embeddings)
        h = rms_norm(x, self.blocks[0].attention_norm, c.norm_eps)
        next_norms = [*(block.attention_norm for block in self.blocks[1:]), self.norm]
        last = len(self.blocks) - 1
        for i, (block, next_norm) in enumerate(zip(self.blocks, next_norms, strict=True)):
            q = x.new_empty(len(x), c.n_heads, c.head_dim)
            rope_and_store(
                block.qkv(h),
                positions,
                attention.slots,
                self.cos,
                self.sin,
                attention.layer(i),
                q,
                q_norm=block.q_norm,
                k_norm=block.k_norm,
                eps=c.norm_eps,
            )
            if i == last and attention.wanted is not None:  # from here on, only what the logits need
                q, x = q[attention.wanted], x[attention.wanted]
                if not len(x):
                    return x.new_empty(0, c.vocab_size)
            attended = attention.attend(i, q).view(len(q), -1)
            h = rms_norm(block.out(attended), block.mlp_norm, c.norm_eps, residual=x)
            h = rms_norm(block.mlp(h), next_norm, c.norm_eps, residual=x)
        return self.head(h)


def build_gpu(tensors: Tensors, *, deterministic: bool = False) -> LlamaGpu:
    """Fetches every tensor of the model and joins the projections of one input.

    Raises ModelError where a GPU can't run the family (so).
    """
    config, get, family = tensors.config, tensors.get, family_named(tensors.config.family)
    if (why := family.gpu_problem(deterministic=deterministic)) is not None:
        raise ModelError(why)
    product: Product = matmul_invariant if deterministic else F.linear

    def projection(*names: str) -> Projection:
        weight, bias, scale = tensors.stacked(*names)
        if scale is not None:
            return partial(matmul_quantized, weight=weight, scale=scale, bias=bias, invariant=deterministic)
        return partial(product, weight=weight, bias=bias)

    def block(at: str) -> Block:
        return Block(
            attention_norm=get(f"{at}.input_layernorm.weight"),
            qkv=projection(*(f"{at}.self_attn.{which}_proj" for which in "qkv")),
            q_norm=tensors.maybe(f"{at}.self_attn.q_norm.weight"),
            k_norm=tensors.maybe(f"{at}.self_attn.k_norm.weight"),
            out=projection(f"{at}.self_attn.o_proj"),
            mlp_norm=get(f"{at}.post_attention_layernorm.weight"),
            mlp=family.mlp_gpu(at, tensors, projection),
        )

    embedding = get("model.embed_tokens.weight").contiguous()
    blocks = [block(f"model.layers.{i}") for i in range(config.n_layers)]
    norm = get("model.norm.weight")
    head = partial(product, weight=embedding, bias=None) if config.tied_embeddings else projection("lm_head")
    return LlamaGpu(config, embedding, blocks, norm, head, deterministic=deterministic)
