"""The contract between the engine and a grammar library: compile a grammar, then follow one output through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engine.constraints.grammar import Grammar
from engine.request import RequestError

Mask = npt.NDArray[np.int32]
"""Packed, [ceil(vocab / 32)]: bit j of word w set means that token 32 * w + j may come next."""


class GrammarError(RequestError):
    """The grammar can't be served, or took more than its limits. The message says what is wrong and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarLimits:
    """What one grammar may take. Over a limit its request fails alone, with a GrammarError that names the limit."""

    max_bytes: int = 65_536
    """Of the grammar's text (a schema as compact JSON)."""
    max_nesting: int = 64
    """Of brackets in a regex or a grammar, of objects and arrays in a schema."""
    max_repeat: int = 10_000
    """Of a counted repetition {m,n} in a regex; nested ones multiply."""
    compile_fuel: int = 1_000_000
    """Work of compiling, in the library's own units: about 50,000 a millisecond in llguidance."""
    step_fuel: int = 200_000
    """Work of one mask: about 14,000 a millisecond in llguidance."""
    max_states: int = 50_000
    """Of the automata that a grammar builds while it is used."""


class Matcher(Protocol):
    """Where one output stands in its grammar. Used by one thread at a time."""

    @property
    def complete(self) -> bool:
        """The grammar is satisfied and nothing but the end may follow."""

    def accept(self, tokens: Sequence[int]) -> None:
        """The output goes on with these tokens. Raises GrammarError when one isn't allowed or a limit is reached;
        the matcher is of no use then."""

    def forced(self) -> list[int]:
        """The tokens that come next whatever the model says; empty when it has a choice. Changes nothing.

        They are the tokenizer's own ids for the text that the grammar forces (canonical), short of a last one that
        could merge with what follows. None of them is an end-of-sequence token. Raises GrammarError as `accept`.
        """

    def fill(self, mask: Mask) -> None:
        """Overwrites the mask with what may come next; every end-of-sequence token is set where the output may end.

        Raises GrammarError as `accept`.
        """


class Compiled(Protocol):
    """A grammar ready for use. Safe to share between threads."""

    def matcher(self) -> Matcher:
        """A new one at the start of the output."""


class Backend(Protocol):
    """A grammar library, set up for one tokenizer."""

    name: str

    def compile(self, grammar: Grammar) -> Compiled:
        """Raises GrammarError. May be called by several threads at once."""
