"""Putting joined prompts together: branches are found or computed beside them, and their KV is copied into place.

Each splice of a running request (see `engine.splices`) has a stand-in: a request for the branch with its prefix, which
nobody outside sees. It takes what the cache has of the branch and computes the rest (often just the last token of an
output, which was never computed), in rows of the same batches. Once its KV is there, the branch's own part is copied
into the request's pages, turned on to its new positions, and the stand-in gives back what it held.

    pass 1   request: the prompt up to the first splice    stand-ins: what isn't cached of each branch
    pass 2   request: copies of the branches, then what stands behind them

A stand-in whose prefix has splices itself, or isn't cached, borrows the request's own pages for it. All that a request
holds this way it holds while it runs: when it is preempted it begins anew, like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from engine.executor.base import KVCopy, Row
from engine.memory import KVMemory
from engine.request import Request, SamplingParams, Status
from engine.splices import Splice, of_branch

_PREFILL = SamplingParams(max_tokens=0)


@dataclass(slots=True, eq=False)
class Assembly:
    """How far the splices of a request have come."""

    ready_at: int
    """The step before which, but not in which, all that the request has by now will have been computed."""
    n_done: int = 0
    """Splices in place."""
    branches: dict[int, Request] = field(default_factory=dict)
    """The stand-ins there are, by the number of their splice."""
    n_found: int = 0
    """Of a stand-in: tokens behind the fork that came from the cache."""
    borrows: bool = False
    """Memory is too short for anything but the request's own pages."""
    row_at: int = -1
    """The step in which it last had a row."""

    def busy(self, step: int) -> bool:
        """A row of the step's batch is its own or a stand-in's."""
        return self.row_at == step or any(_of(branch).busy(step) for branch in self.branches.values())


Chunk = Callable[[Request, list[Row], int, int], int]
"""Adds a row for the request's tokens up to an end, within a budget. Returns its tokens, 0 when memory is short."""


class Seats(Protocol):
    @property
    def n_running(self) -> int:
        """Requests that run."""

    @property
    def spare_rows(self) -> int:
        """How many more rows a batch may have than requests run."""


class Assembler:
    def __init__(self, memory: KVMemory, chunk: Chunk, seats: Seats, decide: Callable[..., None]) -> None:
        self._memory = memory
        self._chunk = chunk
        self._seats = seats
        self._decide = decide
        self._seated: set[int] = set()
        self._made_room = False
        self.step = 0
        self.n_more_rows = 0
        """Rows in this pass beyond the first of each request."""
        self._copies: list[KVCopy] = []

    def begin(self, step: int) -> None:
        """A pass begins."""
        self.step = step
        self.n_more_rows = 0
        self._seated.clear()

    def take_copies(self) -> tuple[KVCopy, ...]:
        """All that were decided and belong before the batch that is being built, in order."""
        copies, self._copies = tuple(self._copies), []
        return copies

    def forget(self) -> None:
        """Nothing that was decided counts any more."""
        self._copies.clear()

    def held_pages(self, request: Request) -> int:
        """Pages that the request's stand-ins have of their own."""
        if request.assembly is None:
            return 0
        branches = request.assembly.branches.values()
        return sum(one.n_pages - one.n_shared_pages + self.held_pages(one) for one in branches)

    def admitted(self, request: Request, rows: list[Row]) -> None:
        """It begins to run, or has taken over more from the cache; what it found may be computed by these rows."""
        if request.assembly is None:
            request.assembly = Assembly(self.step)
        if rows:
            request.assembly.ready_at = self.step + 1

    def advance(self, request: Request, rows: list[Row], budget: int) -> int:
        """Makes the copies that can be made now and adds rows for the request and its branches. Returns their tokens.

        As long as anything can be had by letting go of branches that come later, the next one gets on.
        """
        used = 0
        while True:
            self._made_room = False
            used += self._advance(request, rows, budget - used, head=True)
            if not self._made_room or used >= budget:
                return used

    def _advance(self, request: Request, rows: list[Row], budget: int, *, head: bool) -> int:
        """`head`: nothing that its owner needs first is missing."""
        assembly = _of(request)
        used = self._go_on(request, rows, budget, head=head)
        for i in range(assembly.n_done, len(request.splices)):
            if self._made_room or used >= budget:
                break
            if i < assembly.n_done:
                continue
            branch = assembly.branches.get(i)
            next_one = head and i == assembly.n_done and request.n_computed == request.splices[i].at
            if branch is None:
                if self._seats_left(request) <= 0:
                    break
                branch = self._start(request, i, rows, head=next_one)
                if branch is None:
                    break
            if branch.n_computed < branch.n_tokens:
                used += self._advance(branch, rows, budget - used, head=next_one)
            if next_one and self._ready(branch):  # nothing had to be computed
                used += self._go_on(request, rows, budget - used, head=head)
        return used

    def _go_on(self, request: Request, rows: list[Row], budget: int, *, head: bool) -> int:
        """Copies the branches that are ready and stand next, and adds a row for the text up to the one that isn't."""
        assembly = _of(request)
        while True:
            i = assembly.n_done
            splice = request.splices[i] if i < len(request.splices) else None
            if splice is not None and request.n_computed == splice.at:
                branch = assembly.branches.get(i)
                if branch is None or not self._ready(branch) or not self._put(request, splice, branch, head=head):
                    return 0
                continue
            end = request.n_tokens if splice is None else splice.at
            if request.n_computed == end or assembly.row_at == self.step or budget <= 0:
                return 0
            return self._row(request, rows, budget, end, head=head)

    def _row(self, request: Request, rows: list[Row], budget: int, end: int, *, head: bool) -> int:
        if self._seats_left(request) <= 0:
            return 0
        n = self._chunk(request, rows, budget, end)
        if n == 0:
            self._make_room(request, -1, head=head)
            return 0
        assembly, number = _of(request), request.root.id
        assembly.row_at, assembly.ready_at = self.step, self.step + 1
        if number in self._seated:
            self.n_more_rows += 1
        self._seated.add(number)
        return n

    def _seats_left(self, request: Request) -> int:
        return self._seats.spare_rows - self.n_more_rows + (request.root.id not in self._seated)

    # ---- branches

    def _ready(self, branch: Request) -> bool:
        """All of its KV will be there before the step that is being built."""
        return branch.n_computed == branch.n_tokens and _of(branch).ready_at <= self.step

    def _start(self, request: Request, i: int, rows: list[Row], *, head: bool) -> Request | None:
        """The stand-in for a branch, with what it could find; None when it has to wait for its prefix or for memory."""
        splice, memory = request.splices[i], self._memory
        whole = splice.fork // memory.page_size * memory.page_size
        branch = _stand_in(request, splice, memory.page_size)
        match = memory.match(branch)
        borrows = _of(request.root).borrows or request.splices[0].end <= splice.fork or match.n_tokens < whole
        if borrows and (request.n_computed < splice.fork or (whole < splice.fork and not self._prefix_ready(request))):
            return None
        branch.assembly = Assembly(self.step + bool(rows))
        if borrows:
            branch.assembly.n_done = sum(one.end <= splice.fork for one in branch.splices)
            if not memory.borrow(branch, request, splice.fork):
                self._make_room(request, i, head=head)
                return None
            if whole < splice.fork:
                self._copy(request, whole, branch, whole, splice.fork - whole)
        else:
            memory.admit(branch, match)
            branch.assembly.n_found = max(0, match.n_tokens - splice.fork)
        if request.n_ever_computed >= splice.end:
            branch.n_ever_computed = branch.n_tokens
        branch.status = Status.RUNNING
        _of(request).branches[i] = branch
        return branch

    def _prefix_ready(self, request: Request) -> bool:
        return _of(request).ready_at <= self.step

    def _put(self, request: Request, splice: Splice, branch: Request, *, head: bool) -> bool:
        """Copies the branch into place and lets go of it. False: there is no memory for it."""
        assembly, memory = _of(request), self._memory
        if not memory.grow(request, splice.end):
            self._make_room(request, assembly.n_done, head=head)
            return False
        self._copy(branch, splice.fork, request, splice.at, splice.n_tokens)
        self._decide("splice", request.root.id, splice.at, splice.n_tokens)
        found = _of(branch).n_found
        if request.owner is not None:
            assembly.n_found += found
        elif request.n_ever_computed <= splice.at:
            request.n_cached += found
        request.n_computed = splice.end
        request.n_ever_computed = max(request.n_ever_computed, splice.end)
        del assembly.branches[assembly.n_done]
        assembly.n_done += 1
        memory.release(branch, keep=True, ended=False)
        return True

    def _copy(self, of: Request, start: int, to: Request, at: int, n_tokens: int) -> None:
        source = self._memory.slots(of, start, start + n_tokens)
        target = self._memory.slots(to, at, at + n_tokens)
        self._copies.append(KVCopy(source, target, start, at - start))

    # ---- memory

    def _make_room(self, request: Request, i: int, *, head: bool) -> None:
        """Memory is short for what stands first: lets go of what comes behind splice `i` of the request.

        If that is nothing and the request runs alone, its branches hold on to a prefix in the cache that the request
        has in pages of its own: from now on they borrow these. Then it gets all it needs, `peak_pages`.
        """
        if not head:
            return
        while not self._drop(request, i):
            if request.owner is None:
                break
            request, i = request.owner, _number_in(request)
        else:
            return
        assembly = _of(request)
        if self._seats.n_running == 1 and not assembly.borrows:
            assembly.borrows = True
            self._made_room = self._drop(request, -1) or self._made_room

    def _drop(self, request: Request, behind: int) -> bool:
        """Ends the stand-ins behind a splice that have no row in this batch. True if there was one."""
        branches = _of(request).branches
        gone = [i for i, branch in branches.items() if i > behind and not _of(branch).busy(self.step)]
        for i in gone:
            self._memory.release(branches.pop(i), keep=True, ended=False)
        self._made_room = self._made_room or bool(gone)
        return bool(gone)


def _of(request: Request) -> Assembly:
    assert request.assembly is not None, f"request {request.id} isn't being put together"
    return request.assembly


def _number_in(branch: Request) -> int:
    """The number of its splice."""
    if branch.owner is None:
        return -1
    return next((i for i, one in _of(branch.owner).branches.items() if one is branch), -1)


def _stand_in(request: Request, splice: Splice, page_size: int) -> Request:
    """For a branch with its prefix. It bears the request's number: to policies and the log it is a part of it."""
    root = request.root
    key = np.concatenate([request.tokens[: splice.fork], request.tokens[splice.at : splice.end]])
    splices = of_branch(request.splices, splice)
    return Request(
        id=root.id,
        key=key,
        params=_PREFILL,
        namespace=root.namespace,
        client=root.client,
        conversation=root.conversation,
        program=root.program,
        agent=root.agent,
        parent=root.parent,
        siblings=root.siblings,
        priority=root.priority,
        deadline=root.deadline,
        arrival=root.arrival,
        seed=root.seed,
        splices=splices,
        n_cacheable=splices[0].at if splices else len(key),
        owner=request,
        tokens=key,
        n_tokens=len(key),
        preemptions=root.preemptions,
        pages=np.empty(-(-len(key) // page_size), np.int32),
    )
