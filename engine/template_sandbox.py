"""Chat templates as `transformers` renders them, in a sandbox with limits."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_TURNS = 200_000
"""Of all loops of one rendering, calls of macros included."""
MAX_SIZE = 16 * 2**20
"""Characters of the text, and of any text or list (elements) that an operator makes on the way."""

_NONCE = secrets.token_hex(8)
_TURN = f"turn_{_NONCE}"
_JOIN = f"join_{_NONCE}"


class TemplateLimit(Exception):
    """A rendering took more than it may."""


class Sandbox:
    """One template, compiled. Raises jinja2.TemplateSyntaxError for what is none."""

    def __init__(self, source: str) -> None:
        self._environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols], cache_size=0
        )
        tree = _CountTurns().visit(self._environment.parse(source))
        self._template = self._environment.from_string(tree)

    def render(self, variables: Mapping[str, Any]) -> str:
        """Raises TemplateLimit, and whatever the template raises."""
        turns = 0

        def turn() -> None:
            nonlocal turns
            turns += 1
            if turns > MAX_TURNS:
                raise TemplateLimit(f"its loops took more than {MAX_TURNS} turns")

        parts: list[str] = []
        size = 0
        for part in self._template.generate({**variables, _TURN: turn, _JOIN: _join}):
            size += len(part)
            _check(size)
            parts.append(part)
        return "".join(parts)


def free_variables(source: str) -> frozenset[str]:
    """What the template takes from outside: messages, tools, bos_token, ..."""
    from jinja2 import meta

    return frozenset(
        meta.find_undeclared_variables(_Environment(extensions=[_GenerationTag, loopcontrols]).parse(source))
    )


def literal_text(source: str) -> str:
    """The texts that the template itself writes, set apart by null characters."""
    tree = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]).parse(source)
    found = [node.data for node in tree.find_all(nodes.TemplateData)]
    found += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    return "\0".join(found)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            _check(_repeated(left, right))
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check(left.bit_length() * max(right, 0))
        result = super().call_binop(context, operator, left, right)
        _check(len(result) if isinstance(result, str | list | tuple) else 0)
        return result


class _GenerationTag(Extension):
    """`{% generation %}`: marks what the model wrote, for training. Here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own type

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller: Callable[[], str]) -> str:
        return caller()


class _CountTurns(NodeTransformer):
    """Every turn of a loop and every call of a macro reports itself, every `~` is made by a function that looks at the
    size."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        self.generic_visit(node)
        node.body.insert(0, _call_statement(node.lineno))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:  # noqa: N802
        self.generic_visit(node)
        node.body.insert(0, _call_statement(node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:  # noqa: N802
        self.generic_visit(node)
        return nodes.Call(nodes.Name(_JOIN, "load"), node.nodes, [], None, None, lineno=node.lineno)


def _call_statement(line: int) -> nodes.ExprStmt:
    return nodes.ExprStmt(nodes.Call(nodes.Name(_TURN, "load"), [], [], None, None), lineno=line)


def _join(*parts: Any) -> str:
    texts = [str(part) for part in parts]
    _check(sum(map(len, texts)))
    return "".join(texts)


def _repeated(left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, str | list | tuple):
        left, right = right, left
    return len(left) * right if isinstance(left, str | list | tuple) and isinstance(right, int) else 0


def _check(size: int) -> None:
    if size > MAX_SIZE:
        raise TemplateLimit(f"it makes more than {MAX_SIZE} characters")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
