"""A graph as a page of its own: needs nothing from elsewhere, and opens offline."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lang.graph.layout import Box, layout
from lang.graph.ops import Gen, Operation
from lang.graph.words import line_of, plain, shown, words

if TYPE_CHECKING:
    from jinja2 import Template

    from lang.graph.graph import Graph

CHARACTER = 6.7
"""Width of one, in the boxes' font."""
LONGEST = 20_000
"""Characters of a text that the page holds; the rest is left out, and said so."""

_GROUPS: Mapping[str, str] = {
    "gen": "call",
    "select": "call",
    "write": "text",
    "append": "text",
    "role": "role",
    "scope": "role",
    "read": "value",
    "set": "value",
    "apply": "value",
    "fork": "branch",
    "join": "branch",
    "start": "branch",
    "end": "branch",
    "cond": "control",
    "loop": "control",
    "prefetch": "hint",
}
"""Kinds of operations by colour."""


class Label(NamedTuple):
    """A box as it is drawn."""

    box: Box
    group: str
    first: str
    second: str
    """Empty in a low box."""
    hint: str
    """Shown by browsers that run no scripts."""


def page(graph: Graph) -> str:
    """HTML with an SVG. An operation that is hovered over or clicked at shows all that is known of it."""
    drawing = layout(graph)
    labels = [_label(box) for box in drawing.boxes]
    details = {str(box.op.id): _details(box.op) for box in drawing.boxes}
    return _template().render(
        program=plain(graph.program),
        arguments=[
            plain(name) + (f"={shown(graph.defaults[name])}" if name in graph.defaults else "")
            for name in graph.arguments
        ],
        returns=shown(graph.returns, 200),
        drawing=drawing,
        labels=labels,
        groups=dict.fromkeys(label.group for label in labels),
        n_calls=len(graph.calls),
        details=_in_script(details),
    )


@functools.cache
def _template() -> Template:
    return Environment(loader=PackageLoader("lang.graph", ""), autoescape=True, undefined=StrictUndefined).get_template(
        "page.html"
    )


def _label(box: Box) -> Label:
    room = int((box.width - 14) / CHARACTER)
    does, takes = words(box.op, 80)
    number = f"%{box.op.id} "
    low = box.height < 30
    first = f"{number}{does} {takes}".strip() if low else number + does
    return Label(
        box,
        _GROUPS[_kind(box.op)],
        _cut(first, room),
        "" if low else _cut(takes, room),
        f"{number}{does} {takes}\n{line_of(box.op)}",
    )


def _details(op: Operation) -> list[list[str]]:
    """Names and values, in full."""
    does, takes = words(op, LONGEST)
    rows = [["what", f"%{op.id} {does}"]]
    if isinstance(op, Gen):
        rows += [[plain(name), _long(json.dumps(value, ensure_ascii=False))] for name, value in op.sampling.items()]
        takes = words(op.model_copy(update={"sampling": {}}), LONGEST).takes
    if takes:
        rows.append(["takes", _long(takes)])
    text = getattr(op, "part", None)
    if isinstance(text, str):
        rows[-1] = ["text", _long(text)]
    movable = getattr(op, "movable", None)
    if movable is not None:
        rows.append(["movable", f"together with all of number {movable}"])
    if op.line:
        rows.append(["line", plain(op.line)])
    return rows


def _kind(op: Operation) -> str:
    return str(getattr(op, "kind"))  # noqa: B009 - each operation has its own


def _long(text: str) -> str:
    left = len(text) - LONGEST
    return text if left <= 0 else f"{text[:LONGEST]}… ({left} more characters)"


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: max(room - 1, 0)] + "…"


def _in_script(value: Any) -> Markup:
    """JSON that can't end the script that it is in."""
    text = json.dumps(value)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
