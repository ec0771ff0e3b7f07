"""An engine without a model whose KV pool can be checked slot by slot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engine.config import EngineConfig
from engine.engine import Engine
from engine.executor.base import Batch, Row, StepResult
from engine.request import TokenLogprob

POISON = np.uint64(0xDEAD)


def prefix_hashes(tokens: np.ndarray) -> np.ndarray:
    """uint64 [tokens]: at i a number made of tokens[: i + 1]."""
    with np.errstate(over="ignore"):
        position = np.arange(1, len(tokens) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (tokens.astype(np.uint64) + np.uint64(11)) * (position | np.uint64(1))
        mixed ^= mixed >> np.uint64(29)
        return np.cumsum(mixed * np.uint64(0xBF58476D1CE4E5B9), dtype=np.uint64)


class HashExecutor:
    """KV of a token is a number made of its whole prefix; the next token is made of the last one's KV.

    Every launch checks that each row reads exactly the KV that its own tokens have.
    """

    device = "none"

    def __init__(self, *, n_pages: int, page_size: int, vocab_size: int = 7, max_context: int = 10_000) -> None:
        self.n_pages, self.page_size = n_pages, page_size
        self.vocab_size, self.max_context = vocab_size, max_context
        self.kv = np.full(n_pages * page_size, POISON)
        self.batches: list[Batch] = []
        self.computed_tokens = 0
        self.fail_at: set[int] = set()
        self.lose_at: set[int] = set()
        self.chosen: dict[int, int] = {}
        """Newest token of each request, as the device knows it."""
        self.bad_requests: set[int] = set()

    def next_token(self, tokens: np.ndarray) -> int:
        return int(prefix_hashes(tokens)[-1] >> np.uint64(33)) % self.vocab_size

    def slots(self, request: Any, end: int) -> np.ndarray:
        at = np.arange(end)
        return request.pages[at // self.page_size].astype(np.int64) * self.page_size + at % self.page_size

    def launch(self, batch: Batch) -> Batch:
        self.batches.append(batch)
        if batch.step in self.fail_at:
            raise RuntimeError("the device hiccuped")
        for row in batch.rows:
            end = row.start + row.n_new
            assert row.n_new >= 1
            assert end <= row.request.n_tokens
            slots = self.slots(row.request, end)
            self.kv[slots[row.start :]] = prefix_hashes(self.inputs(row))[row.start :]
            self.computed_tokens += row.n_new
        for row in batch.rows:
            end = row.start + row.n_new
            found = self.kv[self.slots(row.request, end)]
            assert (found == prefix_hashes(self.inputs(row))).all(), "a row reads KV that isn't its own prefix's"
        for group in batch.prefix_groups:
            first = self.slots(batch.rows[group.rows[0]].request, group.n_tokens)
            for i in group.rows:
                assert batch.rows[i].start >= group.n_tokens
                assert (self.slots(batch.rows[i].request, group.n_tokens) == first).all()
        return batch

    def inputs(self, row: Row) -> np.ndarray:
        """The row's tokens up to its end; the one that the step before chose is known to the device alone."""
        request, end = row.request, row.start + row.n_new
        tokens = request.tokens[:end].copy()
        if request.n_pending and end == request.n_tokens:
            tokens[-1] = self.chosen[request.id]
        assert (tokens >= 0).all(), "a row is computed from a token that nobody has chosen"
        return tokens

    def allowed_token(self, tokens: np.ndarray, allowed: list[int]) -> int:
        """The next token where a grammar allows only some."""
        return allowed[int(prefix_hashes(tokens)[-1] >> np.uint64(33)) % len(allowed)]

    def sample(self, pending: Batch, masks: Any) -> tuple[Batch, list[int | None]]:
        tokens: list[int | None] = []
        for i, row in enumerate(pending.rows):
            request = row.request
            if not row.awaits_token:
                tokens.append(None)
                continue
            assert request.n_pending == 0
            output, forced = request.output_tokens, request.params.forced_output
            before = request.tokens[: request.n_tokens]
            token = forced[output] if forced is not None else self.next_token(before)
            if masks is not None and masks[i] is not None:
                bits = np.unpackbits(masks[i].view(np.uint8), bitorder="little")
                token = self.allowed_token(before, np.flatnonzero(bits).tolist())
            self.chosen[request.id] = token
            tokens.append(token)
        return pending, tokens

    def collect(self, pending: tuple[Batch, list[int | None]]) -> StepResult:
        batch, tokens = pending
        if batch.step in self.lose_at:
            raise RuntimeError("the device hiccuped and lost what it had computed")
        scored = []
        for row in batch.rows:
            request = row.request
            first = row.logit_start + 1
            scored.append(
                tuple(
                    TokenLogprob(int(t), -float(i))
                    for i, t in enumerate(request.tokens[first : first + row.n_scored], first)
                )
            )
        logprobs = tuple(
            TokenLogprob(token, -float(row.end))
            if token is not None and row.request.params.logprobs is not None
            else None
            for row, token in zip(batch.rows, tokens, strict=True)
        )
        errors = tuple("bad logits" if row.request.id in self.bad_requests else None for row in batch.rows)
        return StepResult(tuple(tokens), logprobs, tuple(scored), errors, 0.001)


def make(*, pool_tokens: int = 64, executor: dict[str, Any] | None = None, **config: Any) -> Engine:
    """An engine over a HashExecutor that poisons the KV of every page that is given back."""
    settings = EngineConfig(**{"max_batch_tokens": 16, "max_running": 8, "pool_tokens": pool_tokens, **config})
    hashed = HashExecutor(n_pages=pool_tokens // settings.page_size, page_size=settings.page_size, **(executor or {}))
    engine = Engine(hashed, None, settings)
    free = engine.memory.pool.free

    def poison(pages: np.ndarray) -> None:
        free(pages)
        for page in pages:
            hashed.kv[int(page) * settings.page_size : (int(page) + 1) * settings.page_size] = POISON

    engine.memory.pool.free = poison  # type: ignore[method-assign]
    return engine


@pytest.fixture
def hash_engine() -> Callable[..., Engine]:
    return make
