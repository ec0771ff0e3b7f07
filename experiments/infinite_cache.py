"""The hit rate of a cache that never forgets: what no policy can exceed on the same requests in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.request import Request


class Trie:
    """Sequences of integers, each kept with all its prefixes."""

    def __init__(self) -> None:
        self._children: dict[tuple[int, int], int] = {}
        self._n = 1

    def known(self, key: Sequence[int]) -> int:
        """How many of the first numbers of `key` some sequence that was added begins with."""
        node = 0
        for n, token in enumerate(key):
            child = self._children.get((node, token))
            if child is None:
                return n
            node = child
        return len(key)

    def add(self, key: Sequence[int]) -> None:
        node = 0
        for token in key:
            child = self._children.get((node, token))
            if child is None:
                child = self._children[node, token] = self._n
                self._n += 1
            node = child


def infinite_hits(requests: Sequence[Request]) -> int:
    """Prompt tokens that an earlier request of the same namespace has, as a prefix of its prompt and output.

    In the order given: that of admission, when each request is done before the next one comes. The last token of a
    prompt is always computed, and so is what stands behind `Request.n_cacheable`; the last output token's KV never is.
    Where requests run side by side, one that comes while an earlier one is being computed counts as if that were done:
    its output can't be reused yet, so a running system may fall short of this.
    """
    tries: dict[str, Trie] = {}
    hits = 0
    for request in requests:
        trie = tries.setdefault(request.namespace, Trie())
        prompt = request.key.tolist()
        hits += min(trie.known(prompt), _most(request))
        computed = [*prompt, *request.output[:-1]]
        trie.add(computed[: request.n_cacheable])
    return hits


def infinite_hit_rate(requests: Sequence[Request]) -> float:
    """`infinite_hits` over all prompt tokens; 0 without any. See `experiments.metrics` for the hit rate of a run."""
    tokens = sum(request.prompt_tokens for request in requests)
    return infinite_hits(requests) / tokens if tokens else 0.0


def _most(request: Request) -> int:
    """The most prompt tokens of a request that can come from a cache: its first needed logits need a token computed."""
    params = request.params
    last = request.prompt_tokens - 1
    if params.prompt_logprobs is not None:
        last = min(last, params.prompt_logprobs_start - 1)
    return max(0, min(last, request.n_cacheable))
