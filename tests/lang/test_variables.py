"""Variables, scopes, and what is known of a call."""

import pytest

import lang as sgl
from lang.backends.mock import MockBackend


def test_a_scope_is_the_text_added_in_it():
    @sgl.function
    def program(s):
        s += "before "
        with s.var_scope("outer"):
            s += "a " + sgl.gen("x")
            with s.var_scope("inner"):
                s += sgl.user("b")
        s += " after"

    state = program.run(backend=MockBackend())
    assert state["outer"] == "a ok### user\nb\n\n"
    assert state["inner"] == "### user\nb\n\n"
    assert "outer" in state


def test_a_scope_does_not_wait():
    seen = []

    @sgl.function
    def program(s):
        with s.var_scope("scope"):
            s += "a" + sgl.gen("x")
        seen.append("after")
        seen.append(s["scope"])

    runner = sgl.Runner(MockBackend())
    runner.start(program, {})
    assert seen == ["after"]
    while runner.active:
        runner.step()
    assert seen == ["after", "aok"]


def test_set_in_and_set_var():
    @sgl.function
    def program(s):
        s["a"] = [1, 2]
        s.set_var("b", "text")
        return "a" in s, "c" in s

    state = program.run(backend=MockBackend())
    assert state.ret_value == (True, False)
    assert (state["a"], state["b"]) == ([1, 2], "text")


def test_sync_waits_and_raises_nothing():
    class Failing(MockBackend):
        def step(self):
            ended = super().step()
            for call in ended:
                call.error = "broken"
            return ended

    seen = []

    @sgl.function
    def program(s):
        with s.copy() as attempt:
            attempt += "a" + sgl.gen("x") + sgl.gen("y")
            attempt.sync()
            seen.append(str(attempt.error()))
        s.sync()
        seen.append(s.error())

    program.run(backend=Failing())
    assert seen == ["'x' failed: broken", None]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"logprobs": 3}, 3),
        ({"return_logprob": True}, 0),
        ({"return_logprob": True, "top_logprobs_num": 2}, 2),
        ({}, None),
    ],
)
def test_log_probabilities_by_either_name(asked, expected):
    assert sgl.gen("x", **asked).sampling.get("logprobs") == expected


def test_top_logprobs_alone_are_refused():
    with pytest.raises(TypeError, match="needs return_logprob=True"):
        sgl.gen("x", top_logprobs_num=2)


@pytest.mark.parametrize(
    ("dtype", "text"), [(int, "-12"), ("int", "7"), (float, "3.5"), (bool, "True"), (str, '"some words 1"')]
)
def test_a_type_says_how_the_output_is_written(dtype, text):
    @sgl.function
    def program(s):
        s += "x" + sgl.gen("value", dtype=dtype)

    assert program.run(backend=MockBackend(lambda _: text))["value"] == text
    with pytest.raises(sgl.CallError, match="doesn't match"):
        program.run(backend=MockBackend(lambda _: "other: text"))


def test_numbers_end_at_a_space_or_a_line():
    assert sgl.gen_int("x", stop="!").sampling["stop"] == ("!", " ", "\n")
    assert sgl.gen_int("x") == sgl.gen("x", dtype=int)
    assert sgl.gen_string("x", 8) == sgl.gen("x", 8, dtype=str)


def test_a_schema_is_a_dict_a_text_or_a_class():
    from pydantic import BaseModel

    class Point(BaseModel):
        x: int

    as_dict = sgl.gen("p", json_schema={"type": "object"}).sampling["json_schema"]
    assert as_dict == sgl.gen("p", json_schema='{"type": "object"}').sampling["json_schema"]
    assert '"additionalProperties": false' in sgl.gen("p", json_schema=Point).sampling["json_schema"]


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"dtype": list}, TypeError, "allowed: int, float, bool, str"),
        ({"dtype": "Int"}, TypeError, "did you mean 'int'"),
        ({"dtype": int, "regex": "a"}, TypeError, "give one of them"),
        ({"regex": "a", "choices": ["a"]}, TypeError, "give one of them"),
        ({"json_schema": "{"}, ValueError, "isn't JSON"),
        ({"json_schema": int}, TypeError, "a pydantic model class"),
        ({"stop_regex": 3}, TypeError, "a regex or a list of them"),
        ({"tools": [3]}, TypeError, "is no tool"),
    ],
)
def test_bad_shapes_are_refused_where_they_are_written(asked, error, message):
    with pytest.raises(error, match=message):
        sgl.gen("x", **asked)
