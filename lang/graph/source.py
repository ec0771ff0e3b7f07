"""F-strings and `"...".join(...)` of a program, made to hold values that aren't known yet.

Python makes a string of every f-string at once, whatever is in it. So a program that is traced is compiled anew from
its source, with each f-string and each call of a `join` put through a function that knows the values of a trace. So is
what Python decides without asking the values: `is`, `type(...)`, `match`. Lines stay where they are.
"""

from __future__ import annotations

import ast
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

from lang.abstract import TraceError, at_line, is_abstract, is_authors
from lang.graph.values import Value, formatted, text, tracer_of

_FUNCTION = "__lang_function__"
_TEXT, _JOIN, _CALL = "__lang_text__", "__lang_join__", "__lang_call__"
_IS, _MATCHED = "__lang_is__", "__lang_matched__"
_OURS = (_TEXT, _JOIN, _CALL, _IS, _MATCHED)


@functools.lru_cache(maxsize=1024)
def _code_of(code: types.CodeType, name: str) -> types.CodeType | None:
    """The function's code with its strings made so; None where there is no source, or nothing to change."""
    try:
        source = inspect.getsource(code)
        # a function inside of something keeps its indentation, as texts of several lines are part of it
        before = 1 if source[:1].isspace() else 0
        tree = ast.parse("if 1:\n" * before + source)
    except (OSError, SyntaxError, TypeError):
        return None
    found = next(
        (
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
        ),
        None,
    )
    if found is None:
        return None
    strings = _Strings()
    found.decorator_list = []
    found.name = _FUNCTION  # its own name stays what it was: a global, or a variable of the function around it
    found = strings.visit(found)
    if not strings.changed:
        return None
    free = [ast.arg(arg=one) for one in (*code.co_freevars, *_OURS)]
    outer = ast.FunctionDef(
        name="__outer__",
        args=ast.arguments(posonlyargs=[], args=free, kwonlyargs=[], kw_defaults=[], defaults=[]),
        body=[found],
        decorator_list=[],
    )
    module = ast.fix_missing_locations(ast.Module(body=[outer], type_ignores=[]))
    ast.increment_lineno(module, code.co_firstlineno - 1 - before)
    made = compile(module, code.co_filename, "exec", dont_inherit=True, flags=code.co_flags & _FUTURE)
    outer_code = next(const for const in made.co_consts if isinstance(const, types.CodeType))
    inner = next(
        const for const in outer_code.co_consts if isinstance(const, types.CodeType) and const.co_name == _FUNCTION
    )
    return inner.replace(co_name=code.co_name, co_qualname=code.co_qualname)


_FUTURE = 0x1000000
"""`from __future__ import annotations`."""


class _Strings(ast.NodeTransformer):
    def __init__(self) -> None:
        self.changed = False

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        self.changed = True
        parts = [self._part(part) for part in node.values]
        return ast.copy_location(ast.Call(ast.Name(_TEXT, ast.Load()), parts, []), node)

    def _part(self, part: ast.expr) -> ast.expr:
        if not isinstance(part, ast.FormattedValue):
            return part
        spec = self.visit(part.format_spec) if part.format_spec is not None else ast.Constant("")
        conversion = ast.Constant(chr(part.conversion) if part.conversion != -1 else "")
        return ast.copy_location(ast.Tuple([self.visit(part.value), conversion, spec], ast.Load()), part)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        method = node.func
        if isinstance(method, ast.Attribute) and method.attr == "join" and len(node.args) == 1 and not node.keywords:
            self.changed = True
            call = ast.Call(ast.Name(_JOIN, ast.Load()), [method.value, node.args[0]], [])
            return ast.copy_location(call, node)
        if isinstance(method, ast.Name):  # a function of the program's author, perhaps
            self.changed = True
            node.func = ast.copy_location(ast.Call(ast.Name(_CALL, ast.Load()), [method], []), method)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if len(node.ops) != 1 or not isinstance(node.ops[0], ast.Is | ast.IsNot):
            return node
        self.changed = True
        same: ast.expr = ast.Call(ast.Name(_IS, ast.Load()), [node.left, node.comparators[0]], [])
        return ast.copy_location(ast.UnaryOp(ast.Not(), same) if isinstance(node.ops[0], ast.IsNot) else same, node)

    def visit_Match(self, node: ast.Match) -> ast.AST:
        self.generic_visit(node)
        self.changed = True
        node.subject = ast.copy_location(ast.Call(ast.Name(_MATCHED, ast.Load()), [node.subject], []), node.subject)
        return node


def _text(*parts: Any) -> Any:
    """What an f-string gives: of texts, and (value, conversion, format) triples."""
    made: list[Any] = [part if isinstance(part, str) else formatted(*part) for part in parts]
    found = (tracer_of(part) for part in parts if type(part) is tuple)
    tracer = next((one for one in found if one is not None), None)
    if tracer is None:
        return "".join(made)
    return text(tracer, tuple(one if isinstance(one, str) else Value(tracer, one, "", is_text=True) for one in made))


def _join(joiner: Any, parts: Any) -> Any:
    """`joiner.join(parts)`."""
    if type(joiner) is not str or is_abstract(parts):
        return joiner.join(parts)
    listed = list(parts)
    tracer = next((part._tracer for part in listed if is_abstract(part)), None)
    if tracer is None:
        return joiner.join(listed)
    between: list[Any] = []
    for part in listed:
        between += [joiner, part] if between else [part]
    return text(tracer, tuple(between))


def _is(a: Any, b: Any) -> bool:
    """`a is b`. Raises TraceError where that can't be said of what a value will be: `x is None`, say."""
    if a is b:
        return True
    for value in (a, b):
        if is_abstract(value):
            raise TraceError(
                f"{at_line()}: what {value._told()} is isn't known while the program is traced: use ==, with "
                f"lang.cond(s, value, then, otherwise), or {value._way()}"
            )
    return False


def _matched(subject: Any) -> Any:
    """What a match statement looks at. Raises TraceError for what isn't known."""
    for value in subject if type(subject) in (tuple, list) else (subject,):
        if is_abstract(value):
            raise TraceError(
                f"{at_line()}: which case {value._told()} matches isn't known while the program is traced: use "
                f"lang.switch(s, value, cases, otherwise), or {value._way()}"
            )
    return subject


def _type(*args: Any, **kwargs: Any) -> Any:
    """`type`, which would give the class of what stands for a value."""
    return args[0].__class__ if len(args) == 1 and is_abstract(args[0]) else type(*args, **kwargs)


def _callee(called: Any) -> Any:
    """What is called in place of `called`: a function that the program's author wrote is made traceable too."""
    if called is type:
        return _type
    if type(called) is not types.FunctionType or not is_authors(called.__code__.co_filename):
        return called
    return traceable(called)


def traceable(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose f-strings and joins may hold the values of a trace."""
    if not isinstance(function, types.FunctionType):
        return function
    if set(_OURS) & set(function.__code__.co_freevars):  # made inside of one that is so already
        return function
    code = _code_of(function.__code__, function.__name__)
    if code is None:
        return function
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or ()))
    cells |= {name: types.CellType(ours) for name, ours in zip(_OURS, (_text, _join, _callee, _is, _matched))}
    closure = tuple(cells[name] for name in code.co_freevars)
    made = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__qualname__, made.__module__ = function.__qualname__, function.__module__
    return made
