"""Runs a graph: each operation as soon as what it needs is there, whatever the order in the program.

A call needs no answer to be written down: its prompt may hold outputs that are still to come, and it is sent when they
are there (`lang.calls`). Only what decides how the program goes on (a cond, a loop, a function of values) waits here.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any

from lang.graph.environment import Environment, outputs_in
from lang.graph.graph import Graph
from lang.graph.ops import Cond, Loop, Operation, Region, Start
from lang.graph.perform import perform
from lang.output import FirstOf, Output
from lang.state import ProgramState

Key = tuple[int, ...]
"""Place in the program: operations, and rounds of the loops that they are in."""


class Walk:
    """One region under way: of the program, of a branch that was taken, of one round of a loop."""

    def __init__(
        self, region: Region, environment: Environment, key: Key, after: _Task | None, alone: tuple[Key, ...] = ()
    ) -> None:
        self.environment = environment
        self.key = key
        self.alone = alone
        """Called programs around it that fail alone, by the keys of their starts."""
        self.called = region.called_alone
        self.after = after
        """Goes on when all of this is done."""
        self.n_left = len(region.ops)
        before = region.before
        self.tasks = {op.id: _Task(op, self, (*key, op.id), len(before[op.id])) for op in region.ops}
        for op in region.ops:
            for other in before[op.id]:
                self.tasks[other].dependents.append(self.tasks[op.id])


class _Task:
    """An operation to be done."""

    __slots__ = ("dependents", "key", "n_before", "op", "rounds", "walk")

    def __init__(self, op: Operation, walk: Walk, key: Key, n_before: int) -> None:
        self.op, self.walk, self.key, self.n_before = op, walk, key, n_before
        self.dependents: list[_Task] = []
        self.rounds: Environment | None = None
        """Of a loop: the round that was last."""

    @property
    def alone(self) -> tuple[Key, ...]:
        """Called programs that it is part of and that fail alone, the innermost last."""
        return (*self.walk.alone, *((*self.walk.key, start) for start in self.walk.called.get(self.op.id, ())))

    def __lt__(self, other: _Task) -> bool:
        return self.key < other.key


class Execution:
    """One run of a graph, inside a program's own greenlet."""

    def __init__(self, graph: Graph, state: ProgramState, arguments: Mapping[str, Any]) -> None:
        self._graph = graph
        self._runner = state._runner
        self._run = state._run
        self._ready: list[_Task] = []
        self._waiting: list[tuple[_Task, list[Output]]] = []
        """Operations that need values which are on their way."""
        self._reads: list[tuple[Key, Any]] = []
        """What the program read: without a value, it fails."""
        self._failure: tuple[Key, Exception] | None = None
        self._failed_alone: dict[Key, Key] = {}
        """Called programs that failed, by the keys of their starts: where."""
        self._environment = Environment(graph, arguments, state)
        self._children = {op.id: op.child for op in graph.every() if isinstance(op, Start)}

    def run(self) -> Any:
        """What the program returns. Raises what went wrong first in the program's order."""
        self._begin(Walk(self._graph.body, self._environment, (), None))
        while self._ready or self._waiting:
            while self._ready:
                self._do(heapq.heappop(self._ready))
            self._wait()
        for key, held in sorted(self._reads, key=lambda read: read[0]):
            if self._failure is not None and key > self._failure[0]:
                break
            for output in outputs_in(held):
                self._runner.wait(output)
                if output.problem is not None:
                    raise output.problem
        if self._failure is not None:
            raise self._failure[1]
        return self._environment.value(self._graph.returns)

    def _begin(self, walk: Walk) -> None:
        if not walk.tasks:
            self._ended(walk)
        for task in walk.tasks.values():
            if not task.n_before:
                heapq.heappush(self._ready, task)

    def _do(self, task: _Task) -> None:
        if self._failure is not None and task.key > self._failure[0]:
            return
        op, environment, alone = task.op, task.walk.environment, task.alone
        if any(program in self._failed_alone and task.key > self._failed_alone[program] for program in alone):
            self._done(task)
            return
        try:
            missing = environment.missing(op)
            if missing:
                self._waiting.append((task, missing))
                return
            match op:
                case Cond():
                    region = op.then if environment.value(op.test) else op.otherwise
                    self._begin(Walk(region, Environment.within(environment), task.key, task, alone))
                    return
                case Loop():
                    if task.rounds is None:
                        self._round(task, op, 0)
                    else:
                        self._until(task, op, task.rounds)
                    return
                case _:
                    read = perform(op, environment)
        except Exception as error:
            self._fail(task, error)
            return
        if read is not None and not alone:
            self._reads.append((task.key, read))
        self._done(task)

    def _round(self, task: _Task, op: Loop, number: int) -> None:
        task.rounds = Environment.within(task.walk.environment)
        task.rounds.rounds[op.id] = number
        self._begin(Walk(op.body, task.rounds, (*task.key, number), task, task.alone))

    def _ended(self, walk: Walk) -> None:
        """The operation that the walk was part of goes on."""
        task = walk.after
        if task is None:
            return
        if isinstance(task.op, Loop):
            self._until(task, task.op, walk.environment)
        else:
            self._done(task)

    def _until(self, task: _Task, op: Loop, environment: Environment) -> None:
        number = environment.rounds[op.id]
        try:
            missing = environment.missing_in([op.until])
            if missing:
                self._waiting.append((task, missing))
                return
            if number + 1 >= op.limit or environment.value(op.until):
                self._done(task)
            else:
                self._round(task, op, number + 1)
        except Exception as error:
            self._fail(task, error)

    def _done(self, task: _Task) -> None:
        for other in task.dependents:
            other.n_before -= 1
            if not other.n_before:
                heapq.heappush(self._ready, other)
        task.walk.n_left -= 1
        if not task.walk.n_left:
            self._ended(task.walk)

    def _fail(self, task: _Task, error: Exception) -> None:
        if task.alone:
            program, environment = task.alone[-1], task.walk.environment
            if program not in self._failed_alone or task.key < self._failed_alone[program]:
                self._failed_alone[program] = task.key
                environment.failures[environment.stream(self._children[program[-1]])] = error
            self._done(task)
            return
        if self._failure is None or task.key < self._failure[0]:
            self._failure = (task.key, error)
            self._run.failed_at = task.op.line

    def _wait(self) -> None:
        """Until some operation that waited can be done."""
        if not self._waiting:
            return
        if not any(all(output.finished for output in outputs) for _, outputs in self._waiting):
            self._runner.wait_for_first(FirstOf([output for _, outputs in self._waiting for output in outputs]))
        still: list[tuple[_Task, list[Output]]] = []
        for task, outputs in self._waiting:
            left = [output for output in outputs if not output.finished]
            if left:
                still.append((task, left))
            else:
                heapq.heappush(self._ready, task)
        self._waiting = still
