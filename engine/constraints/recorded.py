"""Where no grammar is followed: in a replay, whose log has all that they did, and without a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from engine.constraints.grammar import Grammar
from engine.constraints.session import Begun, Constraint, Counts, Forced
from engine.request import RequestError, SamplingParams, Tokens


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
        self.taken_back: Sequence[int] = ()
        """From the next request's prompt, which is recorded without it."""

    def compile(self, grammar: Grammar) -> float:
        return 0.0

    def heal(self, prompt: Tokens, params: SamplingParams) -> Begun:
        return Begun(prompt, tuple(self.taken_back))

    def open(self, params: SamplingParams, taken_back: Sequence[int] = ()) -> Constraint | None:
        return None if params.grammar is None and not taken_back else RecordedConstraint(self.begins_with)

    def prepare(self, constraints: Sequence[Constraint]) -> None:
        """There are no masks."""

    def masks(self, constraints: Sequence[Constraint | None]) -> None:
        return None

    def ended(self, constraint: Constraint) -> None:
        """Nobody counts."""


class NoConstraints(RecordedConstraints):
    """`Constraints` of an engine without a tokenizer: it refuses every grammar, and healing."""

    def compile(self, grammar: Grammar) -> float:
        raise RequestError("a grammar needs a tokenizer and this engine has none")

    def heal(self, prompt: Tokens, params: SamplingParams) -> Begun:
        if params.token_healing:
            raise RequestError("token_healing needs a tokenizer and this engine has none: leave it out")
        return Begun(prompt)

    def open(self, params: SamplingParams, taken_back: Sequence[int] = ()) -> Constraint | None:
        if params.grammar is not None:
            raise RequestError("a grammar needs a tokenizer and this engine has none")
        return None
