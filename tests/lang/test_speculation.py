"""One over-long call serves several gens, and a program reads as if each had been asked for by itself."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lang as sgl
from lang.backends.base import Call
from lang.backends.mock import MockBackend
from lang.prompt import Image
from lang.sampling import Sampling
from lang.speculation import first_stop

CARD = "Ada Lovelace\nBirthday: 10 December 1815\nJob: mathematician\n"


class Letters(MockBackend):
    """A completion API whose tokens are letters: `letter(text)` follows `text`, None ends it."""

    def __init__(self, letter, steps_per_call=1, missing=()):
        super().__init__(steps_per_call=steps_per_call, speculates=True)
        self.capabilities = sgl.Capabilities("letters", dict.fromkeys(missing, "do without"))
        self._letter = letter
        self.asked = []

    def generate(self, name, prompt, sampling, tags):
        for feature, what in sgl.capabilities.features_of(prompt, sampling):
            self.capabilities.need(feature, what)
        self.asked.append((name, sampling))
        before, said, reason, n = prompt.text(self.style), "", "length", 0
        while n < sampling.max_tokens:
            letter = self._letter(before + said)
            if letter is None:
                reason = "stop"
                break
            said, n = said + letter, n + 1
            whole = [stop for stop in sampling.stop if said.endswith(stop)]
            if whole:
                said, reason = said[: -len(max(whole, key=len))], "stop"
                break
        call = Call(name=name, prompt=before, request=prompt, tags=tags, texts=(said,))
        call.meta = {"prompt_tokens": len(before), "cached_tokens": 0, "completion_tokens": n, "finish_reason": reason}
        return self._queue(call)


def saying(text, begin="Name: ", **options):
    """Says `text` behind `begin`, whatever comes before it; then it ends."""

    def letter(prompt):
        said = prompt[prompt.rindex(begin) + len(begin) :]
        return text[len(said)] if text.startswith(said) and len(said) < len(text) else None

    return Letters(letter, **options)


@sgl.function(num_api_spec_tokens=128)
def card(s):
    s += "A person.\nName: " + sgl.gen("name", stop="\n", temperature=0)
    s += "\nBirthday: " + sgl.gen("birthday", stop="\n", temperature=0)
    s += "\nJob: " + sgl.gen("job", stop="\n", temperature=0)


def names(backend):
    return [name for name, _ in backend.asked]


def test_one_call_serves_three_gens():
    backend = saying(CARD)
    state = card.run(backend=backend)
    assert (state["name"], state["birthday"], state["job"]) == ("Ada Lovelace", "10 December 1815", "mathematician")
    assert state.text() == "A person.\nName: " + CARD.rstrip()
    assert backend.asked == [("name", Sampling(max_tokens=128, temperature=0))]
    assert state.text() == card.run(backend=saying(CARD), num_api_spec_tokens=0).text()


def test_tokens_count_once_and_savings_are_told():
    backend = saying(CARD + "and so on")
    state = card.run(backend=backend)
    asked, served = state.get_meta_info("name"), state.get_meta_info("job")
    assert asked["speculation"] == "asked"
    assert asked["finish_reason"] == "stop"
    assert asked["completion_tokens"] == len(CARD + "and so on")
    assert served == {
        "prompt_tokens": 0,
        "cached_tokens": 0,
        "completion_tokens": 0,
        "finish_reason": "stop",
        "speculation": "served",
    }
    assert state.speculation() == sgl.SpeculationCount(2, 1, len("\nand so on"))


def test_where_the_program_goes_on_otherwise_a_call_is_made():
    backend = saying("Ada\nBorn: 1815\nBirthday: 1815\nJob: none\n")
    state = card.run(backend=backend)
    assert names(backend) == ["name", "birthday", "job"]
    assert state["name"] == "Ada"
    assert state["job"] == ""
    assert state.speculation().saved_calls == 0


def test_a_call_that_was_needed_serves_the_gens_behind_it():
    text = {"Name: ": "Ada\nBorn: long ago\n", "Birthday: ": "1815\nJob: none\n"}

    def letter(prompt):
        begin = "Birthday: " if "Birthday: " in prompt else "Name: "
        said = prompt[prompt.rindex(begin) + len(begin) :]
        return (text[begin] + "\0")[len(said)].replace("\0", "") or None

    backend = Letters(letter)
    assert card.run(backend=backend)["job"] == "none"
    assert names(backend) == ["name", "birthday"]


def test_an_answer_that_breaks_off_before_the_stop_serves_no_more():
    backend = saying(CARD)
    state = card.run(backend=backend, num_api_spec_tokens=38, max_tokens=38)
    assert names(backend) == ["name", "birthday"]
    assert state["birthday"] == "10 December 1815"
    assert state["job"] == "mathematician"


def test_what_the_model_ended_by_itself_is_all_there_is():
    backend = saying(CARD.rstrip("\n"))
    assert card.run(backend=backend)["job"] == "mathematician"
    assert names(backend) == ["name"]


@pytest.mark.parametrize(
    "job",
    [
        sgl.gen("job", stop="\n", temperature=0.5),
        sgl.gen("job", regex="[a-z]+", temperature=0),
        sgl.gen("job", n=2, stop="\n", temperature=0),
        sgl.gen("job", min_tokens=1, stop="\n", temperature=0),
        sgl.gen("job", presence_penalty=0.5, stop="\n", temperature=0),
    ],
)
def test_what_one_call_can_not_serve_gets_its_own(job):
    @sgl.function(num_api_spec_tokens=128)
    def program(s):
        s += "Name: " + sgl.gen("name", stop="\n", temperature=0) + "\nBirthday: "
        s += sgl.gen("birthday", stop="\n", temperature=0) + "\nJob: " + job

    backend = saying(CARD)
    state = program.run(backend=backend)
    assert names(backend) == ["name", "job"]
    assert state.speculation().saved_calls == 1


def test_a_regex_may_stop_a_gen_although_the_server_knows_none():
    @sgl.function(num_api_spec_tokens=128)
    def program(s):
        s += "Name: " + sgl.gen("name", stop_regex=r"\s*\n[A-Z]", temperature=0)
        s += "\nBirthday: " + sgl.gen("day", stop_regex=r"\s", temperature=0)

    backend = saying(CARD, missing=[sgl.Feature.STOP_REGEX])
    state = program.run(backend=backend)
    assert (state["name"], state["day"], len(backend.asked)) == ("Ada Lovelace", "10", 1)
    with pytest.raises(sgl.NotServed, match="stop_regex"):
        program.run(backend=saying(CARD, missing=[sgl.Feature.STOP_REGEX]), num_api_spec_tokens=0)


def test_a_stop_regex_that_is_none_is_refused_where_it_is_written():
    @sgl.function(num_api_spec_tokens=8)
    def program(s):
        s += "Name: " + sgl.gen("name", stop_regex="(")

    with pytest.raises(ValueError, match="it is no regex"):
        program.run(backend=saying(CARD))


def test_what_may_be_longer_than_max_tokens_is_asked_again():
    backend = saying(CARD)
    state = card.run(backend=backend, max_tokens=5)
    plain = card.run(backend=saying(CARD), num_api_spec_tokens=0, max_tokens=5)
    assert state.text() == plain.text()
    assert state["name"] == "Ada L"
    assert [sampling.max_tokens for name, sampling in backend.asked if name == "name"] == [128, 5]
    meta = state.get_meta_info("name")
    assert meta["completion_tokens"] == len(CARD) + 5
    assert meta["finish_reason"] == "length"


def test_branches_share_what_would_be_said_again():
    @sgl.function(num_api_spec_tokens=128)
    def program(s, temperature):
        s += "Name: " + sgl.gen("name", stop="\n", temperature=temperature)
        s["read"] = s["name"]  # the prompt is text from here on
        forks = s.fork(3)
        forks += "\nBirthday: " + sgl.gen("birthday", stop="\n", temperature=temperature)
        forks += "\nJob: " + sgl.gen("job", stop="\n", temperature=temperature)
        forks.join()

    backend = saying(CARD)
    state = program.run(0, backend=backend)
    assert state["job"] == ["mathematician"] * 3
    assert names(backend) == ["name"]
    assert state.speculation().saved_calls == 6
    sampled = saying(CARD)
    state = program.run(0.7, backend=sampled)
    assert names(sampled) == ["name", "birthday", "birthday"], "samples of branches are their own"
    assert state["job"] == ["mathematician"] * 3


def test_a_message_or_an_image_between_ends_it():
    @sgl.function(num_api_spec_tokens=64)
    def program(s):
        s += sgl.user("Who?") + sgl.assistant(sgl.gen("a", stop="\n", temperature=0))
        s += sgl.assistant(sgl.gen("b", stop="\n", temperature=0))
        s += sgl.user_begin() + sgl.gen("c", stop="\n", temperature=0) + Image(b"", "image/png")
        s += sgl.gen("d", stop="\n", temperature=0) + sgl.user_end()

    backend = Letters(lambda prompt: "a\n"[prompt.endswith("a")])
    program.run(backend=backend)
    assert names(backend) == ["a", "b", "c", "d"]


# ---- chats that can't go on with a message

NO_PREFIX = [sgl.Feature.ASSISTANT_PREFIX, sgl.Feature.COMPLETION]


@sgl.function(num_api_spec_tokens=128)
def message(s, text="\nBirthday: ", **options):
    s += sgl.user("A person?")
    s += sgl.assistant(sgl.gen("name", stop="\n") + text + sgl.gen("birthday", **{"stop": "\n", **options}))


def chatting(**options):
    return saying(CARD, begin="### assistant\n", missing=NO_PREFIX, **options)


def test_a_chat_that_goes_on_with_no_message_serves_one_that_matches():
    backend = chatting()
    state = message.run(backend=backend)
    assert state["birthday"] == "10 December 1815"
    assert names(backend) == ["name"]
    assert state.messages()[-1]["content"] == "Ada Lovelace\nBirthday: 10 December 1815"


def test_there_what_does_not_match_fails_where_it_is_read_and_says_why():
    state = message.run_batch([{"text": "\nBorn: "}], backend=chatting())[0]
    assert state["name"] == "Ada Lovelace"
    with pytest.raises(sgl.NotServed) as caught:
        state["birthday"]
    assert "'birthday' couldn't be served without a call: the answer goes on with 'irthday: 10" in str(caught.value)
    assert "where the program goes on with 'orn: '" in str(caught.value)
    assert "a call after text of the same assistant message isn't served by letters" in str(caught.value)


@pytest.mark.parametrize(
    "part",
    [
        "Name: " + sgl.gen("x", stop="\n"),
        sgl.gen("a") + "\nBirthday: " + sgl.gen("x", stop="\n"),
        sgl.gen("a", stop="\n") + "\n" + sgl.gen("x", stop="\n", temperature=0.3),
        sgl.gen("a", stop="\n") + "\n" + sgl.gen("x", regex="a"),
        sgl.gen("a", stop="\n") + "\n" + sgl.select("x", ["a", "b"]),
    ],
)
def test_there_what_can_never_be_served_is_refused_where_it_is_written(part):
    @sgl.function(num_api_spec_tokens=64)
    def program(s):
        s += sgl.user("q") + sgl.assistant(part)

    backend = chatting()
    with pytest.raises(sgl.NotServed, match="where the message begins with a gen") as caught:
        program.run(backend=backend)
    assert any(__file__ in note for note in caught.value.__notes__)
    assert set(names(backend)) <= {"a"}


# ---- what goes on meanwhile


def test_a_reader_never_sees_what_stands_behind_the_stop():
    class Growing(Letters):
        def step(self):
            for call in self._left:
                call.partial = call.text[: len(call.partial) + 1]
            return super().step()

    text = "Ada\nLovelace\n\nBirthday: 1815\n\n"

    @sgl.function(num_api_spec_tokens=60)
    def program(s):
        s += "Name: " + sgl.gen("name", stop="\n\n", temperature=0) + "\n\nBirthday: "
        s += sgl.gen("day", stop="\n\n", temperature=0)

    def backend():
        return Growing(lambda prompt: (text + "\0")[len(prompt) - 6].replace("\0", "") or None, 40)

    state = program.run(backend=backend(), stream=True)
    pieces = list(state.text_iter("name"))
    assert "".join(pieces) == "Ada\nLovelace"
    assert len(pieces) > 5
    assert "".join(program.run(backend=backend(), stream=True).text_iter()) == state.text()
    short = program.run(backend=backend(), stream=True, max_tokens=20)
    assert list(short.text_iter("name")) == ["Ada\nLovelace"], "it might have had to be asked again"


def test_a_cancelled_program_gives_its_long_call_up():
    backend = saying(CARD, steps_per_call=3)
    runner = sgl.Runner(backend)
    run = runner.start(card, {})
    runner.step()
    runner.cancel(run)
    assert [call.name for call in backend.aborted] == ["name"]
    assert run.speculation == sgl.SpeculationCount(0, 0, 0)


def test_a_failed_long_call_fails_the_gens_behind_it():
    class Failing(Letters):
        def generate(self, *args):
            call = super().generate(*args)
            call.error = "the line broke"
            return call

    state = card.run_batch([{}], backend=Failing(lambda _: "a"))[0]
    with pytest.raises(sgl.CallError, match="'name' failed: the line broke"):
        state["name"]
    with pytest.raises(sgl.CallError, match="'birthday' wasn't sent: 'name' before it has no value"):
        state["birthday"]


def test_a_backend_that_needs_no_speculation_makes_plain_calls_and_says_so():
    backend = MockBackend()
    state = card.run(backend=backend)
    assert [call.name for call in backend.log] == ["name", "birthday", "job"]
    assert state.get_meta_info("job")["speculation"] == "plain"
    assert state.speculation() == sgl.SpeculationCount(0, 0, 0)


def test_programs_within_count_with_the_one_that_runs_them():
    @sgl.function
    def outer(s):
        card.run_batch([{}, {}])
        s += "x"

    assert outer.run(backend=saying(CARD)).speculation()[:2] == (4, 2)


# ---- the number


def empty(s): ...


def test_programs_keep_their_number():
    assert card.num_api_spec_tokens == 128
    assert sgl.function(empty).num_api_spec_tokens == 0

    @sgl.function(num_api_spec_tokens=7)
    def program(s, x): ...

    assert program.bind(x=1).num_api_spec_tokens == 7
    backend = saying(CARD)
    (state,) = card.run_batch([{}], backend=backend, num_api_spec_tokens=0)
    assert state["job"] == "mathematician"
    assert len(backend.asked) == 3
    assert card.num_api_spec_tokens == 128


@pytest.mark.parametrize("bad", [-1, 1.5, True, "64"])
def test_a_number_that_can_not_be_is_refused(bad):
    for use in (
        lambda: sgl.function(num_api_spec_tokens=bad)(empty),
        lambda: card.run(num_api_spec_tokens=bad),
        lambda: card.run_batch([{}], num_api_spec_tokens=bad),
    ):
        with pytest.raises(ValueError, match=r"num_api_spec_tokens=.* is not allowed: it must be"):
            use()


def test_the_name_is_taken():
    with pytest.raises(TypeError, match="rename the argument"):

        @sgl.function
        def program(s, num_api_spec_tokens): ...


# ---- any program

LETTERS = "ab\n."
STEPS = st.one_of(
    st.tuples(st.just("text"), st.text(LETTERS, max_size=3)),
    st.tuples(
        st.just("gen"),
        st.fixed_dictionaries(
            {"stop": st.lists(st.text(LETTERS, min_size=1, max_size=2), max_size=2)},
            optional={"max_tokens": st.integers(1, 9)},
        ),
    ),
    st.tuples(st.just("next"), st.integers(1, 4)),
    st.tuples(st.just("read"), st.none()),
)
SCRIPTS = st.lists(st.one_of(STEPS, st.tuples(st.just("fork"), st.lists(st.lists(STEPS, max_size=4), max_size=3))))


def play(s, script, letter, made):
    for kind, value in script:
        if kind == "text":
            s += value
        elif kind == "next":  # what the model would say: speculation has something to serve
            for _ in range(value):
                s += letter(s.text()) or ""
        elif kind == "gen":
            s += sgl.gen(f"x{len(made)}", temperature=0, **value)
            made.append((s, f"x{len(made)}"))
        elif kind == "read" and made:
            state, name = made[-1]
            s += state[name]
        elif kind == "fork" and value:
            for branch, inner in zip(s.fork(len(value)), value):
                play(branch, inner, letter, made)
                branch.sync()


def outcome(script, letter, n_tokens):
    made, backend = [], Letters(letter)

    @sgl.function(num_api_spec_tokens=n_tokens)
    def program(s):
        s += "<"
        play(s, script, letter, made)

    state = program.run(backend=backend, max_tokens=8)
    return [(s[name], s.text()) for s, name in made], state.text(), len(backend.asked), state.speculation()


def test_an_answer_that_was_cut_short_at_once_serves_nobody_else():
    """The second gen begins where the answer does: the first one's value is empty, and no text stands between."""

    @sgl.function(num_api_spec_tokens=1)
    def program(s):
        s += "<" + sgl.gen("x", stop="b", max_tokens=1) + sgl.gen("y", max_tokens=3)

    state = program.run(backend=Letters(lambda _: "b"), temperature=0)
    assert (state["x"], state["y"]) == ("", "bbb")


@settings(max_examples=150, deadline=None)
@given(script=SCRIPTS, n_tokens=st.integers(1, 24), salt=st.integers(0, 50), repeats=st.booleans())
def test_any_greedy_program_reads_as_without_speculation(script, n_tokens, salt, repeats):
    def letter(text):
        code = (len(text) * 7 + salt if repeats else sum(map(ord, text[-3:])) * 31 + salt) % 13
        return None if code == 12 else LETTERS[code % 4]

    *plain, n_calls, nothing = outcome(script, letter, 0)
    *speculated, n_asked, count = outcome(script, letter, n_tokens)
    assert speculated == plain
    assert nothing == (0, 0, 0)
    assert n_calls == len(plain[0])
    assert n_calls - count.saved_calls <= n_asked <= 2 * (n_calls - count.saved_calls)


@settings(max_examples=60, deadline=None)
@given(n_tokens=st.integers(1, 24), data=st.data())
def test_with_a_model_that_contradicts_itself_values_are_what_was_said(n_tokens, data):
    answers = []

    class Fickle(Letters):
        def generate(self, name, prompt, sampling, tags):
            call = super().generate(name, prompt, sampling, tags)
            text = data.draw(st.text("ab\n", max_size=min(sampling.max_tokens, 20)))
            call.texts, call.meta["completion_tokens"] = (text,), len(text)
            answers.append(text)
            return self._queue(call)

    @sgl.function(num_api_spec_tokens=n_tokens)
    def program(s):
        s += "<"
        for i in range(4):
            s += sgl.gen(f"x{i}", stop="\n", max_tokens=8) + data.draw(st.sampled_from(["", "\n", "\na"]))

    state = program.run(backend=Fickle(lambda _: None))
    for i in range(4):
        value = state[f"x{i}"]
        assert "\n" not in value
        assert len(value) <= 8
        assert any(value in answer for answer in answers)
    assert len(answers) >= 4 - state.speculation().saved_calls


@given(text=st.text("abc", max_size=12), stop=st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=3))
def test_the_stop_that_is_whole_first_ends_the_value(text, stop):
    found = first_stop(text, Sampling(stop=tuple(stop)))
    for n in range(len(text) + 1):
        whole = [one for one in stop if text[:n].endswith(one)]
        if whole:
            assert found == (n - len(max(whole, key=len)), n)
            return
    assert found is None
