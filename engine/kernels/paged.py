"""What the attention kernels read: one layer of the paged KV pool, and who of a batch reads which pages of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The number that the largest of a quantised vector is stored as."""


class PagedKV(NamedTuple):
    """K and V of one layer. Slot s is token s % page_size of page s // page_size."""

    k: Tensor
    """[kv heads, slots, head_dim], float32, float16 or bfloat16, or quantised: int8, float8_e4m3fn."""
    v: Tensor
    """Like k."""
    page_size: int
    k_scale: Tensor | None = None
    """float32 [kv heads, slots] for a quantised pool: k = stored * scale. None otherwise."""
    v_scale: Tensor | None = None


class Rows(NamedTuple):
    """The rows of a batch, int32 throughout. Queries of all rows are packed one row after another: [queries, ...].

    Query j of row i stands at position n_keys[i] - n_queries[i] + j of its request and sees the keys at positions
    0 .. that position (less under a sliding window). K and V of its own tokens are in the pool already.
    """

    tables: Tensor
    """[tables, pages]: page of tokens [p * page_size, (p + 1) * page_size) of a request."""
    table: Tensor
    """[rows]: which of `tables` each row reads."""
    n_keys: Tensor
    """[rows]: keys of each row, its own new tokens included."""
    first: Tensor
    """[rows + 1]: the packed queries of row i are first[i] .. first[i + 1]."""


class SharedPrefixes(NamedTuple):
    """Groups of rows whose first keys live in the same pages, int32 throughout.

    Work is cut into items on the host, one item = up to BLOCK queries of one group over a range of its keys. Arrays may
    be longer than what counts (graphs replay with fixed sizes): `n_items[0]` says how many items there are.
    """

    query: Tensor
    """[members]: packed queries of all groups, group after group."""
    n_items: Tensor
    """[1]"""
    item_first: Tensor
    """[items]: where the item's queries begin in `query`."""
    item_queries: Tensor
    """[items]: how many there are."""
    item_table: Tensor
    """[items]: the row of `Rows.tables` through which the prefix is read."""
    item_begin: Tensor
    """[items]: first key."""
    item_end: Tensor
    """[items]: one past the last key."""
    item_part: Tensor
    """[items]: which partial result of its queries this is, 0 .. n_parts - 1."""
    n_shared: Tensor
    """[packed queries]: keys that the groups have read for each query (0: in no group): its row starts there."""
    n_parts: Tensor
    """[packed queries]: partial results that the groups leave for each query."""
    max_parts: int
    """Room for partial results a query."""
