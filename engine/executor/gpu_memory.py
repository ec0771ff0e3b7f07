"""Memory of the GPU: how much of it the KV pool may take, and what to do with a step that doesn't fit beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from engine.config import ConfigError
from engine.executor.base import PrefixGroup, Row
from engine.models.config import ModelConfig

LEAST_TOKENS = 16
"""A step is not cut into smaller pieces than this."""
GIB = 2**30


class Budget(NamedTuple):
    """Bytes of one GPU."""

    total: int
    used: int
    """By the weights and by whoever else is on it."""
    step: int
    """At most, beside the weights, while a step runs."""
    graphs: int


def check_weights(needed: int, free: int, name: str, model: str) -> None:
    """Raises ConfigError when a model's weights (bytes) don't fit."""
    if needed > free:
        raise ConfigError(
            f"the weights of {model} need {needed / GIB:.1f} GiB, {name} has {free / GIB:.1f} GiB free: use a 16-bit "
            "model.dtype, model.weights=int8, a smaller model, a larger GPU, or engine.device=cpu"
        )


def pool_pages(
    budget: Budget,
    config: ModelConfig,
    *,
    bytes_each: int,
    page_size: int,
    memory_fraction: float,
    name: str,
    wanted: int | None = None,
) -> int:
    """Pages of the KV pool: those that are wanted, or as many as fit in `memory_fraction` of the GPU beside the rest.

    bytes_each: K and V of one token. Raises ConfigError when the wanted ones don't fit, or not one whole context.
    """
    allowed = int(memory_fraction * budget.total)
    rest = budget.used + budget.step + budget.graphs
    fit = max(0, allowed - rest) // (bytes_each * page_size)
    needed = -(-config.max_context // page_size) if wanted is None else wanted
    if fit < needed:
        pool = needed * page_size * bytes_each
        what = f"one context of {config.max_context}" if wanted is None else f"a pool of {wanted * page_size}"
        advice = "engine.max_context" if wanted is None else "engine.pool_tokens"
        raise ConfigError(
            f"the model needs {(rest + pool) / GIB:.1f} GiB: {budget.used / GIB:.1f} for weights and whatever else is "
            f"on the GPU, {budget.step / GIB:.1f} for a step, {budget.graphs / GIB:.1f} for graphs, {pool / GIB:.1f} "
            f"for {what} tokens. {name} has {budget.total / GIB:.1f} GiB, and engine.memory_fraction={memory_fraction} "
            f"of that may be used. Use a smaller {advice}, engine.max_batch_tokens or engine.max_running, "
            "engine.kv_dtype=int8, a 16-bit model.dtype, model.weights=int8, a smaller model or a larger GPU"
        )
    return fit if wanted is None else wanted


class Piece(NamedTuple):
    """Rows that go through the model together."""

    rows: tuple[Row, ...]
    of: tuple[int, ...]
    """Which row of the batch each is, or is a part of."""

    @property
    def n_tokens(self) -> int:
        return sum(row.n_new for row in self.rows)

    def groups(self, groups: Sequence[PrefixGroup]) -> list[PrefixGroup]:
        """What is left in here of the batch's groups."""
        place = {i: k for k, i in enumerate(self.of)}
        left = [PrefixGroup(tuple(place[i] for i in group.rows if i in place), group.n_tokens) for group in groups]
        return [group for group in left if len(group.rows) > 1]

    def cut(self, max_tokens: int) -> tuple[Piece, Piece | None]:
        """The first `max_tokens` new tokens, and the rest if there is any. A row may be in both.

        In order, because a row may read K and V that a row before it writes.
        """
        end = 0
        for i, (request, start, n_new, sample) in enumerate(self.rows):
            before, end = end, end + n_new
            if end < max_tokens:
                continue
            n = max_tokens - before
            first = (*self.rows[:i], Row(request, start, n, sample and n == n_new))
            rest = (
                self.rows[i + 1 :] if n == n_new else (Row(request, start + n, n_new - n, sample), *self.rows[i + 1 :])
            )
            return Piece(first, self.of[: i + 1]), Piece(rest, self.of[-len(rest) :]) if rest else None
        return self, None
