"""join("concate_and_append"): what branches wrote goes on in the parent, with the KV that they have."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lang as sgl
from engine import EngineConfig, make_engine
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend
from lang.backends.openai import OpenAIBackend


def fresh(**config):
    settings_ = {"device": "cpu", "dtype": "float64", "pool_tokens": 4096, **config}
    return EngineBackend(make_engine(EngineConfig(**settings_)))


@functools.cache
def backend():
    return fresh()


@sgl.function
def stories(s, n, tail="Together:"):
    s += "Once upon a time there was a cat.\n"
    forks = s.fork(n)
    forks += lambda i: f"Story {i}: " + sgl.gen("x", max_tokens=4) + "\n"
    forks.join("concate_and_append")
    s += tail + sgl.gen("all", max_tokens=6)


def test_text_variables_and_what_was_found_in_the_cache():
    state = stories.run(3, backend=backend(), temperature=0)
    begin, *parts = state.text().split("Story ")
    assert begin == "Once upon a time there was a cat.\n"
    assert [part[0] for part in parts] == ["0", "1", "2"]
    assert parts[2].endswith("Together:" + state["all"])
    assert [f"{i}: {x}\n" for i, x in enumerate(state["x"])] == [*parts[:2], parts[2].partition("Together:")[0]]
    assert state.get_meta_info("all")["cached_tokens"] > state.get_meta_info("all")["prompt_tokens"] / 2
    backend().engine.check()


def test_one_branch_is_ordinary_text():
    @sgl.function
    def written(s):
        s += "Once upon a time there was a cat.\n"
        s += "Story 0: " + sgl.gen("x", max_tokens=4) + "\n"
        s += "Together:" + sgl.gen("all", max_tokens=6)

    one, other = stories.run(1, backend=backend(), temperature=0), written.run(backend=backend(), temperature=0)
    assert one.text() == other.text()


def test_what_follows_sees_branches_that_did_not_see_each_other():
    """So its answer isn't that of the same text written in one stream: the model is asked something else."""

    @sgl.function
    def scores(s, joined):
        s += "Begin\n"
        if joined:
            forks = s.fork(2)
            forks += ["red\n", "blue\n"]
            forks += sgl.gen("w", max_tokens=1, regex="z")
            forks.join("concate_and_append")
        else:
            s += "red\nzblue\nz"
        s += "\nend" + sgl.gen("x", max_tokens=1, logprobs=0)

    joined, plain = (scores.run(kind, backend=backend(), temperature=0) for kind in (True, False))
    assert joined.text().replace(joined["x"], "") == plain.text().replace(plain["x"], "")
    values = [state.get_meta_info("x")["output_token_logprobs"][0][0] for state in (joined, plain)]
    assert abs(values[0] - values[1]) > 1e-6


@pytest.mark.parametrize("config", [{}, {"cache": "none"}, {"cache": "flat"}, {"page_size": 16}, {"overlap": True}])
def test_the_cache_does_not_change_the_answer(config):
    state = stories.run(3, backend=fresh(**config), temperature=0)
    assert state.text() == stories.run(3, backend=backend(), temperature=0).text()


def test_a_small_pool_does_not_change_the_answers_of_a_batch():
    small, items = fresh(pool_tokens=160), [{"n": n} for n in (1, 2, 3, 2, 3)]
    states = stories.run_batch(items, backend=small, temperature=0)
    assert [state.error() for state in states] == [None] * len(items)
    alone = [stories.run(**item, backend=backend(), temperature=0).text() for item in items]
    assert [state.text() for state in states] == alone
    small.engine.check()


def test_the_joined_text_is_never_found_in_the_cache_by_others():
    shared, text = fresh(), stories.run(3, backend=backend(), temperature=0).text()
    stories.run(3, backend=shared, temperature=0)

    @sgl.function
    def again(s):
        s += text + sgl.gen("x", max_tokens=6)

    found = again.run(backend=shared, temperature=0)
    assert found["x"] == again.run(backend=fresh(), temperature=0)["x"]
    first = text[: text.index("Story 1")]
    assert found.get_meta_info("x")["cached_tokens"] <= len(shared.engine.tokenizer.encode(first)) + 1


def test_joins_in_branches_joins_after_joins_and_forks_after_joins():
    @sgl.function
    def deep(s):
        s += "Root.\n"
        outer = s.fork(2)
        for i, branch in enumerate(outer):
            branch += f"Branch {i}.\n"
            inner = branch.fork(2)
            inner += lambda j: f"Leaf {j}: " + sgl.gen("leaf", max_tokens=2) + "\n"
            inner.join("concate_and_append")
            branch += "So: " + sgl.gen("so", max_tokens=2) + "\n"
        outer.join("concate_and_append")
        more = s.fork(2)
        more += lambda i: f"More {i}: " + sgl.gen("more", max_tokens=2) + "\n"
        s += "Meanwhile.\n"
        more.join("concate_and_append")
        last = s.fork(2)
        last += ["yes:", "no:"]
        last += sgl.gen("end", max_tokens=2)
        s += "|".join(fork["end"] for fork in last) + sgl.select("best", [" 1", " 2"])

    one, other = (deep.run(backend=made, temperature=0) for made in (backend(), fresh(cache="none")))
    assert one.text() == other.text()
    assert [len(leaves) for leaves in one["leaf"]] == [2, 2]
    assert len(one["so"]) == len(one["more"]) == 2
    compiled = deep.compile().run(backend=backend(), temperature=0)
    assert (compiled.text(), compiled["leaf"], compiled["best"]) == (one.text(), one["leaf"], one["best"])


def test_a_select_may_come_right_behind_a_join():
    @sgl.function
    def program(s):
        s += "Root.\n"
        forks = s.fork(2)
        forks += ["one\n", "two\n"]
        forks.join("concate_and_append")
        s += sgl.select("best", ["one", "two"])

    assert program.run(backend=backend())["best"] in ("one", "two")


def test_messages_of_branches_are_messages_of_the_parent():
    @sgl.function
    def chat(s):
        s += sgl.user("Two tips, please.\n")
        forks = s.fork(2)
        for i, fork in enumerate(forks):
            fork += sgl.user(f"Tip {i}?") + sgl.assistant(sgl.gen("tip", max_tokens=3))
        forks.join("concate_and_append")
        s += sgl.user("Which?") + sgl.assistant(sgl.gen("which", max_tokens=3))

    state = chat.run(backend=backend(), temperature=0)
    assert [message["role"] for message in state.messages()] == ["user", *["user", "assistant"] * 3]
    assert [state.messages()[i]["content"] for i in (2, 4)] == state["tip"]


def test_a_branch_that_failed_fails_what_follows_and_nothing_else():
    @sgl.function
    def program(s):
        forks = s.fork(2)
        forks += ["good", "bad"]
        forks += sgl.gen("x", regex="ok")
        forks.join("concate_and_append")
        s += sgl.gen("after")

    unsteady = MockBackend(reply=lambda prompt: "ok" if prompt.endswith("good") else "nonsense")
    runner = sgl.Runner(unsteady)
    run = runner.start(program, {})
    while runner.active:
        runner.step()
    assert "'x' failed" in str(run.error)
    assert len(unsteady.log) == 2, "what follows isn't sent"


def test_the_mock_writes_one_behind_the_other():
    assert stories.run(2, backend=MockBackend()).text() == (
        "Once upon a time there was a cat.\nStory 0: ok\nStory 1: ok\nTogether:ok"
    )


def test_what_can_not_be_is_refused():
    @sgl.function
    def unbalanced(s):
        forks = s.fork(2)
        forks += sgl.user_begin() + "?"
        forks.join("concate_and_append")

    with pytest.raises(ValueError, match=r"a branch or its parent is in user\(\), the fork was outside of any role"):
        unbalanced.run(backend=MockBackend())

    @sgl.function
    def with_tools(s):
        s += "Root.\n"
        forks = s.fork(2)
        forks += "x\n"
        forks.join("concate_and_append")
        s += sgl.gen("x", tools=[{"name": "f", "parameters": {}}])

    with pytest.raises(ValueError, match="tools behind join"):
        with_tools.run(backend=backend())
    api = OpenAIBackend("gpt-3.5-turbo-instruct", api_key="k", select=None)
    with pytest.raises(sgl.NotServed, match=r"join\('concate_and_append'\) isn't served by .*: use join\(\) and add"):
        unbalanced.run(backend=api)


PARTS = st.lists(st.sampled_from(["a b", "cat\n", "Once upon", ". ", "ing", "\n"]), max_size=3).map("".join)


@settings(max_examples=25, deadline=None)
@given(before=PARTS, branches=st.lists(PARTS, min_size=1, max_size=3), between=PARTS, after=PARTS)
def test_tokens_say_the_text_whatever_lies_over_the_borders(before, branches, between, after):
    @sgl.function
    def program(s):
        s += "x" + before
        forks = s.fork(len(branches))
        forks += branches
        forks += sgl.gen("y", max_tokens=2)
        s += between
        forks.join("concate_and_append")
        s += after + sgl.gen("z", max_tokens=2)

    runner = sgl.Runner(backend())
    run = runner.start(program, {}, sampling={"temperature": 0, "ignore_eos": True})
    while runner.active:
        runner.step()
    if run.error is not None:
        assert "makes one token with what stands before the fork" in str(run.error)
        return
    (request,) = run.calls[-1].requests
    if "\ufffd" not in run.calls[-1].prompt:  # characters that were cut are whole again in the text of all
        assert backend().engine.tokenizer.decode(request.key.tolist()) == run.calls[-1].prompt
    backend().engine.check()
