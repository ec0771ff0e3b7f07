"""API speculative execution: one over-long call serves several gens (SGLang, arXiv 2312.07104, section 3).

A gen that ends at a stop is asked for without it and for more tokens. Its value is what stands before the stop; when
the program's next text is what the model said next, the gen behind that text is there already. Nothing here sends.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lang.backends.base import NOTHING, Call
from lang.primitives import Gen, Select
from lang.prompt import Prompt
from lang.sampling import Sampling

_ENDS: Mapping[str, Any] = {"max_tokens": Sampling().max_tokens, "stop": (), "stop_regex": ()}
"""What says where an output ends: each gen's own, and looked for here."""
_ALIKE = ("temperature", "top_p", "top_k", "min_p", "seed", "ignore_eos", "stop_token_ids")
"""May be set, to the same in all gens that one call serves. What else is set needs a call that knows of it."""

HINT = (
    " (num_api_spec_tokens serves it where the message begins with a gen(stop=...) and both are sampled alike, without "
    "n, shapes, tools, penalties, logprobs or min_tokens)"
)
"""To whom asks for more than speculation can do."""


class SpeculationCount(NamedTuple):
    """What speculation has brought a program, the programs it ran included."""

    saved_calls: int = 0
    """Gens that needed no call."""
    long_calls: int = 0
    """Calls that were asked for more than their own gen, and answered."""
    wasted_tokens: int | None = 0
    """Of the answers of these, what no gen has used: the tokens told for an answer, shared out by its characters. None
    where a server tells no tokens."""


class Unserved(Exception):
    """The gen isn't in what the over-long call said. The message says why."""


class Part(NamedTuple):
    """The value of one gen in a long answer."""

    start: int
    end: int
    stopped: bool
    """One of its stops ended it, or the model by itself; else its tokens were over."""


@dataclass(slots=True, eq=False)
class LongAnswer:
    """What an over-long call said."""

    prompt: Prompt
    text: str
    limit: int
    """Tokens that were asked for."""
    tokens: int | None
    """Tokens that came."""
    finish_reason: object
    used: int = 0
    """Characters up to the end of the last gen served, the program's own texts between gens included."""

    @property
    def ended(self) -> bool:
        """By itself: the text is all that the model says here."""
        return self.finish_reason == "stop"

    @property
    def wasted_tokens(self) -> int | None:
        if self.tokens is None:
            return None
        return round(self.tokens * (len(self.text) - self.used) / len(self.text)) if self.text else 0

    def behind(self, prompt: Prompt) -> int:
        """Where the answer goes on behind `prompt`, in characters. Raises Unserved."""
        head = len(self.prompt.pieces)
        if head and isinstance(self.prompt.pieces[-1], str):
            head -= 1
        asked, goes_on = _text_of(self.prompt.pieces[head:]), _text_of(prompt.pieces[head:])
        if asked is None or goes_on is None or prompt.pieces[:head] != self.prompt.pieces[:head]:
            raise Unserved("what stands before it isn't what the over-long call was asked with")
        said = asked + self.text
        if not said.startswith(goes_on) or len(goes_on) < len(asked):
            same = next((i for i, (a, b) in enumerate(zip(said, goes_on)) if a != b), min(len(said), len(goes_on)))
            model = f"goes on with {said[same : same + 40]!r}" if said[same:] else "ends"
            raise Unserved(f"the answer {model} where the program goes on with {goes_on[same : same + 40]!r}")
        return len(goes_on) - len(asked)

    def part(self, start: int, sampling: Sampling, *, own: bool = False) -> Part:
        """The value of a gen that begins at `start` (`own`: the one that asked). Raises Unserved, also where it may be
        longer than its max_tokens.

        Tokens aren't told one by one. A text has no more of them than UTF-8 bytes, nor than the whole answer has.
        """
        rest = self.text[start:]
        within = self.limit if self.tokens is None else min(self.limit, self.tokens)
        found = first_stop(rest, sampling)
        if found is None and not self.ended:
            if own and within <= sampling.max_tokens:
                return Part(0, len(rest), False)
            raise Unserved(f"the answer ends with {rest[-40:]!r} before its stop was found")
        end, seen = (len(rest), len(rest)) if found is None else found
        if min(within, len(rest[:seen].encode("utf-8", "surrogatepass"))) > sampling.max_tokens:
            raise Unserved(f"its {end} characters may be more than max_tokens={sampling.max_tokens}")
        return Part(start, start + end, True)


@dataclass(slots=True, eq=False)
class Speculation:
    """One gen's part in it: served from what the call before it said, or asked for beyond its own end."""

    sampling: Sampling
    """Its own."""
    limit: int
    """Tokens that its call asks for."""
    before: Speculation | None
    """Of the output before it in the same message, or text. Forgotten once this one is sent."""
    prompt: Prompt = NOTHING
    answer: LongAnswer | None = None
    """The long answer in which its value stands, and from which the next one may be served."""
    taken: bool = False
    """A gen was served from what follows its value."""
    unserved: str = ""
    """Why it needed a call although there was a long answer."""
    spent: Mapping[str, Any] | None = None
    """Token counts of an answer that was no use."""

    @property
    def asks_long(self) -> bool:
        """A gen without a stop ends anywhere: no text of the program's goes on there."""
        return bool(self.sampling.stop or self.sampling.stop_regex)

    @property
    def asked(self) -> Sampling:
        """The sampling of its call."""
        if not self.asks_long:
            return self.sampling
        return dataclasses.replace(self.sampling, **{**_ENDS, "max_tokens": self.limit})

    @property
    def may_be_served(self) -> bool:
        """Without a call, as far as one knows before anything is said."""
        return self.before is not None and self.before.asks_long and self._alike(self.before)

    def serve(self, prompt: Prompt) -> str | None:
        """Its value if it needs no call: once, to whom all before it is known."""
        before, self.before, self.prompt = self.before, None, prompt
        if before is None or before.answer is None:
            return None
        answer = before.answer
        try:
            if not self._alike(before):
                raise Unserved("it is sampled otherwise than the over-long call was")
            if before.taken and not self._repeats:
                raise Unserved("what the model said there went to another branch, and this one is a sample of its own")
            part = answer.part(answer.behind(prompt), self.sampling)
        except Unserved as why:
            self.unserved = str(why)
            return None
        before.taken = True
        return self._take(answer, part)

    def read(self, call: Call) -> Call | None:
        """Its call as if it had been asked for itself alone; None: ask again, now for its own max_tokens."""
        reason, tokens = call.meta.get("finish_reason"), call.meta.get("completion_tokens")
        self.answer = LongAnswer(self.prompt, call.text, self.limit, tokens, reason)
        meta = {**call.meta, "speculation": "asked"}
        if self.spent is not None:
            meta |= {name: _sum(self.spent[name], meta.get(name)) for name in self.spent}
        try:
            part = self.answer.part(0, self.sampling, own=True)
        except Unserved:  # not for an answer within max_tokens
            self.spent = {name: meta.get(name) for name in _COUNTS}
            self.limit = self.sampling.max_tokens
            return None
        text = self._take(self.answer, part)
        meta["finish_reason"] = "stop" if part.stopped else reason
        return dataclasses.replace(call, texts=(text,), partial=text, meta=meta)

    def shown(self, partial: str) -> str:
        """What a reader may see of a long answer while it grows: nothing that may stand behind the value's end."""
        if self.limit > self.sampling.max_tokens or self.sampling.stop_regex:
            return ""
        found = first_stop(partial, self.sampling)
        return partial[: found[0]] if found is not None else partial[: len(partial) - _begun(partial, self.sampling)]

    def _take(self, answer: LongAnswer, part: Part) -> str:
        self.answer = answer
        answer.used = max(answer.used, part.end)
        return answer.text[part.start : part.end]

    def _alike(self, other: Speculation) -> bool:
        return dataclasses.replace(self.sampling, **_ENDS) == dataclasses.replace(other.sampling, **_ENDS)

    @property
    def _repeats(self) -> bool:
        """Asked twice, it would say the same: branches may share it."""
        return self.sampling.temperature == 0 or self.sampling.top_k == 1 or self.sampling.seed is not None


def speculation_of(
    expr: Gen | Select, sampling: Sampling, n_tokens: int, before: Speculation | None
) -> Speculation | None:
    """None for what needs a call of its own whatever was said before. Raises ValueError for a bad stop_regex."""
    if not isinstance(expr, Gen) or not n_tokens:
        return None
    free = {name: getattr(sampling, name) for name in (*_ENDS, *_ALIKE)}
    if sampling != dataclasses.replace(Sampling(), **free) or not all((*sampling.stop, *sampling.stop_regex)):
        return None
    if not isinstance(sampling.max_tokens, int) or sampling.max_tokens < 1:
        return None
    for pattern in sampling.stop_regex:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"gen(stop_regex={pattern!r}) is not allowed: it is no regex ({error})") from None
    return Speculation(sampling, max(sampling.max_tokens, n_tokens), before)


def first_stop(text: str, sampling: Sampling) -> tuple[int, int] | None:
    """Where the value ends, and how far one must have read to see it; None: nowhere in `text`.

    As a reader would who sees it grow letter by letter: the stop string that is whole first counts, of two the one
    that begins first. A stop_regex is looked for in what stands before it.
    """
    found = [(at + len(stop), at) for stop in sampling.stop if (at := text.find(stop)) >= 0]
    seen, end = min(found) if found else (len(text), len(text))
    matches = [match for pattern in sampling.stop_regex if (match := re.search(pattern, text[:end])) is not None]
    if matches:
        first = min(matches, key=lambda match: match.start())
        return first.start(), first.end()
    return (end, seen) if found else None


_COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens")
SERVED: Mapping[str, Any] = {**dict.fromkeys(_COUNTS, 0), "finish_reason": "stop", "speculation": "served"}
"""The meta info of a gen that needed no call: its tokens count where they were asked for."""


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _begun(text: str, sampling: Sampling) -> int:
    """Characters at the end of `text` that may be the beginning of a stop."""
    longest = max((len(stop) - 1 for stop in sampling.stop), default=0)
    ends = (n for n in range(min(longest, len(text)), 0, -1))
    return next((n for n in ends if any(stop.startswith(text[-n:]) for stop in sampling.stop)), 0)


def _text_of(pieces: tuple[object, ...]) -> str | None:
    """Of no piece or of one text; None of anything else."""
    if not pieces:
        return ""
    return pieces[0] if len(pieces) == 1 and isinstance(pieces[0], str) else None
