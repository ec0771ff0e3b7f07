"""Prompts in which branches that don't see one another stand one behind the other: concatenated KV.

A branch goes on from a prefix, the fork point. Where several branches of one fork are concatenated, the tokens of each
keep the keys and values that they have right after the fork point, as if its sister branches weren't there; only the
keys are turned on to the positions at which they stand now (rotary embeddings compose; values know no position). What
comes behind sees all of them. The first branch stands at the fork point itself and is ordinary text; each later one is
a `Splice`:

    tokens     prefix | first branch | second branch | third branch | tail
    second     Splice(fork=len(prefix), at=len(prefix + first), n_tokens=len(second))
    sees       prefix and itself; the tail sees everything

The KV of a splice, and of all that follows one, is no function of the tokens before it: it is never cached for others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

from engine.request import RequestError, TooLong


class Splice(NamedTuple):
    """tokens[at : at + n_tokens] of a prompt have the KV that they have after tokens[:fork]."""

    fork: int
    at: int
    n_tokens: int
    inner: tuple[Splice, ...] = ()
    """Splices within the branch, in its own coordinates: those of tokens[:fork] + tokens[at : at + n_tokens]."""

    @property
    def end(self) -> int:
        return self.at + self.n_tokens

    @property
    def own_end(self) -> int:
        """The end in the branch's own coordinates, which is the length of the branch with its prefix."""
        return self.fork + self.n_tokens

    def as_data(self) -> list[Any]:
        return [self.fork, self.at, self.n_tokens, [splice.as_data() for splice in self.inner]]

    @classmethod
    def from_data(cls, data: Sequence[Any]) -> Self:
        fork, at, n_tokens, inner = data
        return cls(fork, at, n_tokens, tuple(cls.from_data(one) for one in inner))


class JoinedPrompt:
    """A prompt that is put together piece by piece; one of its own for each branch, with the prefix in it."""

    def __init__(self, tokens: Sequence[int] = (), splices: Sequence[Splice] = ()) -> None:
        self.tokens = list(tokens)
        self.splices = list(splices)

    def copy(self) -> JoinedPrompt:
        return JoinedPrompt(self.tokens, self.splices)

    def append(self, tokens: Sequence[int]) -> None:
        """Ordinary text: it sees all that stands before it."""
        self.tokens += tokens

    def join(self, branches: Sequence[JoinedPrompt], fork: int | None = None) -> None:
        """Appends what each branch has after the first `fork` tokens (default: after this prompt's own), in order.

        Raises ValueError for a branch that doesn't begin with the first `fork` tokens of this prompt.
        """
        fork = len(self.tokens) if fork is None else fork
        for i, branch in enumerate(branches):
            if branch.tokens[:fork] != self.tokens[:fork]:
                raise ValueError(f"branch {i} doesn't begin with the {fork} tokens before the fork")
            own, inner = branch.tokens[fork:], [splice for splice in branch.splices if splice.at >= fork]
            if len(self.tokens) == fork:
                self.splices += inner
            elif own:
                self.splices.append(Splice(fork, len(self.tokens), len(own), tuple(inner)))
            self.tokens += own


def concatenated(
    base: Sequence[int], branches: Sequence[Sequence[int]], tail: Sequence[int]
) -> tuple[list[int], tuple[Splice, ...]]:
    """Tokens and splices, as `Engine.add` takes them: what each branch has after `base`, one behind the other, a tail.

    branches: without `base`; an empty one is allowed.
    """
    prompt = JoinedPrompt(base)
    prompt.join([JoinedPrompt([*base, *branch]) for branch in branches])
    prompt.append(tail)
    return prompt.tokens, tuple(prompt.splices)


def cut(splices: Sequence[Splice], end: int) -> tuple[Splice, ...]:
    """Those that end at `end` or before; what lies behind counts as ordinary text."""
    kept = []
    for splice in splices:
        n = min(splice.n_tokens, end - splice.at)
        if n > 0:
            kept.append(splice._replace(n_tokens=n, inner=cut(splice.inner, splice.fork + n)))
    return tuple(kept)


def of_branch(splices: Sequence[Splice], splice: Splice) -> tuple[Splice, ...]:
    """The splices of the branch with its prefix, as a prompt of its own."""
    return (*(one for one in splices if one.end <= splice.fork), *splice.inner)


def check(splices: Sequence[Splice], n_tokens: int, *, after: int = 0) -> None:
    """Raises RequestError for splices that a prompt of `n_tokens` tokens can't have.

    after: only what stands behind so many tokens may be spliced.
    """
    before: list[Splice] = []
    for splice in splices:
        start = before[-1].end if before else after
        if not (splice.n_tokens >= 1 and start <= splice.at and splice.end <= n_tokens):
            raise RequestError(
                f"{splice} is not allowed: it must be of 1 or more tokens between the one before it, which ends at "
                f"{start}, and the prompt's end at {n_tokens}"
            )
        if not after <= splice.fork < splice.at:
            raise RequestError(
                f"{splice} is not allowed: its fork must be from {after} to before where it stands, {splice.at}"
            )
        if any(one.at < splice.fork < one.end for one in before):
            raise RequestError(f"{splice} is not allowed: its fork lies inside another branch that was spliced in")
        check(splice.inner, splice.own_end, after=splice.fork)
        before.append(splice)


def peak_pages(splices: Sequence[Splice], n_tokens: int, page_size: int, shared: int = 0) -> int:
    """Most pages that a prompt with its output, `n_tokens` in all, needs at a time while it is put together.

    A branch is computed, or found, in pages of its own before it is copied, so for a while it is there twice.
    shared: tokens at the beginning that live in whole pages of somebody else.
    """
    own = shared // page_size

    def pages(tokens: int) -> int:
        return -(-tokens // page_size) - own

    peak = pages(n_tokens)
    for splice in splices:
        if splice.end > shared:
            branch = peak_pages(of_branch(splices, splice), splice.own_end, page_size, splice.fork)
            peak = max(peak, pages(splice.end) + branch)
    return peak


def check_room(splices: Sequence[Splice], n_tokens: int, page_size: int, n_pages: int) -> None:
    """Raises TooLong for a prompt that can't be put together in a pool of `n_pages` pages."""
    peak = peak_pages(splices, n_tokens, page_size)
    if peak > n_pages:
        raise TooLong(
            f"the prompt with its output is {n_tokens} tokens, and while its {_n_branches(splices)} concatenated "
            f"branches are copied they need {peak * page_size} tokens at a time, more than the KV pool of "
            f"{n_pages * page_size} tokens: shorten the branches or raise engine.pool_tokens"
        )


def _n_branches(splices: Sequence[Splice]) -> int:
    return sum(1 for _ in _all(splices))


def _all(splices: Sequence[Splice]) -> Iterator[Splice]:
    for splice in splices:
        yield splice
        yield from _all(splice.inner)
