"""The language as a user writes it, on a backend whose answers are functions of their prompts."""

import pytest

import lang as sgl
from lang.backends.mock import MockBackend


@sgl.function
def two_answers(s, question):
    s += "Q: " + question + "\nA: " + sgl.gen("first", max_tokens=4) + "\n"
    s += sgl.select("second", ["maybe", "no", "never"])
    s += "."


def echo_length(prompt: str) -> str:
    return f"[{len(prompt)}]"


def test_outputs_are_part_of_the_prompt_that_follows():
    backend = MockBackend(reply=echo_length)
    state = two_answers.run(question="why", backend=backend)
    assert state.text() == "Q: why\nA: [10]\nno."
    assert [call.prompt for call in backend.log] == ["Q: why\nA: ", "Q: why\nA: [10]\n"]
    assert (state["first"], state["second"]) == ("[10]", "no")


def test_a_program_goes_on_until_it_needs_an_answer():
    seen = []

    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x")
        seen.append("after gen")
        s += " b"
        seen.append("after text")
        s += sgl.gen("y")
        seen.append("after the second gen")

    backend = MockBackend()
    runner = sgl.Runner(backend)
    run = runner.start(program, {})
    assert seen == ["after gen", "after text", "after the second gen"], "it read nothing"
    assert [call.name for call in backend.log] == ["x"], "y goes out when its prompt is known"
    assert runner.step() == []
    assert not run.finished, "a program isn't over before its last call is"
    assert runner.step() == [run]
    assert run.state.text() == "aok bok"
    assert backend.log[1].prompt == "aok b"


def test_variables():
    @sgl.function
    def program(s):
        s["mine"] = 3
        s += "x" + sgl.gen("theirs") + sgl.gen()
        assert "theirs" in s
        assert "other" not in s
        return s["theirs"] * s["mine"]

    state = program.run(backend=MockBackend())
    assert state.ret_value == "okokok"
    assert state.text() == "xokok"
    with pytest.raises(KeyError, match=r"no variable 'their'; did you mean 'theirs'\? variables: 'mine', 'theirs'"):
        state["their"]


def test_several_samples_make_a_list_and_the_first_goes_on():
    @sgl.function
    def program(s):
        s += "x" + sgl.gen("many", n=3) + "|"

    state = program.run(backend=MockBackend())
    assert state["many"] == ["ok", "ok", "ok"]
    assert state.text() == "xok|"


def test_meta_info_of_calls_only():
    state = two_answers.run(question="a b", backend=MockBackend())
    assert state.get_meta_info("first")["finish_reason"] == "stop"
    assert state.get_meta_info("second")["normalized_prompt_logprobs"] == [-5.0, -2.0, -5.0]
    state["own"] = 1
    with pytest.raises(KeyError, match="no call made it"):
        state.get_meta_info("own")


def test_what_a_call_sets_goes_before_what_the_run_sets():
    asked = []

    class Watching(MockBackend):
        def generate(self, name, prompt, sampling, tags):
            asked.append(sampling)
            return super().generate(name, prompt, sampling, tags)

    @sgl.function
    def program(s, stop):
        s += "x" + sgl.gen("a", temperature=0.5, stop="\n", top_k=-1) + sgl.gen("b") + stop

    program.run(stop="END", temperature=0, max_new_tokens=7, backend=Watching())
    assert (asked[0].temperature, asked[0].max_tokens, asked[0].stop, asked[0].top_k) == (0.5, 7, ("\n",), 0)
    assert (asked[1].temperature, asked[1].max_tokens) == (0, 7)
    assert asked[1].stop == (), "`stop` is the program's own argument here"
    program.run(stop="END", backend=Watching())
    assert (asked[3].temperature, asked[3].max_tokens) == (1.0, 128), "SGLang's defaults"


@pytest.mark.parametrize("name", ["logprob_start_len", "return_text_in_logprobs"])
def test_a_parameter_that_is_not_served_is_refused(name):
    with pytest.raises(TypeError, match=rf"gen\({name}=...\) isn't served"):
        sgl.gen("x", **{name: "anything"})


def test_a_misspelt_parameter_is_refused_with_the_nearest():
    with pytest.raises(TypeError, match=r"no parameter 'max_token'; did you mean 'max_tokens'\?"):
        sgl.gen("x", max_token=3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sgl.select("x", []), ValueError, "at least one choice"),
        (lambda: sgl.select("x", ["a", ""]), ValueError, "none empty"),
        (lambda: sgl.select("x", "ab"), TypeError, "a list of strings"),
        (lambda: sgl.select("x", ["a"], temperature=1.0), ValueError, "temperature 0"),
        (
            lambda: sgl.select("x", ["a"], choices_method="greedy"),
            ValueError,
            "available: token_length_normalized, greedy",
        ),
        (lambda: sgl.gen("x", choices=["a"], max_tokens=2), TypeError, "max_tokens means nothing"),
        (lambda: sgl.gen("x", choices_method="greedy_token_selection"), TypeError, "needs choices"),
        (lambda: sgl.gen("x", stop=3), TypeError, "a string or a list of strings"),
        (lambda: sgl.gen("x", stop_token_ids="3"), TypeError, "a list of token ids"),
        (lambda: sgl.gen(3), TypeError, "a string that isn't empty"),
        (lambda: "a" + sgl.gen("x") + 3, TypeError, r"use str\(...\)"),
    ],
)
def test_bad_calls_are_refused_where_they_are_written(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_gen_with_choices_is_select():
    assert sgl.gen("x", choices=["a", "b"]) == sgl.select("x", ["a", "b"])
    assert sgl.gen("x", choices=["a"], choices_method=sgl.greedy_token_selection, temperature=0) == sgl.select(
        "x", ["a"], choices_method="greedy_token_selection"
    )


def test_programs_are_checked_when_they_are_made():
    with pytest.raises(TypeError, match="its first argument must be named 's'"):
        sgl.function(lambda state: state)
    with pytest.raises(TypeError, match="needs the name 'backend' for itself"):

        @sgl.function
        def program(s, backend):
            pass


def test_arguments_are_checked_before_anything_runs():
    backend = MockBackend()
    with pytest.raises(TypeError, match=r"two_answers.*missing a required argument: 'question'.*arguments: question"):
        two_answers.run(backend=backend)
    with pytest.raises(TypeError, match=r"run_batch item 1: .*unexpected keyword argument 'q'"):
        two_answers.run_batch([{"question": "a"}, {"question": "b", "q": "c"}], backend=backend)
    with pytest.raises(TypeError, match="takes 1 arguments, 2 were given"):
        two_answers.run("a", "b", backend=backend)
    with pytest.raises(TypeError, match="item 0 is str"):
        two_answers.run_batch(["a"], backend=backend)
    assert backend.log == []


def test_default_backend():
    sgl.set_default_backend(None)
    with pytest.raises(RuntimeError, match="set_default_backend"):
        two_answers.run(question="x")
    sgl.set_default_backend(MockBackend())
    try:
        assert two_answers.run("x")["first"] == "ok"
    finally:
        sgl.set_default_backend(None)


@pytest.mark.parametrize("num_threads", ["auto", 1, 3])
def test_a_batch_comes_back_in_its_own_order(num_threads):
    backend = MockBackend(reply=echo_length, steps_per_call=lambda prompt: 1 + len(prompt) * 7 % 5)
    batch = [{"question": "q" * i} for i in range(12)]
    lengths = [len("Q: \nA: ") + i for i in range(12)]
    states = two_answers.run_batch(batch, backend=backend, num_threads=num_threads, progress_bar=True)
    assert [state["first"] for state in states] == [f"[{length}]" for length in lengths]


@pytest.mark.parametrize("num_threads", [0, -1, "many", 1.5])
def test_num_threads_is_checked(num_threads):
    with pytest.raises(ValueError, match="'auto' or 1 or more"):
        two_answers.run_batch([], backend=MockBackend(), num_threads=num_threads)
