"""The page that draws a graph."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import lang as sgl
from lang.graph import Graph
from lang.graph.layout import Box, layout
from lang.graph.ops import Fork, Gen, Join, Write, region_of
from tests.lang.graph.graph_programs import NASTY, nasty, research


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "link"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.text.setdefault(self._open[-1], []).append(data)

    @property
    def rows(self) -> dict[str, list[list[str]]]:
        return json.loads(next(text for text in self.text["script"] if text.startswith("{")))


def test_each_operation_can_be_pointed_at_and_has_its_details() -> None:
    graph = research.trace()
    page = _Page(graph.html())
    boxes = [attrs["data-op"] for tag, attrs in page.tags if tag == "g"]
    assert sorted(map(int, filter(None, boxes))) == sorted(op.id for op in graph.every())
    assert page.rows.keys() == set(boxes)
    (plan,) = (rows for rows in page.rows.values() if rows[0][1].endswith('gen "plan"'))
    assert ["max_tokens", "30"] in plan
    assert re.search(r"graph_programs\.py:\d+$", dict(map(tuple, plan))["line"])


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = research.trace().html()
    assert "default-src 'none'" in text
    for _, attrs in _Page(text).tags:
        assert not {"src", "href", "xlink:href", "action"} & attrs.keys()
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in text
    assert set(re.findall(r"url\(([^)]+)\)", text)) == {"#order", "#data"}


def test_dark_mode_has_its_own_colours() -> None:
    text = research.trace().html()
    light, dark = (
        set(re.findall(r"(--[\w-]+):", part)) for part in text.split("@media (prefers-color-scheme: dark)")[:2]
    )
    assert light
    assert light == dark


def test_prompts_and_names_cannot_leave_their_place() -> None:
    text = nasty.trace().html()
    page = _Page(text)
    assert text.count("<script") == text.count("</script>") == 2
    assert not any(tag == "b" for tag, _ in page.tags)
    assert ["text", NASTY] in page.rows["0"]
    assert NASTY not in text


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])), name=st.text(max_size=30))
def test_any_text_gives_a_whole_page(text: str, name: str) -> None:
    graph = Graph(
        program=name,
        body=region_of([Write(id=0, stream=0, part=text), Gen(id=1, stream=0, name=text, sampling={"regex": text})]),
        returns=text,
    )
    html = graph.html()
    assert len(_Page(html).rows) == 2
    html.encode()


def test_a_long_text_is_cut_and_that_is_said() -> None:
    graph = Graph(program="p", body=region_of([Write(id=0, stream=0, part="x" * 1_000_000)]), returns="")
    text = graph.html()
    assert len(text) < 60_000
    assert "…" in _Page(text).rows["0"][1][1]


def test_an_operation_stands_below_all_that_it_needs_and_in_its_lane() -> None:
    graph = research.trace()
    drawing = layout(graph)
    boxes = {box.op.id: box for box in drawing.boxes}
    for op in graph.every():
        lane = next((lane for lane in drawing.lanes if lane.stream == op.stream), None)
        assert lane is None or boxes[op.id].x == lane.x
    for edge in drawing.edges:
        if edge.after in boxes and not boxes[edge.after].op.regions:
            assert boxes[edge.before].bottom <= boxes[edge.after].y
    _nothing_overlaps(drawing.boxes)


def test_a_fork_in_a_fork_has_its_lanes_beside_its_own() -> None:
    drawing = layout(research.trace())
    (outer, inner) = (box.op for box in drawing.boxes if isinstance(box.op, Fork))
    assert isinstance(outer, Fork)
    assert isinstance(inner, Fork)
    order = [lane.stream for lane in drawing.lanes]
    assert order[order.index(outer.branches[0]) :][:4] == [outer.branches[0], *inner.branches, outer.branches[1]]
    joins = [box.op for box in drawing.boxes if isinstance(box.op, Join)]
    into = {(edge.before, edge.after) for edge in drawing.edges if edge.kind == "branch"}
    assert all(sum(after == join.id for _, after in into) >= 2 for join in joins)


def test_frames_hold_their_regions_and_nothing_else() -> None:
    graph = research.trace()
    drawing = layout(graph)
    from lang.graph.ops import every

    for frame in drawing.frames:
        regions = dict(zip(("then", "otherwise") if len(frame.op.regions) == 2 else ("round",), frame.op.regions))
        chosen = [regions[frame.title]] if frame.title else list(regions.values())
        inside = {op.id for region in chosen for op in every(region.ops)} | (
            {frame.op.id} if not frame.title else set()
        )
        for box in drawing.boxes:
            within = (
                frame.x <= box.x
                and box.x + box.width <= frame.x + frame.width
                and frame.y <= box.y
                and box.bottom <= frame.y + frame.height
            )
            assert within == (box.op.id in inside)


@settings(max_examples=25, deadline=None)
@given(shape=st.recursive(st.just([]), lambda inner: st.lists(inner, min_size=1, max_size=3), max_leaves=8))
def test_forks_of_any_shape_do_not_overlap(shape: list[Any]) -> None:
    @sgl.function
    def forked(s: Any) -> None:
        grow(s, shape)

    def grow(s: Any, shape: list[Any]) -> None:
        s += sgl.gen("x")
        if shape:
            forks = s.fork(len(shape))
            for branch, inner in zip(forks, shape):
                grow(branch, inner)
            forks.join()

    drawing = layout(forked.trace())
    _nothing_overlaps(drawing.boxes)
    assert all(box.x + box.width <= drawing.width and box.bottom <= drawing.height for box in drawing.boxes)


def _nothing_overlaps(boxes: tuple[Box, ...]) -> None:
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            apart = a.x + a.width <= b.x or b.x + b.width <= a.x or a.bottom <= b.y or b.bottom <= a.y
            assert apart, (a.op.id, b.op.id)
