"""What became part of a graph stays so, and what a graph holds is each run's own."""

import pytest

import lang as sgl
from lang.backends.mock import MockBackend


@sgl.function
def program(s, topic, n=2):
    s += f"{topic} {n}:" + sgl.gen("x")


def test_an_argument_that_is_part_of_the_graph_can_not_be_given_again():
    compiled = program.compile(topic="tea")
    assert compiled.run(backend=MockBackend()).text() == "tea 2:ok"
    with pytest.raises(TypeError, match="'topic' became part of the graph"):
        compiled.run(topic="milk", backend=MockBackend())
    assert compiled.run(n=3, backend=MockBackend()).text() == "tea 3:ok"


def test_static_values_that_are_equal_but_not_alike_have_graphs_of_their_own():
    compiled = program.compile(static=["n"])
    texts = [compiled.run("tea", n=n, backend=MockBackend()).text() for n in (1, True, 1.0)]
    assert texts == ["tea 1:ok", "tea True:ok", "tea 1.0:ok"]


def test_lists_of_a_graph_are_each_runs_own():
    @sgl.function
    def lists(s):
        s += sgl.gen("x")
        s["list"] = [1, 2]

    compiled = lists.compile()
    first = compiled.run(backend=MockBackend())
    first["list"].append(3)
    assert compiled.run(backend=MockBackend())["list"] == [1, 2]


def test_texts_of_several_lines_are_what_they_are():
    @sgl.function
    def lines(s, topic):
        s += f"""A list about {topic}:
            - indented
    - less"""
        s += sgl.gen("x")

    assert lines.compile().run("tea", backend=MockBackend()).text() == lines.run("tea", backend=MockBackend()).text()


def test_many_cases_are_traced_in_no_time_to_speak_of():
    @sgl.function
    def many(s):
        s += sgl.gen("x")
        sgl.switch(s, s["x"], {f"{i}": lambda s: s.__iadd__("case") and None for i in range(60)}, say_other)

    def say_other(s):
        s += "other"

    assert many.compile().run(backend=MockBackend()).text() == "okother"


def test_programs_of_a_graph_run_on_its_backend():
    @sgl.function
    def outer(s):
        s += program.run("tea", backend=MockBackend())

    with pytest.raises(sgl.TraceError, match="all of a graph runs on one backend"):
        outer.compile()
