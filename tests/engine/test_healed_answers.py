"""Outputs behind a prompt whose end was taken back: their text, their ends, their counts, and their replay."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import Engine, EngineConfig, SamplingParams, make_engine
from engine.constraints import choices, json_schema, regex
from engine.replay import first_difference, replay
from engine.request import FinishReason, Request, RequestError
from engine.tokenizer import Tokenizer, builtin_tokenizer, load_tokenizer
from tests.engine.conftest import HashExecutor

PROMPTS = ["hello th", "in the hou", "It is ", "One day the little bear went to the river to look for"]
FLAG = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
WANTED: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 1.3, "top_p": 0.95, "seed": 5},
    "two samples": {"n": 2, "seed": 7},
    "log-probabilities": {"temperature": 0, "logprobs": 2},
    "penalties": {"temperature": 0.8, "frequency_penalty": 0.6, "repetition_penalty": 1.3, "seed": 9},
    "stop string": {"temperature": 0, "stop": ("ou", "e", "i")},
    "stop tokens": {"temperature": 0, "stop_token_ids": tuple(range(256, 400))},
    "a least length": {"temperature": 0, "min_tokens": 6, "stop": ("o",)},
    "one token": {"temperature": 0, "max_tokens": 1},
    "regex": {"temperature": 0, "grammar": regex("[a-z ]{3,9}[0-9]")},
    "choices": {"seed": 3, "grammar": choices(["e other", "at one", "se"]), "logprobs": 0},
    "schema": {"seed": 4, "grammar": json_schema(FLAG), "stop": ("}",)},
}
SERVED: dict[str, dict[str, Any]] = {
    "at once": {},
    "decoded": {"jump_forward": False},
    "overlapped": {"overlap": True},
    "without a cache": {"cache": "none"},
    "chunks of 7": {"max_batch_tokens": 7, "max_running": 7},
    "a pool that preempts": {"pool_tokens": 128},
}


def engine_of(**config: Any) -> Engine:
    return make_engine(
        EngineConfig(device="cpu", **{"model": "tiny", "dtype": "float64", "pool_tokens": 4096, **config})
    )


def jobs() -> list[tuple[str, SamplingParams]]:
    return [
        (prompt, SamplingParams(**{"max_tokens": 16, "token_healing": True, **wanted}))
        for wanted in WANTED.values()
        for prompt in PROMPTS
    ]


def serve(engine: Engine, work: Sequence[tuple[str, SamplingParams]], **tags: Any) -> list[Request]:
    requests = [request for prompt, params in work for request in engine.add(prompt, params, **tags)]
    while engine.has_work:
        engine.step()
        engine.check()
    return requests


def assert_is_law(tokenizer: Tokenizer, request: Request, prompt: str) -> None:
    """What was taken back is said again, and prompt and text together are what the tokens say."""
    assert request.error is None
    assert [*request.key, *request.taken_back] == tokenizer.encode(prompt)
    ended_by_token = isinstance(request.stop_match, int)
    output = request.output[:-1] if ended_by_token else request.output
    said = b"".join(map(tokenizer.token_bytes, output))
    rest = b"".join(map(tokenizer.token_bytes, request.taken_back))
    assert said.startswith(rest) or (rest.startswith(said) and request.finish_reason is FinishReason.LENGTH)
    whole = tokenizer.decode([*request.key, *output])
    if not said.startswith(rest):
        assert request.text == ""
    elif isinstance(request.stop_match, str):
        assert whole.startswith(prompt + request.text + request.stop_match)
        assert request.stop_match not in request.text or request.params.min_tokens > 0
    else:
        assert prompt + request.text == whole


def test_prompt_and_text_are_what_the_tokens_say() -> None:
    engine = engine_of()
    n_healed = 0
    for prompt, params in jobs():
        for request in serve(engine, [(prompt, params)]):
            assert_is_law(builtin_tokenizer(), request, prompt)
            n_healed += bool(request.taken_back)
            if params.logprobs is not None:
                assert [entry.token for entry in request.logprobs] == request.output
    assert n_healed > len(jobs()) / 2


@pytest.mark.parametrize("name", SERVED)
def test_answers_are_the_same_however_they_are_served(name: str) -> None:
    alone = engine_of(jump_forward=False, cache="none")
    wanted = [request for job in jobs() for request in serve(alone, [job])]
    engine = engine_of(**SERVED[name])
    for _ in ("cold", "warm"):
        requests = serve(engine, jobs(), predicted_output=1)
        for request, other in zip(requests, wanted, strict=True):
            assert (request.output, request.text, request.taken_back) == (other.output, other.text, other.taken_back)
            assert (request.finish_reason, request.stop_match) == (other.finish_reason, other.stop_match)
            assert [e.token for e in request.logprobs] == [e.token for e in other.logprobs]
    assert (engine.metrics.preemptions > 0) == ("preempts" in name)


@pytest.mark.parametrize("backend", ["xgrammar", "fsm"])
def test_every_grammar_backend_goes_on_from_what_was_taken_back(backend: str) -> None:
    if backend == "xgrammar":
        pytest.importorskip("xgrammar")
    engine = engine_of(grammar_backend=backend)
    grammar = choices(["e other", "at one"])
    for prompt, n in (("hello th", 2), ("in the hou", 1)):
        [request] = serve(engine, [(prompt, SamplingParams(token_healing=True, grammar=grammar, seed=1))])
        assert_is_law(builtin_tokenizer(), request, prompt)
        assert request.text in ("e other", "at one")
        assert len(request.taken_back) == (n if prompt == "hello th" else 0), "no token begins with 'oue' or 'oua'"


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlapped"])
def test_a_healed_run_replays_without_model_tokenizer_or_grammar(overlap: bool, tmp_path: Path) -> None:
    engine = engine_of(overlap=overlap, pool_tokens=160, max_batch_tokens=32, max_running=6)
    for _ in range(2):
        requests = serve(engine, jobs())
    assert any(request.taken_back for request in requests)
    assert any(isinstance(request.stop_match, int) and request.taken_back for request in requests)
    engine.log.write(tmp_path / "events.parquet")
    again = replay(engine.log.read(tmp_path / "events.parquet"))
    assert first_difference(engine.log, again) is None
    arrivals = [[event.text for event in log.events if event.kind == "arrive"] for log in (engine.log, again)]
    assert arrivals[0] == arrivals[1]
    assert any("taken_back" in json.loads(text) for text in arrivals[0])


def test_without_healing_nothing_changes() -> None:
    off, unhealed = engine_of(), "One day the little bear went to the river to look for"
    plain = SamplingParams(max_tokens=8, temperature=0)
    [one] = serve(off, [("in the hou", plain)])
    assert (one.taken_back, one.constraint, one.prompt_tokens) == (
        (),
        None,
        len(builtin_tokenizer().encode("in the hou")),
    )
    [left], [asked] = (
        serve(off, [(unhealed, SamplingParams(max_tokens=8, temperature=0, token_healing=on))]) for on in (False, True)
    )
    assert left.output == asked.output
    assert asked.constraint is None, "nothing to take back, nothing to hold it to"


def test_masks_end_with_what_was_taken_back() -> None:
    engine = engine_of()
    seen: list[bool] = []
    masks = engine.loop._masks
    engine.loop._masks = lambda batch: seen.append((found := masks(batch)) is not None) or found  # type: ignore[func-returns-value]
    [request] = serve(engine, [("in the hou", SamplingParams(max_tokens=8, temperature=0, token_healing=True))])
    assert request.n_again == 1
    assert seen == [True] + [False] * 7


def test_stops_are_not_looked_for_in_what_is_said_again() -> None:
    engine, tokenizer = engine_of(), builtin_tokenizer()
    greedy = {"temperature": 0, "max_tokens": 8, "token_healing": True}
    [free] = serve(engine, [("in the hou", SamplingParams(**greedy))])
    assert tokenizer.token_bytes(free.output[0]) == b"ould"
    [request] = serve(engine, [("in the hou", SamplingParams(**greedy, stop=("ou",)))])
    assert (request.text, request.stop_match) == ("ld", "ou"), "of the second token, not of the first"
    [request] = serve(engine, [("in the hou", SamplingParams(**greedy, stop_token_ids=(free.output[0],)))])
    assert (request.output, request.text) == (free.output[:2], "ld")
    assert request.stop_match == free.output[0]


def test_tokens_that_say_the_prompt_again_count_as_output() -> None:
    engine = engine_of()
    greedy = {"temperature": 0, "token_healing": True}
    [request] = serve(engine, [("in the hou", SamplingParams(**greedy, max_tokens=1))])
    assert (request.text, request.output_tokens, request.finish_reason) == ("ld", 1, FinishReason.LENGTH)
    assert request.prompt_tokens == len(builtin_tokenizer().encode("in the hou")) - 1
    [request] = serve(engine, [("in the hou", SamplingParams(**greedy, max_tokens=9, min_tokens=2, stop=("l",)))])
    assert request.text == "ldou", "the first 'l' comes too early to end it"


def test_prompts_too_short_to_heal_are_left_as_they_are() -> None:
    engine = engine_of()
    for prompt in ([1], [40], ""):
        [[request]] = engine.generate([prompt], SamplingParams(max_tokens=2, token_healing=True))
        assert request.error is None
        assert (request.taken_back, request.output_tokens) == ((), 2)
    [[request]] = engine.generate([[]], SamplingParams(max_tokens=2, token_healing=True))
    assert "the prompt is empty" in str(request.error)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"forced_output": (5,)}, "forced_output can't go with token_healing"),
        ({"prompt_logprobs": 0}, "prompt_logprobs can't go with token_healing"),
        ({"max_tokens": 0}, "token_healing with max_tokens=0 heals nothing"),
        ({"token_healing": 1}, "token_healing=1 is not allowed: it must be True or False"),
    ],
)
def test_what_healing_does_not_go_with_is_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SamplingParams(**{"token_healing": True, **params})


def test_an_engine_without_a_tokenizer_refuses(hash_engine: Callable[..., Engine]) -> None:
    engine = hash_engine()
    with pytest.raises(RequestError, match="token_healing needs a tokenizer"):
        engine.add([1, 2], SamplingParams(max_tokens=2, token_healing=True))
    assert not engine.has_work


@pytest.fixture(scope="module", params=["builtin", "tinyllama", "stories"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "builtin":
        return builtin_tokenizer()
    if request.param == "tinyllama":
        data_dir: Path = request.getfixturevalue("data_dir")
        return load_tokenizer(data_dir / "tokenizers" / "tinyllama_tokenizer.json")
    models_dir: Path = request.getfixturevalue("models_dir")
    return load_tokenizer(models_dir / "stories260k")


PIECES = ["the ", " ", "  ", "\n", "http:", "//", "na", "ï", "日", "本", "🙂", "th", "1", "It", "'", '"', "(", "é"]


def test_any_prompt_and_output_are_what_the_tokens_say(tokenizer: Tokenizer) -> None:
    """A model that may say anything, in a real vocabulary: byte tokens, cut characters, spaces at the start."""
    engine = Engine(
        HashExecutor(n_pages=256, page_size=1, vocab_size=tokenizer.vocab_size),
        tokenizer,
        EngineConfig(page_size=1, max_batch_tokens=64, max_running=8),
        eos=tokenizer.eos_token_ids,
    )

    @settings(max_examples=60)
    @given(st.lists(st.sampled_from(PIECES), max_size=5).map("".join), st.booleans(), st.integers(1, 8))
    def holds(prompt: str, shaped: bool, max_tokens: int) -> None:
        grammar = choices(["//é and more", "e", " x"]) if shaped else None
        params = SamplingParams(token_healing=True, max_tokens=max_tokens, grammar=grammar)
        [request] = serve(engine, [(prompt, params)])
        assert_is_law(tokenizer, request, prompt)

    holds()
