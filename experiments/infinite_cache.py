"""The hit rate that a cache without an end would have had on the requests of a run: what is left for a policy to gain.

Found from token ids alone, by sorting, with nothing of `engine.cache`: of all earlier sequences that are sorted as
texts are, the one that begins most like a new one stands next to the place where that belongs.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Iterable, Sequence

import numpy as np

from engine.request import Request, Tokens
from engine.splices import Splice, of_branch


def infinite_hit_rate(requests: Sequence[Request]) -> float:
    """Prompt tokens that an earlier request had computed as well / prompt tokens, over the admitted of `requests`.

    Earlier is by arrival (then by id). A request's KV is that of its prompt and its output, but for the last token,
    whose KV is never computed; of one that was broken off, what was computed. As in the engine, namespaces share
    nothing, a prompt's last token never counts, nor do the tokens whose log-probabilities are asked for, nor what comes
    after joined branches (the engine may find branches themselves in its cache, which aren't counted here). 0 where
    nothing was admitted.

    With page_size=1 and one request at a time, an engine whose pool never fills has this rate, token for token. With
    many in flight it can fall short (a prompt is matched before the KV that it shares is there, pages are evicted) and
    exceed it (a scheduler that takes a later request first lets the earlier one find its output). With larger pages it
    can only find whole ones.
    """
    tokens = hits = 0
    for request, found in zip(requests, infinite_hits(requests), strict=True):
        if request.admitted_at is not None:
            tokens += request.prompt_tokens
            hits += found
    return hits / tokens if tokens else 0.0


def infinite_hits(requests: Sequence[Request]) -> list[int]:
    """Tokens of each request's prompt that `infinite_hit_rate` counts, in the order given; 0 if it wasn't admitted."""
    hits = [0] * len(requests)
    seen: dict[str, _Sequences] = {}
    for i in sorted(range(len(requests)), key=lambda i: (requests[i].arrival, requests[i].id)):
        request = requests[i]
        if request.admitted_at is None:
            continue
        earlier = seen.setdefault(request.namespace, _Sequences())
        hits[i] = earlier.longest_shared(request.key[: _usable(request)])
        earlier.add(request.tokens[: _computed(request)])
        hits[i] += _in_branches(request.key, request.splices, earlier)
    return hits


def _in_branches(tokens: Tokens, splices: Sequence[Splice], earlier: _Sequences) -> int:
    """Tokens of joined branches that were there already, each behind the prefix that it sees."""
    hits = 0
    for splice in splices:
        own = np.concatenate([tokens[: splice.fork], tokens[splice.at : splice.end]])
        inner = of_branch(splices, splice)
        ordinary = own[: inner[0].at] if inner else own
        hits += max(0, earlier.longest_shared(ordinary) - splice.fork)
        earlier.add(ordinary)
        hits += _in_branches(own, splice.inner, earlier)
    return hits


def _usable(request: Request) -> int:
    """Tokens of its prompt that may come from a cache."""
    scored = sys.maxsize if request.params.prompt_logprobs is None else request.params.prompt_logprobs_start - 1
    return max(0, min(request.prompt_tokens - 1, request.n_cacheable, scored))


def _computed(request: Request) -> int:
    """Tokens whose KV others may use."""
    return min(request.n_ever_computed, request.n_cacheable, request.n_tokens - request.n_pending)


class _Sequences:
    """Token sequences, sorted; as bytes, eight a token, whose order is one of whole tokens."""

    def __init__(self) -> None:
        self._sorted: list[bytes] = []

    def add(self, tokens: Tokens) -> None:
        key = _as_bytes(tokens)
        at = bisect_left(self._sorted, key)
        if at == len(self._sorted) or not self._sorted[at].startswith(key):
            self._sorted.insert(at, key)

    def longest_shared(self, tokens: Tokens) -> int:
        """Most tokens that one of them begins with alike."""
        key = _as_bytes(tokens)
        at = bisect_left(self._sorted, key)
        return max((_shared(key, other) for other in self._beside(at)), default=0)

    def _beside(self, at: int) -> Iterable[bytes]:
        return self._sorted[max(0, at - 1) : at + 1]


def _as_bytes(tokens: Tokens) -> bytes:
    return tokens.astype(">i8").tobytes()


def _shared(one: bytes, other: bytes) -> int:
    n = min(len(one), len(other)) // 8
    differ = np.frombuffer(one, np.int64, n) != np.frombuffer(other, np.int64, n)
    return int(differ.argmax()) if differ.any() else n
