"""Code movement: what may be moved goes to where calls share longer prefixes.

Only what the program declares with `movable(...)` moves, among what stands next to it: texts and images of one message
(or of a prompt without roles), and whole messages among messages; never over a call or a fork. Something constant goes
before the first thing that varies from run to run or from branch to branch; something that varies goes behind what is
constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lang.graph.expressions import is_constant
from lang.graph.graph import Graph
from lang.graph.ops import Fork, Operation, Read, Role, Set, Write
from lang.passes.base import Notes, Pass
from lang.passes.prompts import changed_prompts
from lang.passes.rewrite import each_region


def code_movement() -> Pass:
    """Moves what is declared movable. The report names every call whose prompt it changes."""
    return Pass("code_movement", _change)


@dataclass(frozen=True)
class _Unit:
    """What moves, or stays, as a whole."""

    ops: tuple[Write | Role, ...]
    movable: bool
    varies: bool


def _change(graph: Graph, notes: Notes) -> Graph:
    varying = _texts_of_branches(graph)
    changed = each_region(graph, lambda ops: _moved(ops, varying, notes))
    notes.changed_prompts += changed_prompts(graph, changed)
    return changed


def _texts_of_branches(graph: Graph) -> set[int]:
    """Writes of constants that not all branches of their fork have: they vary from branch to branch."""
    streams: dict[int, list[Write]] = {}
    for op in graph.every():
        if isinstance(op, Write):
            streams.setdefault(op.stream, []).append(op)
    found: set[int] = set()
    for fork in (op for op in graph.every() if isinstance(op, Fork)):
        parts = [[write.part for write in streams.get(branch, ())] for branch in fork.branches]
        for branch in fork.branches:
            for write in streams.get(branch, ()):
                if not all(write.part in others for others in parts):
                    found.add(write.id)
    return found


def _moved(ops: Sequence[Operation], varying: set[int], notes: Notes) -> list[Operation]:
    """The operations of a region, runs of writes on each stream put in their new order where the run ends."""
    moved: dict[int, list[Operation]] = {}
    gone: set[int] = set()
    for run in _runs(ops):
        order = _ordered(run, varying)
        if [op.id for op in order] != [op.id for op in run]:
            first = next(new for new, old in zip(order, run) if new is not old)
            notes.changes.append(f"{len(run)} parts up to {run[-1].line} in a new order: {first.line} goes forward")
            gone |= {op.id for op in run}
            moved[run[-1].id] = list(order)
    return [one for op in ops for one in (moved.get(op.id, [] if op.id in gone else [op]))]


def _runs(ops: Sequence[Operation]) -> list[list[Write | Role]]:
    """Writes and roles that follow one another on a stream with nothing between that asks, reads or forks."""
    runs: list[list[Write | Role]] = []
    under_way: dict[int, list[Write | Role]] = {}
    for op in ops:
        if isinstance(op, Write | Role):
            under_way.setdefault(op.stream, []).append(op)
        elif not (isinstance(op, Set) or (isinstance(op, Read) and op.what != "text")):
            for stream in op.streams:
                runs.append(under_way.pop(stream, []))
    return [part for run in (*runs, *under_way.values()) for part in _whole(run)]


def _whole(run: Sequence[Write | Role]) -> list[list[Write | Role]]:
    """The run, cut at roles that begin or end outside of it."""
    open_at: int | None = None
    cuts: list[int] = []
    for i, op in enumerate(run):
        if isinstance(op, Role):
            if op.begins:
                open_at = i
            elif open_at is None:
                cuts.append(i)
            else:
                open_at = None
    if open_at is not None:
        cuts.append(open_at)
    parts, at = [], 0
    for cut in cuts:
        parts.append(list(run[at:cut]))
        at = cut + 1
    parts.append(list(run[at:]))
    return [part for part in parts if len(part) > 1]


def _ordered(run: Sequence[Write | Role], varying: set[int]) -> list[Write | Role]:
    units = _units(run, varying)
    fixed = [unit for unit in units if not unit.movable]
    front = [unit for unit in units if unit.movable and not unit.varies]
    back = [unit for unit in units if unit.movable and unit.varies]
    place = next((i for i, unit in enumerate(fixed) if unit.varies), None)
    at = {id(unit): i for i, unit in enumerate(units)}
    if place is None:
        order = [unit for unit in units if unit not in back] + back if back else units
        return [op for unit in order for op in unit.ops]
    barrier = at[id(fixed[place])]
    early = [unit for unit in units[:barrier] if unit not in back]
    late = [unit for unit in front if at[id(unit)] > barrier]
    rest = [unit for unit in units[barrier:] if unit not in front and unit not in back]
    return [op for unit in (*early, *late, *rest, *back) for op in unit.ops]


def _units(run: Sequence[Write | Role], varying: set[int]) -> list[_Unit]:
    units: list[_Unit] = []
    i = 0
    while i < len(run):
        op = run[i]
        end = i + 1
        if op.movable is not None:
            while end < len(run) and run[end].movable == op.movable:
                end += 1
            units.append(_unit(run[i:end], True, varying))
        elif isinstance(op, Role):  # a whole message, its own parts in their own order
            while not (isinstance(run[end], Role) and run[end].movable is None):
                end += 1
            inside = _ordered(run[i + 1 : end], varying) if end > i + 1 else []
            end += 1
            units.append(_unit([op, *inside, run[end - 1]], False, varying))
        else:
            units.append(_unit([op], False, varying))
        i = end
    return units


def _unit(ops: Sequence[Write | Role], movable: bool, varying: set[int]) -> _Unit:
    varies = any(isinstance(op, Write) and (op.id in varying or not is_constant(op.part)) for op in ops)
    return _Unit(tuple(ops), movable, varies)
