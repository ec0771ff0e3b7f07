"""`parallel=False`: the same answers, one call of a run at a time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

import lang as sgl
from lang.backends.mock import MockBackend


class Counting(MockBackend):
    """Knows the most calls that were under way in one step, and how many steps there were."""

    def __init__(self) -> None:
        super().__init__(reply=lambda prompt: f"<{len(prompt)}>", steps_per_call=2)
        self.most = 0

    def step(self):
        self.most = max(self.most, len(self._left))
        return super().step()


@sgl.function
def branching(s, topic):
    s += f"Of {topic}: "
    forks = s.fork(3)
    forks += lambda i: f"Side {i}: " + sgl.gen("side") + sgl.select("worth", ["much", "none"])
    forks.join()
    inner = helper(topic)
    others = helper.run_batch([("x",), ("y",)])
    s += "; ".join(s["side"]) + sgl.gen("sum") + inner["said"] + "".join(other["said"] for other in others)


@sgl.function
def helper(s, topic):
    s += f"Say {topic}." + sgl.gen("said")


@pytest.mark.parametrize("program", [branching, branching.compile()], ids=["eager", "compiled"])
def test_each_call_is_waited_for_and_the_answers_are_the_same(program):
    together, alone = Counting(), Counting()
    expected = branching.run("tea", backend=together)
    state = program.run("tea", backend=alone, parallel=False)
    assert (state.text(), state["side"], state["worth"]) == (expected.text(), expected["side"], expected["worth"])
    assert together.most >= 3
    assert alone.most == 1
    assert sorted(call.prompt for call in alone.log) == sorted(call.prompt for call in together.log)


def test_programs_of_a_batch_still_go_side_by_side():
    backend = Counting()
    states = branching.run_batch([("tea",), ("milk",)], backend=backend, parallel=False)
    assert [state.text() for state in states] == [
        branching.run(topic, backend=MockBackend(reply=lambda prompt: f"<{len(prompt)}>")).text()
        for topic in ("tea", "milk")
    ]
    assert backend.most == 2


def test_what_fails_is_still_raised_where_it_is_read():
    def reply(prompt: str) -> str:
        return "no number" if prompt.endswith("bad") else "7"

    @sgl.function
    def program(s):
        forks = s.fork(2)
        forks += ["bad", "good"]
        forks += sgl.gen("x", regex="[0-9]")
        return [fork.error() is None for fork in forks]

    assert program.run(backend=MockBackend(reply=reply), parallel=False).ret_value == [False, True]


def test_an_async_program_is_refused():
    @sgl.function
    async def program(s):
        s += sgl.gen("x")

    with pytest.raises(TypeError, match="async, so its calls can't be waited for"):
        program.run(backend=MockBackend(), parallel=False)


def test_a_graph_can_not_hold_it():
    @sgl.function
    def program(s):
        s += helper.run("tea", parallel=False)

    with pytest.raises(sgl.TraceError, match=r"helper\.run\(parallel=False\) has no place in a graph"):
        program.trace()


def test_it_is_no_name_for_an_argument():
    def program(s: sgl.ProgramState, parallel: Sequence[str]) -> None: ...

    with pytest.raises(TypeError, match="rename the argument"):
        sgl.function(program)
