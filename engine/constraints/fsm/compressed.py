"""What an automaton forces: chains of states with a single way on, merged into one edge.

Zheng et al.: SGLang, arXiv 2312.07104, section 4.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from engine.constraints.fsm.automaton import DEAD, START, Automaton


class Edge(NamedTuple):
    """The edge from `first` to `last` (bytes) and, after it, `forced`; together they lead to the state `to`."""

    first: int
    last: int
    forced: bytes
    to: int


class Compressed:
    """The automaton with its chains merged. Between two states that are left there is a choice, or the end."""

    def __init__(self, automaton: Automaton) -> None:
        self.automaton = automaton
        n_next = (automaton.table[:, automaton.byte_class] != DEAD).sum(axis=1)
        self._single = ((n_next == 1) & ~automaton.accepting).tolist()

    def forced(self, state: int) -> tuple[bytes, int]:
        """The bytes that come next whatever is chosen, and the state that they lead to.

        It ends at a state with a choice or where the output may end: there is one ahead of every state but DEAD.
        """
        text = bytearray()
        while self._single[state]:
            (byte,) = self.automaton.next_bytes(state)
            text.append(byte)
            state = self.automaton.step(state, byte)
        return bytes(text), state

    def states(self) -> list[int]:
        """Those that are left, the start first."""
        found, met = [START], {START}
        for state in found:
            new = {edge.to for edge in self.edges(state)} - met
            met |= new
            found += sorted(new)
        return found

    def edges(self, state: int) -> list[Edge]:
        """From a state that is left."""
        if self._single[state]:
            text, to = self.forced(state)
            return [Edge(text[0], text[0], text[1:], to)]
        nexts = self.automaton.table[state, self.automaton.byte_class]
        cuts = np.flatnonzero(np.diff(nexts, prepend=DEAD, append=DEAD)).tolist()
        return [
            Edge(first, cut - 1, *self.forced(int(nexts[first])))
            for first, cut in pairwise(cuts)
            if nexts[first] != DEAD
        ]
