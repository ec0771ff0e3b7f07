"""Graphs as JSON: saved, loaded elsewhere, run; and what is refused."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lang as sgl
from lang.backends.mock import MockBackend
from lang.graph import Graph, GraphError, GraphProgram
from lang.graph.__main__ import main
from lang.passes.base import Notes, Pass
from tests.lang.graph.graph_programs import answered, backend, louder, nasty, research

ROOT = Path(__file__).parents[3]
SCHEMA = ROOT / "docs" / "graph.schema.json"


def savable() -> Graph:
    return research.trace(many=2)


def as_data() -> Any:
    return json.loads(savable().to_json())


def load(data: Any) -> Graph:
    return Graph.from_json(json.dumps(data), [louder])


# ---- there and back


@pytest.mark.parametrize("program", [research.bind(many=1), answered, nasty], ids=lambda program: program.name)
def test_a_loaded_graph_is_the_saved_one(program: sgl.Program, tmp_path: Path) -> None:
    graph = program.trace()
    graph.save(tmp_path / "g.json")
    loaded = Graph.load(tmp_path / "g.json", [louder])
    assert loaded == graph
    assert loaded.to_json() == graph.to_json()
    assert [path.name for path in tmp_path.iterdir()] == ["g.json"]


def test_a_loaded_program_does_what_the_original_does() -> None:
    loaded = Graph.from_json(savable().to_json(), [louder]).as_program()
    for arguments in ({"topic": "tea"}, {"topic": "<x>", "style": "wet"}):
        one, other = backend(), backend()
        original = research.run(many=2, **arguments, backend=one)
        again = loaded.run(**arguments, backend=other)
        assert again.text() == original.text()
        assert again.ret_value == original.ret_value
        assert again["all"] == original["all"]
        assert sorted(call.prompt for call in other.log) == sorted(call.prompt for call in one.log)


def test_a_fresh_process_runs_a_saved_graph_without_the_programs_source(tmp_path: Path) -> None:
    graph = answered.trace()
    graph.save(tmp_path / "g.json")
    script = (
        "import sys\n"
        "from lang.graph import Graph\n"
        "from lang.backends.mock import MockBackend\n"
        "program = Graph.load(sys.argv[1]).as_program()\n"
        "state = program.run('Why?', backend=MockBackend(reply=lambda prompt: f'ok{len(prompt) % 7}'))\n"
        "assert 'torch' not in sys.modules and not any('graph_programs' in name for name in sys.modules)\n"
        "print(state.text(), state.ret_value, sep='|', end='')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "g.json")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    state = answered.run("Why?", backend=backend())
    assert done.stdout == f"{state.text()}|{state.ret_value}", done.stderr


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None)
@given(value=json_values)
def test_any_json_value_goes_there_and_back(value: Any) -> None:
    def program(s: Any, x: Any) -> Any:
        s["v"] = value
        return value

    graph = sgl.function(program).trace()
    loaded = Graph.from_json(graph.to_json())
    assert loaded == graph
    state = loaded.as_program().run(1, backend=MockBackend())
    assert state.ret_value == value
    assert json.dumps(state["v"]) == json.dumps(value)
    jsonschema.validate(json.loads(graph.to_json()), Graph.json_schema())


# ---- as a program


def test_it_takes_the_programs_arguments_by_place_and_by_name_with_its_defaults() -> None:
    loaded = load(as_data()).as_program()
    assert isinstance(loaded, GraphProgram)
    assert "Be dry." in loaded.run("tea", backend=backend()).text()
    assert "Be wet." in loaded.run("tea", "wet", backend=backend()).text()
    assert "Be wet." in loaded.bind(style="wet").run("tea", backend=backend()).text()
    assert "Be new." in loaded.bind(style="wet").run("tea", style="new", backend=backend()).text()
    states = loaded.run_batch([{"topic": "a"}, ("b", "wet")], backend=backend(), temperature=0)
    assert ["'a'" in states[0].text(), "'b'" in states[1].text(), "Be wet." in states[1].text()] == [True] * 3


def test_what_it_is_not_given_is_told() -> None:
    loaded = load(as_data()).as_program()
    with pytest.raises(TypeError, match="topic"):
        loaded.run(backend=backend())
    with pytest.raises(TypeError, match="no argument 'tpic'; did you mean 'topic'"):
        loaded.bind(tpic=1)
    with pytest.raises(TypeError, match="is a graph already: 'topic' can't become part of it"):
        loaded.trace(topic="tea")
    assert loaded.trace() is loaded.graph


def test_an_argument_without_default_after_one_with_is_given_by_name() -> None:
    @sgl.function
    def program(s: Any, a: Any = "A", *, b: Any) -> None:
        s += a
        s += b

    loaded = Graph.from_json(program.trace().to_json()).as_program()
    assert loaded.run(b="B", backend=backend()).text() == "AB"


def test_a_program_may_call_one_that_was_loaded_but_not_trace_it() -> None:
    loaded = Graph.from_json(answered.trace().to_json()).as_program()

    @sgl.function
    def outer(s: Any) -> None:
        s += loaded("Why?")

    assert outer.run(backend=backend()).text() == answered.run("Why?", backend=backend()).text()
    with pytest.raises(sgl.TraceError, match="'answered' is a graph already"):
        outer.trace()


def test_passes_can_be_made_over_a_loaded_graph() -> None:
    def without_choice(graph: Graph, notes: Notes) -> Graph:
        notes.changes.append("the last choice is left out")
        return graph.changed(op for op in graph.ops if op.id != graph.calls[-1].id)

    @sgl.function
    def program(s: Any, x: Any, y: Any = "Y") -> None:
        s += x + sgl.gen("a") + y + sgl.gen("b")

    loaded = Graph.from_json(program.trace().to_json()).as_program()
    assert loaded.compile().run("X", backend=MockBackend()).text() == "XokYok"
    compiled = loaded.compile(passes=[Pass("shorter", without_choice)])
    assert compiled.run("X", backend=MockBackend()).text() == "XokY"
    assert "the last choice is left out" in compiled.report
    assert compiled.run_batch([("X", "Z")], backend=MockBackend())[0].text() == "XokZ"
    with pytest.raises(TypeError, match="'x' can't become part of it"):
        loaded.compile(x="X")


def test_its_constant_prefix_can_be_cached_ahead() -> None:
    loaded = Graph.from_json(answered.trace().to_json()).as_program()
    mock = backend()
    assert loaded.cache(mock) == "Q: "
    assert [prompt.text() for prompt in mock.committed] == ["Q: "]


def test_functions_must_be_given_and_are_never_imported() -> None:
    text = savable().to_json()
    name = "tests.lang.graph.graph_programs:louder"
    with pytest.raises(GraphError, match=f"applies {name}: give them with functions="):
        Graph.from_json(text)
    assert Graph.from_json(text, {name: louder, "unused": len}).functions == {name: louder}
    to_look_at = Graph.from_json(text, functions=None)
    assert str(to_look_at) == str(savable())
    with pytest.raises(GraphError, match=f"applies {name}"):
        to_look_at.as_program()
    data = as_data()
    assert json.dumps(data).count(name) == 1
    with pytest.raises(GraphError, match="applies os:system"):
        load(json.loads(json.dumps(data).replace(name, "os:system")))


# ---- what can't be saved


@pytest.mark.parametrize(
    "value", [object(), {1: 2}, b"x", (1, 2), math.inf, [math.nan], "\ud800"], ids=lambda value: type(value).__name__
)
def test_a_constant_that_is_not_json_is_refused_when_saving(value: Any, tmp_path: Path) -> None:
    def default(s: Any, x: Any = value) -> None:
        s += "x"

    def held(s: Any) -> None:
        s["v"] = value

    def returned(s: Any) -> Any:
        return value

    where = {default: "the default of argument 'x'", held: r"at .*:\d+", returned: "what it returns"}
    for function, at in where.items():
        with pytest.raises(GraphError, match=rf"(?s)program '{function.__name__}' can't be saved: .* \({at}\); leave"):
            sgl.function(function).trace().save(tmp_path / "g.json")
    assert list(tmp_path.iterdir()) == []


# ---- what can't be loaded


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    for text in ("", "nonsense", "[]", "{}", "null", '{"format": 2}', "[" * 100_000):
        with pytest.raises(GraphError, match="no graph of version 1: "):
            Graph.from_json(text)
    (tmp_path / "g.json").write_bytes(b"\xff\xfe")
    with pytest.raises(GraphError, match=r"g\.json: no graph: it isn't UTF-8"):
        Graph.load(tmp_path / "g.json")


def find(node: Any, **wanted: Any) -> Iterator[dict[str, Any]]:
    """All objects in JSON with these entries."""
    if isinstance(node, dict):
        if all(node.get(key) == value for key, value in wanted.items()):
            yield node
        for value in node.values():
            yield from find(value, **wanted)
    elif isinstance(node, list):
        for value in node:
            yield from find(value, **wanted)


def changed(entry: str, to: Any, **wanted: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        next(find(data, **wanted))[entry] = to

    return change


def added(**op: Any) -> Callable[[Any], None]:
    return lambda data: data["body"]["ops"].append({"id": 900, "stream": 0, "line": "x.py:7", **op})


def twice(data: Any) -> None:
    data["body"]["ops"].append(copy.deepcopy(data["body"]["ops"][0]))


REFUSED_BY_SCHEMA: dict[str, tuple[Callable[[Any], None], str]] = {
    "an unknown kind": (changed("kind", "shout", kind="gen"), r"body\.ops\.\d+: .*'shout' found"),
    "no kind": (lambda data: data["body"]["ops"][0].pop("kind"), r"body\.ops\.0: .*discriminator"),
    "an unknown entry": (changed("colour", 1, kind="gen"), r"body\.ops\.\d+\.gen\.colour: Extra inputs"),
    "a number that is none": (changed("id", "x", kind="gen"), r"body\.ops\.\d+\.gen\.id: "),
    "another format": (lambda data: data.update(format=2), "format: "),
    "an expression of no kind": (changed("part", {"kind": "magic"}, kind="write"), r"\.write\.part"),
    "an object in memory": (changed("part", {"kind": "object", "value": 1}, kind="write"), "has no form in a file"),
    "an unknown read": (changed("what", "mind", kind="read"), r"\.read\.what"),
    "no program": (lambda data: data.pop("program"), "program: Field required"),
}
REFUSED: dict[str, tuple[Callable[[Any], None], str]] = {
    **REFUSED_BY_SCHEMA,
    "a number twice": (twice, "operation 0 is there twice"),
    "a result that never comes": (changed("op", 999, kind="result"), r"operation \d+ \(.*:\d+\).* result of 999"),
    "a result of what gives none": (
        added(kind="write", part={"kind": "result", "op": 0}),
        r"operation 900 \(x.py:7\): it needs the result of operation 0, which gives no result",
    ),
    "a returned result that isn't there": (
        lambda data: data.update(returns={"kind": "result", "op": 77}),
        "what the program returns: it needs the result of operation 77",
    ),
    "an argument that isn't there": (changed("name", "nobody", kind="argument"), "there is no argument 'nobody'"),
    "a round outside of its loop": (
        added(kind="write", part={"kind": "format", "of": {"kind": "round", "loop": 3}}),
        "the round of loop 3, and isn't in it",
    ),
    "a stream that isn't there": (added(kind="append", of=55), "belongs to stream 55"),
    "a stream twice": (added(kind="fork", branches=[0]), "stream 0 is there already"),
    "a join of no fork": (changed("fork", 0, kind="join"), "operation 0 is no fork"),
    "an unknown mode": (changed("mode", "glue", kind="join"), "unknown mode 'glue' of join; known: gather"),
    "an unknown method": (changed("method", "dice", kind="select"), "unknown method 'dice'"),
    "an unknown role": (changed("role", "king", kind="role"), "unknown role 'king'; known: system, user"),
    "an unknown parameter": (changed("sampling", {"max_token": 1}, kind="gen"), "did you mean 'max_tokens'"),
    "a parameter of the wrong type": (changed("sampling", {"stop": 5}, kind="gen"), "stop=5 is not allowed"),
    "a loop of no rounds": (changed("limit", 0, kind="loop"), "limit 0 is not allowed"),
    "the end of what never began": (added(kind="end", child=0, awaited=True), "no program began on stream 0"),
    "the same as what is no gen": (changed("same_as", 0, kind="gen"), r"operation \d+ .* 0"),
    "an argument twice": (lambda data: data["arguments"].append("topic"), "argument 'topic': it is there twice"),
    "an argument of no name": (lambda data: data["arguments"].append("a b"), "argument 'a b': its name can't be"),
    "an argument named as one of run": (lambda data: data["arguments"].append("backend"), "argument 'backend'"),
    "a default of no argument": (lambda data: data["defaults"].update(x="y"), "default of 'x': there is no such"),
    "a default that depends on the run": (
        lambda data: data["defaults"].update(style={"kind": "argument", "name": "topic"}),
        "default of 'style': it depends on the run",
    ),
    "a picture of no bytes": (
        changed("part", {"kind": "image", "media_type": "image/png", "data": "a"}, kind="write"),
        "its picture can't be read",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_broken_graph_is_refused_and_it_is_said_where(case: str) -> None:
    change, message = REFUSED[case]
    data = as_data()
    change(data)
    with pytest.raises(GraphError, match=message):
        load(data)


# ---- the schema


def test_the_committed_schema_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--schema"]) == 0
    hint = "make it anew: python -m lang.graph --schema > docs/graph.schema.json"
    assert capsys.readouterr().out == SCHEMA.read_text(encoding="utf-8"), hint


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(Graph.json_schema())


@pytest.mark.parametrize("program", [research.bind(many=1), answered, nasty], ids=lambda program: program.name)
def test_saved_graphs_validate(program: sgl.Program) -> None:
    jsonschema.validate(json.loads(program.trace().to_json()), Graph.json_schema())


@pytest.mark.parametrize("case", REFUSED_BY_SCHEMA)
def test_graphs_of_another_shape_do_not_validate(case: str) -> None:
    data = as_data()
    REFUSED_BY_SCHEMA[case][0](data)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, Graph.json_schema())


def _places(node: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*here, key)
        yield from _places(value, (*here, key))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_what_loads_validates_whatever_is_changed(data: st.DataObject) -> None:
    graph = as_data()
    place = data.draw(st.sampled_from(list(_places(graph))))
    node = graph
    for key in place[:-1]:
        node = node[key]
    if data.draw(st.booleans()):
        node[place[-1]] = data.draw(st.sampled_from([None, -1, 0, 2.5, "x", [], {}, {"kind": "gen"}, [1]]))
    else:
        del node[place[-1]]
    try:
        load(graph)
    except GraphError:
        return
    jsonschema.validate(graph, Graph.json_schema())
