"""Texts as they grow, read from outside of a program and from inside."""

import asyncio

import pytest

import lang as sgl
from lang.backends.mock import MockBackend


@sgl.function
def chat(s, question):
    s += sgl.user(question)
    s += sgl.assistant(sgl.gen("answer")) + sgl.user("And?") + sgl.assistant(sgl.gen("more"))


def slow(text="one two three"):
    return MockBackend(lambda _: text, steps_per_call=4)


def test_run_with_stream_returns_at_once():
    backend = slow()
    state = chat.run("Hello", backend=backend, stream=True)
    assert backend.clock.steps == 0
    assert state["answer"] == "one two three"
    assert backend.clock.steps == 4, "no further than was read"
    assert state["more"] == "one two three"


def test_a_variable_comes_in_pieces():
    state = chat.run("Hello", backend=slow(), stream=True)
    pieces = list(state.text_iter("more"))
    assert len(pieces) == 4
    assert "".join(pieces) == state["more"] == "one two three"


def test_the_whole_prompt_comes_in_pieces():
    backend = slow()
    state = chat.run("Hello", backend=backend, stream=True)
    pieces = list(state.text_iter())
    assert len(pieces) > 6
    assert "".join(pieces) == state.text() == chat.run("Hello", backend=slow()).text()


def test_a_finished_text_comes_in_one_piece():
    state = chat.run("Hello", backend=slow())
    assert list(state.text_iter("answer")) == ["one two three"]
    assert list(state.text_iter()) == [state.text()]


def test_a_program_reads_its_own_calls_as_they_grow():
    seen = []

    @sgl.function
    def program(s):
        s += "x" + sgl.gen("x") + sgl.gen("y")
        for piece in s.text_iter("x"):
            seen.append((piece, "y" in s))
        seen.append(list(s.text_iter("y")))

    other_done = []

    @sgl.function
    def other(s):
        s += "z" + sgl.gen("z")
        other_done.append(s["z"])

    runner = sgl.Runner(slow("abcd"))
    runner.start(program, {})
    runner.start(other, {})
    while runner.active:
        runner.step()
    assert seen == [("a", True), ("b", True), ("c", True), ("d", True), ["a", "b", "c", "d"]]
    assert other_done == ["abcd"], "others go on meanwhile"


def test_reading_text_before_the_variable_is_there():
    @sgl.function
    def program(s):
        s += "x" + sgl.gen("x")
        s += s["x"] + sgl.gen("late")

    state = program.run(backend=slow("abcd"), stream=True)
    assert list(state.text_iter("late")) == ["a", "b", "c", "d"]


def test_async():
    async def read():
        state = chat.run("Hello", backend=slow(), stream=True)
        turns = 0

        async def other():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        pieces = [piece async for piece in state.text_async_iter("answer")]
        task.cancel()
        pairs = [pair async for pair in state.text_async_iter("more", return_meta_data=True)]
        return pieces, turns, pairs

    pieces, turns, pairs = asyncio.run(read())
    assert "".join(pieces) == "one two three"
    assert turns >= len(pieces)
    assert "".join(text for text, _ in pairs) == "one two three"
    assert [meta.get("finish_reason") for _, meta in pairs] == [None, None, None, "stop"]


def test_what_goes_wrong_is_raised_after_what_came():
    class Failing(MockBackend):
        def step(self):
            ended = super().step()
            for call in ended:
                call.error = "broken"
            return ended

    state = chat.run("Hello", backend=Failing(lambda _: "abcd", steps_per_call=2), stream=True)
    pieces = state.text_iter("answer")
    assert next(pieces) + next(pieces) == "abcd"
    with pytest.raises(sgl.CallError, match="'answer' failed: broken"):
        next(pieces)
    with pytest.raises(sgl.CallError, match="'answer' failed: broken"):
        list(state.text_iter())


def test_an_error_of_the_program_ends_the_text():
    @sgl.function
    def program(s):
        s += "x" + sgl.gen("x")
        s["x"]
        raise ValueError("my mistake")

    state = program.run(backend=slow("abcd"), stream=True)
    with pytest.raises(ValueError, match="my mistake"):
        list(state.text_iter())
    assert isinstance(state.error(), ValueError)


def test_what_is_no_text_is_refused():
    @sgl.function
    def program(s):
        s["number"] = 3

    with pytest.raises(TypeError, match="the variable is int, not text"):
        list(program.run(backend=slow()).text_iter("number"))
    with pytest.raises(KeyError, match="no variable 'x'"):
        list(program.run(backend=slow(), stream=True).text_iter("x"))
