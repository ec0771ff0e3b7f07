"""Where no grammar is followed: in a replay, whose log has all that they did, and without a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from engine.constraints.grammar import Grammar
from engine.constraints.session import Constraint, Counts, Forced
from engine.request import RequestError, SamplingParams


class RecordedConstraint(Constraint):
    """`Constraint` of a recorded request."""

    needs_mask = False

    def __init__(self, begins_with: Sequence[int]) -> None:
        self.compile_s = self.mask_s = 0.0
        self.forced_tokens = self.passes_saved = 0
        self.error = None
        self.recorded = Forced((), False)
        """What followed the token that is taken next."""
        self._begins_with = tuple(begins_with)

    def begin(self, room: int) -> tuple[int, ...]:
        self.forced_tokens += len(self._begins_with)
        return self._begins_with

    def follow(self, token: int, room: int) -> Forced:
        self.forced_tokens += len(self.recorded.tokens)
        return self.recorded


class RecordedConstraints:
    """`Constraints` of a replay."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.begins_with: Sequence[int] = ()
        """Of the next request."""

    def compile(self, grammar: Grammar) -> float:
        return 0.0

    def open(self, grammar: Grammar, params: SamplingParams) -> Constraint:
        return RecordedConstraint(self.begins_with)

    def prepare(self, constraints: Sequence[Constraint]) -> None:
        """There are no masks."""

    def masks(self, constraints: Sequence[Constraint | None]) -> None:
        return None

    def ended(self, constraint: Constraint) -> None:
        """Nobody counts."""


class NoConstraints(RecordedConstraints):
    """`Constraints` of an engine without a tokenizer: it refuses every grammar."""

    def compile(self, grammar: Grammar) -> float:
        raise RequestError("a grammar needs a tokenizer and this engine has none")

    def open(self, grammar: Grammar, params: SamplingParams) -> Constraint:
        raise RequestError("a grammar needs a tokenizer and this engine has none")
