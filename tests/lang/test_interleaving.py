"""However the calls of many programs interleave, each program reads as if it ran alone."""

from hypothesis import given, settings
from hypothesis import strategies as st

import lang as sgl
from lang.backends.mock import MockBackend

STEPS = st.one_of(
    st.tuples(st.just("text"), st.text("abc ", max_size=5)),
    st.tuples(st.just("gen"), st.sampled_from(["x", "y"])),
    st.tuples(st.just("select"), st.sampled_from(["x", "z"])),
    st.tuples(st.just("read"), st.sampled_from(["x", "y", "z"])),
    st.tuples(st.just("child"), st.integers(1, 3)),
    st.tuples(st.just("call"), st.integers(1, 3)),
    st.tuples(st.just("fork"), st.integers(1, 3)),
    st.tuples(st.just("stream"), st.sampled_from(["x", "y"])),
)
CHOICES = ("one", "two", "three")


def reply(prompt):
    return f"<{sum(map(ord, prompt)) % 97}>"


def logprobs(prompt, choice):
    return [-float((len(prompt) * 7 + ord(choice[0])) % 5)]


@sgl.function
def child(s, i):
    s += f"child {i}" + sgl.gen("answer")


@sgl.function
def scripted(s, script):
    for kind, value in script:
        if kind == "text":
            s += value
        elif kind == "gen":
            s += sgl.gen(value)
        elif kind == "select":
            s += sgl.select(value, CHOICES)
        elif kind == "read" and value in s:
            s += s[value].upper()
        elif kind == "child":
            for state in child.run_batch([{"i": i} for i in range(value)]):
                s += state["answer"]
        elif kind == "call":
            for state in [child(i) for i in range(value)]:
                s += state
        elif kind == "fork":
            forks = s.fork(value)
            forks += lambda i: f"branch {i}" + sgl.gen("b") + sgl.gen("c")
            s += "".join(branch["c"] for branch in forks)
        elif kind == "stream" and value in s:
            s += "".join(s.text_iter(value))


def by_hand(script):
    """The same, without a language: every answer at once."""
    text, variables = "", {}
    for kind, value in script:
        if kind == "text":
            text += value
        elif kind == "gen":
            variables[value] = reply(text)
            text += variables[value]
        elif kind == "select":
            best = max(CHOICES, key=lambda choice, prompt=text: logprobs(prompt, choice))
            variables[value] = best
            text += best
        elif kind == "read" and value in variables:
            text += variables[value].upper()
        elif kind == "child":
            text += "".join(reply(f"child {i}") for i in range(value))
        elif kind == "call":
            text += "".join(f"child {i}" + reply(f"child {i}") for i in range(value))
        elif kind == "fork":
            starts = [f"{text}branch {i}" for i in range(value)]
            text += "".join(reply(start + reply(start)) for start in starts)
        elif kind == "stream" and value in variables:
            text += variables[value]
    return text


@settings(max_examples=60, deadline=None)
@given(
    scripts=st.lists(st.lists(STEPS, max_size=8), min_size=1, max_size=6),
    speeds=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    at_once=st.one_of(st.just("auto"), st.integers(1, 3)),
)
def test_programs_do_not_feel_each_other(scripts, speeds, at_once):
    backend = MockBackend(reply, logprobs, steps_per_call=lambda prompt: speeds[len(prompt) % 3])
    states = scripted.run_batch([{"script": script} for script in scripts], backend=backend, num_threads=at_once)
    assert [state.error() for state in states] == [None] * len(scripts)
    assert [state.text() for state in states] == [by_hand(script) for script in scripts]


@settings(max_examples=40, deadline=None)
@given(scripts=st.lists(st.lists(STEPS, min_size=1, max_size=6), min_size=2, max_size=5), data=st.data())
def test_cancelled_programs_leave_nothing_behind_and_others_unharmed(scripts, data):
    backend = MockBackend(reply, logprobs, steps_per_call=2)
    runner = sgl.Runner(backend)
    runs = [runner.start(scripted, {"script": script}) for script in scripts]
    cancelled, returned = set(), []
    while runner.active:
        returned += runner.step()
        run = data.draw(st.sampled_from(runs))
        if data.draw(st.booleans()) and not run.finished:
            runner.cancel(run)
            cancelled.add(run)
    returned += runner.step()
    assert sorted(map(runs.index, returned)) == list(range(len(runs))), "each is returned once"
    assert backend.step() == [], "no call is left"
    for run, script in zip(runs, scripts):
        assert run.status == ("cancelled" if run in cancelled else "done")
        if run not in cancelled:
            assert run.state.text() == by_hand(script)
