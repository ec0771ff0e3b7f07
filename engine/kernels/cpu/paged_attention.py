"""Attention of packed rows over a paged KV pool, following a plan.

Layout: everything is kept by key-value head, so that the query heads which share one are neighbours, and K and V are
never repeated: pool [layers, kv heads, slots, head_dim], queries and results [kv heads, queries, group, head_dim].
Slot s is token s % page_size of page s // page_size.

Tiling: as `attention`. Moves: a shared prefix once for all its rows; the rest of K and V twice (gather, then use), or
once where its slots are consecutive. Roofline: memory bandwidth for decodes, the matrix units for prompts.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from engine.kernels.cpu.attention import attention, merge
from engine.kernels.cpu.attention_plan import Context, Index, Masked, Padded, Plan


class KVPool:
    """K and V of every slot of every layer."""

    def __init__(self, n_layers: int, n_kv_heads: int, n_slots: int, head_dim: int, dtype: torch.dtype) -> None:
        shape = (n_layers, n_kv_heads, n_slots, head_dim)
        self.k = torch.empty(shape, dtype=dtype)
        self.v = torch.empty(shape, dtype=dtype)
        self.first_of_head = torch.arange(n_kv_heads)[:, None] * n_slots

    def store(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """slots int64 [tokens]; k, v [tokens, kv heads, head_dim]."""
        self.k[layer].index_copy_(1, slots, k.transpose(0, 1))
        self.v[layer].index_copy_(1, slots, v.transpose(0, 1))


class Keys:
    """Where some keys live: consecutive slots are read in place, others are gathered."""

    def __init__(self, slots: Index, pool: KVPool) -> None:
        self.n = len(slots)
        consecutive = self.n > 0 and slots[-1] - slots[0] == self.n - 1 and bool((np.diff(slots) == 1).all())
        self.first = int(slots[0]) if consecutive else None
        self.index = None if consecutive else (pool.first_of_head + torch.from_numpy(slots)).view(-1)

    def of(self, layer: Tensor) -> Tensor:
        """layer [kv heads, slots, head_dim] -> [kv heads, n, head_dim]."""
        heads, _, dim = layer.shape
        if self.index is None:
            assert self.first is not None
            return layer[:, self.first : self.first + self.n]
        return layer.view(-1, dim).index_select(0, self.index).view(heads, self.n, dim)


class _Batch:
    """A padded batch of the plan, with its indices as tensors."""

    def __init__(self, padded: Padded, n_queries: int, pool: KVPool, dtype: torch.dtype, *, causal: bool) -> None:
        self.n, self.queries, self.n_keys = padded.n, padded.queries, padded.keys
        self.causal = causal
        self.keys = Keys(padded.slots, pool)
        heads = torch.arange(len(pool.first_of_head))[:, None]
        self.query = (heads * n_queries + torch.from_numpy(padded.query)).view(-1)
        self.packed = (heads * n_queries + torch.from_numpy(padded.packed)).view(-1)
        full = len(padded.place) == len(padded.query)
        self.place = None if full else (heads * len(padded.query) + torch.from_numpy(padded.place)).view(-1)
        run = padded.packed
        alone = padded.n == 1 and full
        self.run = slice(int(run[0]), int(run[-1]) + 1) if alone else None
        self.mask: Tensor | None = None
        if not causal and int(padded.n_keys.min()) < padded.keys:
            hidden = torch.arange(padded.keys) >= torch.from_numpy(padded.n_keys)[:, None]
            mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -math.inf)
            self.mask = mask.repeat(len(heads), 1)[:, None, None]


class PagedAttention:
    """The attention of one step: `engine.models.llama.Attention` over a pool.

    plans: one for each layer (the same object may serve many).
    """

    def __init__(self, pool: KVPool, new_slots: Tensor, plans: list[Plan]) -> None:
        self.pool = pool
        self.new_slots = new_slots
        prepared: dict[int, _Prepared] = {}
        self.plans = [prepared.setdefault(id(plan), _Prepared(plan, pool)) for plan in plans]

    def store(self, layer: int, at: int, k: Tensor, v: Tensor) -> None:
        self.pool.store(layer, self.new_slots[at : at + len(k)], k, v)

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """q [kv heads, queries, group, head_dim] -> [queries, heads * head_dim]."""
        plan, k, v = self.plans[layer], self.pool.k[layer], self.pool.v[layer]
        heads, n, group, dim = q.shape
        out = torch.empty_like(q)
        lse = torch.empty(heads, n, group, dtype=torch.promote_types(q.dtype, torch.float32))
        for batch in plan.batches:
            self._own_keys(batch, q, k, v, out, lse)
        for a, b, keys, mask in plan.masked:
            part, _ = attention(
                q[:, a:b].transpose(1, 2), _shared(keys.of(k), group), _shared(keys.of(v), group), mask=mask
            )
            out[:, a:b] = part.transpose(1, 2)
        for a, b, keys in plan.contexts:
            part, part_lse = attention(
                q[:, a:b].transpose(1, 2), _shared(keys.of(k), group), _shared(keys.of(v), group)
            )
            merge(out[:, a:b], lse[:, a:b], part.transpose(1, 2), part_lse.transpose(1, 2))
        return out.permute(1, 0, 2, 3).reshape(n, heads * group * dim)

    def _own_keys(self, batch: _Batch, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> None:
        heads, n, group, dim = q.shape
        k, v = batch.keys.of(k), batch.keys.of(v)
        if batch.run is not None:
            part, part_lse = attention(
                q[:, batch.run].transpose(1, 2), _shared(k, group), _shared(v, group), causal=batch.causal
            )
            out[:, batch.run], lse[:, batch.run] = part.transpose(1, 2), part_lse.transpose(1, 2)
            return
        k, v = (x.reshape(heads * batch.n, 1, batch.n_keys, dim) for x in (k, v))
        rows = q.view(heads * n, group * dim).index_select(0, batch.query)
        if batch.causal:
            rows = rows.view(heads * batch.n, batch.queries, group, dim).transpose(1, 2)
            k, v = k.expand(-1, group, -1, -1), v.expand(-1, group, -1, -1)
            part, part_lse = attention(rows, k, v, causal=True)
            part, part_lse = part.transpose(1, 2), part_lse.transpose(1, 2)
        else:  # one query a row: the heads of a group stand as its queries, and K and V are read once for all of them
            rows = rows.view(heads * batch.n, 1, group, dim)
            mask = None if batch.mask is None else batch.mask.expand(-1, -1, group, -1)
            part, part_lse = attention(rows, k, v, mask=mask)
        part, part_lse = part.reshape(-1, group * dim), part_lse.reshape(-1, group)
        if batch.place is not None:
            part, part_lse = part.index_select(0, batch.place), part_lse.index_select(0, batch.place)
        out.view(heads * n, group * dim).index_copy_(0, batch.packed, part)
        lse.view(heads * n, group).index_copy_(0, batch.packed, part_lse)


class _Prepared:
    """A plan with its indices as tensors."""

    def __init__(self, plan: Plan, pool: KVPool) -> None:
        dtype, n = pool.k.dtype, plan.n_queries
        self.batches = [
            *(_Batch(padded, n, pool, dtype, causal=True) for padded in plan.causal),
            *(_Batch(padded, n, pool, dtype, causal=False) for padded in plan.single),
        ]
        self.contexts = [_context(context, pool) for context in plan.contexts]
        self.masked = [_masked(masked, pool, dtype) for masked in plan.masked]


def _context(context: Context, pool: KVPool) -> tuple[int, int, Keys]:
    return context.a, context.b, Keys(context.slots, pool)


def _masked(masked: Masked, pool: KVPool, dtype: torch.dtype) -> tuple[int, int, Keys, Tensor]:
    hidden = torch.from_numpy(~masked.visible)
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -math.inf)
    return masked.a, masked.b, Keys(masked.slots, pool), mask[None, None]


def _shared(x: Tensor, group: int) -> Tensor:
    """[kv heads, keys, head_dim] -> [kv heads, group, keys, head_dim], without a copy."""
    return x[:, None].expand(-1, group, -1, -1)
