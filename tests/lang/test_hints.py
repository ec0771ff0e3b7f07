"""What programs tell of calls to come, and which calls belong together, reaches the policies. It changes no answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lang as sgl
from engine.log import Log
from engine.policies import base
from engine.replay import first_difference, replay
from lang.backends.anthropic import AnthropicBackend
from lang.backends.base import Tags
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend
from lang.backends.openai import OpenAIBackend
from lang.hints import ConversationEnd, Hint, Pin, Prefetch, Unpin
from lang.prompt import Image, Prompt, RoleMark
from lang.runner import Runner
from tests.lang.virtual_engine import virtual_backend

STORY = "Once there was a woman who lived in a small house at the end of a long road by the river. "


@sgl.function
def telling(s, tail=""):
    s += STORY
    s.pin(30)
    s += sgl.gen("a", max_tokens=4)
    s.prefetch(1)
    s.prefetch(2, sgl.user("Again?"))
    s["a"]
    s += tail + "x"
    s.pin(5.5)
    s.unpin()
    s.unpin()
    s.end_conversation()


def finish(runner: Runner) -> None:
    while runner.active:
        runner.step()


def schedule(backend: EngineBackend) -> Any:
    return backend.engine.scheduler.guard.policy


def eviction(backend: EngineBackend) -> Any:
    return backend.engine.memory.cache._hooks.policy


def test_a_program_tells_what_is_known_when_it_tells_it() -> None:
    backend = MockBackend(steps_per_call=2)
    runner = sgl.Runner(backend)
    run = runner.start(telling, {}, conversation="c")
    finish(runner)
    assert run.error is None
    asked = Prompt((RoleMark("user", True), "Again?", RoleMark("user", False)))
    told: list[Hint] = [
        Pin(Prompt((STORY,)), 30.0),
        Prefetch(Prompt((STORY,)), 1),  # the output isn't there yet
        Prefetch(asked, 2),
        Pin(Prompt((STORY + "okx",)), 7.5),
        Unpin(Prompt((STORY,))),
        Unpin(Prompt((STORY + "okx",))),
        ConversationEnd("c"),
    ]
    assert backend.hints == told


@pytest.mark.parametrize(
    ("tell", "error", "message"),
    [
        (lambda s: s.prefetch(-1), ValueError, r"prefetch\(steps=-1\) is not allowed: .* 0 or more"),
        (lambda s: s.prefetch(True), ValueError, "a number of calls"),
        (lambda s: s.prefetch(1, sgl.gen("x")), ValueError, "no gen or select"),
        (lambda s: s.prefetch(1, 3), TypeError, "can't be added to a prompt"),
        (lambda s: s.pin(0), ValueError, r"pin\(seconds=0\) is not allowed"),
        (lambda s: s.pin(float("inf")), ValueError, "finite"),
        (lambda s: s.end_conversation(), ValueError, r"Runner.start\(..., conversation=...\)"),
    ],
)
def test_hints_that_make_no_sense_are_refused(tell: Any, error: type[Exception], message: str) -> None:
    @sgl.function
    def program(s):
        tell(s)

    with pytest.raises(error, match=message):
        program.run(backend=MockBackend())


def test_there_is_nothing_to_say_of_an_empty_prefix() -> None:
    @sgl.function
    def program(s):
        s.pin(1)
        s.prefetch(1)
        s += sgl.gen("x")
        s.pin(1)
        s.unpin()

    backend = MockBackend()
    program.run(backend=backend)
    assert backend.hints == []


@pytest.mark.parametrize(
    "backend",
    [
        OpenAIBackend("m", api_key="k", chat=False),
        OpenAIBackend("m", api_key="k", extensions="radixlab"),
        AnthropicBackend("m", api_key="k"),
    ],
)
def test_a_backend_that_can_use_no_hints_leaves_them(backend: sgl.Backend) -> None:
    @sgl.function
    def program(s):
        s += STORY
        s.prefetch(1)
        s.pin(3)
        s.unpin()

    assert sgl.Feature.HINTS in backend.capabilities.missing
    assert program.run(backend=backend).text() == STORY
    assert sgl.Feature.HINTS not in virtual_backend().capabilities.missing


def run_telling(**config: Any) -> tuple[EngineBackend, Any]:
    backend = virtual_backend(**config)
    runner = sgl.Runner(backend)
    run = runner.start(telling, {"tail": " and"}, conversation="c", namespace="tenant")
    finish(runner)
    assert run.error is None
    return backend, run


def test_hints_reach_the_policies_of_the_engine_as_tokens() -> None:
    backend, _ = run_telling()
    heard = schedule(backend).heard
    assert heard == eviction(backend).heard
    kinds = [base.Pin, base.Prefetch, base.Prefetch, base.Pin, base.Unpin, base.Unpin, base.ConversationEnd]
    assert [type(hint) for hint in heard] == kinds
    tokenizer = backend.engine.tokenizer
    assert tokenizer is not None
    tokens = tokenizer.encode(STORY)
    assert heard[0] == base.Pin(tokens[:-1], 30.0, "tenant"), "the last token may merge with what follows"
    assert heard[1] == base.Prefetch(tokens[:-1], 1, "tenant")
    assert heard[4] == base.Unpin(tokens[:-1], "tenant")
    assert heard[6] == base.ConversationEnd("c")
    first, *_ = schedule(backend).arrived
    assert first.key.tolist()[: len(tokens) - 1] == tokens[:-1], "as the call's own prompt begins"


def test_a_switch_silences_hints_and_changes_no_answer() -> None:
    loud, told = run_telling()
    silent, untold = run_telling(hints=False)
    assert (schedule(silent).heard, eviction(silent).heard) == ([], [])
    assert not any(event.kind == "hint" for event in silent.engine.log.events)
    assert any(event.kind == "hint" for event in loud.engine.log.events)
    assert told.state.text() == untold.state.text()


def test_a_hint_without_tokens_is_left() -> None:
    backend = virtual_backend()
    backend.hint(Prefetch(Prompt((STORY, Image(b"", "image/png"))), 1), Tags())
    backend.hint(Prefetch(Prompt((RoleMark("nobody", True), STORY)), 1), Tags())
    backend.engine.tokenizer = None
    backend.hint(Prefetch(Prompt((STORY,)), 1), Tags())
    assert schedule(backend).heard == []


@sgl.function
def filler(s, i):
    s += f"{i} nothing to see here, {i * 7} " * 5 + sgl.gen("x", max_tokens=1)


def test_a_policy_keeps_what_is_pinned() -> None:
    def cached_at_the_end(hints: bool) -> int:
        backend = virtual_backend(pool_tokens=256, hints=hints)
        telling_once = sgl.function(pin_story)
        telling_once.run(backend=backend)
        for i in range(8):
            filler.run(i, backend=backend)
        return telling_once.run(backend=backend).get_meta_info("a")["cached_tokens"]

    assert cached_at_the_end(hints=False) <= 2
    assert cached_at_the_end(hints=True) > 20


def pin_story(s):
    s += STORY
    s.pin(1000)
    s += sgl.gen("a", max_tokens=1)


@sgl.function
def branching(s, n=3):
    s += STORY + sgl.gen("plan", max_tokens=4)
    forks = s.fork(n)
    forks += lambda i: f" Part {i}: " + sgl.gen("part", max_tokens=3) + sgl.gen("more", max_tokens=3)
    forks.join()
    s += "".join(s["part"]) + sgl.gen("end", max_tokens=2)


def test_branches_come_in_order_after_their_prefix_and_know_one_another() -> None:
    backend = virtual_backend()
    runner = sgl.Runner(backend)
    run = runner.start(branching, {})
    finish(runner)
    plan, trunk, *branches = schedule(backend).arrived[:5]
    assert (plan.siblings, plan.parent) == (1, None)
    assert (trunk.max_tokens, trunk.siblings, trunk.parent) == (0, 1, None)
    assert [(one.siblings, one.parent) for one in branches] == [(3, trunk.id)] * 3
    assert [one.id for one in branches] == [trunk.id + 1, trunk.id + 2, trunk.id + 3]
    names = [call.name for call in run.calls if call.requests[0] in branches]
    assert names == ["part"] * 3
    assert [call.tags.siblings for call in run.calls] == [1, 3, 3, 3, 1, 1, 1, 1], "only their first calls"
    for i, call in enumerate(run.calls[1:4]):
        assert call.prompt.endswith(f" Part {i}: ")


def test_a_fork_of_nothing_has_no_prefix_to_compute() -> None:
    @sgl.function
    def program(s):
        forks = s.fork(2)
        forks += lambda i: f"{i} " + sgl.select("x", ["one", "two"])

    backend = virtual_backend()
    program.run(backend=backend)
    assert [(one.siblings, one.parent) for one in schedule(backend).arrived] == [(4, None)] * 4, "choices count too"


def test_samples_of_branches_are_siblings_too() -> None:
    @sgl.function
    def program(s):
        s += "a"
        forks = s.fork(2)
        forks += sgl.gen("x", n=3, max_tokens=2)

    backend = virtual_backend()
    program.run(backend=backend)
    assert [(one.siblings, one.parent) for one in schedule(backend).arrived[1:]] == [(6, 0)] * 6


def test_runs_of_a_batch_are_siblings() -> None:
    @sgl.function
    def asks(s, question):
        s += STORY + question + sgl.gen("a", max_tokens=2) + sgl.gen("b", max_tokens=2)

    backend = virtual_backend()
    asks.run_batch([("Who?",), ("Where?",), ("When?",)], backend=backend)
    prefix, *first = schedule(backend).arrived[:4]
    assert prefix.max_tokens == 0
    assert [(one.siblings, one.parent) for one in first] == [(3, prefix.id)] * 3
    assert {one.siblings for one in schedule(backend).arrived[4:]} == {1}


def test_a_batch_within_a_program_too_and_calls_name_the_inner_program() -> None:
    @sgl.function
    def inner(s, i):
        s += f"{i}" + sgl.gen("a") + sgl.gen("b")

    @sgl.function
    def outer(s):
        s += "x" + sgl.gen("x")
        inner.run_batch([(i,) for i in range(3)], num_threads=2)
        s += "y" + sgl.gen("y")

    backend = MockBackend()
    outer.run(backend=backend)
    told = [(call.name, call.tags.siblings, call.tags.agent) for call in backend.log]
    assert told[:3] == [("x", 1, ""), ("a", 2, "inner"), ("a", 2, "inner")]
    assert {told[i] for i in range(3, 7)} == {("a", 1, "inner"), ("b", 1, "inner")}
    assert told[7] == ("y", 1, "")


def test_decisions_that_follow_hints_and_siblings_are_found_again_by_a_replay(tmp_path: Path) -> None:
    backend = virtual_backend(pool_tokens=200, max_running=4, page_size=4)
    runner = sgl.Runner(backend)
    for i in range(4):
        runner.start(telling, {"tail": f" {i}"}, conversation=f"c{i}", due=0.01 * i)
        runner.start(branching, {"n": i + 1})
        runner.start(filler, {"i": i})
    finish(runner)
    backend.engine.log.write(tmp_path / "events.parquet")
    log = Log.read(tmp_path / "events.parquet")
    assert {"evict", "admit", "row"} <= {event.kind for event in log.events}
    assert sum(event.kind == "hint" for event in log.events) == 4 * 7
    assert sum('"siblings"' in event.text for event in log.inputs()) == 2 + 3 + 4
    assert first_difference(log, replay(log)) is None


def test_a_number_of_siblings_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"siblings=0 is not allowed: it must be 1 \(itself alone\) or more"):
        virtual_backend().engine.add([1, 2], siblings=0)
