"""The language on the real engine (a tiny model on the CPU), and against transformers."""

import os
from pathlib import Path

import pytest

import lang as sgl
from engine.config import EngineConfig
from engine.make import make_engine
from engine.request import RequestError, SamplingParams
from lang.backends.engine import EngineBackend

STORY = "One day the little bear went to the river to look for"


def engine_of(**kwargs):
    return make_engine(EngineConfig(**{"model": "tiny", "pool_tokens": 2048, **kwargs}))


@pytest.fixture(scope="module")
def engine():
    return engine_of()


@pytest.fixture
def backend(engine):
    yield EngineBackend(engine)
    assert not engine.has_work


@sgl.function
def story(s, start, n=1):
    s += start + sgl.gen("more", max_tokens=6, n=n, ignore_eos=True, temperature=0)


@sgl.function
def choose(s, start, choices, method="token_length_normalized"):
    s += start + sgl.select("answer", choices, choices_method=method)


def test_gen_gives_what_the_engine_gives(engine, backend):
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    [[request]] = engine.generate([STORY], params)
    state = story.run(STORY, backend=backend)
    assert state["more"] == request.text
    assert state.text() == STORY + request.text
    meta = state.get_meta_info("more")
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (request.prompt_tokens, 6)
    assert meta["cached_tokens"] == request.prompt_tokens - 1
    assert meta["finish_reason"] == "length"


def test_n_samples(backend):
    state = story.run(STORY, n=3, backend=backend)
    assert len(state["more"]) == 3
    assert state["more"][0] == state["more"][2], "greedy"
    assert state.get_meta_info("more")["finish_reason"] == ["length"] * 3


def test_stop_strings_and_defaults_reach_the_engine(backend):
    first = story.run(STORY, backend=backend)["more"]
    stop = first[2:4]

    @sgl.function
    def program(s):
        s += STORY + sgl.gen("more", stop=stop, ignore_eos=True)

    state = program.run(backend=backend, temperature=0, max_tokens=6)
    assert state["more"] == first[: first.index(stop)]
    assert state.get_meta_info("more")["finish_reason"] == "stop"


def test_select_computes_the_prompt_once(engine, backend):
    prompt = "Where the prompt of a select is concerned, " * 3
    choices = ["honey", "berries and fish", "a fish"]
    state = choose.run(prompt, choices, backend=backend)
    assert state["answer"] in choices
    meta = state.get_meta_info("answer")
    shared = len(engine.tokenizer.encode(prompt)) - 2
    assert meta["cached_tokens"] >= (len(choices) - 1) * shared
    best = max(range(3), key=lambda i: meta["normalized_prompt_logprobs"][i])
    assert state["answer"] == choices[best]


@pytest.mark.parametrize("method", ["greedy_token_selection", "unconditional_likelihood_normalized"])
def test_the_other_methods(backend, method):
    assert choose.run(STORY + " ", ["honey", "fish"], method, backend=backend)["answer"] in ("honey", "fish")


def test_unconditional_scores_the_same_tokens_after_the_first_one_alone(engine, backend):
    start, choice = STORY + " ", "honey"
    runner = sgl.Runner(backend)
    run = runner.start(choose, {"start": start, "choices": [choice], "method": "unconditional_likelihood_normalized"})
    while runner.active:
        runner.step()
    given, alone = run.calls[0].requests
    assert len(given.prompt_logprobs) == len(alone.prompt_logprobs)
    assert (
        [p.token for p in given.prompt_logprobs] == [p.token for p in alone.prompt_logprobs] == alone.key.tolist()[1:]
    )


def test_calls_carry_their_program(backend):
    runner = sgl.Runner(backend)
    run = runner.start(story, {"start": STORY}, name="mine", client="c", namespace="tenant", due=0.25)
    while runner.active:
        runner.step()
    (request,) = run.calls[0].requests
    assert (request.program, request.client, request.namespace, request.arrival) == ("mine", "c", "tenant", 0.25)


def test_what_does_not_fit_is_refused_alone(engine, backend):
    states = story.run_batch([{"start": "x " * 4000}, {"start": STORY}], backend=backend)
    assert isinstance(states[0].error(), RequestError)
    assert states[1].error() is None


def test_a_select_with_one_choice_too_long_queues_nothing(engine, backend):
    with pytest.raises(RequestError):
        choose.run(STORY, ["honey", "x " * 4000], backend=backend)
    assert not engine.has_work


def test_bad_sampling_values_are_refused_where_they_are_used(backend):
    with pytest.raises(RequestError, match="top_p"):
        story.run(STORY, backend=backend, top_p=1.5)


def test_cancelling_frees_the_engine(engine, backend):
    runner = sgl.Runner(backend)
    runs = [runner.start(story, {"start": STORY + str(i)}) for i in range(3)]
    runs.append(runner.start(choose, {"start": STORY, "choices": ["honey", "fish"]}))
    runner.step()
    for run in runs:
        runner.cancel(run)
    assert not engine.has_work
    assert runner.active == 0


def test_requests_that_others_abort_fail_their_call(engine, backend):
    runner = sgl.Runner(backend)
    run = runner.start(story, {"start": STORY})
    for request in run.calls[0].requests:
        engine.abort(request)
    assert runner.step() == [run]
    assert "'more' failed: it was aborted" in str(run.error)


def test_one_order_of_submission_gives_one_result():
    def texts():
        backend = EngineBackend(engine_of())
        states = story.run_batch([{"start": STORY + " x" * i} for i in range(6)], backend=backend)
        return [state.text() for state in states]

    assert texts() == texts()


@pytest.fixture(scope="module")
def stories_folder():
    models = os.environ.get("RADIXLAB_MODELS")
    if not models:
        pytest.skip("RADIXLAB_MODELS isn't set: it names a folder with stories260k/")
    return Path(models) / "stories260k"


@pytest.mark.parametrize(
    ("prompt", "choices"),
    [
        ("Once upon a time, there was a little girl named", [" Lily", " Tom", " the big dog", " Xylophone"]),
        ("The sun was hot and they played in the ", ["park", "park all day", "water", "of"]),
        ("", ["Once", "Upon a time"]),
    ],
)
def test_select_scores_what_transformers_scores(stories_folder, prompt, choices):
    import torch
    from transformers import AutoModelForCausalLM

    engine = engine_of(model=str(stories_folder), pool_tokens=512)
    state = choose.run(prompt, choices, backend=EngineBackend(engine))
    model = AutoModelForCausalLM.from_pretrained(stories_folder, dtype=torch.float32)
    alone = engine.tokenizer.encode(prompt)
    joined = [engine.tokenizer.encode(prompt + choice) for choice in choices]
    start = min(next((i for i, (a, b) in enumerate(zip(alone, tokens)) if a != b), len(alone)) for tokens in joined)
    expected = []
    for tokens in joined:
        with torch.inference_mode():
            logprobs = model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)
        expected.append([logprobs[i - 1, tokens[i]].item() for i in range(start, len(tokens))])
    meta = state.get_meta_info("answer")
    for ours, theirs in zip(meta["input_token_logprobs"], expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    means = [sum(values) / len(values) for values in expected]
    assert state["answer"] == choices[means.index(max(means))]
