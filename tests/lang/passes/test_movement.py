"""Only what is declared movable moves, only where it may, and every prompt that changes is named."""

import lang as sgl
from lang import passes
from lang.backends.mock import MockBackend

RULES = "Answer in one word, in lower case letters. "


@sgl.function
def ask(s, question):
    s += "Q: " + question + "\n" + sgl.movable(RULES) + "A:" + sgl.gen("answer")


MOVED = ask.compile(passes=[passes.code_movement()])


def test_a_movable_constant_goes_before_what_varies():
    assert MOVED.run("why?", backend=MockBackend()).text() == f"{RULES}Q: why?\nA:ok"
    assert ask.run("why?", backend=MockBackend()).text() == f"Q: why?\n{RULES}A:ok"


def test_the_report_names_the_prompts_that_change_and_what_is_gained():
    (report,) = next(iter(MOVED.reports.values()))
    assert report.shared_after - report.shared_before == len(RULES)
    assert len(report.changed_prompts) == 1
    assert report.changed_prompts[0].startswith("gen 'answer'")


def test_nothing_moves_undeclared():
    @sgl.function
    def program(s, question):
        s += question + RULES + sgl.gen("answer")

    compiled = program.compile(passes=[passes.code_movement()])
    assert "nothing to do" in compiled.report
    assert compiled.run("why?", backend=MockBackend()).text() == f"why?{RULES}ok"


def test_a_movable_argument_goes_behind_what_is_constant():
    @sgl.function
    def program(s, user):
        s += sgl.movable(user) + "Rules. " + sgl.gen("x")

    compiled = program.compile(passes=[passes.code_movement()])
    assert compiled.run("Bo ", backend=MockBackend()).text() == "Rules. Bo ok"


def test_nothing_moves_over_a_call_or_out_of_its_message():
    @sgl.function
    def program(s, topic):
        s += sgl.user(topic + sgl.movable("Be brief. "))
        s += sgl.assistant(sgl.gen("a"))
        s += sgl.user(topic + sgl.movable("Be long. "))
        s += sgl.assistant(sgl.gen("b"))

    state = program.compile(passes=[passes.code_movement()]).run("tea ", backend=MockBackend())
    assert [message["content"] for message in state.messages()] == ["Be brief. tea ", "ok", "Be long. tea ", "ok"]


def test_whole_messages_move_among_messages():
    @sgl.function
    def program(s, topic):
        s += sgl.user(topic) + sgl.assistant("Noted.") + sgl.movable(sgl.system("Be brief."))
        s += sgl.user("Go on.") + sgl.assistant(sgl.gen("a"))

    state = program.compile(passes=[passes.code_movement()]).run("tea", backend=MockBackend())
    assert [message["content"] for message in state.messages()] == ["Be brief.", "tea", "Noted.", "Go on.", "ok"]


def test_what_branches_have_in_common_goes_before_what_tells_them_apart():
    @sgl.function
    def program(s):
        s += "Tips. "
        forks = s.fork(3)
        forks += lambda i: f"Number {i}: " + sgl.movable(RULES) + sgl.gen("tip")
        forks.join()

    backend = MockBackend()
    program.compile(passes=[passes.code_movement()]).run(backend=backend)
    assert [call.prompt for call in backend.log] == [f"Tips. {RULES}Number {i}: " for i in range(3)]


def test_parts_keep_their_order_among_themselves():
    @sgl.function
    def program(s, a, b):
        s += a + sgl.movable("1") + b + sgl.movable("2") + "fixed" + sgl.movable("3") + sgl.gen("x")

    state = program.compile(passes=[passes.code_movement()]).run("A", "B", backend=MockBackend())
    assert state.text() == "123ABfixedok"


def test_a_movable_output_of_another_branch_waits_behind_the_constant():
    @sgl.function
    def program(s):
        fork = s.fork(1)[0]
        fork += "?" + sgl.gen("hint")
        s += sgl.movable(fork["hint"]) + "Think. " + sgl.gen("x")

    state = program.compile(passes=[passes.code_movement()]).run(backend=MockBackend(reply=lambda _: "h"))
    assert state.text() == "Think. hh"


def test_bad_movables_are_refused():
    import pytest

    with pytest.raises(TypeError, match="a call stays where it is"):
        sgl.movable("a" + sgl.gen("x"))
    with pytest.raises(ValueError, match="isn't whole"):
        sgl.movable(sgl.user_begin() + "a")
