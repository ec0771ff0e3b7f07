"""The Llama family (Llama 2 and 3, Mistral, Qwen2, Qwen3): a decoder of pre-norm attention and SwiGLU blocks.

Touvron et al., arXiv 2302.13971; grouped-query attention, arXiv 2305.13245. Tokens of all requests are packed in one
row of `tokens`, without padding; where K and V live and who sees whom is the caller's business (`Attention`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from engine.kernels.cpu.linear import Linear
from engine.kernels.cpu.norm import rms_norm
from engine.kernels.cpu.rope import rotate
from engine.models.config import ModelConfig
from engine.models.rotary import Rotary

if TYPE_CHECKING:
    from engine.models.llava import Vision

BLOCK = 2048
"""Tokens that go through a chain of projections at a time, so that what lies between them stays small."""


class Attention(Protocol):
    """Keeps K and V, and answers queries over them."""

    def store(self, layer: int, at: int, k: Tensor, v: Tensor) -> None:
        """K and V of tokens[at : at + n]: [n, kv heads, head_dim] each. All of a layer are stored before it attends."""

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """q [kv heads, queries, heads per kv head, head_dim] -> [queries, heads * head_dim].

        The queries are those of all tokens; in the last layer, those whose logits are wanted.
        """


class Given(NamedTuple):
    """Embeddings that come from elsewhere: of pictures."""

    at: Tensor
    """int64 [k]: packed tokens."""
    embeddings: Tensor
    """[k, hidden], in the model's dtype."""


class MLP(Protocol):
    def plus(self, h: Tensor, residual: Tensor) -> Tensor:
        """residual + mlp(h): [tokens, hidden] each."""


class SwiGLU(NamedTuple):
    """down(SiLU(gate(h)) * up(h)) (Shazeer, arXiv 2002.05202)."""

    gate: Linear
    up: Linear
    down: Linear

    def __call__(self, h: Tensor) -> Tensor:
        return self.down(self.up.times(h, self.gate.silu(h)))

    def plus(self, h: Tensor, residual: Tensor) -> Tensor:
        return self.down.plus(self.up.times(h, self.gate.silu(h)), residual)


class Block(NamedTuple):
    """Weights of one layer."""

    attention_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Linear
    mlp_norm: Tensor
    mlp: MLP


class Llama:
    """One model, ready to run. `load_model` makes it."""

    def __init__(self, config: ModelConfig, embedding: Tensor, blocks: list[Block], norm: Tensor, head: Linear) -> None:
        self.config = config
        self.dtype = embedding.dtype
        self.embedding = embedding
        self.blocks = blocks
        self.norm = norm
        self.head = head
        self.rotary = Rotary(config, self.dtype)
        self.vision: Vision | None = None
        """What turns pictures into embeddings, in a model that sees them."""

    @torch.inference_mode()
    def forward(
        self, tokens: Tensor, positions: Tensor, attention: Attention, wanted: Tensor, given: Given | None = None
    ) -> Tensor:
        """Logits that follow some of the packed tokens.

        tokens, positions: int64 [n]; wanted: int64 [m], indices into them; given: embeddings that aren't those of the
        tokens in their places. Returns [m, vocab] in the model's dtype.
        """
        x = self.embedding[tokens]
        if given is not None:
            x[given.at] = given.embeddings
        cos, sin = self.rotary(positions)
        for i, block in enumerate(self.blocks):
            q = self._project(i, block, x, cos, sin, attention)
            if i == len(self.blocks) - 1:  # from here on, only what the logits need
                q, x = q.index_select(1, wanted), x[wanted]
                if not len(wanted):
                    return x.new_empty(0, self.config.vocab_size)
            x = self._mix(block, x, attention.attend(i, q))
        return self.head(rms_norm(x, self.norm, self.config.norm_eps))

    def _project(self, i: int, block: Block, x: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        """Queries of all tokens, turned by their positions, as `Attention` wants them; K and V go to `attention`."""
        c = self.config
        group = c.n_heads // c.n_kv_heads
        queries = torch.empty(c.n_kv_heads, len(x), group, c.head_dim, dtype=x.dtype)
        for at in range(0, len(x), BLOCK):
            part = slice(at, at + BLOCK)
            qkv = block.qkv(rms_norm(x[part], block.attention_norm, c.norm_eps))
            q, k, v = torch.split(qkv.view(len(qkv), -1, c.head_dim), [c.n_heads, c.n_kv_heads, c.n_kv_heads], dim=1)
            if block.q_norm is not None and block.k_norm is not None:
                q, k = rms_norm(q, block.q_norm, c.norm_eps), rms_norm(k, block.k_norm, c.norm_eps)
            by_kv_head = torch.unflatten(q, 1, (c.n_kv_heads, group)).transpose(0, 1)
            rotate(by_kv_head, cos[part], sin[part], out=queries[:, part])
            attention.store(i, at, rotate(k, cos[part], sin[part]), v)
        return queries

    def _mix(self, block: Block, x: Tensor, attended: Tensor) -> Tensor:
        """x + out(attended), then x + mlp(norm x): [n, hidden]."""
        mixed = torch.empty_like(x)
        for at in range(0, len(x), BLOCK):
            part = slice(at, at + BLOCK)
            y = block.out.plus(attended[part], x[part])
            h = rms_norm(y, block.mlp_norm, self.config.norm_eps)
            mixed[part] = block.mlp.plus(h, y)
        return mixed
