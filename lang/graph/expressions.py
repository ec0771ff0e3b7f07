"""What operations of a graph take: constants, arguments, results of other operations, and texts made of these."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from lang.prompt import Image


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Constant(Model):
    """JSON."""

    kind: Literal["constant"] = "constant"
    value: JsonValue


class Picture(Model):
    kind: Literal["image"] = "image"
    media_type: str
    data: str
    """base64"""

    @classmethod
    def of(cls, image: Image) -> Picture:
        return cls(media_type=image.media_type, data=base64.b64encode(image.data).decode())

    @property
    def image(self) -> Image:
        return Image(base64.b64decode(self.data), self.media_type)


class PictureOf(Model):
    """The picture in the file whose path, or whose bytes, `of` is."""

    kind: Literal["image_of"] = "image_of"
    of: Expression


class Argument(Model):
    """Of the program."""

    kind: Literal["argument"] = "argument"
    name: str


class Result(Model):
    """What an operation gives."""

    kind: Literal["result"] = "result"
    op: int


class Round(Model):
    """The number of the round that a loop is in, from 0."""

    kind: Literal["round"] = "round"
    loop: int


class Item(Model):
    kind: Literal["item"] = "item"
    of: Expression
    at: int


Conversion = Literal["", "r", "s", "a"]


def converted(value: Any, conversion: Conversion) -> Any:
    """By an f-string's `!r`, `!s` or `!a`."""
    match conversion:
        case "r":
            return repr(value)
        case "s":
            return str(value)
        case "a":
            return ascii(value)
    return value


class Formatted(Model):
    """What an f-string makes of a value."""

    kind: Literal["format"] = "format"
    of: Expression
    conversion: Conversion = ""
    spec: Expression = ""


class Template(Model):
    """Texts, one after the other. A part that isn't text when the program runs is an error, as in Python."""

    kind: Literal["template"] = "template"
    parts: tuple[Expression, ...]


class Items(Model):
    kind: Literal["list"] = "list"
    parts: tuple[Expression, ...]
    a_tuple: bool = False


class Record(Model):
    kind: Literal["dict"] = "dict"
    entries: tuple[tuple[Expression, Expression], ...]


class InMemory(Model):
    """A constant that isn't JSON. A graph with one runs, and can't be saved."""

    kind: Literal["object"] = "object"
    value: Any = Field(exclude=True)


Expression = (
    str
    | Annotated[
        Constant
        | Picture
        | PictureOf
        | Argument
        | Result
        | Round
        | Item
        | Formatted
        | Template
        | Items
        | Record
        | InMemory,
        Field(discriminator="kind"),
    ]
)
"""Text stands for itself."""

for _model in (PictureOf, Item, Formatted, Template, Items, Record):
    _model.model_rebuild()


def inner(expression: Expression) -> tuple[Expression, ...]:
    """The expressions right in it."""
    match expression:
        case Template(parts=parts) | Items(parts=parts):
            return parts
        case Item(of=of) | PictureOf(of=of):
            return (of,)
        case Formatted(of=of, spec=spec):
            return of, spec
        case Record(entries=entries):
            return tuple(part for entry in entries for part in entry)
    return ()


def walk(expression: Expression) -> Iterator[Expression]:
    """It and all that is in it."""
    yield expression
    for part in inner(expression):
        yield from walk(part)


def results_in(expression: Expression) -> Iterator[int]:
    """The operations whose results it needs."""
    return (part.op for part in walk(expression) if isinstance(part, Result))


def is_constant(expression: Expression) -> bool:
    """The same in every run."""
    return not any(isinstance(part, Argument | Result | Round) for part in walk(expression))


def joined(parts: tuple[Expression, ...]) -> Expression:
    """A template of the parts, flat, neighbouring texts joined; text where that is all there is."""
    flat: list[Expression] = []
    for part in parts:
        for one in part.parts if isinstance(part, Template) else (part,):
            if isinstance(one, str) and flat and isinstance(flat[-1], str):
                flat[-1] += one
            elif one != "":
                flat.append(one)
    if not flat:
        return ""
    return flat[0] if len(flat) == 1 and isinstance(flat[0], str) else Template(parts=tuple(flat))
