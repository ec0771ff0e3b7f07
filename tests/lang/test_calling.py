"""Ways to run a program: bound, in batches, from within another."""

import pytest

import lang as sgl
from lang.backends.mock import MockBackend


@sgl.function
def ask(s, question, tail="?"):
    s += question + tail + sgl.gen("answer")


def echo(prompt: str) -> str:
    return f"<{prompt}>"


def test_arguments_can_be_bound():
    polite = ask.bind(tail=", please?")
    assert polite.run("Tea", backend=MockBackend(echo))["answer"] == "<Tea, please?>"
    assert polite.run("Tea", tail="!", backend=MockBackend(echo))["answer"] == "<Tea!>", "the later one counts"
    assert ask.run("Tea", backend=MockBackend(echo))["answer"] == "<Tea?>", "the program itself is as it was"
    states = polite.bind(question="Tea").run_batch([{}, {"question": "Milk"}], backend=MockBackend(echo))
    assert [state["answer"] for state in states] == ["<Tea, please?>", "<Milk, please?>"]


def test_an_unknown_argument_cannot_be_bound():
    with pytest.raises(TypeError, match=r"has no argument 'tial'; did you mean 'tail'\?"):
        ask.bind(tial="!")


def test_a_batch_of_tuples():
    states = ask.run_batch([("a",), ("b", "!"), ["c"]], backend=MockBackend(echo))
    assert [state["answer"] for state in states] == ["<a?>", "<b!>", "<c?>"]
    with pytest.raises(TypeError, match="run_batch item 1: program 'ask' takes 2 arguments, 3 were given"):
        ask.run_batch([("a",), ("b", "!", "c")], backend=MockBackend())


def test_an_argument_given_twice():
    with pytest.raises(TypeError, match="got its argument 'question' twice"):
        ask.run("a", question="b", backend=MockBackend())


def test_a_batch_as_a_generator_gives_each_state_when_it_is_done():
    backend = MockBackend(echo, steps_per_call=lambda prompt: int(prompt[0]))
    states = ask.run_batch([("1",), ("5",), ("2",)], backend=backend, generator_style=True)
    assert next(states)["answer"] == "<1?>"
    assert backend.clock.steps == 1
    assert [state["answer"] for state in states] == ["<5?>", "<2?>"]
    assert backend.clock.steps == 5


def test_a_generator_keeps_to_its_number_at_a_time():
    backend = MockBackend()
    states = ask.run_batch([(str(i),) for i in range(5)], backend=backend, generator_style=True, num_threads=2)
    next(states)
    assert len(backend.log) <= 4
    assert len(list(states)) == 4


def test_what_a_batch_begins_with_is_cached_before_its_calls():
    order = []

    class Watching(MockBackend):
        def commit(self, prompt, tags):
            order.append(prompt.text())

        def generate(self, name, prompt, sampling, tags):
            order.append(None)
            return super().generate(name, prompt, sampling, tags)

    examples = "Q: What is the largest planet? A: Jupiter.\nQ: What is the smallest prime? A: 2.\nQ: "
    ask.run_batch([(examples + question,) for question in ("Who?", "Where?", "When?")], backend=Watching())
    assert order == [examples + "Wh", None, None, None]
    order.clear()
    ask.run_batch([(examples,)], backend=Watching())
    ask.run_batch([("short a",), ("short b",)], backend=Watching())
    assert order == [None, None, None], "one program, or a short prefix, isn't worth it"


def test_roles_are_part_of_the_common_prefix():
    @sgl.function
    def program(s, question):
        s += sgl.system("Be brief, be kind, be right, and never say more than you were asked to say.")
        s += sgl.user(question) + sgl.assistant(sgl.gen("answer"))

    backend = MockBackend()
    program.run_batch([("a",), ("b",)], backend=backend)
    (committed,) = backend.committed
    assert committed.text().endswith("asked to say.\n\n### user\n")


@sgl.function
def tip(s, topic):
    s += f"A tip about {topic}: " + sgl.gen("tip")


def test_programs_called_within_a_program_run_side_by_side():
    @sgl.function
    def tips(s):
        one, two = tip(topic="tea"), tip("milk")
        s += one["tip"] + " and " + two["tip"]

    backend = MockBackend(echo, steps_per_call=3)
    assert tips.run(backend=backend).text() == "<A tip about tea: > and <A tip about milk: >"
    assert backend.clock.steps == 3
    assert [call.prompt for call in backend.log] == ["A tip about tea: ", "A tip about milk: "]


def test_a_state_can_be_added_with_what_is_still_on_its_way():
    @sgl.function
    def outer(s):
        s += "Here: "
        s += tip(topic="tea")
        s += " So: " + sgl.gen("so")

    state = outer.run(backend=MockBackend())
    assert state.text() == "Here: A tip about tea: ok So: ok"


def test_with_a_state_as_its_first_argument_it_writes_there():
    @sgl.function
    def twice(s):
        tip(s, "tea")
        s += " "
        return tip(s, topic="milk")

    state = twice.run(backend=MockBackend())
    assert state.text() == "A tip about tea: ok A tip about milk: ok"


def test_outside_of_a_program_a_call_is_a_run():
    sgl.set_default_backend(MockBackend())
    try:
        assert tip("tea")["tip"] == "ok"
    finally:
        sgl.set_default_backend(None)


@sgl.function
def countdown(s, n):
    s += f"{n} " + sgl.gen(f"x{n}")
    if n:
        s += countdown(n - 1)


def test_a_program_may_call_itself():
    assert countdown.run(3, backend=MockBackend()).text() == "3 ok2 ok1 ok0 ok"


def test_what_goes_wrong_in_a_called_program_is_raised_where_it_is_read():
    @sgl.function
    def broken(s):
        s += "x" + sgl.gen("x")
        s["x"]
        raise ValueError("my mistake")

    @sgl.function
    def outer(s):
        child = broken()
        s += tip("tea")["tip"]
        s["why"] = child.error()
        child["y"]

    state = outer.run_batch([{}], backend=MockBackend())[0]
    assert isinstance(state["why"], ValueError)
    assert "the program failed before it was made" in str(state.error())


def test_flush_cache():
    flushed = []

    class Flushing(MockBackend):
        def flush_cache(self):
            flushed.append(True)

    sgl.flush_cache(Flushing())
    sgl.set_default_backend(Flushing())
    try:
        sgl.flush_cache()
    finally:
        sgl.set_default_backend(None)
    assert flushed == [True, True]
