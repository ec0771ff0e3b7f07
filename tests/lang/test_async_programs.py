"""Programs written with `async def`: on an event loop, without one, and the same either way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lang as sgl
from lang.backends.mock import MockBackend
from lang.event_loop import _runners
from tests.lang.test_interleaving import CHOICES, STEPS, by_hand, child, logprobs, reply, scripted
from tests.lang.virtual_engine import POLICIES, virtual_backend


@sgl.function
async def talk(s, question, n=1):
    s += question
    for i in range(n):
        s += f" {i}:" + sgl.gen(f"x{i}")
        await s.get(f"x{i}")
    return s[f"x{n - 1}"]


@sgl.function
def plain(s, question, n=1):
    s += question
    for i in range(n):
        s += f" {i}:" + sgl.gen(f"x{i}")
        s[f"x{i}"]


def slow(text: str = "one two three", steps: int = 4) -> MockBackend:
    return MockBackend(lambda _: text, steps_per_call=steps)


def finish(runner: sgl.Runner) -> list[Any]:
    done = []
    while runner.active:
        done += runner.step()
    return done + runner.step()


# ---- without an event loop


def test_an_async_program_runs_like_any_other() -> None:
    state = talk.run("Hello", n=2, backend=MockBackend())
    assert state.text() == "Hello 0:ok 1:ok"
    assert state.ret_value == "ok"
    states = talk.run_batch([("a",), ("b", 2)], backend=MockBackend())
    assert [state.text() for state in states] == ["a 0:ok", "b 0:ok 1:ok"]
    runner = sgl.Runner(MockBackend())
    run = runner.start(talk, {"question": "q"}, due=0.5, name="mine")
    assert finish(runner) == [run]
    assert (run.status, run.name, run.calls[0].tags.due) == ("done", "mine", 0.5)


def test_what_needs_an_event_loop_says_so() -> None:
    caught = []

    @sgl.function
    async def program(s):
        future = loop.create_future()
        try:
            await future
        except RuntimeError as error:
            caught.append(str(error))
        await asyncio.sleep(0)  # needs none
        s += "x" + sgl.gen("x")
        return await s.get("x")

    loop = asyncio.new_event_loop()
    try:
        assert program.run(backend=MockBackend()).ret_value == "ok"
    finally:
        loop.close()
    assert "needs an event loop: run it in asyncio code, with `await program.run_async(...)`" in caught[0]


def test_what_asyncio_refuses_without_a_loop_says_what_to_do_too() -> None:
    @sgl.function
    async def program(s):
        s += "x"
        await asyncio.sleep(1)

    with pytest.raises(RuntimeError, match="event loop") as caught:
        program.run(backend=MockBackend())
    assert "run it in asyncio code, with `await program.run_async(...)`" in caught.value.__notes__


@pytest.mark.parametrize("on_a_loop", [False, True])
def test_an_interrupt_is_not_swallowed(on_a_loop: bool) -> None:
    @sgl.function
    async def program(s):
        s += "x" + sgl.gen("a")
        await s.get("a")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(program.run_async(backend=MockBackend())) if on_a_loop else program.run(backend=MockBackend())


@pytest.mark.parametrize("on_a_loop", [False, True])
@pytest.mark.parametrize(
    ("read", "instead"),
    [
        (lambda s: s["x"], r"'x' isn't there yet, and async code must not block: await s.get\('x'\)"),
        (lambda s: s.text(), r"await s.get\('x'\)"),
        (lambda s: s.error(), "must not block"),
        (lambda s: list(s.text_iter("x")), r"async for piece in s.text_async_iter\('x'\)"),
        (lambda _: plain.run("a"), r"await plain.run_async\(...\)"),
        (lambda _: plain.run("a", backend=MockBackend()), r"await plain.run_async\(...\)"),
        (lambda s: s.__iadd__(talk("a")), r"program 'program-0' isn't over yet.*await its run_async"),
    ],
)
def test_reading_what_is_not_there_is_refused(on_a_loop: bool, read: Any, instead: str) -> None:
    @sgl.function
    async def program(s):
        s += "a" + sgl.gen("x")
        with pytest.raises(RuntimeError, match=instead):
            read(s)
        await s.ready()
        return s["x"]

    backend = MockBackend()
    state = asyncio.run(program.run_async(backend=backend)) if on_a_loop else program.run(backend=backend)
    assert state.ret_value == "ok"


@pytest.mark.parametrize("cleanup", ["quick", "awaits", "goes on"])
def test_cancelling_without_a_loop_runs_the_cleanup_and_aborts_the_calls(cleanup: str) -> None:
    seen = []

    @sgl.function
    async def program(s):
        try:
            s += "a" + sgl.gen("x") + "b" + sgl.gen("y")
            await s.get("x")
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        finally:
            if cleanup == "awaits":
                with pytest.raises(sgl.CallError, match="'x' was given up: its program was cancelled"):
                    await s.get("x")
                await asyncio.sleep(0)
            seen.append("cleaned")
            while cleanup == "goes on":
                await asyncio.sleep(0)

    backend = MockBackend(steps_per_call=3)
    runner = sgl.Runner(backend)
    run, other = runner.start(program, {}), runner.start(talk, {"question": "q"})
    runner.step()
    runner.cancel(run)
    assert seen == ["cancelled", "cleaned"]
    assert [call.name for call in backend.aborted] == ["x"]
    assert (run.status, run.error, runner.active) == ("cancelled", None, 1)
    assert finish(runner) == [run, other]


@pytest.mark.parametrize("on_a_loop", [False, True])
def test_an_error_names_the_programs_own_line(on_a_loop: bool) -> None:
    @sgl.function
    async def program(s):
        s += "a" + sgl.gen("x")
        await s.get("x")
        raise ValueError("my mistake")

    with pytest.raises(ValueError, match="my mistake") as caught:
        asyncio.run(program.run_async(backend=MockBackend())) if on_a_loop else program.run(backend=MockBackend())
    (note,) = caught.value.__notes__
    path, _, line = note.removeprefix("in program 'program-0', ").rpartition(":")
    assert path == __file__
    with open(__file__) as source:
        assert 'raise ValueError("my mistake")' in source.readlines()[int(line) - 1]


def test_an_async_generator_is_no_program() -> None:
    with pytest.raises(TypeError, match="can't be an async generator"):

        @sgl.function
        async def program(s):
            yield 1


# ---- programs that run programs


@sgl.function
async def family(s):
    s += "plan" + sgl.gen("plan")
    forks = s.fork(2)
    forks += lambda i: f" {i}" + sgl.gen("part")
    forks.join()
    s += "".join(await s.get("part"))
    first, second = talk("called "), plain("called ")
    s += (await first.get("x0")) + (await second.get("x0"))
    await second.ready()
    s += second
    one = await talk.run_async("awaited ")
    s += one["x0"]
    for state in await plain.run_batch_async([("a",), ("b",)], num_threads=1):
        s += state["x0"]
    await talk(s, " on ")
    with s.user():
        s += sgl.gen("last")
    s["read"] = [piece async for piece in s.text_async_iter("last")]


@pytest.mark.parametrize("on_a_loop", [False, True])
def test_programs_of_both_kinds_run_each_other(on_a_loop: bool) -> None:
    backend = MockBackend(lambda _: "<ok>", steps_per_call=2)
    state = asyncio.run(family.run_async(backend=backend)) if on_a_loop else family.run(backend=backend)
    text = "plan<ok>" + "<ok>" * 2 + "<ok>" * 2 + "called  0:<ok>" + "<ok>" + "<ok>" * 2 + " on  0:<ok>"
    assert state.text() == text + "### user\n<ok>\n\n"
    assert state["read"] == ["<o", "k>"]
    assert {call.tags.program for call in backend.log} == {"family-0"}


@pytest.mark.parametrize("on_a_loop", [False, True])
def test_a_program_that_is_not_async_runs_async_ones(on_a_loop: bool) -> None:
    @sgl.function
    def program(s):
        called = talk("called", n=2)
        s += "own" + sgl.gen("own")
        s += talk.run("run")["x0"] + "".join(state["x0"] for state in talk.run_batch([("a",), ("b",)]))
        s += called
        with pytest.raises(RuntimeError, match="is async: one that isn't can't await it"):
            talk(s, "x")

    backend = MockBackend()
    state = asyncio.run(program.run_async(backend=backend)) if on_a_loop else program.run(backend=backend)
    assert state.text() == "ownokokokokcalled 0:ok 1:ok"


# ---- on an event loop


def test_other_tasks_go_on_between_steps() -> None:
    async def main() -> tuple[int, int]:
        backend = slow(steps=50)
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        await asyncio.gather(talk.run_async("a", backend=backend), plain.run_async("b", backend=backend))
        task.cancel()
        return turns, backend.clock.steps

    turns, steps = asyncio.run(main())
    assert steps == 50, "both share its steps"
    assert turns >= steps


def test_what_asyncio_has_may_be_awaited() -> None:
    @sgl.function
    async def program(s, inbox):
        s += "a" + sgl.gen("x")
        async with asyncio.timeout(60):
            s += await inbox.get()
        await asyncio.sleep(0.001)
        one, two = await asyncio.gather(talk.run_async("b"), plain.run_async("c"))
        s += one["x0"] + two["x0"]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(s.fork(1)[0].__iadd__(f"{i}" + sgl.gen("y")).get("y")) for i in range(2)]
        s += "".join(task.result() for task in tasks)

    async def main() -> tuple[str, set[str]]:
        inbox: asyncio.Queue[str] = asyncio.Queue()
        backend = MockBackend()
        task = asyncio.create_task(program.run_async(inbox, backend=backend))
        await asyncio.sleep(0.001)
        inbox.put_nowait(" from afar ")
        return (await task).text(), {call.tags.program for call in backend.log}

    assert asyncio.run(main()) == ("aok from afar okokokok", {"program-0"})


def test_cancelling_the_task_cancels_the_program_and_its_children() -> None:
    cleaned = []

    @sgl.function
    async def inner(s):
        try:
            s += "inner" + sgl.gen("x")
            await s.get("x")
        finally:
            await asyncio.sleep(0)
            cleaned.append("inner")

    @sgl.function
    async def outer(s):
        try:
            s += "outer" + sgl.gen("x")
            plain("called")
            await asyncio.gather(inner.run_async(), inner.run_async())
        finally:
            cleaned.append("outer")

    async def main(backend: MockBackend) -> str:
        task = asyncio.create_task(outer.run_async(backend=backend))
        while backend.clock.steps < 3:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cleaned == ["inner", "inner", "outer"]
        return (await talk.run_async("after", backend=backend)).text()

    backend = slow("ok", steps=9)
    assert asyncio.run(main(backend)) == "after 0:ok"
    assert len(backend.aborted) == 4


def test_a_time_limit_ends_a_program() -> None:
    async def main(program: sgl.Program) -> MockBackend:
        backend = slow(steps=10**9)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(program.run_async("a", backend=backend), 0.01)
        return backend

    for program in (talk, plain):
        backend = asyncio.run(main(program))
        assert [call.name for call in backend.aborted] == ["x0"]


def test_a_failing_program_takes_its_children_with_it_and_no_others() -> None:
    @sgl.function
    async def program(s):
        talk("called", n=3)
        s += "x" + sgl.gen("x")
        await s.get("x")
        raise ValueError("my mistake")

    async def main() -> tuple[Any, ...]:
        backend = MockBackend(steps_per_call=lambda prompt: 3 if "called" in prompt else 1)
        both = program.run_async(backend=backend), talk.run_async("a", n=5, backend=backend)
        failed, fine = await asyncio.gather(*both, return_exceptions=True)
        return type(failed), fine.text().count("ok"), len(backend.aborted)

    assert asyncio.run(main()) == (ValueError, 5, 1)


@pytest.mark.parametrize("program", [talk, plain])
def test_batches(program: sgl.Program) -> None:
    async def main() -> None:
        backend = MockBackend(reply, steps_per_call=lambda prompt: 1 + len(prompt) % 3)
        items = [(f"{i}" * i, 2) for i in range(6)]
        expected = [state.text() for state in program.run_batch(items, backend=MockBackend(reply))]
        assert [state.text() for state in await program.run_batch_async(items, backend=backend)] == expected
        limited = program.run_batch_async(items, backend=backend, num_threads=2, generator_style=True)
        assert [state.text() async for state in limited] == expected
        async for _ in program.run_batch_async(items, backend=slow("ok", 3), generator_style=True):
            break
        n = len(backend.log)
        await program.run_async("alone", backend=backend)
        assert len(backend.log) == n + 1
        failing = await failing_at.run_batch_async([(i,) for i in range(3)], backend=backend)
        assert [type(state.error()) for state in failing] == [type(None), ZeroDivisionError, type(None)]

    asyncio.run(main())


@sgl.function
async def failing_at(s, i):
    s += f"{i}" + sgl.gen("a")
    if i == 1:
        s += 1 / 0


def test_no_more_programs_at_a_time_than_asked_for() -> None:
    at_once = []

    class Counting(MockBackend):
        def step(self) -> list[sgl.Call]:
            at_once.append(len(self._left))
            return super().step()

    backend = Counting(steps_per_call=lambda prompt: 1 + len(prompt) % 3)
    asyncio.run(_await_batch([("a" * i,) for i in range(9)], backend, num_threads=3))
    assert max(at_once) == 3
    assert len(backend.log) == 9


async def _await_batch(items: Any, backend: sgl.Backend, **kwargs: Any) -> list[sgl.ProgramState]:
    return await talk.run_batch_async(items, backend=backend, **kwargs)


def test_a_batch_has_its_common_prefix_cached_before_its_calls() -> None:
    examples = "Q: What is the largest planet? A: Jupiter.\nQ: What is the smallest prime? A: 2.\nQ: "
    backend = MockBackend()
    asyncio.run(_await_batch([(examples + question,) for question in ("Who?", "Where?")], backend))
    assert [prompt.text() for prompt in backend.committed] == [examples + "Wh"]
    assert [call.tags.siblings for call in backend.log] == [2, 2]


def test_a_stream_is_read_while_the_program_goes_on() -> None:
    async def main() -> tuple[Any, ...]:
        state = await talk.run_async("Hello", n=2, backend=slow(), stream=True)
        pieces = [piece async for piece in state.text_async_iter("x1")]
        with pytest.raises(KeyError, match="no variable 'zzz'"):
            await state.get("zzz")
        whole = "".join([piece async for piece in state.text_async_iter()])
        return pieces, whole == state.text(), await state.get("x0")

    pieces, whole, first = asyncio.run(main())
    assert len(pieces) == 4
    assert ("".join(pieces), whole, first) == ("one two three", True, "one two three")


def test_a_state_of_a_plain_runner_can_be_awaited_too() -> None:
    async def main() -> tuple[str, str]:
        backend = slow()
        state = plain.run("Hello", n=2, backend=backend, stream=True)
        other = asyncio.create_task(talk.run_async("other", n=3, backend=backend))
        await state.ready()
        return state.text(), (await other).text()

    first, second = asyncio.run(main())
    assert first.count("three") == 2, "two runners on one backend hand each other their finished calls"
    assert second.count("three") == 3


def test_two_runners_on_one_backend_lose_nothing() -> None:
    backend = MockBackend(steps_per_call=2)
    one, two = sgl.Runner(backend), sgl.Runner(backend)
    runs = [runner.start(plain, {"question": "q", "n": 3}) for runner in (one, two, one)]
    while one.active or two.active:
        one.step()
        two.step()
    assert [run.state.text() for run in runs] == ["q 0:ok 1:ok 2:ok"] * 3


def test_a_backend_that_breaks_tells_everybody() -> None:
    class Breaking(MockBackend):
        def step(self) -> list[sgl.Call]:
            if self.clock.steps == 2:
                raise OSError("the device is gone")
            return super().step()

    async def main() -> list[Any]:
        backend = Breaking(steps_per_call=5)
        runs = talk.run_async("a", backend=backend), plain.run_async("b", backend=backend)
        return await asyncio.gather(*runs, return_exceptions=True)

    assert [str(error) for error in asyncio.run(main())] == ["the device is gone"] * 2


def test_thousands_at_once() -> None:
    states = asyncio.run(_await_batch([("q", 2)] * 2000, MockBackend()))
    assert all(state["x1"] == "ok" for state in states)
    assert len(talk.run_batch([("q", 2)] * 2000, backend=MockBackend())) == 2000


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("program", [talk, plain])
def test_programs_that_outlive_their_loop_are_cancelled(program: sgl.Program) -> None:
    async def main() -> sgl.ProgramState:
        state = await program.run_async("a", backend=backend, stream=True)
        while not backend.log:
            await asyncio.sleep(0)
        return state

    backend = slow()
    state = asyncio.run(main())
    assert state._run.status == "cancelled"
    assert len(backend.aborted) == 1
    assert program.run("a", backend=backend).text() == "a 0:one two three"


def test_a_batch_that_is_read_slowly_stays_on_the_one_runner() -> None:
    async def main() -> int:
        backend = MockBackend()
        runners = set()
        items = [(f"{i}",) for i in range(3)]
        states = talk.run_batch_async(items, backend=backend, num_threads=1, generator_style=True)
        async for state in states:
            runners.add(state._runner)
            for _ in range(20):
                await asyncio.sleep(0)
            runners.add((await plain.run_async("b", backend=backend))._runner)
        assert await talk.run_batch_async([], backend=backend) == []
        with pytest.raises(TypeError, match="program 'talk': missing a required argument"):
            await talk.run_async(backend=backend)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not any(_runners.values()), "forgotten once it has nothing to do"
        return len(runners)

    assert asyncio.run(main()) == 1


def test_programs_on_the_engine_share_its_steps() -> None:
    async def main() -> tuple[list[str], int]:
        backend = virtual_backend(admission=f"{POLICIES}:InHalfSeconds")
        states = await asyncio.gather(*(talk.run_async(f"q{i}", backend=backend, max_tokens=5) for i in range(4)))
        return [state.text() for state in states], len(backend.engine.executor.batches)

    together, n_together = asyncio.run(main())
    backend = virtual_backend(admission=f"{POLICIES}:InHalfSeconds")
    alone = [talk.run(f"q{i}", backend=backend, max_tokens=5).text() for i in range(4)]
    assert together == alone
    assert n_together < len(backend.engine.executor.batches)


def test_while_an_engine_only_waits_the_loop_is_free() -> None:
    class Resting(MockBackend):
        rests = 3

        def rest(self) -> float:
            self.rests -= 1
            return 0.001 if self.rests >= 0 else 0.0

    backend = Resting()
    assert asyncio.run(talk.run_async("a", backend=backend))["x0"] == "ok"
    assert (backend.rests, backend.clock.steps) == (-1, 1)


# ---- the same either way


@sgl.function
async def async_child(s, i):
    s += f"child {i}" + sgl.gen("answer")


@sgl.function
async def async_scripted(s, script):
    for kind, value in script:
        if kind == "text":
            s += value
        elif kind == "gen":
            s += sgl.gen(value)
        elif kind == "select":
            s += sgl.select(value, CHOICES)
        elif kind == "read" and value in s:
            s += (await s.get(value)).upper()
        elif kind == "child":
            for state in await async_child.run_batch_async([{"i": i} for i in range(value)]):
                s += state["answer"]
        elif kind == "call":
            for state in [async_child(i) for i in range(value)]:
                await state.ready()
                s += state
        elif kind == "fork":
            forks = s.fork(value)
            forks += lambda i: f"branch {i}" + sgl.gen("b") + sgl.gen("c")
            s += "".join([await branch.get("c") for branch in forks])
        elif kind == "stream" and value in s:
            s += "".join([piece async for piece in s.text_async_iter(value)])


def told(backend: MockBackend) -> list[tuple[Any, ...]]:
    return [
        (call.name, call.prompt, call.tags.program.removeprefix("async_"), call.tags.siblings) for call in backend.log
    ]


@settings(max_examples=40, deadline=None)
@given(
    scripts=st.lists(st.lists(STEPS, max_size=7), min_size=1, max_size=5),
    speeds=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    at_once=st.one_of(st.just("auto"), st.integers(1, 3)),
)
def test_async_or_not_the_same_is_written_and_asked(scripts: Any, speeds: list[int], at_once: Any) -> None:
    def backend() -> MockBackend:
        return MockBackend(reply, logprobs, steps_per_call=lambda prompt: speeds[len(prompt) % 3])

    async def on_a_loop(program: sgl.Program, asked: MockBackend) -> list[sgl.ProgramState]:
        return await program.run_batch_async(items, backend=asked, num_threads=at_once)

    items = [{"script": script} for script in scripts]
    backends = [backend() for _ in range(4)]
    results = [
        scripted.run_batch(items, backend=backends[0], num_threads=at_once),
        async_scripted.run_batch(items, backend=backends[1], num_threads=at_once),
        asyncio.run(on_a_loop(async_scripted, backends[2])),
        asyncio.run(on_a_loop(scripted, backends[3])),
    ]
    for states in results:
        assert [state.error() for state in states] == [None] * len(scripts)
        assert [state.text() for state in states] == [by_hand(script) for script in scripts]
        for state, first in zip(states, results[0]):
            names = [name for name in ("x", "y", "z") if name in first]
            assert [state[name] for name in names] == [first[name] for name in names]

    expected = told(backends[0])
    assert told(backends[1]) == expected, "in the same order"
    for asked in backends[2:]:
        assert sorted(call[:3] for call in told(asked)) == sorted(call[:3] for call in expected)
    asyncio.run(on_a_loop(async_scripted, again := backend()))
    assert told(again) == told(backends[2]), "an order that can be repeated"
    if at_once == "auto" and not any(kind in ("call", "child") for script in scripts for kind, _ in script):
        assert told(backends[2]) == expected, "where no program runs others (they begin a turn later) the same one"


@settings(max_examples=30, deadline=None)
@given(scripts=st.lists(st.lists(STEPS, min_size=1, max_size=6), min_size=2, max_size=5), data=st.data())
def test_cancelled_ones_leave_nothing_behind_and_others_unharmed(scripts: Any, data: st.DataObject) -> None:
    async def main() -> None:
        backend = MockBackend(reply, logprobs, steps_per_call=2)
        programs = [data.draw(st.sampled_from([async_scripted, scripted])) for _ in scripts]
        tasks = [
            asyncio.create_task(program.run_async(script, backend=backend))
            for program, script in zip(programs, scripts)
        ]
        while not all(task.done() for task in tasks):
            if data.draw(st.integers(0, 5)) == 0:
                data.draw(st.sampled_from(tasks)).cancel()
            await asyncio.sleep(0)
        for task, script in zip(tasks, scripts):
            if not task.cancelled():
                assert task.result().text() == by_hand(script)
        for _ in range(10):  # one that was cancelled twice doesn't wait for its cleanup
            await asyncio.sleep(0)
        assert backend._left == {}, "no call is left"
        assert asyncio.all_tasks() == {asyncio.current_task()}, "and no task"

    asyncio.run(main())


def test_children_are_the_same() -> None:
    assert child.run(1, backend=MockBackend(reply)).text() == async_child.run(1, backend=MockBackend(reply)).text()
