"""Where the operations of a graph stand when it is drawn: a lane for each stream, time downwards. Units: pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from lang.graph.expressions import results_in
from lang.graph.ops import NO_STREAM, End, Fork, Join, Operation, Prefetch, Role, Scope, Start, every, made_by
from lang.graph.saving import all_expressions
from lang.graph.words import answered_by, plain, region_names, words

if TYPE_CHECKING:
    from lang.graph.graph import Graph

GUTTER = 44
"""Between the boxes of two lanes: edges run there."""
TALL, LOW = 40, 22
GAP = 14
PAGE_WIDTH = 960
WIDEST, NARROWEST = 340, 190


class Box(NamedTuple):
    """An operation."""

    op: Operation
    x: float
    y: float
    width: float
    height: float

    @property
    def centre(self) -> float:
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height


class Frame(NamedTuple):
    """Around a cond or loop, or around one of its regions."""

    op: Operation
    title: str
    x: float
    y: float
    width: float
    height: float


class Edge(NamedTuple):
    before: int
    after: int
    kind: str
    """order, branch (from or to another lane) or data"""
    path: str
    """As SVG writes it."""


class Lane(NamedTuple):
    stream: int
    title: str
    x: float
    width: float
    """Of its boxes."""


class Drawing(NamedTuple):
    width: float
    height: float
    lanes: tuple[Lane, ...]
    frames: tuple[Frame, ...]
    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]


def layout(graph: Graph) -> Drawing:
    """Each operation stands below all that it needs. A branch's lane is right of the stream that it comes from."""
    order, titles = _lanes(graph)
    each = min(WIDEST, max(NARROWEST, PAGE_WIDTH / len(order)))
    lanes = tuple(Lane(stream, titles[stream], i * each + GUTTER / 2, each - GUTTER) for i, stream in enumerate(order))
    drawing = _Drawing(lanes)
    drawing.region(graph.ops, {})
    edges = tuple(_edges(graph, drawing.boxes))
    return Drawing(
        each * len(lanes),
        max(drawing.bottom) + GAP,
        lanes,
        tuple(drawing.frames),
        tuple(drawing.boxes.values()),
        edges,
    )


def _lanes(graph: Graph) -> tuple[list[int], dict[int, str]]:
    """Streams from left to right, each followed by those that come from it; and what they are called."""
    children: dict[int, list[int]] = {}
    titles = {0: f"s0 {plain(graph.program)}"}
    began: list[int] = [0]
    for op in graph.every():
        for i, stream in enumerate(made_by(op)):
            if isinstance(op, Start):
                began.append(stream)
                titles[stream] = f"s{stream} {plain(op.program)}"
            else:
                children.setdefault(op.stream, []).append(stream)
                titles[stream] = f"s{stream} branch {i} of %{op.id}"
    order: list[int] = []
    ahead = began[::-1]
    while ahead:
        stream = ahead.pop()
        order.append(stream)
        ahead += children.get(stream, [])[::-1]
    return order, titles


class _Drawing:
    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.boxes: dict[int, Box] = {}
        self.frames: list[Frame] = []
        self.bottom = [float(GAP)] * len(lanes)
        """Of each lane, how far down it is used."""
        self._lanes = lanes
        self._place = {lane.stream: i for i, lane in enumerate(lanes)}
        self._home: dict[int, int] = {}
        """The lane of each operation."""

    def region(self, ops: Iterable[Operation], ends: Mapping[int, float], depth: int = 0) -> None:
        """ends: how far down what gives the results goes that can be used here."""
        ends = dict(ends)
        for op in ops:
            lane = self._lane(op)
            self._home[op.id] = lane
            needed = [ends[number] + GAP for number in _results(op) if number in ends]
            if op.regions:
                self._framed(op, lane, needed, ends, depth)
                ends[op.id] = max(self.bottom[i] for i in self._span(op))
            else:
                self._box(op, lane, needed)
                ends[op.id] = self.boxes[op.id].bottom

    def _box(self, op: Operation, lane: int, needed: Iterable[float]) -> None:
        touched = {lane, *(self._place[stream] for stream in op.streams)}
        y = max([*(self.bottom[i] for i in touched), *needed])
        if isinstance(op, Join):
            y += GAP
        self.boxes[op.id] = box = self._at(op, lane, y)
        more = 2 * GAP if isinstance(op, Fork) else GAP
        for i in touched:
            self.bottom[i] = box.bottom + more

    def _at(self, op: Operation, lane: int, y: float) -> Box:
        height = LOW if isinstance(op, Role | Scope | Start | End) or not words(op).takes else TALL
        inset = 14 if op.stream == NO_STREAM and not isinstance(op, Start | End | Prefetch) else 0
        place = self._lanes[lane]
        return Box(op, place.x + inset, y, place.width - 2 * inset, height)

    def _framed(self, op: Operation, lane: int, needed: Iterable[float], ends: Mapping[int, float], depth: int) -> None:
        span = self._span(op)
        top = max([*(self.bottom[i] for i in span), *needed])
        self.boxes[op.id] = box = self._at(op, lane, top + GAP)
        self._set(span, box.bottom + GAP)
        inner = len(self.frames)
        for name, region in zip(region_names(op), op.regions):
            if not region.ops:
                continue
            begin = max(self.bottom[i] for i in span)
            self._set(span, begin + LOW)
            self.region(region.ops, ends, depth + 1)
            end = max(self.bottom[i] for i in span)
            self.frames.insert(inner, self._frame(op, name, span, begin, end, 2 * depth + 1))
            self._set(span, end + GAP)
        end = max(self.bottom[i] for i in span)
        self.frames.insert(inner, self._frame(op, "", span, top, end, 2 * depth))
        self._set(span, end + GAP)

    def _frame(self, op: Operation, title: str, span: range, top: float, bottom: float, nested: int) -> Frame:
        out = max(3.0, GUTTER / 2 - 3 - 2.5 * nested)
        first, last = self._lanes[span[0]], self._lanes[span[-1]]
        return Frame(op, title, first.x - out, top, last.x + last.width + out - (first.x - out), bottom - top)

    def _span(self, op: Operation) -> range:
        """All lanes between those that it or what is in it touches."""
        touched = {self._home.get(op.id, 0), *(self._place[stream] for stream in op.streams)}
        for region in op.regions:
            for one in every(region.ops):
                touched |= {self._place[stream] for stream in one.streams}
                if one.stream == NO_STREAM:
                    touched |= {self._home[number] for number in _results(one) if number in self._home}
        return range(min(touched), max(touched) + 1)

    def _lane(self, op: Operation) -> int:
        """Of its stream; what has none stands below what it takes."""
        if isinstance(op, Start | End):
            return self._place[op.child]
        if op.stream != NO_STREAM:
            return self._place[op.stream]
        return next((self._home[number] for number in _results(op) if number in self._home), 0)

    def _set(self, span: range, bottom: float) -> None:
        for i in span:
            self.bottom[i] = bottom


def _results(op: Operation) -> list[int]:
    """Those that it takes itself."""
    return list(dict.fromkeys(number for expression in all_expressions(op) for number in results_in(expression)))


def _edges(graph: Graph, boxes: Mapping[int, Box]) -> Iterator[Edge]:
    yield from _order(graph.ops, {}, boxes)
    for op in graph.every():
        for number in dict.fromkeys((*_results(op), *answered_by(op))):
            if number in boxes:
                yield Edge(number, op.id, "data", _curve(boxes[number], boxes[op.id]))


def _order(ops: Iterable[Operation], last: dict[int, int], boxes: Mapping[int, Box]) -> Iterator[Edge]:
    """last: of each stream, the operation before."""
    for op in ops:
        for number in dict.fromkeys(last[stream] for stream in sorted(op.streams) if stream in last):
            yield _downwards(boxes[number], boxes[op.id])
        for stream in op.streams:
            last[stream] = op.id
        for region in op.regions:
            yield from _order(region.ops, dict.fromkeys(op.streams, op.id), boxes)


def _downwards(a: Box, b: Box) -> Edge:
    x, y, to_x, to_y = a.centre, a.bottom, b.centre, b.y
    if abs(x - to_x) < 1:
        return Edge(a.op.id, b.op.id, "order", f"M{x:.1f} {y:.1f}V{to_y:.1f}")
    fork = isinstance(a.op, Fork)  # turns at once, else at the end: between them the lane is straight
    bend = min(y + 2 * GAP, to_y) if fork else max(to_y - 2 * GAP, y)
    middle = (y + bend) / 2 if fork else (bend + to_y) / 2
    path = (
        f"M{x:.1f} {y:.1f}C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {bend:.1f}V{to_y:.1f}"
        if fork
        else f"M{x:.1f} {y:.1f}V{bend:.1f}C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}"
    )
    return Edge(a.op.id, b.op.id, "branch", path)


def _curve(a: Box, b: Box) -> str:
    """From the side of one box to the side of another."""
    y, to_y = a.y + a.height * 0.6, b.y + b.height * 0.4
    if abs(a.centre - b.centre) < 1:
        x, to_x = a.x + a.width, b.x + b.width
        out = max(x, to_x) + GUTTER * 0.45
        return f"M{x:.1f} {y:.1f}C{out:.1f} {y:.1f} {out:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}"
    right = b.x > a.x
    x, to_x = (a.x + a.width, b.x) if right else (a.x, b.x + b.width)
    reach = GUTTER * (0.9 if right else -0.9)
    return f"M{x:.1f} {y:.1f}C{x + reach:.1f} {y:.1f} {to_x - reach:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}"
