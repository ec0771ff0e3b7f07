"""Mooncake's format: prompts as chains of block ids. Equal ids are equal blocks with equal prefixes.

Qin et al., Mooncake: A KVCache-centric Disaggregated Architecture for LLM Serving, FAST 2025 (arXiv 2407.00079).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from workloads.data import DataError, jsonl_rows
from workloads.exact_text import ExactText

FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "timestamp": (int, float),
    "input_length": int,
    "output_length": int,
    "hash_ids": list,
}


class BlockRequest(NamedTuple):
    """One request of the trace."""

    place: str
    """File and line."""
    seconds: float
    """When it came, from the trace's first request on."""
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    """Numbers of its blocks: a block has the number of blocks that came before it in the file."""


def read_blocks(name: str, content: bytes, block_tokens: int) -> list[BlockRequest]:
    """The requests of a file of JSON lines, by time.

    Raises DataError naming file and line: fields that aren't there, lengths that don't fit the blocks, an id that
    stands after two different prefixes.
    """
    found: list[BlockRequest] = []
    numbers: dict[int, int] = {}
    before: dict[int, int | None] = {}
    for place, row in jsonl_rows(name, content, FIELDS):
        ids = row["hash_ids"]
        if not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
            raise DataError(f"{place}: hash_ids must be whole numbers, not {ids!r:.60}")
        if row["timestamp"] < 0 or row["input_length"] < 1 or row["output_length"] < 0:
            raise DataError(f"{place}: a timestamp (ms) of 0 or more, an input_length of 1 or more is needed")
        if len(ids) != -(-row["input_length"] // block_tokens):
            raise DataError(
                f"{place}: {len(ids)} hash_ids for input_length={row['input_length']}, but blocks of {block_tokens} "
                f"tokens would be {-(-row['input_length'] // block_tokens)}; set workload.trace_block_tokens"
            )
        last: int | None = None
        for one in ids:
            if before.setdefault(one, last) != last or one == last:
                raise DataError(
                    f"{place}: block {one} stands after block {last} here and after {before[one]} elsewhere; an id "
                    "must name a block together with all that stands before it"
                )
            numbers.setdefault(one, len(numbers))
            last = one
        blocks = tuple(numbers[one] for one in ids)
        found.append(BlockRequest(place, row["timestamp"] / 1000, row["input_length"], row["output_length"], blocks))
    if not found:
        raise DataError(f"{name}: no requests in it; get the file again")
    found.sort(key=lambda request: request.seconds)
    start = found[0].seconds
    return [request._replace(seconds=request.seconds - start) for request in found]


class BlockText:
    """Writes prompts of blocks that are `block_tokens` tokens each instead of the trace's `trace_block_tokens`.

    A block's text depends on its number alone. The first block of a prompt is shorter by what the tokenizer puts
    before a text; the last is cut to the prompt's length.
    """

    def __init__(self, text: ExactText, n_blocks: int, block_tokens: int, trace_block_tokens: int) -> None:
        """n_blocks: how many there are in the trace. Raises DataError when blocks are too short to be told apart."""
        self.text = text
        self.block_tokens = block_tokens
        self.trace_block_tokens = trace_block_tokens
        self.digits = text.digits(n_blocks)
        if block_tokens < self.digits + text.opening:
            raise DataError(
                f"block_tokens={block_tokens} is too short to tell {n_blocks} blocks apart with this tokenizer: "
                f"it must be {self.digits + text.opening} or more"
            )

    def tokens(self, request: BlockRequest) -> int:
        """Of its prompt, scaled: whole blocks, and of the last one its part, rounded up."""
        whole = len(request.blocks) - 1
        rest = request.input_tokens - whole * self.trace_block_tokens
        scaled = whole * self.block_tokens + -(-rest * self.block_tokens // self.trace_block_tokens)
        return max(scaled, self.text.opening + 1)

    def output_tokens(self, request: BlockRequest) -> int:
        return max(1, round(request.output_tokens * self.block_tokens / self.trace_block_tokens))

    def prompt(self, request: BlockRequest) -> str:
        """Exactly `tokens(request)` tokens. Raises TextError where the tokenizer counts otherwise."""
        words = list(self._words(request.blocks))[: self.tokens(request) - self.text.opening]
        return self.text.joined(words, request.place)

    def _words(self, blocks: Sequence[int]) -> Iterator[str]:
        for i, number in enumerate(blocks):
            n_words = self.block_tokens - (self.text.opening if i == 0 else 0)
            yield from self.text.numbered(number, n_words, self.digits)

    def shared(self, requests: Sequence[BlockRequest]) -> list[int]:
        """Prompt tokens of each request that some request before it began with as well, by the blocks alone.

        That is whole equal blocks, and where two prompts part, the digits that the numbers of their blocks begin with
        alike. A prompt's last token never counts.
        """
        longest: dict[tuple[int | None, object], int] = {}
        """Tokens of a block that some prompt had: by the block before it, and its number or its first digits."""
        found = []
        for request in requests:
            tokens = 0
            for i, (last, number, here) in enumerate(self._placed(request)):
                known = min(here, longest.get((last, number), 0))
                if known < here:
                    head = self.text.opening if i == 0 else 0
                    alike = ((head + len(key), longest.get((last, key), 0)) for key in self._beginnings(number))
                    tokens += max(known, *(min(here, *one) for one in alike))
                    break
                tokens += known
            found.append(min(tokens, self.tokens(request) - 1))
            for last, number, here in self._placed(request):
                for key in (number, *self._beginnings(number)):
                    longest[last, key] = max(longest.get((last, key), 0), here)
        return found

    def _placed(self, request: BlockRequest) -> Iterator[tuple[int | None, int, int]]:
        """Of each block: the one before it, its number, its tokens."""
        left, last = self.tokens(request), None
        for number in request.blocks:
            here = min(left, self.block_tokens)
            yield last, number, here
            left, last = left - here, number

    def _beginnings(self, number: int) -> Iterator[tuple[int, ...]]:
        digits = tuple(itertools.islice(self.text.digits_of(number), self.digits))
        return (digits[:k] for k in range(len(digits) + 1))
