"""What nothing needs isn't asked; what is needed stays."""

import lang as sgl
from lang import passes
from lang.backends.mock import MockBackend


def names(program, *args, **kwargs):
    backend = MockBackend(reply=lambda prompt: f"<{len(prompt)}>")
    plain = MockBackend(reply=lambda prompt: f"<{len(prompt)}>")
    state = program.compile(passes=[passes.dead_code()]).run(*args, backend=backend, **kwargs)
    assert state.text() == program.run(*args, backend=plain, **kwargs).text()
    return [call.name for call in backend.log]


def test_branches_that_nobody_reads_are_left_out():
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("kept")
        forks = s.fork(2)
        forks += "b" + sgl.gen("unread")
        s += sgl.gen("last")

    assert names(program) == ["kept", "last"]


def test_of_a_branch_that_is_read_what_stands_before_stays_and_what_comes_after_goes():
    @sgl.function
    def program(s):
        fork = s.fork(1)[0]
        fork += sgl.gen("before") + sgl.gen("read") + sgl.gen("after")
        s += fork["read"]

    # reading a variable needs no more of its branch than stood there then
    assert names(program) == ["before", "read", "after"]

    @sgl.function
    def earlier(s):
        fork = s.fork(1)[0]
        fork += sgl.gen("before") + sgl.gen("read")
        s += fork["read"]
        fork += sgl.gen("after")

    assert names(earlier) == ["before", "read"]


def test_joined_variables_stay_and_unnamed_ends_of_branches_go():
    @sgl.function
    def program(s):
        forks = s.fork(2)
        forks += sgl.gen("tip") + " that is " + sgl.gen()
        forks.join()
        s += "".join(s["tip"])

    assert names(program) == ["tip", "tip"]


def test_a_called_program_that_nobody_reads_goes_and_one_that_was_run_stays():
    @sgl.function
    def child(s, name):
        s += "child" + sgl.gen(name)

    @sgl.function
    def program(s):
        child("called")
        child.run("ran")
        s += child("added")

    assert names(program) == ["ran", "added"]


def test_conds_loops_and_functions_with_effects_keep_what_they_look_at():
    seen = []

    def note(text):
        seen.append(text)

    @sgl.function
    def program(s):
        forks = s.fork(3)
        forks += lambda i: "?" * i + sgl.gen("x")
        sgl.cond(s, forks[0]["x"] == "<0>", lambda s: s.user("yes"), lambda s: s.user("no"))
        sgl.apply(note, forks[1]["x"])
        forks[2]["x"].upper()  # a read: the program would fail here if it failed

    assert names(program) == ["x", "x", "x"]
    assert seen == ["<1>", "<1>"]


def test_the_report_says_what_went():
    @sgl.function
    def program(s):
        s.fork(1)[0].__iadd__(sgl.gen("gone"))
        s += sgl.gen("kept")

    compiled = program.compile(passes=[passes.dead_code()])
    assert "calls 2 -> 1" in compiled.report
    assert "gen 'gone' at" in compiled.report
