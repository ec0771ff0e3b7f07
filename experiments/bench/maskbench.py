"""MaskBench: JSON schemas with instances that they accept and refuse, and how a grammar library judges them.

Cases: https://github.com/guidance-ai/jsonschemabench (maskbench), one a line: `{"id", "schema", "tests": [{"valid",
"data"}]}`. An instance is followed as the engine would follow an output: forced tokens are taken as they come, any
other token must be in the mask, and the end must be allowed where the instance ends.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.clock import stopwatch
from engine.constraints.base import Backend, GrammarError, Mask, Matcher
from engine.constraints.canonical import inner_encode
from engine.constraints.grammar import json_schema
from engine.tokenizer import Tokenizer

FILE = "maskbench/maskbench_a.jsonl.gz"
"""In the data folder."""


class Instance(NamedTuple):
    text: str
    """JSON with a space after each colon and comma, properties in the order of the data set."""
    valid: bool


class Case(NamedTuple):
    id: str
    schema: Any
    instances: tuple[Instance, ...]


class Verdict(NamedTuple):
    """What a library made of one case."""

    error: str | None
    """Why the schema was refused."""
    valid_refused: int
    invalid_accepted: int
    n_valid: int
    n_invalid: int
    compile_s: float
    mask_s: tuple[float, ...]
    """Seconds of each mask."""
    tokens: int
    """Of the instances, as far as they were followed."""
    forced_tokens: int

    @property
    def served(self) -> bool:
        """Compiled, every valid instance accepted, every invalid one refused."""
        return self.error is None and not self.valid_refused and not self.invalid_accepted


def load(path: Path) -> Iterator[Case]:
    """The cases of a file like the data set's, .jsonl or .jsonl.gz."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            instances = tuple(Instance(_text(test["data"]), test["valid"]) for test in record["tests"])
            yield Case(record["id"], record["schema"], instances)


def judge(backend: Backend, tokenizer: Tokenizer, case: Case, *, vocab_size: int | None = None) -> Verdict:
    """vocab_size: that the backend was made with, if it isn't the tokenizer's."""
    n_valid = sum(instance.valid for instance in case.instances)
    n_invalid = len(case.instances) - n_valid
    begun = stopwatch()
    try:
        compiled = backend.compile(json_schema(case.schema))
    except GrammarError as error:
        return Verdict(str(error), 0, 0, n_valid, n_invalid, stopwatch() - begun, (), 0, 0)
    compile_s = stopwatch() - begun
    follower = _Follower(tokenizer, vocab_size or tokenizer.vocab_size)
    wrong = {True: 0, False: 0}
    for instance in case.instances:
        if follower.accepts(compiled.matcher(), instance.text) != instance.valid:
            wrong[instance.valid] += 1
    return Verdict(
        None, wrong[True], wrong[False], n_valid, n_invalid, compile_s, tuple(follower.mask_s), follower.tokens,
        follower.forced_tokens,
    )  # fmt: skip


class _Follower:
    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.mask_s: list[float] = []
        self.tokens = self.forced_tokens = 0
        self._tokenizer = tokenizer
        self._encode: Callable[[str], list[int] | None] = inner_encode(tokenizer)
        self._mask: Mask = np.zeros(-(-vocab_size // 32), np.int32)

    def accepts(self, matcher: Matcher, text: str) -> bool:
        try:
            return self._follow(matcher, text.encode())
        except GrammarError:
            return False

    def _follow(self, matcher: Matcher, rest: bytes) -> bool:
        """Whether the output may go on with `rest` and then end."""
        planned: list[int] = []
        while rest:
            forced = matcher.forced()
            if forced:
                written = self._bytes(forced)
                if not rest.startswith(written):
                    return False
                matcher.accept(forced)
                self.forced_tokens += len(forced)
                self.tokens += len(forced)
                rest = rest[len(written) :]
                planned = []
                continue
            if matcher.complete:
                return False
            if not planned:
                planned = self._plan(rest)
            token = planned.pop(0)
            self._fill(matcher)
            if not self._allowed(token):
                return False
            matcher.accept([token])
            self.tokens += 1
            rest = rest[len(self._tokenizer.token_bytes(token)) :]
        if matcher.complete:
            return True
        if matcher.forced():
            return False
        self._fill(matcher)
        return any(self._allowed(token) for token in self._tokenizer.eos_token_ids)

    def _plan(self, rest: bytes) -> list[int]:
        """Tokens for all that is left; those of single bytes where a forced token ended inside a character."""
        n_inside = next((i for i, byte in enumerate(rest) if byte & 0xC0 != 0x80), len(rest))
        if n_inside:
            return [self._byte_tokens[byte] for byte in rest[:n_inside]]
        ids = self._encode(rest.decode())
        return [self._byte_tokens[byte] for byte in rest] if ids is None else ids

    @cached_property
    def _byte_tokens(self) -> dict[int, int]:
        tokens = range(self._tokenizer.vocab_size - 1, -1, -1)
        singles = ((self._tokenizer.token_bytes(token), token) for token in tokens)
        return {text[0]: token for text, token in singles if len(text) == 1}

    def _bytes(self, tokens: list[int]) -> bytes:
        return b"".join(map(self._tokenizer.token_bytes, tokens))

    def _fill(self, matcher: Matcher) -> None:
        begun = stopwatch()
        matcher.fill(self._mask)
        self.mask_s.append(stopwatch() - begun)

    def _allowed(self, token: int) -> bool:
        return bool(int(self._mask[token // 32]) >> token % 32 & 1)


def _text(data: Any) -> str:
    text = json.dumps(data, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair can only be written as an escape
        return json.dumps(data)
    return text
