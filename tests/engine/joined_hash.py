"""An engine without a model in which KV is made of the KV that it attends to, so that joined prompts can be checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.config import EngineConfig
from engine.engine import Engine
from engine.executor.base import Batch, KVCopy
from tests.engine.conftest import POISON, HashExecutor

TURN = np.uint64(0xD1B54A32D192ED03)


def next_kv(seen: np.ndarray, token: int, position: int) -> np.uint64:
    """What a token's KV is at a position, over the KV that it sees."""
    with np.errstate(over="ignore"):
        mixed = seen.sum(dtype=np.uint64) + np.uint64(token + 11) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) + np.uint64(position)
        return np.uint64(mixed ^ (mixed >> np.uint64(32)))


def token_of(kv: np.uint64, vocab_size: int = 7) -> int:
    return int(kv >> np.uint64(33)) % vocab_size


class Written:
    """The KV of a prompt as it should be, put together as `JoinedPrompt` is."""

    def __init__(self, kv: Sequence[np.uint64] = ()) -> None:
        self.kv = list(kv)

    def copy(self) -> Written:
        return Written(self.kv)

    def append(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self.kv.append(next_kv(np.array(self.kv, np.uint64), token, len(self.kv)))

    def join(self, branches: Sequence[Written]) -> None:
        fork = len(self.kv)
        with np.errstate(over="ignore"):
            for branch in branches:
                turn = np.uint64(len(self.kv) - fork) * TURN
                self.kv += [kv + turn for kv in branch.kv[fork:]]

    def go_on(self, n: int) -> list[int]:
        tokens = []
        for _ in range(n):
            tokens.append(token_of(self.kv[-1]))
            self.append(tokens[-1:])
        return tokens


class JoinedHashExecutor(HashExecutor):
    """Rows are computed from what really is in the pool; pages that were given back are poisoned in their turn."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.freed: list[tuple[int, np.ndarray]] = []
        """Pages, and how many copies of the next batch were decided before they were given back."""
        self.newest: dict[int, list[np.uint64]] = {}

    def launch(self, batch: Batch) -> Batch:
        freed, self.freed = self.freed, []
        if batch.step in self.fail_at:
            for _, pages in freed:
                self._poison(pages)
            raise RuntimeError("the device hiccuped")
        done = 0
        for n, pages in freed:
            for copy in batch.copies[done : max(n, done)]:
                self._copy(copy)
            done = max(n, done)
            self._poison(pages)
        for copy in batch.copies[done:]:
            self._copy(copy)
        newest = []
        for row in batch.rows:
            assert row.n_new >= 1
            assert row.end <= row.request.n_tokens
            tokens, slots = self.inputs(row), self.slots(row.request, row.end)
            for at in range(row.start, row.end):
                seen = self.kv[slots[:at]]
                assert (seen != POISON).all(), "a row reads KV that was given back"
                self.kv[slots[at]] = next_kv(seen, int(tokens[at]), at)
            newest.append(self.kv[slots[-1]])
            self.computed_tokens += row.n_new
        self.newest = {id(row): kv for row, kv in zip(batch.rows, newest)}
        for group in batch.prefix_groups:
            first = self.slots(batch.rows[group.rows[0]].request, group.n_tokens)
            for i in group.rows:
                assert batch.rows[i].start >= group.n_tokens
                assert (self.slots(batch.rows[i].request, group.n_tokens) == first).all()
        return batch

    def sample(self, pending: Batch, masks: Any) -> tuple[Batch, list[int | None]]:
        tokens: list[int | None] = []
        for row in pending.rows:
            token = token_of(self.newest[id(row)], self.vocab_size) if row.awaits_token else None
            if token is not None:
                self.chosen[row.request.id] = token
            tokens.append(token)
        return pending, tokens

    def _copy(self, copy: KVCopy) -> None:
        assert len(copy.source) == len(copy.target) == len({*copy.source.tolist()} - {*copy.target.tolist()})
        found = self.kv[copy.source]
        assert (found != POISON).all(), "a copy reads KV that was given back"
        with np.errstate(over="ignore"):
            self.kv[copy.target] = found + np.uint64(copy.turn) * TURN

    def _poison(self, pages: np.ndarray) -> None:
        for page in pages.tolist():
            self.kv[page * self.page_size : (page + 1) * self.page_size] = POISON


def make(*, pool_tokens: int = 64, executor: dict[str, Any] | None = None, **config: Any) -> Engine:
    settings = EngineConfig(**{"max_batch_tokens": 16, "max_running": 8, "pool_tokens": pool_tokens, **config})
    page_size = settings.page_size
    made = JoinedHashExecutor(n_pages=pool_tokens // page_size, page_size=page_size, **(executor or {}))
    engine = Engine(made, None, settings)
    free = engine.memory.pool.free

    def noted(pages: np.ndarray) -> None:
        free(pages)
        made.freed.append((len(engine.scheduler.assembler._copies), pages.copy()))

    engine.memory.pool.free = noted  # type: ignore[method-assign]
    return engine


def assert_the_cache_is_true(engine: Engine) -> None:
    """Each cached token has the KV that it has after the tokens before it in the tree, whoever put it there."""
    cache: Any = engine.memory.cache
    executor: Any = engine.executor
    for node in cache.nodes():
        path = cache.path(type("At", (), {"node": node})())
        written = Written()
        written.append(np.frombuffer(b"".join(one.key for one in path), np.int64).tolist())
        pages = np.concatenate([one.pages for one in path])
        slots = (pages[:, None].astype(np.int64) * engine.config.page_size + np.arange(engine.config.page_size)).ravel()
        assert executor.kv[slots].tolist() == written.kv
