"""How calls are made, and that the program gets the same of it."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lang as sgl
from engine import EngineConfig, make_engine
from lang import passes
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend
from lang.passes.instructions import only_text


@pytest.fixture(scope="module")
def backend():
    return EngineBackend(make_engine(EngineConfig(device="cpu", dtype="float64", pool_tokens=8192)))


@given(st.text(min_size=1, max_size=12), st.text("ab.(|)*\\[]?d", min_size=1, max_size=6))
def test_a_regex_is_text_only_if_that_is_all_it_matches(text, pattern):
    assert only_text(re.escape(text)) == text
    found = only_text(pattern)
    if found is not None:
        assert re.fullmatch(pattern, found)
        assert len(re.compile(pattern).findall(found)) == 1
        assert not re.fullmatch(pattern, found + "a")


@sgl.function
def letter(s, name):
    s += (
        "Dear "
        + name
        + sgl.gen("comma", regex=",")
        + "\nYours"
        + sgl.select("end", ["."])
        + sgl.gen("ps", max_tokens=4)
    )


def test_what_can_only_be_said_in_one_way_is_not_asked(backend):
    compiled = letter.compile(passes=[passes.forced_text()])
    plain = letter.run("Al", backend=backend, temperature=0)
    mock = MockBackend()
    compiled.run("Al", backend=mock)
    assert [call.name for call in mock.log] == ["ps"]
    state = compiled.run("Al", backend=backend, temperature=0)
    assert (state.text(), state["comma"], state["end"], state["ps"]) == (plain.text(), ",", ".", plain["ps"])
    assert "no tokens are counted" in compiled.report
    assert state.get_meta_info("comma")["forced"]


@pytest.mark.parametrize("more", [{"max_tokens": 1}, {"stop": "long"}, {"n": 2}, {"logprobs": 0}])
def test_text_that_may_be_cut_or_of_which_more_is_told_is_asked(more):
    @sgl.function
    def program(s):
        s += "?" + sgl.gen("x", regex="long", **more)

    mock = MockBackend(reply=lambda _: "long")
    mock.capabilities = sgl.Capabilities("a mock")
    run = sgl.Runner(mock).start(program.compile(passes=[passes.forced_text()]), {})
    assert len(mock.log) == 1
    assert run.calls == mock.log


@sgl.function
def tips(s, topic):
    s += f"A tip about {topic}:"
    forks = s.fork(3)
    forks += sgl.gen("tip", max_tokens=6)
    forks.join()
    s += " / ".join(s["tip"])


def test_siblings_are_samples_of_one_call_with_the_very_same_tokens():
    def fresh():
        return EngineBackend(make_engine(EngineConfig(device="cpu", dtype="float64", pool_tokens=4096, seed=5)))

    compiled = tips.compile(passes=[passes.one_call_for_siblings()])
    plain = tips.run("tea", backend=(one := fresh()), ignore_eos=True)
    state = compiled.run("tea", backend=(other := fresh()), ignore_eos=True)
    assert len(set(plain["tip"])) > 1, "drawn"
    assert state["tip"] == plain["tip"]
    asked = [sum(event.kind == "arrive" for event in each.engine.log.inputs()) for each in (one, other)]
    assert asked == [4, 2], "the prefix, then three requests or one"


def test_siblings_with_a_seed_or_greedy_are_calls_of_their_own():
    compiled = tips.compile(passes=[passes.one_call_for_siblings()])
    for sampling, n in (({"temperature": 0}, 3), ({"seed": 1}, 3), ({"n": 2}, 3), ({}, 1)):
        mock = MockBackend()
        compiled.run("tea", backend=mock, **sampling) if "n" not in sampling else None
        assert len(mock.log) == (n if "n" not in sampling else 0)


def test_each_sibling_has_counts_and_variables_of_its_own():
    compiled = tips.compile(passes=[passes.one_call_for_siblings()])
    mock = MockBackend(reply=lambda _: "one two")
    plain = tips.run("tea", backend=mock)
    state = compiled.run("tea", backend=mock)
    assert state["tip"] == plain["tip"] == ["one two"] * 3
    assert state.text() == plain.text()


@sgl.function
def judge(s, question, method="greedy_token_selection"):
    s += question + "\nAnswer:" + sgl.select("x", ["A", "B", "C", "D"], choices_method=method)
    s += "." + sgl.gen("why", max_tokens=4)


def test_a_greedy_select_of_single_tokens_is_one_masked_step_with_the_same_choice(backend):
    compiled = judge.compile(static=["method"], passes=[passes.select_by_decoding()])
    chosen = set()
    for question in ("Tea?", "Why is the sea salt?", "2 + 2", "Which of these is a fruit", "Zebra.", "?"):
        plain = judge.run(question, backend=backend, temperature=0)
        before = len(backend.engine.log.events)
        state = compiled.run(question, backend=backend, temperature=0)
        arrived = [event for event in backend.engine.log.events[before:] if event.kind == "arrive"]
        assert len(arrived) == 2, "one for the select, one for the gen"
        assert state.get_meta_info("x")["completion_tokens"] == 1
        assert (state["x"], state.text()) == (plain["x"], plain.text())
        chosen.add(state["x"])
    assert len(chosen) > 1
    assert "no scores" in compiled.report


def test_a_select_by_another_rule_stays_unless_told_otherwise(backend):
    program = judge.bind(question="Tea?", method="token_length_normalized")
    assert "nothing to do" in program.compile(passes=[passes.select_by_decoding()]).report
    compiled = program.compile(passes=[passes.select_by_decoding(("token_length_normalized",))])
    assert "the choice may be another" in compiled.report
    assert compiled.run(backend=backend)["x"] in ("A", "B", "C", "D")


def test_speculation_asks_an_api_once():
    @sgl.function
    def person(s):
        s += "Name: " + sgl.gen("name", stop="\n") + "\nBorn: " + sgl.gen("born", stop="\n")

    compiled = person.compile(passes=[passes.speculate(64)])
    api = MockBackend(reply=lambda _: "Ada\nBorn: 1815\n", speculates=True)
    state = compiled.run(backend=api)
    assert (state["name"], state["born"]) == ("Ada", "1815")
    assert len(api.log) == 1
    assert "gen 'born'" in compiled.report
