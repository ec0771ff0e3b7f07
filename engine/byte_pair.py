"""Byte-pair encoding over UTF-8 bytes, in plain Python: training, encoding, the bytes of each token.

Sennrich, Haddow, Birch: Neural Machine Translation of Rare Words with Subword Units, ACL 2016, on bytes as in GPT-2.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise

from engine.request import RequestError

Merge = tuple[int, int]

_PIECE = re.compile(r" ?\w+| ?[^\w\s]+|\s+(?!\S)|\s+")
"""A word or a run of signs with the space before it, or white space: every character is in exactly one piece."""


def train(text: str, n_merges: int) -> tuple[Merge, ...]:
    """The merges that shorten `text` most, greedily. Symbols 0..255 are bytes, merge i makes symbol 256 + i.

    Of pairs that are equally frequent the smaller one (as a tuple) is merged first, so the result depends on `text`
    alone. Raises ValueError when `text` has too few repeated pairs.
    """
    words = Counter(tuple(piece.encode()) for piece in _PIECE.findall(text))
    merges: list[Merge] = []
    while len(merges) < n_merges:
        pairs: Counter[Merge] = Counter()
        for word, n in words.items():
            for pair in pairwise(word):
                pairs[pair] += n
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            raise ValueError(f"the text gives {len(merges)} merges, {n_merges} are needed: train on more text")
        merged: Counter[tuple[int, ...]] = Counter()
        for word, n in words.items():
            merged[tuple(join(word, best, 256 + len(merges)))] += n
        words = merged
        merges.append(best)
    return tuple(merges)


def join(word: Sequence[int], pair: Merge, symbol: int) -> list[int]:
    """`word` with every occurrence of `pair`, left to right, replaced by `symbol`."""
    out: list[int] = []
    i = 0
    while i < len(word):
        if i + 1 < len(word) and (word[i], word[i + 1]) == pair:
            out.append(symbol)
            i += 2
        else:
            out.append(word[i])
            i += 1
    return out


def refuse_half_characters(text: str) -> None:
    """Raises RequestError where half a surrogate pair stands in `text`: it has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text holds half a character at position {error.start}, {text[error.start]!r}: "
            "only whole Unicode characters can be encoded; decode the text with errors='replace'"
        ) from error


class BytePairTokenizer:
    """Special tokens first, then the 256 bytes, then one token a merge. Any Unicode string comes back as it went in:
    special tokens are never read from text. `encode` raises RequestError for half a surrogate pair.
    """

    strips_leading_space = False

    def __init__(self, merges: Sequence[Merge], specials: Sequence[str], bos: str, eos: str) -> None:
        self.bos_token_id: int | None = specials.index(bos)
        self.eos_token_ids: tuple[int, ...] = (specials.index(eos),)
        self.special_ids = frozenset(range(len(specials)))
        self.special_tokens: Mapping[str, str] = {"bos_token": bos, "eos_token": eos}
        self.chat_templates: Mapping[str, str] = {}
        self.added_tokens: Mapping[str, int] = {text: i for i, text in enumerate(specials)}
        self.vocab_size = len(specials) + 256 + len(merges)
        self._rank = {pair: i for i, pair in enumerate(merges)}
        symbols = [bytes([b]) for b in range(256)]
        for left, right in merges:
            symbols.append(symbols[left] + symbols[right])
        self._bytes = [b""] * len(specials) + symbols
        self._encode_piece = lru_cache(maxsize=1 << 16)(self._merge_piece)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids = [self.bos_token_id] if add_special_tokens and self.bos_token_id is not None else []
        refuse_half_characters(text)
        for piece in _PIECE.findall(text):
            ids += self._encode_piece(piece)
        return ids

    def named_encoder(self, names: Mapping[str, str]) -> Callable[[str], list[int]]:
        """`encode` without tokens around, for texts in which special tokens are read by the names given here.

        names: text of a special token to its name.
        """
        ids = {name: self.added_tokens[text] for text, name in names.items()}
        named = re.compile(f"({'|'.join(map(re.escape, ids)) or '(?!)'})")

        def encode(text: str) -> list[int]:
            tokens: list[int] = []
            for part in named.split(text):
                tokens += [ids[part]] if part in ids else self.encode(part, add_special_tokens=False)
            return tokens

        return encode

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token] if 0 <= token < len(self._bytes) else b""

    def _merge_piece(self, piece: str) -> tuple[int, ...]:
        word = list(piece.encode())
        while len(word) > 1:
            # a merge's symbol is only in later merges, so the ranks rise and there are at most len(merges) rounds
            pair = min(pairwise(word), key=lambda pair: self._rank.get(pair, len(self._rank)))
            rank = self._rank.get(pair)
            if rank is None:
                break
            word = join(word, pair, 256 + rank)
        return tuple(symbol + len(self.special_ids) for symbol in word)
