"""Requests in their grammars: which tokens are forced, which are allowed, and when an output is over.

Masks are computed by threads of their own as soon as it is known what came before, while the model runs. Forced tokens
are the grammar's, in canonical tokenisation, whether they are appended at once (jump-forward) or decoded one by one
(`jump_forward=False`, an ablation): the output is the same.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from engine.clock import stopwatch
from engine.constraints.backends import check_backend, make_backend
from engine.constraints.base import Backend, GrammarError, GrammarLimits, Mask, Matcher
from engine.constraints.grammar import Grammar
from engine.request import SamplingParams, Tokens
from engine.tokenizer import Tokenizer

if TYPE_CHECKING:
    from engine.constraints.cache import GrammarCache
    from engine.constraints.healing import Healing

CACHE_BYTES = 256 << 20
"""Of compiled grammars that are kept."""
_AHEAD = 1024
"""Grammars compiled ahead of their requests whose seconds are remembered."""
_ROWS_A_THREAD = 8
"""Masks that one thread computes before another is worth waking."""


class Forced(NamedTuple):
    """What follows a token without a choice."""

    tokens: tuple[int, ...]
    """Append these."""
    complete: bool
    """Then the output is over."""


class Begun(NamedTuple):
    """A prompt, and what token healing took off its end."""

    prompt: Tokens
    taken_back: tuple[int, ...] = ()


@dataclass(slots=True)
class Counts:
    """What constrained decoding did so far; seconds of work unless they say otherwise."""

    requests: int = 0
    forced_tokens: int = 0
    passes_saved: int = 0
    masks: int = 0
    mask_s: float = 0.0
    """In the threads."""
    waited_s: float = 0.0
    """That the engine's thread waited for masks."""
    compiled: int = 0
    compile_s: float = 0.0


class Constraint:
    """One request in its grammar."""

    def __init__(
        self, matcher: Matcher, params: SamplingParams, compile_s: float, *, jump_forward: bool, n_words: int
    ) -> None:
        self.compile_s = compile_s
        """Seconds that its grammar took to compile; 0 when it was known."""
        self.forced_tokens = 0
        """Of the output so far."""
        self.passes_saved = 0
        """Forward passes that decoding the forced tokens one by one would have taken more."""
        self.mask_s = 0.0
        """Seconds of computing its masks."""
        self.error: str | None = None
        """Why the output can't go on."""
        self._matcher = matcher
        self._stops = bool(params.stop or params.stop_token_ids)
        """The output may end within what is forced."""
        self._scores = params.logprobs is not None
        """Each output token needs a log-probability: one pass must follow what comes before it."""
        self._jump_forward = jump_forward and not (self._stops and self._scores)
        self._n_words = n_words
        self._held: list[int] = []
        """Forced tokens that are to be decoded."""
        self._complete = False
        """The output is over after those."""
        self._mask: Future[None] | None = None
        self._words: Mask | None = None

    @property
    def needs_mask(self) -> bool:
        """What comes next is the model's choice."""
        return not self._held and self.error is None

    def begin(self, room: int) -> tuple[int, ...]:
        """The tokens that the output begins with; at least one of its `room` is left to decode. Raises GrammarError."""
        return self._run(room, hold=room if self._stops else 0, hold_at_end=1).tokens

    def follow(self, token: int, room: int) -> Forced:
        """The output's next token has come; `room` more may. Raises GrammarError."""
        if self._held:
            expected = self._held.pop(0)
            if token != expected:
                raise GrammarError(f"token {token} came where the grammar forces {expected}")
            self.forced_tokens += 1
            return Forced((), self._complete and not self._held)
        self._matcher.accept((token,))
        return self._run(room, hold=0, hold_at_end=int(self._scores))

    def _run(self, room: int, *, hold: int, hold_at_end: int) -> Forced:
        """What is forced from here. Its last `hold` tokens are held to be decoded; `hold_at_end` if it is the end."""
        run: list[int] = []
        while len(run) <= room and (more := self._matcher.forced()):
            self._matcher.accept(more)
            run += more
        complete = len(run) <= room and self._matcher.complete
        run = run[:room]
        if complete or len(run) == room:
            hold = max(hold, hold_at_end)
        n = max(0, len(run) - hold) if self._jump_forward else 0
        self.forced_tokens += n
        self._held, self._complete = run[n:], complete
        return Forced(tuple(run[:n]), complete and not self._held)

    # ---- masks

    def will_fill(self, words: Mask, done: Future[None]) -> None:
        """A thread is about to fill `words`."""
        self._words, self._mask = words, done

    def fill(self) -> None:
        """Fills the words. In a thread of its own; nobody else touches the matcher until it is done."""
        assert self._words is not None
        begun = stopwatch()
        try:
            self._matcher.fill(self._words)
        except GrammarError as error:
            self.error = str(error)
        self.mask_s += stopwatch() - begun

    def mask(self) -> Mask | None:
        """What may come next, waiting for it if need be; None when something went wrong (see `error`)."""
        if self._held:
            words = np.zeros(self._n_words, np.uint32)
            words[self._held[0] // 32] = 1 << self._held[0] % 32
            return words.view(np.int32)
        assert self._mask is not None, "nobody has asked for this mask to be prepared"
        self._mask.result()
        return None if self.error is not None else self._words


class Constraints:
    """The grammars of one engine's requests.

    eos: token ids that end an output. backend: a name, or what makes one.
    `compile` may be called from any thread, the rest from the engine's only.
    Raises ConfigError for a backend that isn't known; at its first use, for one that isn't installed.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        eos: Sequence[int],
        backend: str | Callable[[], Backend] = "llguidance",
        jump_forward: bool = True,
        limits: GrammarLimits | None = None,
    ) -> None:
        if isinstance(backend, str):
            check_backend(backend)
        self.counts = Counts()
        self._jump_forward = jump_forward
        self._n_words = -(-vocab_size // 32)
        ends = tuple(eos) or tokenizer.eos_token_ids
        named = partial(make_backend, tokenizer=tokenizer, vocab_size=vocab_size, eos=ends, limits=limits)
        self._make = partial(named, backend) if isinstance(backend, str) else backend
        self._cache: GrammarCache | None = None
        self._tokenizer, self._vocab_size, self._ends = tokenizer, vocab_size, ends
        self._making = threading.Lock()
        self._compiled_ahead: dict[str, float] = {}
        """Seconds that grammars took which nobody has used yet, by digest."""
        self._n_threads = max(1, min(4, (os.cpu_count() or 1) - 1))
        self._threads = ThreadPoolExecutor(self._n_threads, thread_name_prefix="masks")

    def compile(self, grammar: Grammar) -> float:
        """Compiles the grammar unless it is known. Returns the seconds that took. Raises GrammarError."""
        seconds = self._grammars().get(grammar)[1]
        if seconds > 0:
            if len(self._compiled_ahead) >= _AHEAD:  # of requests that were refused after all
                self._compiled_ahead.clear()
            self._compiled_ahead[grammar.digest] = seconds
        return seconds

    def _grammars(self) -> GrammarCache:
        """The backend is set up, and its library loaded, for the first request that needs it."""
        with self._making:
            if self._cache is None:
                from engine.constraints.cache import GrammarCache

                self._cache = GrammarCache(self._make(), max_bytes=CACHE_BYTES)
            return self._cache

    @cached_property
    def healing(self) -> Healing:
        """Made for the first request that asks for it: it walks the vocabulary."""
        from engine.constraints.healing import Healing

        return Healing(self._tokenizer, vocab_size=self._vocab_size, eos=self._ends)

    def heal(self, prompt: Tokens, params: SamplingParams) -> Begun:
        """Takes back the longest run of tokens behind which a longer token may come, the request's grammar allowing it;
        perhaps none. Raises GrammarError."""
        for n in self.healing.runs(prompt) if params.token_healing else ():
            taken_back = tuple(prompt[-n:].tolist())
            if params.grammar is None or self._may_cross(params.grammar, self.healing.text(taken_back)):
                return Begun(prompt[:-n], taken_back)
        return Begun(prompt)

    def _may_cross(self, grammar: Grammar, rest: bytes) -> bool:
        grammar = grammar.after(rest.decode())
        self.compile(grammar)
        mask = np.zeros(self._n_words, np.int32)
        self._grammars().get(grammar)[0].matcher().fill(mask)
        return self.healing.crosses(mask, rest)

    def open(self, params: SamplingParams, taken_back: Sequence[int] = ()) -> Constraint | None:
        """A new output, in its grammar and behind what was taken back; None where it is free. Raises GrammarError."""
        grammar = params.grammar
        if grammar is None:
            return self._healed(taken_back) if taken_back else None
        if taken_back:
            grammar = grammar.after(self.healing.text(taken_back).decode())
        compiled, seconds = self._grammars().get(grammar)
        seconds += self._compiled_ahead.pop(grammar.digest, 0.0)
        self.counts.requests += 1
        self.counts.compiled += seconds > 0
        self.counts.compile_s += seconds
        return Constraint(compiled.matcher(), params, seconds, jump_forward=self._jump_forward, n_words=self._n_words)

    def _healed(self, taken_back: Sequence[int]) -> Constraint:
        from engine.constraints.healing import Healed

        return Healed(self.healing, self.healing.text(taken_back))

    def prepare(self, constraints: Sequence[Constraint]) -> None:
        """Starts to compute the next mask of each."""
        wanted = [constraint for constraint in constraints if constraint.needs_mask]
        if not wanted:
            return
        masks = np.zeros((len(wanted), self._n_words), np.int32)
        n_parts = min(self._n_threads, -(-len(wanted) // _ROWS_A_THREAD))
        for part in range(n_parts):
            mine = wanted[part::n_parts]
            done: Future[None] = Future()
            for constraint, words in zip(mine, masks[part::n_parts], strict=True):
                constraint.will_fill(words, done)
            self._threads.submit(_fill, mine, done)
        self.counts.masks += len(wanted)

    def masks(self, constraints: Sequence[Constraint | None]) -> list[Mask | None] | None:
        """The mask of each, None where anything may come; None when it may everywhere."""
        if all(constraint is None for constraint in constraints):
            return None
        begun = stopwatch()
        found = [None if constraint is None else constraint.mask() for constraint in constraints]
        self.counts.waited_s += stopwatch() - begun
        return None if all(mask is None for mask in found) else found

    def ended(self, constraint: Constraint) -> None:
        """The request is over: its figures are added up."""
        self.counts.forced_tokens += constraint.forced_tokens
        self.counts.passes_saved += constraint.passes_saved
        self.counts.mask_s += constraint.mask_s


def _fill(constraints: Sequence[Constraint], done: Future[None]) -> None:
    try:
        for constraint in constraints:
            constraint.fill()
    except BaseException as error:
        done.set_exception(error)
    else:
        done.set_result(None)
