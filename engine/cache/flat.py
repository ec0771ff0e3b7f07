"""A table of whole prompts: the paper's ablation without the tree structure (arXiv 2312.07104, section 6.3)."""

from __future__ import annotations

from engine.cache.base import NO_MATCH, Inserted, Lock, Match, Pages
from engine.cache.prefix_store import PrefixStore
from engine.cache.radix_node import TOKEN_BYTES, RadixNode
from engine.cache.radix_tree import token_bytes
from engine.policies.base import RequestView
from engine.request import Tokens


class FlatTable(PrefixStore):
    """Entries are never split, shared in part, or trimmed: they are used whole and go whole.

    A request can only continue from the end of a whole stored entry; its own entry is then what it adds to that one,
    whose pages it shares through the parent pointer. Entries are looked up by their complete bytes, longest first.

    One exception. The last prompt token is always computed, so a match stops short of the prompt's end, and an
    identical prompt would never find its own entry. An entry that the whole key begins with but the limit cuts may
    therefore be used up to the limit, in whole pages. It is locked whole, and `insert` then counts the rest as
    duplicate.
    """

    whole_entries = True

    def _edge(self, node: RadixNode) -> bytes:
        return node.key

    def _entries(self, node: RadixNode, data: bytes, pos: int) -> list[RadixNode]:
        """Children of `node` that `data[pos:]` begins with, longest first."""
        lengths = sorted({len(key) for key in node.children}, reverse=True)
        found = (node.children.get(data[pos : pos + n]) for n in lengths if pos + n <= len(data))
        return [child for child in found if child is not None]

    def _longest(self, node: RadixNode, data: bytes, pos: int) -> list[RadixNode]:
        """The chain of entries under `node` that covers most of `data[pos:]`."""
        best: list[RadixNode] = []
        covered = 0
        for child in self._entries(node, data, pos):
            chain = [child, *self._longest(child, data, pos + len(child.key))]
            size = sum(len(entry.key) for entry in chain)
            if size > covered:
                best, covered = chain, size
        return best

    def match(self, key: Tokens, namespace: str, limit: int) -> Match:
        """The whole entries that cover most of `key[:limit]`. No side effects of any kind."""
        root = self._roots.get(namespace)
        if root is None:
            return NO_MATCH
        data = token_bytes(key)
        end = min(limit * TOKEN_BYTES, len(data)) // self._page_bytes * self._page_bytes
        path: list[RadixNode] = []
        pos = size = 0
        for entry in self._longest(root, data, 0):
            if pos >= end:
                break
            path.append(entry)
            size = min(len(entry.key), end - pos)
            pos += size
        return Match(pos // TOKEN_BYTES, tuple(path), size // TOKEN_BYTES)

    def acquire(self, match: Match, request: RequestView, *, first: bool) -> Lock:
        """Locks the entries of the match, the last one whole even where it's used in part.

        Raises ValueError for a match that the cache has changed under.
        """
        path = match.path
        node = path[-1] if path else self._root(request.namespace)
        if path:
            if node.n_tokens < match.n_last or node.start + match.n_last != match.n_tokens:
                raise ValueError(f"acquire: the match of {match.n_tokens} tokens is stale; match again")
            if first:
                self._touch(path, request)
        self._hold(node)
        return Lock(node, match.n_tokens)

    def insert(self, key: Tokens, pages: Pages, lock: Lock, request: RequestView) -> Inserted:
        """Adds what of `key` no chain of entries under the lock covers, cut to whole pages, as one new entry."""
        self.seq += 1
        data = token_bytes(key)
        data = data[: len(data) // self._page_bytes * self._page_bytes]
        node, begin = lock.node, lock.n_tokens * TOKEN_BYTES
        pos = (node.start + node.n_tokens) * TOKEN_BYTES
        if pos > begin:  # the locked entry was used in part
            if data[node.start * TOKEN_BYTES : pos] != node.key[: len(data) - node.start * TOKEN_BYTES]:
                raise ValueError("insert: the key doesn't begin with the prefix that the lock holds")
            if len(data) <= pos:
                n = max(0, len(data) - begin) // TOKEN_BYTES
                return Inserted(Lock(node, lock.n_tokens + n), 0, n)
        for entry in self._longest(node, data, pos):
            entry.used_seq, entry.used_at = self.seq, self.now
            pos += len(entry.key)
            node = entry
        start = pos // TOKEN_BYTES
        return self._insert_under(node, lock, data[pos:], pages, start, (pos - begin) // TOKEN_BYTES, request)

    def _amount(self, node: RadixNode, need: int) -> int:
        return node.n_tokens
