"""What the device remembers of each running request: its pages, and the token that was last sampled for it.

A request keeps its table as long as it runs, unless others need one while it isn't in their step and no token of it is
under way. A step uploads only the pages that the device doesn't have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from engine.request import Request, Status

Ints = npt.NDArray[np.int32]


class Changes(NamedTuple):
    """Entries of the flattened page tables that have to be written."""

    at: npt.NDArray[np.int64]
    pages: Ints


NO_CHANGES = Changes(np.empty(0, np.int64), np.empty(0, np.int32))


@dataclass(slots=True)
class _Entry:
    table: int
    version: int
    n_pages: int
    """Pages the device knows of that version."""


class Tables:
    """`n_tables` page tables of `max_pages` pages. At most `n_tables` requests may run at once."""

    def __init__(self, *, n_tables: int, max_pages: int, page_size: int, device: torch.device) -> None:
        self.page_size = page_size
        self.max_pages = max_pages
        self.pages = torch.zeros(n_tables, max_pages, dtype=torch.int32, device=device)
        self.last_token = torch.zeros(n_tables, dtype=torch.int64, device=device)
        """[tables]: what was last sampled for each, before the host knows it."""
        self._entries: dict[Request, _Entry] = {}
        self._free = list(range(n_tables))[::-1]

    def look_up(self, requests: Sequence[Request], n_keys: Sequence[int]) -> tuple[Ints, Changes]:
        """The table of each request, and what must be written there so that its first n_keys[i] tokens are found.

        The device is taken to have the changes from now on. Raises ValueError for more requests than tables.
        """
        tables = np.empty(len(requests), np.int32)
        first: list[int] = []
        pages: list[Ints] = []
        for i, (request, n) in enumerate(zip(requests, n_keys, strict=True)):
            entry = self._entries.get(request)
            if entry is None:
                entry = self._entries[request] = _Entry(self._take_table(requests), request.pages_version, 0)
            elif entry.version != request.pages_version:
                entry.version, entry.n_pages = request.pages_version, 0
            wanted = -(-n // self.page_size)
            if entry.n_pages < wanted:
                first.append(entry.table * self.max_pages + entry.n_pages)
                pages.append(request.pages[entry.n_pages : wanted])
                entry.n_pages = wanted
            tables[i] = entry.table
        return tables, _joined(first, pages)

    def of(self, requests: Sequence[Request]) -> npt.NDArray[np.int64]:
        """The table of each request that was looked up."""
        return np.fromiter((self._entries[request].table for request in requests), np.int64, len(requests))

    def forget(self, requests: Sequence[Request]) -> None:
        """The device may not have the changes after all: the next look-up uploads everything of these requests."""
        for request in requests:
            if request in self._entries:
                self._entries[request].n_pages = 0

    def _take_table(self, wanted: Sequence[Request]) -> int:
        if not self._free:
            others = self._entries.keys() - set(wanted)
            gone = [r for r in others if r.status is not Status.RUNNING] or [r for r in others if not r.n_pending]
            self._free = sorted((self._entries.pop(request).table for request in gone), reverse=True)
        if not self._free:
            raise ValueError(
                f"a step has more rows than the {len(self.pages)} page tables: give the executor a larger max_running"
            )
        return self._free.pop()


def _joined(first: Sequence[int], pages: Sequence[Ints]) -> Changes:
    if not first:
        return NO_CHANGES
    n = np.fromiter(map(len, pages), np.int64, len(pages))
    begin = np.array(first, np.int64) - (np.cumsum(n) - n)
    return Changes(np.repeat(begin, n) + np.arange(n.sum()), np.concatenate(pages))
