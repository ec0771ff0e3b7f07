"""The values of a trace: what an argument, an output or a computation will be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue, TypeAdapter, ValidationError

from lang.abstract import is_abstract
from lang.graph.expressions import (
    Argument,
    Constant,
    Conversion,
    Expression,
    Formatted,
    InMemory,
    Items,
    Picture,
    Record,
    Result,
    Round,
    Template,
    converted,
    joined,
)
from lang.graph.unknown import Unknown
from lang.prompt import Image

if TYPE_CHECKING:
    from lang.graph.tracer import Tracer

_STR_METHODS = frozenset(name for name in dir(str) if not name.startswith("_"))
_JSON = TypeAdapter(JsonValue)


class Value(Unknown):
    """Can be written into a prompt, formatted, compared and computed with: all of it happens when the program runs."""

    __slots__ = ("_tracer", "expression", "is_text", "what")

    def __init__(self, tracer: Tracer, expression: Expression, what: str, *, is_text: bool = False) -> None:
        """what: in words, for errors. is_text: it is known to be a string."""
        self._tracer = tracer
        self.expression = expression
        self.what = what
        self.is_text = is_text

    def _told(self) -> str:
        return self.what

    def _way(self) -> str:
        if isinstance(self.expression, Argument):
            name = self.expression.name
            return f"give it when tracing: trace({name}=...), or compile(static=[{name!r}])"
        return super()._way()

    # ---- text

    def __add__(self, other: object) -> Any:
        if type(other) is str or isinstance_of_value(other):
            if self.is_text or type(other) is str:
                return text(self._tracer, (self, other))
            return self._computed("operator.add", (self, other))
        return NotImplemented if not _is_summand(other) else self._computed("operator.add", (self, other))

    def __radd__(self, other: object) -> Any:
        if type(other) is str:
            return text(self._tracer, (other, self))
        return NotImplemented if not _is_summand(other) else self._computed("operator.add", (other, self))

    def __getattr__(self, name: str) -> Any:
        if name in _STR_METHODS and not name.startswith("__"):

            def method(*args: Any, **kwargs: Any) -> Value:
                return self._computed(f"str.{name}", (self, *args), kwargs, is_text=name in _GIVE_TEXT)

            return method
        if name.startswith("__"):  # Python asks whether it can be copied, say
            raise AttributeError(name)
        return self._refused(f"{name!r} of {self.what}")

    # ---- computations

    def _computed(
        self,
        function: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None = None,
        *,
        is_text: bool = False,
    ) -> Value:
        return self._tracer.apply(function, args, kwargs or {}, pure=True, is_text=is_text)

    def __eq__(self, other: object) -> Any:
        return self._computed("operator.eq", (self, other))

    def __ne__(self, other: object) -> Any:
        return self._computed("operator.ne", (self, other))

    __hash__ = Unknown.__hash__

    def __lt__(self, other: object) -> Any:
        return self._computed("operator.lt", (self, other))

    def __le__(self, other: object) -> Any:
        return self._computed("operator.le", (self, other))

    def __gt__(self, other: object) -> Any:
        return self._computed("operator.gt", (self, other))

    def __ge__(self, other: object) -> Any:
        return self._computed("operator.ge", (self, other))

    def __sub__(self, other: object) -> Any:
        return self._computed("operator.sub", (self, other))

    def __mul__(self, other: object) -> Any:
        return self._computed("operator.mul", (self, other))

    def __mod__(self, other: object) -> Any:
        return self._computed("operator.mod", (self, other))

    def __neg__(self) -> Any:
        return self._computed("operator.neg", (self,))

    def __getitem__(self, at: Any) -> Any:
        if type(at) is slice:
            return self._computed("lang.slice", (self, at.start, at.stop, at.step), is_text=self.is_text)
        return self._computed("operator.getitem", (self, at), is_text=self.is_text)


_GIVE_TEXT = frozenset(
    name
    for name in _STR_METHODS
    if name
    not in ("split", "rsplit", "splitlines", "partition", "rpartition", "find", "rfind", "index", "rindex", "count")
    and not name.startswith(("is", "starts", "ends", "encode"))
)


def isinstance_of_value(value: object) -> bool:
    return issubclass(type(value), Value)


def _is_summand(value: object) -> bool:
    """Python may add it to a value that isn't known to be text."""
    return is_abstract(value) or type(value) in (int, float, list, tuple)


def text(tracer: Tracer, parts: tuple[Any, ...]) -> Value | str:
    """Texts, and values that must be texts, one after the other."""
    made = joined(tuple(expression_of(part) for part in parts))
    return made if isinstance(made, str) else Value(tracer, made, "a text made of values", is_text=True)


def formatted(value: Any, conversion: Conversion, spec: Any) -> Expression:
    """What an f-string makes of a value."""
    if not has_abstract(value) and not has_abstract(spec):
        return format(converted(value, conversion), spec)
    expression = expression_of(value)
    if not conversion and spec == "" and isinstance_of_value(value) and value.is_text:
        return expression
    return Formatted(of=expression, conversion=conversion, spec=expression_of(spec))


def expression_of(value: Any) -> Expression:
    """For a graph, of anything that a program passes on."""
    kind = type(value)
    if issubclass(kind, Value):
        return value.expression
    if kind is str:
        return value
    if kind is Image:
        return Picture.of(value)
    if kind in (list, tuple) and any(map(has_abstract, value)):
        return Items(parts=tuple(map(expression_of, value)), a_tuple=kind is tuple)
    if kind is dict and any(map(has_abstract, (*value.keys(), *value.values()))):
        return Record(entries=tuple((expression_of(k), expression_of(v)) for k, v in value.items()))
    if kind in (Argument, Constant, Result, Round, Template, InMemory):
        return value
    try:
        if kind is not tuple and _JSON.validate_python(value, strict=True) == value:
            return Constant(value=value)
    except ValidationError:
        pass
    return InMemory(value=value)


def tracer_of(value: Any) -> Tracer | None:
    """Of the trace whose value it is, or holds."""
    if isinstance_of_value(value):
        return value._tracer
    inside = [*value.keys(), *value.values()] if type(value) is dict else value if type(value) in (list, tuple) else ()
    return next((found for one in inside if (found := tracer_of(one)) is not None), None)


def has_abstract(value: Any) -> bool:
    """It is a value of a trace, or a list, tuple or dict with one in it."""
    if is_abstract(value):
        return True
    if type(value) in (list, tuple):
        return any(map(has_abstract, value))
    return type(value) is dict and any(map(has_abstract, (*value.keys(), *value.values())))
