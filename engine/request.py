"""A request: what was asked for, where it stands, what came out."""

from __future__ import annotations

import enum
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from engine.assembly import Assembly
    from engine.constraints.grammar import Grammar
    from engine.constraints.session import Constraint
    from engine.pictures import PlacedPicture
    from engine.splices import Splice

Tokens = npt.NDArray[np.int64]
PENDING = int(np.iinfo(np.int64).min)
"""Stands for a token that a step under way is choosing; neither a token nor a key of an image."""


class RequestError(ValueError):
    """The request can't be served. The message says what was given, what is allowed and what to do."""


class TooLong(RequestError):
    """Prompt and output are more than the model's context or the KV pool holds."""


class AdmissionRefused(RequestError):
    """The admission policy wants none of it now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How output tokens are chosen and when they end. Raises RequestError for values that make no sense."""

    max_tokens: int = 128
    """0: compute (and cache) the prompt only."""
    min_tokens: int = 0
    """End-of-sequence, stop tokens and stop strings don't count before this many output tokens."""
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """0 is off."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Over prompt and output: logits of seen tokens are divided (if positive) or multiplied by it. Bounded, so that
    none becomes infinite."""
    presence_penalty: float = 0.0
    """Over output: subtracted once from each token seen."""
    frequency_penalty: float = 0.0
    """Over output: subtracted as often as the token was seen."""
    stop: tuple[str, ...] = ()
    """The output text is cut just before the first of these."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    """None: made from the engine's seed and the request's number."""
    n: int = 1
    """Samples of the same prompt; they share its KV."""
    logprobs: int | None = None
    """None: none. k: log-probability of each output token and of the k likeliest."""
    prompt_logprobs: int | None = None
    """The same for prompt tokens from `prompt_logprobs_start` on."""
    prompt_logprobs_start: int = 1
    """The first prompt position scored (position 0 has nothing before it)."""
    forced_output: tuple[int, ...] | None = None
    """Replay: these tokens come out, whatever the model says; the request ends with the last of them."""
    grammar: Grammar | None = None
    """What the output must match (see `engine.constraints`). It ends as soon as nothing more may follow."""
    token_healing: bool = False
    """Tokens at the prompt's end that a longer one could begin with are taken back, and the output says their bytes
    again (see `engine.constraints.healing`). Tokens that do are output tokens; the bytes are no part of its text."""

    def __post_init__(self) -> None:
        def need(ok: bool, name: str, allowed: str) -> None:
            if not ok:
                raise RequestError(f"{name}={getattr(self, name)!r} is not allowed: it must be {allowed}")

        for name in ("max_tokens", "min_tokens", "top_k", "n", "prompt_logprobs_start"):
            value = getattr(self, name)
            need(isinstance(value, int) and not isinstance(value, bool), name, "a whole number")
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            need(
                isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
                name,
                "a finite number",
            )
        need(self.max_tokens >= 0, "max_tokens", "0 or more")
        need(0 <= self.min_tokens <= max(self.max_tokens, 0), "min_tokens", f"from 0 to max_tokens={self.max_tokens}")
        need(self.temperature >= 0, "temperature", "0 (greedy) or more")
        need(self.top_k >= 0, "top_k", "0 (off) or more")
        need(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        need(0 <= self.min_p <= 1, "min_p", "from 0 to 1")
        need(0.01 <= self.repetition_penalty <= 100, "repetition_penalty", "from 0.01 to 100 (1 is off)")
        need(-2 <= self.presence_penalty <= 2, "presence_penalty", "from -2 to 2")
        need(-2 <= self.frequency_penalty <= 2, "frequency_penalty", "from -2 to 2")
        need(self.n >= 1, "n", "1 or more")
        need(self.prompt_logprobs_start >= 1, "prompt_logprobs_start", "1 or more")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            need(
                value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0),
                name,
                "None, or 0 or more",
            )
        need(
            self.seed is None or (isinstance(self.seed, int) and 0 <= self.seed < 2**63),
            "seed",
            "None or from 0 to 2**63-1",
        )
        need(
            isinstance(self.stop, tuple) and all(isinstance(s, str) and s for s in self.stop),
            "stop",
            "a tuple of strings that aren't empty",
        )
        need(
            isinstance(self.stop_token_ids, tuple) and all(isinstance(t, int) and t >= 0 for t in self.stop_token_ids),
            "stop_token_ids",
            "a tuple of token ids",
        )
        if self.forced_output is not None:
            need(
                isinstance(self.forced_output, tuple)
                and len(self.forced_output) > 0
                and all(isinstance(t, int) and t >= 0 for t in self.forced_output),
                "forced_output",
                "None or a tuple of at least one token id",
            )
            need(
                len(self.forced_output) <= self.max_tokens,
                "forced_output",
                f"at most max_tokens={self.max_tokens} long",
            )
        need(isinstance(self.token_healing, bool), "token_healing", "True or False")
        if self.token_healing:
            for name, why in (
                ("forced_output", "holds the output to the prompt's last bytes"),
                ("prompt_logprobs", "would score a prompt that isn't the one given"),
            ):
                if getattr(self, name) is not None:
                    raise RequestError(f"{name} can't go with token_healing, which {why}: give one of the two")
            if self.max_tokens == 0:
                raise RequestError("token_healing with max_tokens=0 heals nothing: raise max_tokens or leave it out")
        if self.grammar is not None:
            from engine.constraints.grammar import Grammar

            need(isinstance(self.grammar, Grammar), "grammar", "None or made by a function of engine.constraints")
            for name, off in (("forced_output", None), ("ignore_eos", False), ("min_tokens", 0)):
                if getattr(self, name) != off:
                    raise RequestError(
                        f"{name}={getattr(self, name)!r} can't go with a grammar, which decides what comes and when "
                        "the output ends: give one of the two"
                    )


class TokenLogprob(NamedTuple):
    """Log-probability (natural, of the model's own distribution before penalties and temperature) at one position."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest (token, log-probability), likeliest first."""


class Status(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Fault(enum.Enum):
    """What made a request fail."""

    CALLER = "caller"
    """What was asked for: a grammar that took too much, say."""
    LOAD = "load"
    """The admission policy."""
    ENGINE = "engine"
    """A step that failed, or what the model gave."""


class FinishReason(enum.Enum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """One generation (or one scoring) of one prompt. `n > 1` becomes n of these that share `siblings`.

    Who may write: the caller nothing, the scheduler what is under "progress", the engine the rest. Policies only read.
    """

    id: int
    key: Tokens
    """The prompt. int64; an image position holds a negative number made from the image's digest and the offset."""
    params: SamplingParams
    namespace: str = ""
    """Requests of different namespaces never share KV."""
    client: str = ""
    conversation: str = ""
    program: str = ""
    agent: str = ""
    parent: int | None = None
    """Id of the request that computes what it and its siblings begin with, where there is one."""
    siblings: int = 1
    """Requests submitted together with it, itself included: samples of a prompt, branches of a fork, a batch."""
    priority: int = 0
    deadline: float | None = None
    predicted_output: int | None = None
    arrival: float = 0.0
    """Seconds: when it was due (not when the client got round to sending it)."""
    seed: int = 0
    """The seed in force."""
    eos: tuple[int, ...] = ()
    """Token ids that end the output, unless `params.ignore_eos`."""
    taken_back: tuple[int, ...] = ()
    """What token healing took off the prompt's end (`key` is what is left): the output begins with its bytes."""
    pictures: tuple[PlacedPicture, ...] = ()
    """Of the prompt, in their order."""
    splices: tuple[Splice, ...] = ()
    """Parts of the prompt that are branches which don't see one another (see `engine.splices`)."""
    n_cacheable: int = sys.maxsize
    """Only so many tokens from the start may be found in the cache and kept there: the KV of what follows is no
    function of the tokens before it."""
    peak_tokens: int = 0
    """Tokens of the pages needed at a time while splices are put in place; 0 without splices."""
    owner: Request | None = None
    """Of a stand-in, which computes a branch that is to be spliced in: the request that it's for."""

    # progress
    status: Status = Status.WAITING
    tokens: Tokens = field(default_factory=lambda: np.empty(0, np.int64))
    """Prompt and output so far in `tokens[:n_tokens]`; room for `max_tokens` more behind it."""
    n_tokens: int = 0
    n_pending: int = 0
    """1 while a step under way chooses the last token of tokens[:n_tokens]: PENDING stands there."""
    n_computed: int = 0
    """KV of tokens[:n_computed] is in the pool (cached or computed, or will be by the step under way)."""
    n_cached: int = 0
    """Prompt tokens found in the cache before they were first computed; the last one only where a grammar forces what
    follows it."""
    n_recomputed: int = 0
    """Tokens computed again after a preemption."""
    n_scored: int = 0
    """Prompt tokens from `prompt_logprobs_start` on whose log-probability is known."""
    preemptions: int = 0
    n_ever_computed: int = 0
    """Most that `n_computed` has been: what lies below it and is computed again is recomputed."""
    pages: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    """Page of tokens [i * page_size, (i + 1) * page_size) at `pages[i]`, for i < n_pages:

    | 0 .. n_shared_pages | n_shared_pages .. n_pages | room for the rest |
    | the cache's, locked | the request's own         | not valid         |
    """
    pages_version: int = 0
    """Grows whenever pages that the request had already are replaced by others; new ones at the end don't count."""
    n_pages: int = 0
    n_shared_pages: int = 0
    kept_short: bool = False
    """The retention policy left tokens out: what follows them can't be cached either (a tree has no gaps)."""
    lock: Any = None
    """The cache's `Lock` while the request runs."""
    assembly: Assembly | None = None
    """How far its splices have come, while a request that has some (or stands in for a branch) runs."""
    seen: Any = None
    """The sampler's own: how often each token was seen, for the penalties."""
    constraint: Constraint | None = None
    """Where the output stands in its grammar."""
    n_again: int | None = None
    """Output tokens that begin within what was taken back; None as long as the next one may."""

    # outcome
    text: str = ""
    finish_reason: FinishReason | None = None
    stop_match: str | int | None = None
    """The stop string or stop token that ended it."""
    error: str | None = None
    fault: Fault | None = None
    """Set with `error`."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    added_at: float = 0.0
    admitted_at: float | None = None
    token_times: list[float] = field(default_factory=list)
    """Seconds at which each output token was there. Tokens that a grammar forces at the start are there with the first
    that is decoded."""
    finished_at: float | None = None

    @property
    def prompt_tokens(self) -> int:
        return len(self.key)

    @property
    def root(self) -> Request:
        """Itself, or the request that it stands in for."""
        return self if self.owner is None else self.owner.root

    @property
    def output_tokens(self) -> int:
        """Output tokens so far, one that is being chosen included."""
        return self.n_tokens - len(self.key)

    @property
    def output(self) -> Sequence[int]:
        """Token ids generated so far (a stop token included)."""
        return self.tokens[len(self.key) : self.n_tokens - self.n_pending].tolist()

    @property
    def awaits_end(self) -> bool:
        """Nothing is left to schedule: the step under way is its last, whatever comes out of it."""
        if not self.n_pending:
            return self.n_computed >= self.n_tokens
        forced = self.params.forced_output
        return self.output_tokens >= (self.max_tokens if forced is None else len(forced))

    @property
    def max_tokens(self) -> int:
        return self.params.max_tokens

    @property
    def finished(self) -> bool:
        return self.status is Status.FINISHED

    def expect(self) -> None:
        """A step under way chooses the next token."""
        self.append(PENDING)
        self.n_pending = 1

    def append(self, token: int) -> None:
        """The next token: the one that was expected, or one more."""
        self.tokens[self.n_tokens - self.n_pending] = token
        self.n_tokens += 1 - self.n_pending
        self.n_pending = 0

    def cut(self, output_tokens: int) -> None:
        """The output ends after so many tokens; what a grammar forced behind them goes."""
        self.n_tokens = len(self.key) + output_tokens
        del self.logprobs[output_tokens:]

    def forget_pending(self) -> None:
        """The token that is being chosen won't be taken; nothing was computed on top of it that counts."""
        self.n_tokens -= self.n_pending
        self.n_pending = 0
