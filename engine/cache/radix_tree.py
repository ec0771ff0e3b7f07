"""The radix tree over tokens (RadixAttention: arXiv 2312.07104, section 3)."""

from __future__ import annotations

import numpy as np

from engine.cache.base import NO_MATCH, Inserted, Lock, Match, Pages
from engine.cache.prefix_store import PrefixStore
from engine.cache.radix_node import TOKEN_BYTES, RadixNode
from engine.policies.base import RequestView
from engine.policies.common_prefix import common_prefix
from engine.request import Tokens

_INT64 = np.dtype(np.int64)


def token_bytes(key: Tokens) -> bytes:
    """Raises TypeError unless `key` is an int64 array: tokens are compared as bytes."""
    if key.dtype != _INT64:
        raise TypeError(f"the key is {key.dtype}; the cache takes int64 token ids: key.astype(np.int64)")
    return key.tobytes()


class RadixTree(PrefixStore):
    """Prompts share the nodes of their common prefix; a node is split where a prompt leaves it.

    Children are found by the bytes of their first page, so two siblings never start with the same page.
    """

    def _edge(self, node: RadixNode) -> bytes:
        return node.key[: self._page_bytes]

    def match(self, key: Tokens, namespace: str, limit: int) -> Match:
        """Longest cached prefix of `key[:limit]`, in whole pages. No side effects of any kind."""
        node = self._roots.get(namespace)
        if node is None:
            return NO_MATCH
        data = key.tobytes() if key.dtype is _INT64 else token_bytes(key)
        page = self._page_bytes
        end = limit * TOKEN_BYTES
        if end > len(data):
            end = len(data)
        end -= end % page
        pos = size = 0
        path: list[RadixNode] = []
        while pos < end:
            child = node.children.get(data[pos : pos + page])
            if child is None:
                break
            node = child
            path.append(node)
            whole = len(node.key)
            if pos + whole <= end and data.startswith(node.key, pos):
                pos += whole
                size = whole
            else:
                size = common_prefix(data, pos, node.key, end - pos, page, 1)
                pos += size
                break
        return Match(pos // TOKEN_BYTES, tuple(path), size // TOKEN_BYTES)

    def acquire(self, match: Match, request: RequestView, *, first: bool) -> Lock:
        """Locks the matched prefix, splitting its last node where the match ends inside it.

        Raises ValueError for a match that the cache has changed under.
        """
        path = match.path
        if not path:
            node = self._root(request.namespace)
        else:
            node = path[-1]
            if node.n_tokens < match.n_last or node.start + match.n_last != match.n_tokens:
                raise ValueError(f"acquire: the match of {match.n_tokens} tokens is stale; match again")
            if match.n_last < node.n_tokens:
                node = self._split(node, match.n_last)
            if first:
                self._touch((*path[:-1], node), request)
        self._hold(node)
        return Lock(node, match.n_tokens)

    def insert(self, key: Tokens, pages: Pages, lock: Lock, request: RequestView) -> Inserted:
        """Adds `key[lock.n_tokens :]`, cut to whole pages, under the lock. `pages` are those of the whole key.

        What is there already is used, not hit: its recency follows, its `hits` don't.
        """
        data = key.tobytes() if key.dtype is _INT64 else token_bytes(key)
        page = self._page_bytes
        self.seq += 1
        node = lock.node
        pos = begin = lock.n_tokens * TOKEN_BYTES
        end = len(data) // page * page
        while pos < end:
            child = node.children.get(data[pos : pos + page])
            if child is None:
                break
            whole = len(child.key)
            if pos + whole <= end and data.startswith(child.key, pos):
                pos += whole
            else:
                size = common_prefix(data, pos, child.key, end - pos, page, 1)
                if size < whole:
                    child = self._split(child, size // TOKEN_BYTES)
                pos += size
            child.used_seq, child.used_at = self.seq, self.now
            node = child
        start = pos // TOKEN_BYTES
        return self._insert_under(node, lock, data[pos:end], pages, start, (pos - begin) // TOKEN_BYTES, request)

    def _split(self, lower: RadixNode, at: int) -> RadixNode:
        """Cuts a node after `at` tokens; returns the new upper half. Who holds the node keeps its end."""
        parent = lower.parent
        assert parent is not None
        upper = self._node(lower.namespace, parent, b"", lower.pages, lower.start)
        upper.inserted_seq, upper.inserted_at = lower.inserted_seq, lower.inserted_at
        upper.used_seq, upper.used_at, upper.hits = lower.used_seq, lower.used_at, lower.hits
        upper.slot = self._copy_slot(lower.slot)
        parent.adopt(self._edge(lower), upper)
        lower.halve(upper, at)
        upper.adopt(self._edge(lower), lower)
        upper.locks = 1 if lower.locks else 0
        if self._hooks.on_split:
            self._hooks.on_split(upper, lower, self.ctx)
        return upper

    def check(self) -> None:
        super().check()
        for node in self.nodes():
            first_pages = [child.key[: self._page_bytes] for child in node.children.values()]
            assert len(set(first_pages)) == len(first_pages), f"{node!r}: two children start with the same page"
