"""llguidance behind the interface of `base`.

JSON comes out in one line with a space after each colon and comma, as `json.dumps` writes it: a form that models have
read often, and with nothing left open every byte between two values is forced. With free whitespace fewer tokens are
forced, and a model can fall into endless line breaks; without any (`{"a":1}`) texts are a little shorter, but less
like what was read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import gbnf_to_lark

from engine.constraints import limits as text_limits
from engine.constraints.base import GrammarError, GrammarLimits, Mask
from engine.constraints.canonical import inner_encode
from engine.constraints.grammar import Grammar, Kind, ToolChoice
from engine.constraints.masks import packed
from engine.tokenizer import Tokenizer

_JSON_OPTIONS = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": False,  # as anyOf it would accept what two branches match
    "lenient": False,
}
_NO_TEXT = b"\xff"
"""No UTF-8 begins with it, and llguidance's own mark of special tokens."""
_MEANINGS = {
    "initial lexer configuration": "the grammar takes more work to compile than compile_fuel allows: make it smaller",
    "schema too large": "the JSON schema comes out too large: use fewer anyOf that are combined by allOf",
    "Unimplemented keys": "the JSON schema uses keywords that are not served: leave them out",
    "oneOf constraints": "the JSON schema has a oneOf whose parts may overlap, which is not served: use anyOf",
    "grammar size": "the grammar comes out too large: make it smaller",
    "too many expressions": "the next token takes more work to find than step_fuel allows: make the grammar simpler",
    "too many states": "the grammar needs more states than max_states allows: make it simpler",
    "items": "the grammar has too many ways to go on at once (step_fuel): make it simpler, or left-recursive",
    "NoExtension": "the grammar can't go on: nothing satisfies it",
    "doesn't satisfy": "the output left the grammar",
}
"""What the library's messages are about."""
_ADVICE = " Enable 'coerce_one_of' option to approximate oneOf with anyOf"
"""Of the library; nobody can follow it here."""
_LONGEST_REASON = 300
_NOT_SERVED = re.compile(r"^\s*[?!]?[\w-]+\[[^\]\n]*\b(temperature|max_tokens|stop)\b[^\]\n]*\]\s*:", re.MULTILINE)


class LLGuidance:
    """llguidance for one tokenizer.

    vocab_size: of the model: tokens outside it never come out. eos: the ids that end an output.
    """

    name = "llguidance"

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, eos: Sequence[int], limits: GrammarLimits) -> None:
        self._tokenizer = tokenizer
        self._limits = limits
        self._vocabulary = _Vocabulary(tokenizer, vocab_size, eos)
        self._library_limits = LLParserLimits(
            initial_lexer_fuel=limits.compile_fuel,
            step_lexer_fuel=limits.step_fuel,
            step_max_items=max(1, limits.step_fuel // 4),  # as the library's own defaults stand to one another
            max_lexer_states=limits.max_states,
            verbose_errors=False,  # they would print the user's grammar into logs
        )

    def compile(self, grammar: Grammar) -> _Compiled:
        """Raises GrammarError, also when the first mask takes more than a step may."""
        text_limits.check(grammar, self._limits)
        source = _behind(grammar.head, self._source(grammar)) if grammar.head else self._source(grammar)
        matcher = LLMatcher(self._vocabulary.trie, source, log_level=0, limits=self._library_limits)
        _raise_error(matcher)
        compiled = _Compiled(matcher, self._vocabulary)
        compiled.warm_up()
        return compiled

    def _source(self, grammar: Grammar) -> str:
        text = grammar.text
        match grammar.kind:
            case Kind.REGEX:
                return LLMatcher.grammar_from_regex(text)
            case Kind.JSON_SCHEMA:
                return json.dumps({"grammars": [{"json_schema": _with_options(json.loads(text))}]})
            case Kind.JSON:
                return json.dumps({"grammars": [{"json_schema": _with_options({"type": "object"})}]})
            case Kind.CHOICE:
                return f"start: CHOICE\nCHOICE: {' | '.join(map(_quoted, json.loads(text)))}"
            case Kind.TOOLS:
                return _tools_source(json.loads(text), self._tokenizer, self._vocabulary)
            case Kind.EBNF:
                try:
                    return gbnf_to_lark(text)
                except Exception as error:  # it raises plain ones
                    raise GrammarError(f"the EBNF grammar can't be read: {_one_line(str(error))}") from None
            case Kind.LARK:
                if found := _NOT_SERVED.search(text):
                    raise GrammarError(
                        f"the Lark grammar sets {found[1]} for a part of the output, which is not served: set it for "
                        "the whole request, or use `suffix` or `lazy` to end a part"
                    )
                for schema in text_limits.schemas_in(text):
                    _refuse_uncertain(schema)
                return text


class _Compiled:
    def __init__(self, matcher: LLMatcher, vocabulary: _Vocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def warm_up(self) -> None:
        """Computes the first mask; the matchers inherit what the library found out. Raises GrammarError."""
        _Matcher(self._matcher, self._vocabulary).fill(np.zeros(self._vocabulary.n_words, np.int32))

    def matcher(self) -> _Matcher:
        return _Matcher(self._matcher.deep_copy(), self._vocabulary)


class _Matcher:
    def __init__(self, matcher: LLMatcher, vocabulary: _Vocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._ended = False
        """An end-of-sequence token was accepted."""

    @property
    def complete(self) -> bool:
        return self._ended or (self._matcher.is_stopped() and not self._matcher.is_error())

    def accept(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if token in self._vocabulary.eos:
                if self._ended or not self._matcher.is_accepting():
                    raise GrammarError(f"the output ended (token {token}) where the grammar wants more")
                self._ended = True
            elif self._ended or not self._matcher.consume_token(token):
                _raise_error(self._matcher)
                raise GrammarError(f"token {token} came after the end that the grammar demands")

    def forced(self) -> list[int]:
        if self._ended or self._matcher.is_stopped():
            _raise_error(self._matcher)
            return []
        tokens = self._matcher.compute_ff_tokens()
        _raise_error(self._matcher)
        for i, token in enumerate(tokens):
            if not self._vocabulary.may_come(token):
                return tokens[:i]
        return tokens

    def fill(self, mask: Mask) -> None:
        vocabulary = self._vocabulary
        words = np.empty(vocabulary.n_words_of_trie, np.int32)
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        _raise_error(self._matcher)  # the mask of a matcher that failed says "the end"
        np.bitwise_and(words[: vocabulary.n_words], vocabulary.usable, out=mask)
        if self._ended or self._matcher.is_accepting():
            mask |= vocabulary.eos_words
        if not mask.any():
            raise GrammarError("the grammar can't go on: no token of the model's vocabulary fits what must come next")


class _Vocabulary:
    """The tokens as llguidance wants them: attributes and a call that it looks for.

    Ids past the model's are cut, ids past the tokenizer's have no text. The library's end-of-sequence token is one of
    our own behind them all: which real ones end an output is decided here.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos: Sequence[int]) -> None:
        special = sorted(i for i in tokenizer.special_ids if i < vocab_size)
        self.tokens = [_text_bytes(tokenizer, i) for i in range(vocab_size)]
        for i in special:
            self.tokens[i] = _NO_TEXT + b"<[%d]>" % i
        self.tokens.append(_NO_TEXT + b"<end>")
        self.eos_token_id = vocab_size
        self.special_token_ids = [*special, vocab_size]
        self._vocab_size = vocab_size
        self._encode = inner_encode(tokenizer)
        self._greedy: Callable[[str], list[int]] = lambda _: []  # the library calls us once before it is ready

        self.eos = frozenset(i for i in eos if 0 <= i < vocab_size)
        self.n_words = -(-vocab_size // 32)
        self.n_words_of_trie = -(-(vocab_size + 1) // 32)
        self.eos_words = packed(sorted(self.eos), vocab_size)
        self.usable = packed([i for i, t in enumerate(self.tokens[:-1]) if t and i not in self.eos], vocab_size)
        self.trie = LLTokenizer(self)
        self._greedy = self.trie.greedy_tokenize

    def may_come(self, token: int) -> bool:
        return token < self._vocab_size and token not in self.eos

    def __call__(self, text: bytes | str) -> list[int]:
        """The tokenizer's own ids of a text in the middle of an output. Where those don't spell it, or the model hasn't
        one of them, the longest tokens that fit, one after the other."""
        whole = text if isinstance(text, str) else text.decode()
        ids = self._encode(whole)
        if ids is None or not all(i < self._vocab_size for i in ids):
            return self._greedy(whole)
        return ids


def _text_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    text = tokenizer.token_bytes(token)
    return b"" if text.startswith(_NO_TEXT) else text


def _raise_error(matcher: LLMatcher) -> None:
    if not matcher.is_error():
        return
    message = matcher.get_error()
    for part, meaning in _MEANINGS.items():
        if part in message:
            raise GrammarError(f"{meaning} ({_one_line(message).removesuffix(_ADVICE)})")
    raise GrammarError(f"the grammar can't be served: {_one_line(message)}")


def _one_line(message: str) -> str:
    """The reason, without the places that the library draws around it."""
    if "\nerror: " in message:
        message = message.rsplit("\nerror: ", 1)[1]
    lines = [line for line in message.splitlines() if not re.match(r"\s*(\d+ \||\^+\s*$|<)", line)]
    line = " ".join(" ".join(lines).split())
    return (
        line if len(line) <= _LONGEST_REASON else f"{line[: _LONGEST_REASON // 2]} ... {line[-_LONGEST_REASON // 2 :]}"
    )


def _with_options(schema: Any) -> dict[str, Any]:
    """The schema with our form of JSON; what the client asks of the library by `x-guidance` has no say."""
    if schema is False:
        raise GrammarError("the JSON schema is `false`, which nothing satisfies")
    _refuse_uncertain(schema)
    keywords = {} if schema is True else schema
    return {"x-guidance": _JSON_OPTIONS, **{key: value for key, value in keywords.items() if key != "x-guidance"}}


def _refuse_uncertain(schema: Any) -> None:
    """A name that isn't among `properties` may come out twice, so the library's count of names isn't that of JSON."""
    if isinstance(schema, list):
        for part in schema:
            _refuse_uncertain(part)
    elif isinstance(schema, dict):
        least, required = schema.get("minProperties"), schema.get("required")
        certain = max(1, len(required) if isinstance(required, list) else 0)
        if isinstance(least, int | float) and least > certain:
            raise GrammarError(
                f"the JSON schema has minProperties={least} where {certain} can be promised: name the properties that "
                "must be there in `required`"
            )
        for part in schema.values():
            _refuse_uncertain(part)


def _behind(head: str, source: str) -> str:
    """The grammar after a text: a Lark grammar, or JSON that holds a single one of any kind."""
    inner = json.loads(source)["grammars"][0] if source.startswith("{") else {"lark_grammar": source}
    outer = {"lark_grammar": f"start: {_quoted(head)} @body"}
    return json.dumps({"grammars": [outer, {**inner, "name": "body"}]})


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _tools_source(data: dict[str, Any], tokenizer: Tokenizer, vocabulary: _Vocabulary) -> str:
    """Lark. Free text is a lexeme that ends, being lazy, with the first `begin` in it; a special token ends any."""
    begin = _pieces(data["begin"], tokenizer, vocabulary)
    end = [_quoted(data["after"]), *_pieces(data["end"], tokenizer, vocabulary)]
    lines = []
    for i, (name, schema) in enumerate(data["tools"].items()):
        start = _quoted(f"{data['before']}{_quoted(name)}{data['between']}")
        arguments = json.dumps(_with_options(schema if "type" in schema else {"type": "object", **schema}))
        lines.append(f"tool_{i}: {start} %json {arguments} {' '.join(end)}")
    lines.append(f"tool: {' | '.join(f'tool_{i}' for i in range(len(data['tools'])))}")
    if data["choice"] == ToolChoice.REQUIRED:
        more = f'("\\n"? {" ".join(begin)} tool)*' if data["parallel"] else ""
        return "\n".join([f"start: {' '.join(begin)} tool {more}", *lines])
    lines.append("TEXT: /(?s:.*)/")
    if begin[0].startswith("<["):
        lines.append(f"call: TEXT {' '.join(begin)} tool")
    else:
        lines += [f"head[lazy]: TEXT {begin[0]}", f"call: head {' '.join(begin[1:])} tool"]
    return "\n".join(["start: call* TEXT" if data["parallel"] else "start: TEXT | call", *lines])


def _pieces(text: str, tokenizer: Tokenizer, vocabulary: _Vocabulary) -> list[str]:
    """What stands around a call, in Lark: special tokens by their ids, text between them.

    An end of sequence at its end is left out: the output ends there anyway.
    """
    pieces: list[str] = []
    ids = tokenizer.encode(text, add_special_tokens=False)
    if tokenizer.special_ids.isdisjoint(ids):
        return [_quoted(text)]
    while ids and ids[-1] in vocabulary.eos:
        ids.pop()
    for special, group in groupby(ids, lambda i: i in tokenizer.special_ids):
        run = list(group)
        if not special:
            between = b"".join(map(tokenizer.token_bytes, run)).decode()
            pieces.append(_quoted(between if between in text else between.removeprefix(" ")))  # sentencepiece's space
            continue
        for token in run:
            if not vocabulary.may_come(token):
                raise GrammarError(
                    f"{text!r} around a call holds the token {token}, which ends the output or is none of the model's"
                )
        pieces += [f"<[{token}]>" for token in run]
    return pieces
