"""One pass through the model: what it is told, as one set of arrays, and the pass itself over their copies.

A pass of rows that decode may be padded to a fixed number of rows and a fixed number of arrays: then the same launches
serve every batch of that size, and a graph can replay them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.executor.base import PrefixGroup
from engine.executor.gpu_attention import Arrays, HostParts, Layout, StepAttention
from engine.executor.gpu_plan import Plan, Stage
from engine.executor.gpu_pool import GpuPool
from engine.executor.gpu_tables import Changes, Tables
from engine.models.llama import Given
from engine.models.llama_gpu import LlamaGpu


class HostStep(NamedTuple):
    """A pass before it is on the device."""

    arrays: Arrays
    """All that is uploaded. Names of the attention's arrays: `stage.several.n_keys`, `last.single.table`, ..."""
    stage: HostParts
    last: HostParts | None
    """None: the last layer answers all queries."""
    has_pending: bool
    changes: Changes


class Runner:
    """Runs passes of one model over one pool."""

    def __init__(self, model: LlamaGpu, pool: GpuPool, tables: Tables, layout: Layout) -> None:
        self.model = model
        self.pool = pool
        self.tables = tables
        self.layout = layout
        self._windows = [model.config.window(i) or 0 for i in range(model.config.n_layers)]

    def apply(self, step: HostStep, there: Mapping[str, Tensor]) -> None:
        """Writes the changes of the page tables."""
        if len(step.changes.at):
            self.tables.pages.view(-1).index_copy_(0, there["changed"], there["changed_pages"])

    @torch.inference_mode()
    def run(self, step: HostStep, there: Mapping[str, Tensor], given: Given | None = None) -> Tensor:
        """Logits of the step, [wanted, vocab], from the copies of its arrays; given: embeddings of pictures."""
        tokens = there["tokens"]
        if step.has_pending:
            tokens = torch.where(tokens < 0, self.tables.last_token[(-1 - tokens).clamp_(min=0)], tokens)
        stage = self.layout.on_device("stage", step.stage, there, self.tables.pages)
        last = stage if step.last is None else self.layout.on_device("last", step.last, there, self.tables.pages)
        attention = StepAttention(
            self.pool,
            self._windows,
            there["slots"],
            stage,
            last,
            there.get("wanted"),
            deterministic=self.layout.deterministic,
        )
        return self.model.forward(tokens, there["positions"], attention, given)


def host_step(plan: Plan, groups: Sequence[PrefixGroup], layout: Layout) -> HostStep:
    """The pass of any rows."""
    stage = layout.host(plan.stage, groups)
    last = None if plan.wanted is None else layout.host(plan.last, groups)
    arrays: Arrays = {"tokens": plan.tokens, "positions": plan.positions, "slots": plan.slots}
    if plan.wanted is not None:
        arrays["wanted"] = plan.wanted
    return _with_parts(arrays, stage, last, has_pending=plan.has_pending, changes=plan.changes)


def padded_decode(
    plan: Plan,
    groups: Sequence[PrefixGroup],
    layout: Layout,
    n: int,
    max_keys: int,
    *,
    shares: bool = False,
) -> HostStep:
    """The pass of rows that decode, as one of `n` rows: those that are missing have no keys and store nothing.

    Arrays have the shapes that `n` and the presence of shared prefixes dictate, whatever the rows are.
    max_keys: no row will ever have more. shares: make room for shared prefixes though there are none.
    """
    stage = plan.stage
    padded = Stage(
        stage.rows, np.arange(n + 1, dtype=np.int32), _filled(stage.table, n), _filled(stage.n_keys, n), n_several=0
    )
    parts = layout.padded(padded, groups, max_keys, shares=shares)
    arrays: Arrays = {
        "tokens": _filled(plan.tokens, n),
        "positions": _filled(plan.positions, n),
        "slots": _filled(plan.slots, n, -1),
    }
    return _with_parts(arrays, parts, None, has_pending=True, changes=plan.changes)


def _with_parts(
    arrays: Arrays, stage: HostParts, last: HostParts | None, *, has_pending: bool, changes: Changes
) -> HostStep:
    arrays = {**arrays, **stage.named("stage")}
    if last is not None:
        arrays |= last.named("last")
    if len(changes.at):  # at the end: what comes before stands where it always stands
        arrays["changed"], arrays["changed_pages"] = changes
    return HostStep(arrays, stage, last, has_pending, changes)


def _filled(array: npt.NDArray, n: int, value: int = 0) -> npt.NDArray:
    out = np.full(n, value, array.dtype)
    out[: len(array)] = array
    return out
