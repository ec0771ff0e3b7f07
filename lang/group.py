"""The branches of a fork."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lang.capabilities import CONCATENATING, Feature
from lang.output import Gathered
from lang.prompt import BranchMark

if TYPE_CHECKING:
    from lang.state import ProgramState

JOINS = ("gather_variable", "concate_and_append")


class ProgramStateGroup:
    """What `s.fork(n)` gives. `forks[i]` is a branch; `forks += ...` adds to all of them."""

    def __init__(self, parent: ProgramState, branches: Sequence[ProgramState]) -> None:
        self._parent = parent
        self._branches = list(branches)
        self._before = frozenset(parent._variables)
        self._prefix = tuple(parent._pieces)
        self._role = parent._role
        self._own = [branch._record() for branch in self._branches]

    def __len__(self) -> int:
        return len(self._branches)

    def __getitem__(self, i: int) -> ProgramState:
        return self._branches[i]

    def __setitem__(self, i: int, branch: ProgramState) -> None:
        """What `forks[i] += ...` ends with."""
        if self._branches[i] is not branch:
            raise TypeError("a branch can't be replaced by another state: add to it with forks[i] += ...")

    def __iter__(self) -> Iterator[ProgramState]:
        return iter(self._branches)

    def __iadd__(self, part: object) -> ProgramStateGroup:
        """The same to every branch, or to each its own: from a list, or from a function of the branch's number."""
        n = len(self._branches)
        if isinstance(part, list | tuple) and len(part) != n:
            raise ValueError(f"forks += a list of {len(part)}, but there are {n} branches: give one for each")
        for i, branch in enumerate(self._branches):
            branch += part[i] if isinstance(part, list | tuple) else part(i) if callable(part) else part
        return self

    def _append(self) -> None:
        parent = self._parent
        parent._runner.backend.capabilities.need(Feature.CONCATENATE, CONCATENATING)
        for state in (parent, *self._branches):
            if state._role != self._role:
                where, began = (f"in {role}()" if role else "outside of any role" for role in (state._role, self._role))
                raise ValueError(f"join('concate_and_append'): a branch or its parent is {where}, the fork was {began}")
        for own in self._own:
            parent._add(BranchMark(True, self._prefix))
            for piece in own:
                parent._add(piece)
            parent._add(BranchMark(False))

    def join(self, mode: str = "gather_variable") -> None:
        """Ends the branches. Each variable that is new in them becomes a list in the parent, in branch order.

        Nothing is waited for: reading the list does that. A branch without the variable has no place in it.

        "concate_and_append" also adds what each branch wrote to the parent's prompt, one behind the other, with the KV
        that the branches have: each saw what stood before the fork and itself, and what follows sees all of them (the
        SGLang paper's name). Raises NotServed where the backend can't, ValueError when a branch ends in another role
        than it began in.
        """
        if mode not in JOINS:
            raise ValueError(f"unknown mode {mode!r} of join; available: {', '.join(JOINS)}")
        if mode == "concate_and_append":
            self._append()
        names = dict.fromkeys(name for branch in self._branches for name in branch._variables)
        for name in names:
            if name not in self._before:
                values = [branch._variables[name] for branch in self._branches if name in branch._variables]
                self._parent._variables[name] = Gathered(tuple(values))
        for branch in self._branches:
            branch._closed = "branch was joined"
