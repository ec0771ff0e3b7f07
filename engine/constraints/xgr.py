"""xgrammar behind the interface of `base`: `pip install 'radixlab[xgrammar]'`.

JSON has the form that the other backends give it: one line, a space after each colon and comma. Regexes and choices
are written as xgrammar's own grammars from our reading of them, so that \\d, \\w and \\s mean what they mean elsewhere.

xgrammar compiles natively and can't be interrupted, nor told a budget: what bounds it are the limits on the text
(`max_bytes`, `max_nesting`, `max_repeat`); `compile_fuel`, `step_fuel` and `max_states` are not kept. A schema
within them can still take seconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.config import ConfigError
from engine.constraints import limits as text_limits
from engine.constraints.base import GrammarError, GrammarLimits, Mask
from engine.constraints.canonical import Canonical
from engine.constraints.fsm.regex_syntax import Chars, Concat, Either, Node, parse, text_node
from engine.constraints.grammar import Grammar, Kind
from engine.constraints.masks import packed
from engine.constraints.xgr_schema import check_schema
from engine.tokenizer import Tokenizer

try:
    import xgrammar
except ImportError as error:
    raise ConfigError(
        f"grammar_backend=xgrammar needs the library: pip install 'radixlab[xgrammar]' ({error})"
    ) from error

_CACHE_BYTES = 64 << 20
"""Of xgrammar's own cache of rules, which makes similar grammars compile faster."""
_JSON_FORM: Mapping[str, Any] = {"any_whitespace": False, "separators": (", ", ": "), "strict_mode": False}
_PLACE = re.compile(r"^\[[\d:]+\] [^ ]+: (\w+ ?parsing error|EBNF parser error)?", re.IGNORECASE)


class XGrammar:
    """xgrammar for one tokenizer. vocab_size: of the model; eos: the ids that end an output."""

    name = "xgrammar"

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, eos: Sequence[int], limits: GrammarLimits) -> None:
        self._limits = limits
        self.canonical = Canonical(tokenizer, vocab_size=vocab_size, eos=eos)
        self.eos = frozenset(i for i in eos if 0 <= i < vocab_size)
        silent = tokenizer.special_ids | self.eos
        self.texts = [b"" if i in silent else tokenizer.token_bytes(i) for i in range(vocab_size)]
        self.ends = packed(sorted(self.eos), vocab_size)
        self.end = vocab_size
        """xgrammar's end of sequence: a token of our own behind the vocabulary."""
        info = xgrammar.TokenizerInfo(
            [*self.texts, b""], xgrammar.VocabType.RAW, vocab_size=vocab_size + 1, stop_token_ids=[self.end]
        )
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_limit_bytes=_CACHE_BYTES)

    def compile(self, grammar: Grammar) -> XGrammarGrammar:
        """Raises GrammarError."""
        text_limits.check(grammar, self._limits)
        try:
            compiled = self._compile_behind(grammar) if grammar.head else self._compile(grammar)
        except RuntimeError as error:
            message = _PLACE.sub("", " ".join(str(error).split()))
            raise GrammarError(f"the grammar can't be served: {message:.300}") from None
        return XGrammarGrammar(compiled, self)

    def _compile(self, grammar: Grammar) -> xgrammar.CompiledGrammar:
        match grammar.kind:
            case Kind.JSON | Kind.JSON_SCHEMA:
                return self._compiler.compile_json_schema(_schema(grammar), **_JSON_FORM)
            case _:
                return self._compiler.compile_grammar(_ebnf(grammar))

    def _compile_behind(self, grammar: Grammar) -> xgrammar.CompiledGrammar:
        match grammar.kind:
            case Kind.JSON | Kind.JSON_SCHEMA:
                body = xgrammar.Grammar.from_json_schema(_schema(grammar), **_JSON_FORM)
            case _:
                body = xgrammar.Grammar.from_ebnf(_ebnf(grammar))
        head = xgrammar.Grammar.from_ebnf(f"root ::= {_written(text_node(grammar.head))}")
        return self._compiler.compile_grammar(xgrammar.Grammar.concat(head, body))


class XGrammarGrammar:
    def __init__(self, compiled: xgrammar.CompiledGrammar, backend: XGrammar) -> None:
        self._compiled = compiled
        self._backend = backend

    def matcher(self) -> XGrammarMatcher:
        return XGrammarMatcher(xgrammar.GrammarMatcher(self._compiled), self._backend)


class XGrammarMatcher:
    def __init__(self, matcher: xgrammar.GrammarMatcher, backend: XGrammar) -> None:
        self._matcher = matcher
        self._backend = backend
        self._words = np.zeros((1, backend.end // 32 + 1), np.int32)
        self._tail = b""
        self._ended = False
        """An end-of-sequence token was accepted."""

    @property
    def complete(self) -> bool:
        if self._ended:
            return True
        if not self._matcher.is_completed():
            return False
        mask = np.empty_like(self._backend.ends)
        self.fill(mask)
        return bool((mask == self._backend.ends).all())

    def accept(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if self._ended:
                raise GrammarError(f"token {token} came after the end of the output")
            if token in self._backend.eos:
                if not self._matcher.is_completed():
                    raise GrammarError(f"the output ended (token {token}) where the grammar wants more")
                self._ended = True
            elif not 0 <= token < self._backend.end or not self._matcher.accept_token(token):
                raise GrammarError(f"token {token} is not allowed by the grammar here")
            else:
                self._tail = (self._tail + self._backend.texts[token])[-3:]

    def forced_bytes(self) -> bytes:
        """What comes next whatever is chosen."""
        if self._ended or self._matcher.is_completed():
            return b""
        try:
            return self._matcher.find_jump_forward_string().encode()
        except UnicodeDecodeError as error:  # it ends inside a character, and the binding gives text only
            return bytes(error.object)

    def forced(self) -> list[int]:
        text = self.forced_bytes()
        return self._backend.canonical.ids(text, tail=self._tail) if text else []

    def fill(self, mask: Mask) -> None:
        if self._ended:
            mask[:] = self._backend.ends
            return
        self._matcher.fill_next_token_bitmask(self._words)
        word, bit = divmod(self._backend.end, 32)
        last = self._words.view(np.uint32)[0, word:]
        may_end = bool(last[0] >> bit & 1)
        last[0] &= (1 << bit) - 1
        mask[:] = self._words[0, : len(mask)]
        if may_end:
            mask |= self._backend.ends
        if not mask.any():
            raise GrammarError("the grammar can't go on: no token of the model's vocabulary fits what must come next")


def _schema(grammar: Grammar) -> str:
    if grammar.kind is Kind.JSON:
        return '{"type":"object"}'
    check_schema(json.loads(grammar.text))
    return grammar.text


def _ebnf(grammar: Grammar) -> str:
    match grammar.kind:
        case Kind.REGEX:
            return f"root ::= {_written(parse(grammar.text))}"
        case Kind.CHOICE:
            return f"root ::= {_written(Either(tuple(map(text_node, json.loads(grammar.text)))))}"
        case Kind.EBNF:
            return grammar.text
        case _:
            raise GrammarError(
                f"grammar_backend=xgrammar doesn't serve {grammar.kind.value}: start the engine with "
                "grammar_backend=llguidance"
            )


def _written(node: Node) -> str:
    """In xgrammar's EBNF."""
    if isinstance(node, Chars):
        if not node.ranges:
            raise GrammarError("an empty class of characters matches nothing: remove it")
        return "[" + "".join(rf"\U{first:08x}-\U{last:08x}" for first, last in node.ranges) + "]"
    if isinstance(node, Concat):
        return "(" + (" ".join(map(_written, node.parts)) or '""') + ")"
    if isinstance(node, Either):
        return "(" + " | ".join(map(_written, node.options)) + ")"
    if node.most == 0:
        return '("")'
    return f"({_written(node.item)}){{{node.least},{'' if node.most is None else node.most}}}"
