"""Branches: they begin alike, run side by side, and are joined by their variables."""

import pytest

import lang as sgl
from lang.backends.mock import MockBackend


def echo_length(prompt: str) -> str:
    return f"[{len(prompt)}]"


def run(program, backend=None, **kwargs):
    return program.run(backend=backend or MockBackend(), **kwargs)


def test_branches_begin_with_the_parents_prompt_and_variables():
    @sgl.function
    def program(s):
        s += "Plan: " + sgl.gen("plan")
        s["n"] = 2
        forks = s.fork(2)
        for i, branch in enumerate(forks):
            branch += f" Part {i}: " + sgl.gen("part")
        return [(branch.text(), branch["plan"], branch["n"]) for branch in forks], len(forks)

    texts, n = run(program).ret_value
    assert texts == [("Plan: ok Part 0: ok", "ok", 2), ("Plan: ok Part 1: ok", "ok", 2)]
    assert n == 2


def test_branches_leave_the_parents_prompt_alone():
    @sgl.function
    def program(s):
        s += "a"
        forks = s.fork(2)
        forks += "b" + sgl.gen("x")
        forks.join()
        s += "c"

    assert run(program).text() == "ac"


def test_calls_of_branches_run_side_by_side():
    @sgl.function
    def program(s):
        s += "start" + sgl.gen("first")
        forks = s.fork(3)
        forks += lambda i: f"{i}" + sgl.gen("x")
        forks.join()
        s += "".join(s["x"])

    backend = MockBackend(steps_per_call=4)
    assert run(program, backend).text() == "startokokokok"
    assert backend.clock.steps == 8, "one call, then three at once"


def test_the_same_to_all_or_to_each_its_own():
    @sgl.function
    def program(s):
        forks = s.fork(2)
        forks += "same "
        forks += ["a ", "b "]
        forks += lambda i: f"{i} " + sgl.gen("x")
        forks[1] += "!"
        return [branch.text() for branch in forks]

    assert run(program).ret_value == ["same a 0 ok", "same b 1 ok!"]


def test_a_join_makes_lists_of_new_variables_in_branch_order():
    @sgl.function
    def program(s):
        s += "x" + sgl.gen("old")
        forks = s.fork(3)
        forks += lambda i: "y" * i + sgl.gen("new")
        forks[2]["own"] = "mine"
        forks[0]["old"] = "changed in a branch"
        forks.join()

    state = run(program, MockBackend(reply=echo_length, steps_per_call=lambda prompt: 9 - len(prompt)))
    assert state["old"] == "[1]", "not new: it stays the parent's"
    assert state["new"] == ["[4]", "[5]", "[6]"]
    assert state["own"] == ["mine"], "a branch without it has no place in the list"


def test_a_join_waits_for_nothing():
    log = []

    @sgl.function
    def program(s):
        forks = s.fork(2)
        forks += "x" + sgl.gen("x")
        forks.join()
        log.append("joined")
        log.append(s["x"])

    backend = MockBackend(steps_per_call=2)
    runner = sgl.Runner(backend)
    runner.start(program, {})
    assert log == ["joined"]
    while runner.active:
        runner.step()
    assert log == ["joined", ["ok", "ok"]]


def test_forks_within_forks():
    @sgl.function
    def program(s):
        s += "r"
        outer = s.fork(2)
        for i, branch in enumerate(outer):
            branch += f"{i}"
            inner = branch.fork(2)
            inner += lambda j: f"{j}" + sgl.gen("leaf")
            inner.join()
            branch += ":" + ",".join(branch["leaf"])
        outer.join()
        return [branch.text() for branch in outer]

    state = run(program, MockBackend(reply=echo_length))
    assert state.ret_value == ["r0:[3],[3]", "r1:[3],[3]"]
    assert state["leaf"] == [["[3]", "[3]"], ["[3]", "[3]"]]


def test_what_goes_wrong_in_a_branch_is_raised_where_it_is_read():
    class Breaking(MockBackend):
        def step(self):
            ended = super().step()
            for call in ended:
                if "bad" in call.prompt:
                    call.error = "logits that aren't finite"
            return ended

    @sgl.function
    def program(s):
        forks = s.fork(3)
        forks += ["good", "bad", "good"]
        forks += sgl.gen("x") + " then " + sgl.gen("y")
        s += forks[0]["y"] + forks[2]["y"]
        try:
            forks[1]["x"]
        except sgl.CallError as error:
            s["why"] = error
        s["after"] = str(forks[1].error())
        s["fine"] = forks[0].error()
        try:
            forks[1]["y"]
        except sgl.CallError as error:
            s["then"] = str(error)

    state = run(program, Breaking())
    assert state.text() == "okok"
    assert "'x' failed: logits that aren't finite" in str(state["why"])
    assert state["why"].__notes__[0].startswith(f"the call was made at {__file__}:")
    assert state["fine"] is None
    assert "'x' failed" in state["after"]
    assert state["then"] == "'y' wasn't sent: 'x' before it has no value"


def test_a_branch_that_nobody_reads_fails_for_itself():
    class Refusing(MockBackend):
        def generate(self, name, prompt, sampling, tags):
            if "bad" in prompt.text():
                raise ValueError("no")
            return super().generate(name, prompt, sampling, tags)

    @sgl.function
    def program(s):
        s += "a"
        forks = s.fork(2)
        forks += ["bad", "good"]
        forks += sgl.gen("x")
        s += forks[1]["x"]

    assert run(program, Refusing()).text() == "aok"


def test_a_program_is_not_over_before_its_branches_are():
    @sgl.function
    def program(s):
        forks = s.fork(2)
        forks += "x" + sgl.gen("x")

    backend = MockBackend(steps_per_call=3)
    runner = sgl.Runner(backend)
    one = runner.start(program, {})
    assert [bool(runner.step()) for _ in range(3)] == [False, False, True]
    assert one.status == "done"
    assert all(call.finished for call in one.calls)


def test_the_common_prefix_is_committed_once_before_the_branches():
    order = []

    class Watching(MockBackend):
        def commit(self, prompt, tags):
            order.append(("commit", prompt.text(), tags.program))

        def generate(self, name, prompt, sampling, tags):
            order.append(("call", prompt.text(), tags.program))
            return super().generate(name, prompt, sampling, tags)

    @sgl.function
    def program(s):
        s += "start" + sgl.gen("first")
        forks = s.fork(2)
        forks += lambda i: f" {i}" + sgl.gen("x")

    runner = sgl.Runner(Watching())
    runner.start(program, {}, name="mine")
    while runner.active:
        runner.step()
    assert order == [
        ("call", "start", "mine"),
        ("commit", "startok", "mine"),
        ("call", "startok 0", "mine"),
        ("call", "startok 1", "mine"),
    ]


def test_a_fork_without_calls_commits_nothing():
    @sgl.function
    def program(s):
        s += "a"
        forks = s.fork(2)
        forks += "b"

    backend = MockBackend()
    run(program, backend)
    assert backend.committed == []


def test_a_joined_branch_is_closed():
    @sgl.function
    def program(s):
        forks = s.fork(2)
        forks.join()
        forks[0] += "more"

    with pytest.raises(RuntimeError, match="this branch was joined: nothing can be added"):
        run(program)


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda s: s.fork(0), ValueError, "the number of branches, 1 or more"),
        (lambda s: s.fork(2).join("gather"), ValueError, "available: gather_variable, concate_and_append"),
        (lambda s: s.fork(2).__iadd__(["a"]), ValueError, "a list of 1, but there are 2 branches"),
        (lambda s: s.fork(2).__setitem__(0, s), TypeError, "can't be replaced"),
    ],
)
def test_bad_uses_are_refused(use, error, message):
    @sgl.function
    def program(s):
        use(s)

    with pytest.raises(error, match=message):
        run(program)


def test_a_copy_is_for_trying_something_out():
    @sgl.function
    def program(s):
        s += "a"
        with s.copy() as attempt:
            attempt += "b" + sgl.gen("x")
        s += "c"

    state = run(program)
    assert state.text() == "ac"
    assert state["x"] == ["ok"]


def test_branches_end_with_their_program():
    @sgl.function
    def program(s):
        forks = s.fork(3)
        forks += "x" + sgl.gen("x") + sgl.gen("y")
        raise ValueError("my mistake")

    backend = MockBackend(steps_per_call=2)
    runner = sgl.Runner(backend)
    one = runner.start(program, {})
    assert runner.step() == [one]
    assert len(backend.aborted) == 3
    assert "my mistake" in str(one.error)
