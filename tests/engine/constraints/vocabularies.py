"""Vocabularies for the tests of grammars: made from a list of tokens, random, or real."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

SIGNS = "ab0 é中\n"
"""The characters that the generated regexes are made of: one, two and three bytes long."""


class ListTokenizer:
    """Special tokens `<s>` and `</s>`, the 256 bytes, then these. Encodes with the longest token that fits."""

    strips_leading_space = False
    special_ids = frozenset((0, 1))
    bos_token_id: int | None = 0
    eos_token_ids: tuple[int, ...] = (1,)

    def __init__(self, more: Sequence[bytes]) -> None:
        self._texts = [b"", b"", *(bytes([b]) for b in range(256)), *more]
        self.vocab_size = len(self._texts)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids, rest = [], text.encode()
        while rest:
            best = max((i for i in range(self.vocab_size) if self._fits(i, rest)), key=lambda i: len(self._texts[i]))
            ids.append(best)
            rest = rest[len(self._texts[best]) :]
        return ids

    def _fits(self, token: int, rest: bytes) -> bool:
        return bool(self._texts[token]) and rest.startswith(self._texts[token])

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return self._texts[token] if 0 <= token < self.vocab_size else b""


def token_texts() -> st.SearchStrategy[bytes]:
    """Longer than a byte. Mostly pieces of what the regexes match, cut anywhere; sometimes any bytes."""
    pieces = st.text(SIGNS, min_size=1, max_size=4).map(str.encode)
    cut = st.tuples(pieces, st.integers(0, 3), st.integers(0, 3)).map(lambda c: c[0][c[1] : len(c[0]) - c[2]])
    return st.one_of(pieces, cut, st.binary(min_size=1, max_size=3)).filter(lambda text: len(text) > 1)


def vocabularies() -> st.SearchStrategy[ListTokenizer]:
    return st.lists(token_texts(), max_size=40, unique=True).map(ListTokenizer)


def patterns() -> st.SearchStrategy[str]:
    """Regexes that Python and Rust read alike."""
    literal = st.sampled_from([*SIGNS.replace("\n", ""), r"\n", r"\."])
    in_class = st.sampled_from(["a", "b", "0", "é", "中", r"\n", "a-c", "à-ü", "一-龥", "0-9", r"\d", r"\s"])
    bracket = st.builds(
        lambda negative, items: f"[{'^' if negative else ''}{''.join(items)}]",
        st.booleans(),
        st.lists(in_class, min_size=1, max_size=3),
    )
    atom = st.one_of(literal, literal, bracket, st.sampled_from([".", ".", r"\d", r"\s", r"\s", r"\D", r"\S", r"\w"]))

    def grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        group = inner.map(lambda p: f"({p})")
        count = st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,3}", "{2,}", "{0}", "*?"])
        return st.one_of(
            st.lists(inner, min_size=2, max_size=3).map("".join),
            st.lists(inner, min_size=2, max_size=3).map(lambda options: f"(?:{'|'.join(options)})"),
            st.builds(lambda item, times: item + times, st.one_of(atom, group), count),
        )

    return st.recursive(atom, grow, max_leaves=6)
