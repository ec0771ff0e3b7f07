"""The attention of one step on the device: which kernel answers which queries.

rows of one query         split over their keys                       attention_decode
rows of several           blocks of queries                           attention_extend
a prefix that rows share  read once for all of them, where it pays    attention_shared_prefix, merged by the others
deterministic             all rows alike, in splits of a fixed size   attention_fixed_split
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.executor.base import PrefixGroup
from engine.executor.gpu_plan import SharedQueries, Stage, shared_queries
from engine.executor.gpu_pool import GpuPool
from engine.kernels.attention_decode import attention_decode
from engine.kernels.attention_extend import ExtendItems, attention_extend, extend_block, plan_extend
from engine.kernels.attention_fixed import attention_fixed_split, fixed_block
from engine.kernels.attention_shared_prefix import attention_shared_prefix
from engine.kernels.paged import PagedKV, Rows, SharedPrefixes
from engine.kernels.shared_prefix_plan import LEAST, PROGRAMS, SharedPlan, pays, plan_shared_prefixes
from engine.kernels.tiles import current_gpu
from engine.models.config import ModelConfig

Arrays = dict[str, npt.NDArray]
SHARED = tuple(name for name in SharedPrefixes._fields if name != "max_parts")


class HostPart(NamedTuple):
    """Some packed queries that one kernel answers, before they are on the device."""

    arrays: Arrays
    max_parts: int
    """Of its shared prefixes; 0: it has none."""
    max_keys: int
    """At least the keys of every row."""


class HostParts(NamedTuple):
    """The queries of a stage: first those of rows of several, then those of rows of one."""

    n_several: int
    several: HostPart | None
    single: HostPart | None

    @property
    def shares(self) -> bool:
        return any(part is not None and part.max_parts for part in (self.several, self.single))

    def named(self, name: str) -> Arrays:
        """All arrays under the names `<name>.several.*` and `<name>.single.*`."""
        return {
            f"{name}.{which}.{key}": array
            for which, part in (("several", self.several), ("single", self.single))
            if part is not None
            for key, array in part.arrays.items()
        }


class Part(NamedTuple):
    """The same on the device."""

    rows: Rows
    items: ExtendItems | None
    """None: every row has one query."""
    shared: SharedPrefixes | None
    max_keys: int


class Parts(NamedTuple):
    n_several: int
    several: Part | None
    single: Part | None


class Layout:
    """How the kernels of one model want the rows of a stage."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, kv_dtype: torch.dtype, *, deterministic: bool) -> None:
        self.group = config.n_heads // config.n_kv_heads
        self.kv_heads = config.n_kv_heads
        self.head_dim = config.head_dim
        self.kv_bytes = kv_dtype.itemsize
        self.deterministic = deterministic
        self.shares = not deterministic and any(config.window(i) is None for i in range(config.n_layers))
        self.block = (fixed_block if deterministic else extend_block)(config.head_dim, dtype, self.group, kv_dtype)
        self.processors = current_gpu().processors

    def host(self, stage: Stage, groups: Sequence[PrefixGroup]) -> HostParts:
        """What the kernels of the rows of several and of those of one are told."""
        in_several, in_single = shared_queries(stage, groups) if groups and self.shares else ([], [])
        n, n_rows = len(stage.rows) if self.deterministic else stage.n_several, len(stage.rows)
        several = single = None
        if n:
            arrays = _rows(stage, 0, n)
            items = plan_extend(np.diff(arrays["first"]), self.block, arrays["n_keys"])
            arrays["extend_row"], arrays["extend_first"] = items
            several = self._with_shared(arrays, in_several)
        if n < n_rows:
            single = self._with_shared(_rows(stage, n, n_rows), in_single)
        return HostParts(int(stage.first[n]), several, single)

    def padded(self, stage: Stage, groups: Sequence[PrefixGroup], max_keys: int, *, shares: bool) -> HostParts:
        """The same for rows of one query, in arrays of fixed lengths. Rows without keys are padding.

        shares: room for shared prefixes, though there are none.
        """
        n = len(stage.n_keys)
        arrays = _rows(stage, 0, n)
        if self.deterministic:
            arrays["extend_row"] = np.arange(n, dtype=np.int32)
            arrays["extend_first"] = np.zeros(n, np.int32)
            return HostParts(n, HostPart(arrays, 0, max_keys), None)
        worth = self._worth(shared_queries(stage, groups)[1]) if groups and self.shares else []
        if not worth and not shares:
            return HostParts(0, None, HostPart(arrays, 0, max_keys))
        planned = self._planned(worth, n)
        fixed = {"query": n} | dict.fromkeys((name for name in SHARED if name.startswith("item_")), self.most_items(n))
        for name in SHARED:
            array = getattr(planned, name)
            arrays[name] = np.pad(array, (0, fixed.get(name, len(array)) - len(array)))
        return HostParts(0, None, HostPart(arrays, self.most_parts(max_keys), max_keys))

    def worth_sharing(self, n_queries: int, n_rows: int, n_tokens: int) -> bool:
        return self.shares and pays(
            n_queries,
            n_tokens,
            heads_per_kv=self.group,
            kv_heads=self.kv_heads,
            processors=self.processors,
            head_dim=self.head_dim,
            kv_bytes=self.kv_bytes,
            n_rows=n_rows,
        )

    def most_items(self, n: int) -> int:
        """Of the shared prefixes of `n` rows of one query."""
        return max(PROGRAMS * self.processors // self.kv_heads, n)

    def most_parts(self, max_keys: int) -> int:
        """Of a query, for prefixes of up to `max_keys` tokens."""
        return max(1, min(PROGRAMS * self.processors // self.kv_heads, -(-max_keys // LEAST)))

    def _with_shared(self, arrays: Arrays, groups: list[SharedQueries]) -> HostPart:
        max_keys = int(arrays["n_keys"].max())
        if not (worth := self._worth(groups)):
            return HostPart(arrays, 0, max_keys)
        planned = self._planned(worth, int(arrays["first"][-1]))
        return HostPart({**arrays, **{name: getattr(planned, name) for name in SHARED}}, planned.max_parts, max_keys)

    def _worth(self, groups: list[SharedQueries]) -> list[SharedQueries]:
        return [group for group in groups if self.worth_sharing(len(group.queries), group.n_rows, group.n_tokens)]

    def _planned(self, groups: list[SharedQueries], n_queries: int) -> SharedPlan:
        return plan_shared_prefixes(
            [(group.queries, group.table, group.n_tokens) for group in groups],
            n_queries,
            heads_per_kv=self.group,
            processors=self.processors,
            kv_heads=self.kv_heads,
        )

    def on_device(self, name: str, parts: HostParts, there: Mapping[str, Tensor], tables: Tensor) -> Parts:
        """The parts whose arrays are on the device under their names."""

        def part(which: str, host: HostPart | None) -> Part | None:
            if host is None:
                return None
            arrays = {key: there[f"{name}.{which}.{key}"] for key in host.arrays}
            rows = Rows(tables, arrays["table"], arrays["n_keys"], arrays["first"])
            has_items = "extend_row" in arrays
            items = ExtendItems(arrays["extend_row"], arrays["extend_first"], self.block) if has_items else None
            shared = None
            if host.max_parts:
                shared = SharedPrefixes(**{key: arrays[key] for key in SHARED}, max_parts=host.max_parts)
            return Part(rows, items, shared, host.max_keys)

        return Parts(parts.n_several, part("several", parts.several), part("single", parts.single))


class StepAttention:
    """`engine.models.llama_gpu.Attention` over the pool.

    windows: of each layer, 0: none. parts: of all layers but the last, which answers `wanted` only.
    """

    def __init__(
        self,
        pool: GpuPool,
        windows: Sequence[int],
        slots: Tensor,
        parts: Parts,
        last: Parts,
        wanted: Tensor | None,
        *,
        deterministic: bool,
    ) -> None:
        self.pool = pool
        self.windows = windows
        self.slots = slots
        self.parts = parts
        self.last = last
        self.wanted = wanted
        self.deterministic = deterministic

    def layer(self, layer: int) -> PagedKV:
        return self.pool.layer(layer)

    def attend(self, layer: int, q: Tensor) -> Tensor:
        parts = self.last if layer == len(self.windows) - 1 else self.parts
        kv, window, out = self.layer(layer), self.windows[layer], torch.empty_like(q)
        n = parts.n_several
        if parts.several is not None:
            self._several(parts.several, q[:n], out[:n], kv, window)
        if parts.single is not None:
            rows, shared, max_keys = parts.single.rows, None if window else parts.single.shared, parts.single.max_keys
            found = None if shared is None else attention_shared_prefix(q[n:], kv, rows, shared)
            attention_decode(q[n:], kv, rows, max_keys=max_keys, window=window, shared=shared, parts=found, out=out[n:])
        return out

    def _several(self, part: Part, q: Tensor, out: Tensor, kv: PagedKV, window: int) -> None:
        assert part.items is not None
        if self.deterministic:
            attention_fixed_split(q, kv, part.rows, part.items, max_keys=part.max_keys, window=window, out=out)
            return
        shared = None if window else part.shared
        found = None if shared is None else attention_shared_prefix(q, kv, part.rows, shared)
        attention_extend(q, kv, part.rows, part.items, window=window, shared=shared, parts=found, out=out)


def _rows(stage: Stage, a: int, b: int) -> Arrays:
    first = stage.first[a : b + 1]
    return {"table": stage.table[a:b], "n_keys": stage.n_keys[a:b], "first": first - first[0]}
