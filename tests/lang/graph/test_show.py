"""A graph as text and as a Mermaid flowchart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lang as sgl
from lang.graph import Graph
from lang.graph.__main__ import main
from lang.graph.expressions import Constant
from lang.graph.ops import Gen, Write, region_of
from tests.lang.graph.graph_programs import nasty, research


def test_each_operation_has_a_line_with_number_stream_and_line_of_the_program() -> None:
    graph = research.trace()
    lines = str(graph).splitlines()
    assert lines[0] == 'program research(topic, style="dry", many=(2, 0.5))'
    for op in graph.every():
        (found,) = (line for line in lines if re.match(rf"\s+%{op.id}\s", line))
        assert (f" s{op.stream} " in found) == (op.stream >= 0)
        assert found.endswith(f"# graph_programs.py:{op.line.rpartition(':')[2]}")
    assert lines[-1].startswith("  return {")


def test_what_is_done_and_taken_is_said() -> None:
    text = str(research.trace())
    for words in (
        'write f"Be {style}."',
        'f"Write about {topic!r:>12}: "',
        'gen "plan" max_tokens=30 stop=["\\n"] temperature=0',
        "start answered on s1",
        'read "answer"',
        "loop at most 3 times, until %",
        "(not pure)",
    ):
        assert words in text


def test_regions_are_indented_below_what_they_belong_to() -> None:
    lines = str(research.trace()).splitlines()
    (at,) = (i for i, line in enumerate(lines) if " cond " in line)
    margin = re.match(r" *", lines[at])[0]  # type: ignore[index]
    assert lines[at + 1] == f"{margin}  then:"
    assert lines[at + 2].startswith(f"{margin}    %")
    assert f"{margin}  otherwise:" in lines


def test_blocks_and_scopes_have_the_lines_of_the_program() -> None:
    @sgl.function
    def blocks(s: Any) -> None:
        with s.user():
            s += "x"
        with s.var_scope("y"), s.copy() as attempt:
            attempt += "z"

    assert {op.line.rpartition(":")[0] for op in blocks.trace().every()} == {__file__}


@given(text=st.text(), name=st.text(min_size=1))
def test_any_text_stays_on_its_line_and_outside_of_the_charts_grammar(text: str, name: str) -> None:
    ops = region_of([Write(id=0, stream=0, part=text), Gen(id=1, stream=0, name=name, sampling={"stop": [text]})])
    graph = Graph(program=name, body=ops, returns=Constant(value=[text]))
    assert len(str(graph).splitlines()) == 4
    nodes = [line.strip() for line in graph.mermaid().splitlines() if line.strip().startswith("n")]
    assert len(nodes) == 3
    for node in nodes[:2]:
        assert re.fullmatch(r'n\d(\[|\(\[)"[^"<>`\\\[\]{}|%&]*"(\]|\]\))', node)
        assert re.sub(r"#\d+;", "", node).count(";") == 0


def test_a_long_text_is_cut() -> None:
    graph = Graph(program="p", body=region_of([Write(id=0, stream=0, part="x" * 1_000_000)]), returns="")
    assert len(str(graph)) < 300
    assert len(graph.mermaid()) < 300
    assert "…" in str(graph)


def test_the_chart_has_a_subgraph_for_each_stream_and_region() -> None:
    graph = research.trace()
    chart = graph.mermaid()
    assert chart.startswith("flowchart TB\n")
    opened = re.findall(r'subgraph \w+\["([^"]+)"\]', chart)
    streams = {op.stream for op in graph.every() if op.stream >= 0}
    assert {f"stream {stream}" for stream in streams} <= set(opened)
    assert sum(title.endswith(("then", "otherwise", "round")) for title in opened) == 3
    assert len(opened) == len(re.findall(r"^ *end$", chart, re.MULTILINE))
    assert {int(number) for number in re.findall(r"^ *n(\d+)\W+\"", chart, re.MULTILINE)} == {
        op.id for op in graph.every()
    }


def test_results_are_drawn_otherwise_than_order() -> None:
    @sgl.function
    def two(s: Any) -> None:
        s += sgl.gen("a")
        s["b"] = s["a"]

    chart = two.trace().mermaid()
    assert "  n0 --> n1\n  n1 --> n2\n  n1 -.-> n2\n" in chart


def test_the_command_prints_draws_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph, saved, drawn = research.trace(style="dry", many=1), tmp_path / "g.json", tmp_path / "g.html"
    graph.save(saved)
    assert main([str(saved)]) == 0
    assert capsys.readouterr().out == f"{graph}\n"
    assert main([str(saved), "--mermaid"]) == 0
    assert capsys.readouterr().out == f"{graph.mermaid()}\n"
    assert main([str(saved), "--html", str(drawn)]) == 0
    assert drawn.read_text(encoding="utf-8") == graph.html()
    saved.write_text("{}")
    assert main([str(saved)]) == 1
    assert str(saved) in capsys.readouterr().err
    assert main([str(tmp_path / "none.json")]) == 1
    with pytest.raises(SystemExit):
        main([])


def test_a_value_may_be_written_while_a_program_is_traced() -> None:
    assert "write x\n" in re.sub(r" +#.*", "", str(nasty.trace()))
