"""Programs as greenlets: order, errors, cancelling, programs that run programs."""

import random

import pytest

import lang as sgl
from lang.backends.mock import MockBackend


@sgl.function
def chain(s, n, tag=""):
    s += tag
    for i in range(n):
        s += f"{i}:" + sgl.gen(f"x{i}")


def run_all(runner):
    done = []
    while runner.active:
        done += runner.step()
    return done + runner.step()


def latency(prompt: str) -> int:
    return random.Random(prompt).randint(1, 4)


def test_calls_reach_the_backend_in_the_same_order_every_time():
    def prompts():
        backend = MockBackend(steps_per_call=latency)
        runner = sgl.Runner(backend)
        for i in range(20):
            runner.start(chain, {"n": i % 4, "tag": f"p{i} "})
        done = [run.name for run in run_all(runner)]
        return done, [call.prompt for call in backend.log]

    first = prompts()
    assert len(first[0]) == 20
    assert len(first[1]) == sum(i % 4 for i in range(20))
    assert prompts() == first


def test_times_and_tags():
    backend = MockBackend()
    runner = sgl.Runner(backend)
    runner.start(chain, {"n": 1})
    run_all(runner)
    run = runner.start(chain, {"n": 2}, due=0.5, name="mine", client="c", namespace="tenant", priority=2)
    assert runner.active == 1
    assert run_all(runner) == [run]
    assert (run.started_at, run.finished_at, run.due, run.client, run.status) == (1.0, 3.0, 0.5, "c", "done")
    first, second = (call.tags for call in run.calls)
    assert first == ("mine", "c", "", "tenant", 2, 0.5, "", 1, None)
    assert second == first._replace(due=None), "only the first call was due when the program was"
    assert runner.start(chain, {"n": 1}).due == 3.0, "due when it started, if nobody says"


def test_a_program_without_calls_is_finished_at_the_next_step():
    backend = MockBackend()
    runner = sgl.Runner(backend)
    run = runner.start(chain, {"n": 0, "tag": "text"})
    assert run.finished
    assert runner.step() == [run]
    assert runner.step() == []
    assert backend.clock.steps == 0


@sgl.function
def fails(s, at):
    s += "x" + sgl.gen("a")
    if at == "after":
        s["a"]
    raise ValueError("my mistake")


@pytest.mark.parametrize("at", ["before", "after"])
def test_a_failing_program_fails_alone_and_names_its_line(at):
    backend = MockBackend()
    runner = sgl.Runner(backend)
    bad, good = runner.start(fails, {"at": at}), runner.start(chain, {"n": 2})
    assert set(run_all(runner)) == {bad, good}
    assert (good.status, good.error, bad.status) == ("done", None, "failed")
    assert isinstance(bad.error, ValueError)
    path, _, line = bad.where.rpartition(":")
    assert path == __file__
    with open(__file__) as source:
        assert 'raise ValueError("my mistake")' in source.readlines()[int(line) - 1]
    assert bad.state.error() is bad.error
    assert [call.name for call in backend.aborted] == (["a"] if at == "before" else [])


def test_run_raises_what_the_program_raised_with_its_line_as_a_note():
    with pytest.raises(ValueError, match="my mistake") as caught:
        fails.run(at="after", backend=MockBackend())
    assert any("in program 'fails-0', " + __file__ in note for note in caught.value.__notes__)


def test_a_batch_goes_on_past_a_failure():
    @sgl.function
    def program(s, i):
        s += f"{i}" + sgl.gen("a")
        if i == 1:
            s += 1 / 0

    states = program.run_batch([{"i": i} for i in range(3)], backend=MockBackend())
    assert [type(state.error()) for state in states] == [type(None), ZeroDivisionError, type(None)]
    assert states[2]["a"] == "ok"


class Refusing(MockBackend):
    """Refuses prompts with "long" in them; fails calls with "doomed" in them after it took them."""

    def generate(self, name, prompt, sampling, tags):
        if "long" in prompt.text():
            raise ValueError("prompt of 9 tokens: at most 8 fit; shorten it")
        return super().generate(name, prompt, sampling, tags)

    def step(self):
        ended = super().step()
        for call in ended:
            if "doomed" in call.prompt:
                call.error = "logits that aren't finite"
        return ended


def test_a_refused_call_raises_where_it_is_read():
    caught = []

    @sgl.function
    def program(s):
        with s.copy() as attempt:
            attempt += "too long" + sgl.gen("a")
            try:
                attempt["a"]
            except ValueError as error:
                caught.append(error)
        return "went on"

    assert program.run(backend=Refusing()).ret_value == "went on"
    (error,) = caught
    assert str(error) == "prompt of 9 tokens: at most 8 fit; shorten it"
    (note,) = error.__notes__
    path, _, line = note.removeprefix("the call was made at ").rpartition(":")
    assert path == __file__
    with open(__file__) as source:
        assert "attempt += " in source.readlines()[int(line) - 1]
    with pytest.raises(ValueError, match="at most 8 fit"):
        chain.run(n=1, tag="long", backend=Refusing())


@pytest.mark.parametrize("n", [1, 2])
def test_a_call_that_fails_later_raises_where_it_is_needed(n):
    with pytest.raises(sgl.CallError, match="'x0' failed: logits that aren't finite"):
        chain.run(n=n, tag="doomed", backend=Refusing())


def test_cancelling_aborts_the_calls_and_runs_the_cleanup():
    cleaned = []

    @sgl.function
    def program(s):
        try:
            s += "a" + sgl.gen("x") + "b" + sgl.gen("y")
        finally:
            cleaned.append("y" in s)
            s["x"]

    backend = MockBackend(steps_per_call=3)
    runner = sgl.Runner(backend)
    run, other = runner.start(program, {}), runner.start(chain, {"n": 1})
    runner.step()
    runner.cancel(run)
    assert cleaned == [True]
    assert [call.name for call in backend.aborted] == ["x"]
    assert (run.status, run.error, runner.active) == ("cancelled", None, 1)
    assert run_all(runner) == [run, other]
    runner.cancel(other)
    assert other.status == "done", "a finished program stays as it is"


def test_programs_run_programs_on_the_same_backend():
    @sgl.function
    def parent(s):
        s += "plan" + sgl.gen("plan")
        states = chain.run_batch([{"n": 1, "tag": f"{i} "} for i in range(3)], num_threads=2)
        s += " ".join(state["x0"] for state in states)
        s += chain.run(n=1, tag="last")["x0"]

    backend = MockBackend(steps_per_call=latency)
    runner = sgl.Runner(backend)
    run, other = runner.start(parent, {}, name="outer"), runner.start(chain, {"n": 3}, name="other")
    assert set(run_all(runner)) == {run, other}, "children aren't programs of their own"
    assert run.error is None
    assert run.state.text() == "planokok ok okok"
    assert len(run.calls) == 5
    assert {call.tags.program for call in run.calls} == {"outer"}


def test_a_failing_child_raises_in_its_parent():
    @sgl.function
    def parent(s):
        fails.run(at="after")

    runner = sgl.Runner(MockBackend())
    run = runner.start(parent, {})
    assert run_all(runner) == [run]
    assert isinstance(run.error, ValueError)
    assert run.where.startswith(__file__)


def test_cancelling_a_parent_cancels_its_children():
    @sgl.function
    def parent(s):
        chain.run_batch([{"n": 2}, {"n": 2}])

    backend = MockBackend(steps_per_call=2)
    runner = sgl.Runner(backend)
    run = runner.start(parent, {})
    runner.step()
    runner.cancel(run)
    assert (runner.active, len(backend.aborted)) == (0, 2)
    assert runner.step() == [run]


def test_an_interrupt_is_not_swallowed():
    @sgl.function
    def program(s):
        s += "x" + sgl.gen("a") + ""
        s["a"]
        raise KeyboardInterrupt

    runner = sgl.Runner(MockBackend())
    run = runner.start(program, {})
    with pytest.raises(KeyboardInterrupt):
        run_all(runner)
    assert run.status == "failed"
    assert runner.active == 0


def test_a_backend_that_loses_a_call_is_found_out():
    class Forgetful(MockBackend):
        def step(self):
            super().step()
            return []

    runner = sgl.Runner(Forgetful())
    run = runner.start(chain, {"n": 1})
    runner.step()
    runner.calls.open.clear()
    with pytest.raises(RuntimeError, match=run.name):
        runner.step()


def test_thousands_of_programs_at_once():
    runner = sgl.Runner(MockBackend())
    runs = [runner.start(chain, {"n": 2}) for _ in range(5000)]
    assert len(run_all(runner)) == 5000
    assert all(run.state["x1"] == "ok" for run in runs)
