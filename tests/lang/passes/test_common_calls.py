"""Calls that would get the same answer are made once, and only those."""

import pytest

import lang as sgl
from lang import passes
from lang.backends.mock import MockBackend


def counting():
    """Every call gets another answer."""
    count = iter(range(1000))
    return MockBackend(reply=lambda _: f"answer {next(count)}")


@sgl.function
def twice(s, topic):
    s += "Say something."
    forks = s.fork(2)
    forks += sgl.gen("a", max_tokens=8)
    forks += " And more: " + sgl.gen("b", max_tokens=8)
    s += forks[0]["b"] + forks[1]["b"]


COMPILED = twice.compile(passes=[passes.common_calls()])


def test_equal_greedy_calls_are_one_and_what_follows_them_too():
    backend = counting()
    state = COMPILED.run("tea", backend=backend, temperature=0)
    assert [call.name for call in backend.log] == ["a", "b"]
    assert state.text() == "Say something." + "answer 1" * 2


def test_calls_with_a_seed_repeat_too():
    backend = counting()
    COMPILED.run("tea", backend=backend, seed=3)
    assert len(backend.log) == 2


def test_calls_that_are_drawn_are_all_made():
    backend = counting()
    state = COMPILED.run("tea", backend=backend)
    assert [call.name for call in backend.log] == ["a", "a", "b", "b"]
    assert state.text() == "Say something." + "answer 2answer 3"


def test_a_call_after_drawn_ones_is_made_even_if_it_is_greedy_itself():
    @sgl.function
    def program(s):
        forks = s.fork(2)
        forks += "x" + sgl.gen("drawn", temperature=1.0) + sgl.gen("greedy", temperature=0)
        s += forks[0]["greedy"] + forks[1]["greedy"]

    backend = counting()
    program.compile(passes=[passes.common_calls()]).run(backend=backend)
    assert [call.name for call in backend.log] == ["drawn", "drawn", "greedy", "greedy"]


def test_a_select_after_drawn_gens_is_made_and_after_the_same_text_it_is_not():
    @sgl.function
    def program(s, shared):
        s += "Best? "
        forks = s.fork(2)
        if not shared:
            forks += sgl.gen("thought", temperature=1.0)
        forks += sgl.select("best", ["a", "bb"])
        s += forks[0]["best"] + forks[1]["best"]

    compiled = program.compile(static=["shared"], passes=[passes.common_calls()])
    for shared, selects in ((True, 1), (False, 2)):
        backend = counting()
        compiled.run(shared, backend=backend)
        assert sum(call.name == "best" for call in backend.log) == selects


def test_other_sampling_other_prompts_and_other_branches_are_other_calls():
    @sgl.function
    def program(s):
        forks = s.fork(3)
        forks += "x"
        forks += [sgl.gen("a", max_tokens=3), sgl.gen("a", max_tokens=4), "y" + sgl.gen("a", max_tokens=3)]
        s += "".join(fork["a"] for fork in forks)

    backend = counting()
    compiled = program.compile(passes=[passes.common_calls()])
    compiled.run(backend=backend, temperature=0)
    assert len(backend.log) == 3
    assert "nothing to do" in compiled.report


def test_only_one_of_two_branches_of_a_cond_answers():
    @sgl.function
    def program(s):
        s += sgl.gen("first")
        sgl.cond(s, s["first"] == "no", lambda s: ask(s), lambda s: ask(s))

    def ask(s):
        s += "?" + sgl.gen("x")

    backend = counting()
    state = program.compile(passes=[passes.common_calls()]).run(backend=backend, temperature=0)
    assert [call.name for call in backend.log] == ["first", "x"]
    assert state["x"] == "answer 1"


def test_a_failed_call_fails_all_that_it_answers_under_their_names():
    @sgl.function
    def program(s):
        forks = s.fork(2)
        forks += "x"
        forks[0] += sgl.gen("a", regex="b")
        forks[1] += sgl.gen("c", regex="b")
        forks.join()
        s["done"] = True

    state = program.compile(passes=[passes.common_calls()]).run(backend=MockBackend(), temperature=0)
    with pytest.raises(sgl.CallError, match="'a' failed"):
        state["a"]
    with pytest.raises(sgl.CallError, match="'c' failed"):
        state["c"]


def test_the_report_names_who_answers_whom():
    assert "calls 4 -> 2" in COMPILED.report
    assert COMPILED.report.count("where outputs repeat") == 2
    assert "test_common_calls.py:" in COMPILED.report
