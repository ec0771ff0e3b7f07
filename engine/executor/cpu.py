"""Runs batches on the CPU with PyTorch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine import sampler
from engine.clock import stopwatch
from engine.executor.base import Batch, KVCopy, Row, StepResult
from engine.executor.eyes import Eyes
from engine.kernels.copy_and_turn import copy_and_turn
from engine.kernels.cpu.attention_plan import Group, Index, Plan, Span, make_plan
from engine.kernels.cpu.paged_attention import KVPool, PagedAttention
from engine.models.config import ModelConfig
from engine.models.llama import Llama
from engine.request import Request, TokenLogprob

SHARE_OF_MEMORY = 0.25
"""Of the memory that is free, the pool takes this much by default."""
DEFAULT_POOL_TOKENS = 131072
"""And never more than this many tokens."""


class Pending(NamedTuple):
    """A step under way."""

    batch: Batch
    logits: Tensor
    """[positions, vocab]: those of each row together, rows in the batch's order."""
    first_logit: tuple[int, ...]
    """Where each row's begin; one more entry than rows."""
    started: float
    chosen: tuple[int, ...] = ()
    """Rows that sampled."""
    sampled: sampler.Sampled | None = None


class CpuExecutor:
    """Runs batches of a model over a KV pool of `n_pages` pages of `page_size` tokens."""

    device = "cpu"

    def __init__(self, model: Llama, *, n_pages: int, page_size: int) -> None:
        if n_pages < 1 or page_size < 1:
            raise ValueError(f"a pool of n_pages={n_pages} of page_size={page_size} tokens: both must be at least 1")
        config = model.config
        self.model = model
        self.page_size = page_size
        self.n_pages = n_pages
        self.max_context = config.max_context
        self.vocab_size = config.vocab_size
        self.pool = KVPool(config.n_layers, config.n_kv_heads, n_pages * page_size, config.head_dim, model.dtype)
        self.eyes = None if model.vision is None else Eyes(model.vision, torch.device("cpu"))
        self._last: dict[Request, int] = {}
        """What was sampled last, for rows that are launched before it is collected."""

    @torch.inference_mode()
    def launch(self, batch: Batch) -> Pending:
        """Makes the copies and runs the forward pass."""
        started = stopwatch()
        for copy in batch.copies:
            self._copy(copy)
        order, groups = _packing_order(batch)
        rows = [batch.rows[i] for i in order]
        tokens = np.concatenate([self._tokens(row) for row in rows])
        positions = np.concatenate([np.arange(row.start, row.start + row.n_new) for row in rows])
        slots = np.concatenate([self._slots(row, row.start, row.start + row.n_new) for row in rows])
        attention = PagedAttention(self.pool, torch.from_numpy(slots), self._plans(rows, groups))
        packed = _packed_logits(rows)
        given = None if self.eyes is None else self.eyes.given(rows)
        if given is not None:
            tokens = np.maximum(tokens, 0)  # a picture's keys are no tokens
        logits = self.model.forward(torch.from_numpy(tokens), torch.from_numpy(positions), attention, packed, given)
        first, back = _batch_order(batch.rows, order)
        return Pending(batch, logits if back is None else logits[back], first, started)

    def _copy(self, copy: KVCopy) -> None:
        old = torch.arange(copy.position, copy.position + len(copy.source))
        turn = self.model.rotary.between(old, old + copy.turn) if copy.turn else None
        copy_and_turn(self.pool.k, self.pool.v, torch.from_numpy(copy.source), torch.from_numpy(copy.target), turn)

    def sample(self, pending: Pending, masks: Sequence[Any] | None = None) -> Pending:
        """Chooses the next token of the rows that still await one. `masks`: a packed bitmask or None for each row."""
        rows = pending.batch.rows
        chosen = [i for i, row in enumerate(rows) if row.awaits_token]
        last = [pending.first_logit[i + 1] - 1 for i in chosen]
        logits = pending.logits if len(last) == len(pending.logits) else pending.logits[last]
        requests = [rows[i].request for i in chosen]
        sampled = sampler.sample(logits, requests, None if masks is None else [masks[i] for i in chosen])
        self._last = {request: token or 0 for request, token in zip(requests, sampled.tokens, strict=True)}
        return pending._replace(chosen=tuple(chosen), sampled=sampled)

    def collect(self, pending: Pending) -> StepResult:
        """The step's result. Raises ValueError when `sample` wasn't called."""
        if pending.sampled is None:
            raise ValueError("collect() needs what sample() returned")
        rows = pending.batch.rows
        tokens: list[int | None] = [None] * len(rows)
        logprobs: list[TokenLogprob | None] = [None] * len(rows)
        errors: list[str | None] = [None] * len(rows)
        for i, token, logprob, error in zip(pending.chosen, *pending.sampled, strict=True):
            tokens[i], logprobs[i], errors[i] = token, logprob, error
        scored: list[tuple[TokenLogprob, ...]] = []
        for i, row in enumerate(rows):
            try:
                scored.append(_score(row, pending.logits[pending.first_logit[i] :]))
            except ValueError as error:
                scored.append(())
                tokens[i], logprobs[i], errors[i] = None, None, errors[i] or str(error)
        seconds = stopwatch() - pending.started
        return StepResult(tuple(tokens), tuple(logprobs), tuple(scored), tuple(errors), seconds)

    def _tokens(self, row: Row) -> Index:
        """The row's new tokens. One that the step before has chosen and nobody has collected yet is known here."""
        request = row.request
        tokens = request.tokens[row.start : row.start + row.n_new]
        if request.n_pending and row.start + row.n_new == request.n_tokens:
            tokens = tokens.copy()
            tokens[-1] = self._last[request]
        return tokens

    def _slots(self, row: Row, a: int, b: int) -> Index:
        """Slots of the tokens [a, b) of a row."""
        if self.page_size == 1:
            return row.request.pages[a:b].astype(np.int64)
        position = np.arange(a, b)
        return (
            row.request.pages[position // self.page_size].astype(np.int64) * self.page_size + position % self.page_size
        )

    def _plans(self, rows: Sequence[Row], groups: Sequence[Group]) -> list[Plan]:
        """A plan for each layer: layers of one window share theirs; the last has only the queries the logits need."""
        config = self.model.config
        layers = range(config.n_layers)
        full = [Span(row.start, row.start + row.n_new, self._slots_of(row)) for row in rows]
        plans = {window: make_plan(full, groups, window) for window in {config.window(i) for i in layers[:-1]}}
        wanted = [span._replace(first=row.logit_start) for span, row in zip(full, rows)]
        last = make_plan(wanted, groups, config.window(layers[-1]))
        return [*(plans[config.window(i)] for i in layers[:-1]), last]

    def _slots_of(self, row: Row) -> Any:
        return lambda a, b: self._slots(row, a, b)


def _packing_order(batch: Batch) -> tuple[list[int], list[Group]]:
    """Rows in the order in which they are packed: those that share a prefix side by side."""
    order: list[int] = []
    groups: list[Group] = []
    for group in batch.prefix_groups:
        groups.append(Group(len(order), len(order) + len(group.rows), group.n_tokens))
        order += group.rows
    grouped = set(order)
    order += [i for i in range(len(batch.rows)) if i not in grouped]
    return order, groups


def _packed_logits(rows: Sequence[Row]) -> Tensor:
    """Packed tokens whose logits are needed: int64 [positions]."""
    ends = np.cumsum([row.n_new for row in rows])
    parts = [np.arange(end - (row.start + row.n_new - row.logit_start), end) for row, end in zip(rows, ends)]
    return torch.from_numpy(np.concatenate(parts))


def _batch_order(rows: Sequence[Row], order: Sequence[int]) -> tuple[tuple[int, ...], Tensor | None]:
    """Where each row's logits begin in the batch's order, and the permutation from packing order to it (None: none)."""
    n = [row.start + row.n_new - row.logit_start for row in rows]
    first = (0, *np.cumsum(n).tolist())
    if list(order) == list(range(len(rows))):
        return first, None
    packed_first = np.cumsum([0, *(n[i] for i in order)])
    begin = {i: int(packed_first[place]) for place, i in enumerate(order)}
    back = np.concatenate([np.arange(begin[i], begin[i] + n[i]) for i in range(len(rows))])
    return first, torch.from_numpy(back)


def _score(row: Row, logits: Tensor) -> tuple[TokenLogprob, ...]:
    """Log-probabilities of the known tokens that the row's logits score; `logits` begin with the row's first."""
    n = row.n_scored
    if n == 0:
        return ()
    targets = row.request.tokens[row.logit_start + 1 : row.logit_start + 1 + n].tolist()
    return sampler.score(logits[:n], targets, row.n_likeliest)


def default_pool_tokens(config: ModelConfig, dtype: torch.dtype) -> int:
    """Tokens of a KV pool: a quarter of the memory free now, at most 131,072 tokens, at least one whole context."""
    per_token = config.kv_elements_per_token * dtype.itemsize
    fits = int(_free_memory() * SHARE_OF_MEMORY) // per_token
    return max(min(fits, DEFAULT_POOL_TOKENS), min(config.max_context, DEFAULT_POOL_TOKENS))


def _free_memory() -> int:
    """Bytes that can be had without swapping, as far as the system tells."""
    try:
        with open("/proc/meminfo", encoding="ascii") as meminfo:
            for line in meminfo:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
