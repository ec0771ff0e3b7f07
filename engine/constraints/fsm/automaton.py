"""From a regex's tree to the smallest deterministic automaton over bytes.

Thompson's construction, then subset construction (Rabin and Scott 1959), then Hopcroft's minimisation (1971): Aho,
Lam, Sethi, Ullman: Compilers, section 3.7 to 3.9.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine.constraints.base import GrammarError, GrammarLimits
from engine.constraints.fsm.characters import Bytes, utf8
from engine.constraints.fsm.regex_syntax import Chars, Concat, Either, Node, Repeat

DEAD = 0
"""The state from which nothing matches any more."""
START = 1


@dataclass(frozen=True, slots=True)
class Automaton:
    """Deterministic, over bytes. From every state but DEAD some text leads to an end."""

    byte_class: npt.NDArray[np.uint8]
    """[256]: bytes of a class are never told apart."""
    table: npt.NDArray[np.int32]
    """[states, classes]: the next state."""
    accepting: npt.NDArray[np.bool_]
    """[states]: the output may end here."""

    @property
    def n_states(self) -> int:
        """Without DEAD."""
        return len(self.table) - 1

    def step(self, state: int, byte: int) -> int:
        return int(self.table[state, self.byte_class[byte]])

    def walk(self, state: int, text: bytes) -> int:
        for byte in text:
            state = self.step(state, byte)
        return state

    def accepts(self, text: bytes) -> bool:
        return bool(self.accepting[self.walk(START, text)])

    def next_bytes(self, state: int) -> bytes:
        """The bytes that may follow."""
        return np.flatnonzero(self.table[state][self.byte_class] != DEAD).astype(np.uint8).tobytes()


def compile_tree(tree: Node, limits: GrammarLimits) -> Automaton:
    """Raises GrammarError where the tree matches nothing, or takes more than the limits."""
    work = _Work(limits.compile_fuel)
    nfa = _Nfa(work)
    start, end = nfa.add(tree)
    byte_class = _byte_classes(nfa)
    rows, accepting = _subsets(nfa, start, end, byte_class, limits, work)
    alive = _alive(rows, accepting)
    if START not in alive:
        raise GrammarError("the grammar matches nothing, not even the empty text: remove the empty class of characters")
    rows = [{sign: to for sign, to in row.items() if to in alive} if at in alive else {} for at, row in enumerate(rows)]
    return _numbered(rows, accepting, _equivalent(rows, accepting, alive, work), byte_class)


class _Work:
    """Counts elementary moves: about 3,000 a millisecond."""

    def __init__(self, fuel: int) -> None:
        self.fuel = self.left = fuel

    def spend(self, n: int) -> None:
        self.left -= n
        if self.left < 0:
            raise GrammarError(
                f"compiling the grammar takes more than compile_fuel={self.fuel}: make it smaller, above all counted "
                "repetitions {m,n} of large classes"
            )


@dataclass(slots=True)
class _Nfa:
    """Thompson's automaton: from each state edges over bytes, and edges over nothing."""

    work: _Work
    edges: list[list[tuple[int, int, int]]] = field(default_factory=list)
    """First byte, last byte, next state."""
    empty: list[list[int]] = field(default_factory=list)

    def state(self) -> int:
        self.work.spend(1)
        self.edges.append([])
        self.empty.append([])
        return len(self.edges) - 1

    def add(self, node: Node) -> tuple[int, int]:
        """Start and end of a part that matches what the node does. No edge leads to its start or from its end."""
        start, end = self.state(), self.state()
        match node:
            case Chars(ranges):
                self._add_bytes(utf8(ranges), start, end)
            case Concat(parts):
                self.empty[self._add_all(parts, start)].append(end)
            case Either(options):
                for option in options:
                    first, last = self.add(option)
                    self.empty[start].append(first)
                    self.empty[last].append(end)
            case Repeat(item, least, most):
                at = self._add_all([item] * least, start)
                if most is None:
                    first, last = self.add(item)
                    self.empty[at].append(first)
                    self.empty[last] += (first, end)
                else:
                    for _ in range(most - least):  # each may be the last: a way out for each, not a way round it
                        self.empty[at].append(end)
                        at = self._add_all([item], at)
                self.empty[at].append(end)
        return start, end

    def _add_all(self, nodes: Sequence[Node], at: int) -> int:
        for node in nodes:
            first, last = self.add(node)
            self.empty[at].append(first)
            at = last
        return at

    def _add_bytes(self, branches: Bytes, start: int, end: int) -> None:
        ways: dict[Bytes, int] = {}
        for first, last, below in branches:
            to = end
            if below is not None:
                if below not in ways:
                    ways[below] = self.state()
                    self._add_bytes(below, ways[below], end)
                to = ways[below]
            self.work.spend(1)
            self.edges[start].append((first, last, to))

    def moves(self, state: int) -> list[int]:
        """The states with edges over bytes, or with no edge at all, that edges over nothing lead to."""
        seen, ahead = {state}, [state]
        while ahead:
            self.work.spend(1)
            new = [to for to in self.empty[ahead.pop()] if to not in seen]
            seen.update(new)
            ahead += new
        return [at for at in seen if self.edges[at] or not self.empty[at]]


def _byte_classes(nfa: _Nfa) -> npt.NDArray[np.uint8]:
    cuts = np.zeros(257, np.int32)
    for edges in nfa.edges:
        for first, last, _ in edges:
            cuts[[first, last + 1]] = 1
    cuts[0] = 0
    return np.cumsum(cuts[:256]).astype(np.uint8)


Row = dict[int, int]
"""Class of bytes -> next state; a class that isn't there leads to DEAD."""


def _subsets(
    nfa: _Nfa, start: int, end: int, byte_class: npt.NDArray[np.uint8], limits: GrammarLimits, work: _Work
) -> tuple[list[Row], list[bool]]:
    """A state for each set of Thompson's states that one text can lead to."""
    classes = byte_class.tolist()
    closures: dict[int, frozenset[int]] = {}

    def closed(states: Iterable[int]) -> frozenset[int]:
        found: set[int] = set()
        for state in states:
            if state not in closures:
                closures[state] = frozenset(nfa.moves(state))
            work.spend(len(closures[state]))
            found |= closures[state]
        return frozenset(found)

    sets = [frozenset(), closed([start])]
    number = {sets[START]: START}
    rows: list[Row] = [{}]
    while len(rows) < len(sets):
        targets: defaultdict[int, set[int]] = defaultdict(set)
        for state in sets[len(rows)]:
            for first, last, to in nfa.edges[state]:
                work.spend(classes[last] - classes[first] + 1)
                for sign in range(classes[first], classes[last] + 1):
                    targets[sign].add(to)
        row: Row = {}
        met: dict[frozenset[int], int] = {}
        for sign, states in targets.items():
            key = frozenset(states)
            if key not in met:
                following = closed(key)
                met[key] = number.setdefault(following, len(sets))
                if met[key] == len(sets):
                    sets.append(following)
            row[sign] = met[key]
        rows.append(row)
        if len(sets) > limits.max_states:
            raise GrammarError(f"the grammar needs more than max_states={limits.max_states} states: make it smaller")
    return rows, [end in states for states in sets]


def _alive(rows: Sequence[Row], accepting: Sequence[bool]) -> set[int]:
    """The states from which some text leads to an end."""
    before: defaultdict[int, list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        for to in row.values():
            before[to].append(at)
    alive = {at for at, ends in enumerate(accepting) if ends}
    ahead = list(alive)
    while ahead:
        new = [at for at in before[ahead.pop()] if at not in alive]
        alive.update(new)
        ahead += new
    return alive


def _equivalent(rows: Sequence[Row], accepting: Sequence[bool], alive: set[int], work: _Work) -> list[int]:
    """Hopcroft: a number for each state, the same for two that the same texts lead to an end from.

    Blocks are split until no block tells two states of another apart. A state without an edge for a sign is told from
    one with, since every block is tried; after that, of a block that splits only the smaller half is tried again.
    """
    before: list[defaultdict[int, list[int]]] = [defaultdict(list) for _ in rows]
    for at, row in enumerate(rows):
        for sign, to in row.items():
            before[to][sign].append(at)
    ends = {at for at in alive if accepting[at]}
    blocks = [set(range(len(rows))) - alive, ends, alive - ends]
    block_of = [0] * len(rows)
    for number, block in enumerate(blocks):
        for at in block:
            block_of[at] = number
    untried = {1, 2}
    while untried:
        leading: defaultdict[int, set[int]] = defaultdict(set)
        for to in blocks[untried.pop()]:
            for sign, states in before[to].items():
                leading[sign].update(states)
        for sources in leading.values():
            work.spend(len(sources))
            split: defaultdict[int, set[int]] = defaultdict(set)
            for at in sources:
                split[block_of[at]].add(at)
            for number, part in split.items():
                block = blocks[number]
                if len(part) == len(block):
                    continue
                block -= part
                small, blocks[number] = (part, block) if len(part) < len(block) else (block, part)
                for at in small:
                    block_of[at] = len(blocks)
                untried.add(len(blocks))
                blocks.append(small)
    return block_of


def _numbered(
    rows: Sequence[Row], accepting: Sequence[bool], block_of: Sequence[int], byte_class: npt.NDArray[np.uint8]
) -> Automaton:
    """One state a block, in the order in which they are met: equal languages have equal tables."""
    number = {block_of[DEAD]: DEAD, block_of[START]: START}
    members = [DEAD, START]
    for at in members:
        for _, to in sorted(rows[at].items()):
            if block_of[to] not in number:
                number[block_of[to]] = len(members)
                members.append(to)
    table = np.zeros((len(members), int(byte_class[-1]) + 1), np.int32)
    for state, at in enumerate(members):
        for sign, to in rows[at].items():
            table[state, sign] = number[block_of[to]]
    columns, merged = np.unique(table, axis=1, return_inverse=True)
    classes = merged.reshape(-1)[byte_class].astype(np.uint8)
    return Automaton(classes, np.ascontiguousarray(columns), np.array([accepting[at] for at in members]))
