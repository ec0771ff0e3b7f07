"""The cache never changes an answer. Truth is transformers' greedy search in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import Engine, EngineConfig, SamplingParams, make_engine
from engine.replay import first_difference, replay

STORIES = [
    "Once upon a time, there was a little girl named Lily. She loved to",
    "Once upon a time, there was a little girl named Lily. She had a",
    "Once upon a time, there was a big dog. The dog",
    "Once upon a time, there was a big dog. The dog ran to the",
    "Tom and Sam",
    "Once",
]
NEW = 24

CONFIGS: dict[str, dict[str, Any]] = {
    "cache off": {"cache": "none"},
    "radix": {},
    "flat": {"cache": "flat"},
    "pages of 4": {"page_size": 4},
    "pages of 16, small chunks": {"page_size": 16, "max_batch_tokens": 8, "max_running": 4},
    "one at a time": {"max_running": 1},
    "chunks of 5": {"max_batch_tokens": 5, "max_running": 5},
    "a pool that evicts": {"pool_tokens": 110, "schedule": "fcfs", "eviction": "random", "predicted_output": NEW},
    "a pool that preempts": {"pool_tokens": 96, "predicted_output": 1},
    "pages of 4, a pool that preempts": {"pool_tokens": 96, "page_size": 4, "predicted_output": 1},
}


@pytest.fixture(scope="module")
def story_model(models_dir: Path) -> str:
    return str(models_dir / "stories260k")


@pytest.fixture(scope="module")
def truth(story_model: str) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(story_model, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(story_model)
    answers = []
    for story in STORIES:
        ids = tokenizer(story, return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
        answers.append(out[0, ids.shape[1] :].tolist())
    return answers


def engine_for(model: str, **config: Any) -> Engine:
    return make_engine(EngineConfig(**{"model": model, "dtype": "float64", "pool_tokens": 2048, **config}))


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlapped"])
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_transformers(
    story_model: str, truth: list[list[int]], name: str, overlap: bool
) -> None:
    config = {**CONFIGS[name], "overlap": overlap}
    predicted = config.pop("predicted_output", None)
    engine = engine_for(story_model, **config)
    params = SamplingParams(max_tokens=NEW, temperature=0, ignore_eos=True)
    for warmth in ("cold", "warm"):
        requests = [engine.add(story, params, predicted_output=predicted)[0] for story in STORIES]
        while engine.has_work:
            engine.step()
            engine.check()
        assert [request.output for request in requests] == truth, warmth
        if warmth == "warm" and name != "cache off" and "pool" not in name:
            assert all(request.n_cached > 0 for request in requests if request.prompt_tokens > 16)
    if "pool" in name:
        assert engine.metrics.evicted_tokens > 0
    assert (engine.metrics.preemptions > 0) == ("preempts" in name)


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlapped"])
@pytest.mark.parametrize("cache", ["radix", "none"])
def test_a_seed_gives_the_same_sample_whatever_runs_beside_it(story_model: str, cache: str, overlap: bool) -> None:
    params = [
        SamplingParams(max_tokens=NEW, temperature=1.2, top_p=0.9, frequency_penalty=0.5, seed=i)
        for i in range(len(STORIES))
    ]
    alone = []
    for story, wanted in zip(STORIES, params):
        ((request,),) = engine_for(story_model).generate([story], wanted)
        alone.append(request.output)
    engine = engine_for(story_model, cache=cache, max_batch_tokens=16, max_running=8, overlap=overlap)
    together = engine.generate(STORIES, params)
    assert [request.output for (request,) in together] == alone


def test_the_known_story(story_model: str) -> None:
    expected = (Path(story_model) / "expected_greedy.txt").read_text()
    ((request,),) = make_engine(EngineConfig(model=story_model, pool_tokens=512)).generate(
        [[1]], SamplingParams(max_tokens=199, temperature=0)
    )
    assert request.text.strip() == expected.strip()


def test_stop_strings_cut_exactly_across_token_borders(story_model: str) -> None:
    engine = engine_for(story_model)
    greedy = SamplingParams(max_tokens=60, temperature=0)
    ((whole,),) = engine.generate([STORIES[0]], greedy)
    stop = whole.text[17:26]
    cut = SamplingParams(max_tokens=60, temperature=0, stop=(stop,))
    ((request,),) = engine.generate([STORIES[0]], cut)
    assert request.text == whole.text[: whole.text.index(stop)]
    assert request.stop_match == stop
    assert request.output_tokens < whole.output_tokens


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlapped"])
@pytest.mark.parametrize("schedule", ["fcfs", "cache_aware", "lof"])
@pytest.mark.parametrize("eviction", ["lru", "lfu", "random"])
def test_a_run_of_a_real_model_replays_without_it(
    story_model: str, schedule: str, eviction: str, overlap: bool
) -> None:
    engine = engine_for(
        story_model, pool_tokens=128, schedule=schedule, eviction=eviction, dtype="float32", overlap=overlap
    )
    for i in range(4):
        for story in STORIES:
            engine.add(story, SamplingParams(max_tokens=20, stop=("Lily", "."), seed=i), predicted_output=4)
    engine.run()
    kinds = {kind for _, kind, *_ in engine.log.decisions()}
    assert {"admit", "row", "insert", "evict", "finish"} <= kinds
    assert first_difference(engine.log, replay(engine.log)) is None


def test_scores_are_the_log_probabilities_of_transformers(story_model: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(story_model, dtype=torch.float64)
    engine = engine_for(story_model, max_batch_tokens=16, max_running=8)
    assert engine.tokenizer is not None
    prompt = engine.tokenizer.encode(STORIES[0])
    choices = [
        engine.tokenizer.encode(text, add_special_tokens=False) for text in ("play.", "the park with a dog", "x")
    ]
    for choice, scores in zip(choices, engine.score(prompt, choices)):
        logits = model(torch.tensor([prompt + choice])).logits[0].log_softmax(-1)
        at = range(len(prompt) - 1, len(prompt) + len(choice) - 1)
        expected = [logits[i, token].item() for i, token in zip(at, choice)]
        assert [score.token for score in scores] == choice
        assert [score.logprob for score in scores] == pytest.approx(
            expected, abs=1e-6
        )  # transformers keeps rotary tables in float32
