"""Prompts that end inside a token: gen says their end again if it is asked to, select always scores over the border."""

import pytest

import lang as sgl
from engine.byte_pair import BytePairTokenizer
from engine.config import EngineConfig
from engine.make import make_engine
from engine.replay import first_difference, replay
from engine.request import RequestError
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend
from lang.backends.openai import OpenAIBackend
from lang.prompt import ChatStyle

PROMPT = "in the hou"
"""The built-in tokenizer has "ou" and "ould"."""
GREEDY = {"temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def engine():
    return make_engine(EngineConfig(model="tiny", pool_tokens=4096))


@pytest.fixture
def backend(engine):
    engine.flush_cache()
    yield EngineBackend(engine)
    assert not engine.has_work


def calls_of(backend, program, **sampling):
    runner = sgl.Runner(backend)
    run = runner.start(program, {}, sampling={**GREEDY, **sampling})
    while runner.active:
        runner.step()
    if run.error is not None:
        raise run.error
    return run.calls


@sgl.function
def write(s):
    s += PROMPT + sgl.gen("x")


def text_of(engine, request):
    return engine.tokenizer.decode([*request.key, *request.output])


def test_the_text_is_what_comes_after_the_prompt(engine, backend):
    [call] = calls_of(backend, write, token_healing=True)
    [request] = call.requests
    assert [engine.tokenizer.token_bytes(token) for token in request.taken_back] == [b"ou"]
    assert engine.tokenizer.token_bytes(request.output[0]) == b"ould"
    assert call.text.startswith("ld")
    assert PROMPT + call.text == text_of(engine, request)
    state = write.run(backend=backend, token_healing=True, **GREEDY)
    assert state.text() == PROMPT + state["x"] == PROMPT + call.text


def test_without_it_the_prompt_keeps_its_tokens(engine, backend):
    [call] = calls_of(backend, write)
    assert call.requests[0].key.tolist() == engine.tokenizer.encode(PROMPT)
    [call] = calls_of(backend, write, token_healing=False)
    assert call.requests[0].taken_back == ()


def test_a_call_says_otherwise_than_its_run(backend):
    @sgl.function
    def both(s):
        s += PROMPT + sgl.gen("x") + " and " + PROMPT + sgl.gen("y", token_healing=False)

    first, second = calls_of(backend, both, token_healing=True)
    assert first.requests[0].taken_back
    assert not second.requests[0].taken_back


def test_what_is_counted(engine, backend):
    @sgl.function
    def one(s):
        s += PROMPT + sgl.gen("x", max_tokens=1, logprobs=1, token_healing=True)

    meta = one.run(backend=backend, temperature=0).get_meta_info("x")
    assert meta["prompt_tokens"] == len(engine.tokenizer.encode(PROMPT)) - 1
    assert meta["completion_tokens"] == 1
    [(_, _, text)] = meta["output_token_logprobs"]
    assert text == "ould", "log-probabilities are of tokens"


def test_streams_never_show_what_is_said_again(backend):
    state = write.run(backend=backend, token_healing=True, stream=True, **GREEDY)
    pieces = list(state.text_iter("x"))
    assert "".join(pieces) == state["x"]
    assert pieces[0] == "ld"


def test_samples_are_all_healed(backend):
    [call] = calls_of(backend, write, token_healing=True, n=3, temperature=1.5, seed=2)
    assert len({tuple(request.output) for request in call.requests}) > 1
    for request, text in zip(call.requests, call.texts, strict=True):
        assert PROMPT + text == text_of(backend.engine, request)


def test_stops_see_only_the_text(backend):
    free = write.run(backend=backend, token_healing=True, **GREEDY)["x"]
    assert free.startswith("ldou")
    assert write.run(backend=backend, token_healing=True, stop="ou", **GREEDY)["x"] == "ld"

    @sgl.function
    def until(s):
        s += PROMPT + sgl.gen("x", stop_regex="o.")

    assert until.run(backend=backend, token_healing=True, **GREEDY)["x"] == "ld"


def test_shapes_begin_after_the_prompt(engine, backend):
    @sgl.function
    def shaped(s):
        s += "hello th" + sgl.gen("word", regex="(e|at) [a-z]{3}") + ". It is " + sgl.gen("n", dtype=int, max_tokens=4)
        s += " or " + sgl.gen("flag", json_schema={"enum": ["a", "b"]})

    word, n, flag = calls_of(backend, shaped, token_healing=True)
    assert len(word.requests[0].taken_back) == 2
    assert word.text[:2] in ("e ", "at")
    assert int(n.text) is not None
    assert flag.text in ('"a"', '"b"')
    for call in (word, flag):
        assert text_of(engine, call.requests[0]) == call.prompt + call.text


def test_tools_are_called_behind_a_healed_prompt(backend):
    def toss(heads: bool) -> str:
        """Tosses a coin."""
        return "heads"

    @sgl.function
    def gamble(s):
        s += sgl.user("Toss a coin.") + sgl.assistant_begin() + "I call "
        s += sgl.gen("x", tools=[toss], tool_choice="toss", max_tokens=200) + sgl.assistant_end()
        s["calls"] = s.tool_calls("x")

    state = gamble.run(backend=backend, temperature=0, token_healing=True)
    assert {call.name for call in state["calls"]} == {"toss"}


STYLE = ChatStyle("marked", {"user": "<s>user ", "assistant": "<s>th"}, {"user": "</s>", "assistant": "</s>"})


def test_a_role_marker_is_left_alone_and_text_behind_it_is_healed(engine):
    backend = EngineBackend(engine, style=STYLE)

    @sgl.function
    def fresh(s):
        s += sgl.user("Who?") + sgl.assistant(sgl.gen("x"))

    @sgl.function
    def going_on(s):
        s += sgl.user("Who?") + sgl.assistant("e hou" + sgl.gen("x"))

    @sgl.function
    def at_a_marker(s):
        s += sgl.user("Who?") + sgl.user_begin() + sgl.gen("x") + sgl.user_end()

    for program, n in ((fresh, 0), (at_a_marker, 0), (going_on, 1)):
        [call] = calls_of(backend, program, token_healing=True)
        assert len(call.requests[0].taken_back) == n


def test_control_tokens_are_never_taken_back(engine):
    silent = ChatStyle("silent", {"user": "", "assistant": "<s>"}, {"user": "</s>", "assistant": ""})
    backend = EngineBackend(engine, style=silent)

    @sgl.function
    def program(s):
        s += sgl.user("th") + sgl.assistant(" th" + sgl.gen("x"))

    [call] = calls_of(backend, program, token_healing=True)
    [request] = call.requests
    assert request.key.tolist()[-1] == engine.tokenizer.bos_token_id
    assert engine.tokenizer.decode(request.taken_back) == " th", "all that stands behind it"


def test_what_does_not_go_with_it_is_refused(backend):
    with pytest.raises(RequestError, match="forced_output can't go with token_healing"):
        write.run(backend=backend, token_healing=True, forced_output=[5])
    with pytest.raises(RequestError, match="token_healing='yes' is not allowed"):
        write.run(backend=backend, token_healing="yes")


def test_the_mock_has_no_tokens_and_an_api_refuses():
    assert write.run(backend=MockBackend(), token_healing=True)["x"] == "ok"
    with OpenAIBackend("m", api_key="k", chat=False) as api, pytest.raises(sgl.NotServed, match="EngineBackend"):
        write.run(backend=api, token_healing=True)


def test_a_healed_program_replays():
    engine = make_engine(EngineConfig(model="tiny", pool_tokens=1024))
    backend = EngineBackend(engine)

    @sgl.function
    def program(s):
        s += PROMPT + sgl.gen("x", n=2, seed=4, temperature=1.0) + " th" + sgl.gen("y", regex="[a-z]+ x", stop="q")
        s += sgl.select("z", ["e end", "is"])

    program.run_batch([{}] * 3, backend=backend, token_healing=True, max_tokens=8)
    assert first_difference(engine.log, replay(engine.log)) is None


# ---- select


def test_a_choice_that_merges_with_the_prompt_is_scored_from_the_token_that_changes(engine, backend):
    @sgl.function
    def program(s):
        s += "hello th" + sgl.select("x", ["e end", "anks"])

    [call] = calls_of(backend, program)
    encode = engine.tokenizer.encode
    alone, joined = encode("hello th"), [encode("hello the end"), encode("hello thanks")]
    assert joined[0][: len(alone)] != alone, "'the' is one token"
    start = alone.index(joined[0][len(alone) - 2 - 1]) + 1
    assert [tokens[:start] for tokens in joined] == [alone[:start]] * 2
    for request, tokens in zip(call.requests, joined, strict=True):
        assert request.key.tolist() == tokens, "each choice is read as the tokenizer writes it"
        assert [entry.token for entry in request.prompt_logprobs] == tokens[start:]
    assert call.text in ("e end", "anks")


def test_choices_that_leave_the_prompt_alone_are_scored_from_its_end(engine, backend):
    @sgl.function
    def program(s):
        s += "hello" + sgl.select("x", [" you", " there"])

    [call] = calls_of(backend, program)
    alone = engine.tokenizer.encode("hello")
    for request in call.requests:
        assert request.key.tolist()[: len(alone)] == alone
        assert len(request.prompt_logprobs) == request.prompt_tokens - len(alone)


def test_a_select_after_an_output_reads_both_as_one_text(engine, backend):
    @sgl.function
    def program(s):
        s += "hello" + sgl.gen("x", forced_output=spelled, max_tokens=8) + sgl.select("y", ["e end", "ough"])

    spelled = [token for char in " th" for token in engine.tokenizer.encode(char, add_special_tokens=False)]
    written, chosen = calls_of(backend, program)
    assert written.text == " th"
    assert written.requests[0].output == spelled, "a spelling that the tokenizer wouldn't write"
    for request, choice in zip(chosen.requests, ["e end", "ough"], strict=True):
        assert request.key.tolist() == engine.tokenizer.encode("hello th" + choice)


def test_a_gen_after_an_output_is_healed_over_the_whole_text(engine, backend):
    @sgl.function
    def program(s):
        s += "hello" + sgl.gen("x", regex=" th") + sgl.gen("y", regex="e end", token_healing=True)

    first, second = calls_of(backend, program)
    assert (first.text, second.text) == (" th", "e end")
    assert engine.tokenizer.decode(second.requests[0].taken_back) == " th"


def test_a_small_vocabulary_by_hand():
    """' t', 'he', ' the': what the engine's own tokenizer does, where every token can be counted."""
    tokenizer = BytePairTokenizer([(32, 116), (104, 101), (256, 257)], ["<s>", "</s>"], "<s>", "</s>")
    engine = make_engine(EngineConfig(model="tiny", pool_tokens=256))
    engine.tokenizer = tokenizer

    @sgl.function
    def program(s):
        s += "x th" + sgl.select("c", ["en", "in"])

    [call] = calls_of(EngineBackend(engine), program)
    starts = {request.params.prompt_logprobs_start for request in call.requests}
    assert starts == {2}, "behind '<s>' and 'x': ' the' is one token, ' t' 'h' are two"
