"""Jump-forward never changes an answer of a real model, nor does anything else about how it is served."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import jsonschema
import pytest

from engine import Engine, EngineConfig, SamplingParams, make_engine
from engine.constraints import Grammar, choices, json_schema, regex
from engine.replay import first_difference, replay
from engine.request import FinishReason, Request
from engine.tokenizer import builtin_tokenizer
from tests.engine.gpu_twins import SMALL, cpu_executor, cuda_executor, twins

WIZARD = (
    r'\{\n    "name": "[A-Z][a-z]{1,8}",\n    "house": "(Gryffindor|Slytherin|Ravenclaw|Hufflepuff)",\n'
    r'    "wand": \{\n        "length": [0-9]{1,2}\.[0-9]{0,2}\n    \}\n\}'
)
CITY = {
    "type": "object",
    "properties": {
        "country": {"enum": ["France", "Peru", "Japan"]},
        "population": {"type": "integer", "minimum": 0, "maximum": 99_999_999},
        "capital": {"type": "boolean"},
    },
    "required": ["country", "population", "capital"],
    "additionalProperties": False,
}
END = 2
PROMPTS = ["Harry Potter is a character", "Harry Potter is a wizard", "Paris is a city in", "The"]
WANTED: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 1.3, "top_p": 0.95, "seed": 5},
    "two samples": {"n": 2, "seed": 7},
    "log-probabilities": {"temperature": 0, "logprobs": 2},
    "penalties": {"temperature": 0.8, "frequency_penalty": 0.6, "repetition_penalty": 1.3, "seed": 9},
    "stop string": {"temperature": 0, "stop": ('": "G', '": "H', '": "S', '": "R', "tion")},
    "stop string and log-probabilities": {"temperature": 0, "stop": ('se": ', '"capi'), "logprobs": 0},
    "stop tokens": {"temperature": 0, "stop_token_ids": tuple(range(40, 60))},
    "cut": {"temperature": 0, "max_tokens": 19},
    "cut where all is forced": {"temperature": 0, "max_tokens": 3},
}
SERVED: dict[str, dict[str, Any]] = {
    "at once": {},
    "without a cache": {"cache": "none"},
    "flat cache, pages of 4": {"cache": "flat", "page_size": 4},
    "chunks of 7": {"max_batch_tokens": 7, "max_running": 7},
    "a pool that preempts": {"pool_tokens": 160, "predicted_output": 1},
}


def grammars(backend: str) -> list[Grammar]:
    some = [regex(WIZARD), choices(["Gryffindor", "Slytherin", "Slytherin and more"])]
    return some if backend == "fsm" else [*some, json_schema(CITY)]


def engine_for(backend: str, **config: Any) -> Engine:
    if backend == "xgrammar":
        pytest.importorskip("xgrammar")
    settings = {"model": "tiny", "dtype": "float64", "pool_tokens": 4096, "grammar_backend": backend, **config}
    return make_engine(EngineConfig(device="cpu", **settings))


def jobs(backend: str) -> list[tuple[str, SamplingParams]]:
    return [
        (PROMPTS[i % len(PROMPTS)], SamplingParams(**{"max_tokens": 120, **wanted, "grammar": grammar}))
        for i, wanted in enumerate(WANTED.values())
        for grammar in grammars(backend)
    ]


def serve(engine: Engine, work: Sequence[tuple[str, SamplingParams]], **tags: Any) -> list[Request]:
    """All at once, checked after every step; each one's samples in order."""
    requests = [request for prompt, params in work for request in engine.add(prompt, params, **tags)]
    while engine.has_work:
        engine.step()
        engine.check()
    return requests


@cache
def one_by_one(backend: str) -> list[Request]:
    """Each job alone, every token decoded."""
    engine = engine_for(backend, jump_forward=False, cache="none")
    return [request for job in jobs(backend) for request in serve(engine, [job])]


def assert_same(requests: Sequence[Request], wanted: Sequence[Request], tolerance: float = 1e-9) -> None:
    for request, other in zip(requests, wanted, strict=True):
        assert request.error is None
        assert request.output == other.output
        assert request.text == other.text
        assert (request.finish_reason, request.stop_match) == (other.finish_reason, other.stop_match)
        assert len(request.token_times) == request.output_tokens
        assert [lp.token for lp in request.logprobs] == [lp.token for lp in other.logprobs]
        assert [lp.logprob for lp in request.logprobs] == pytest.approx(
            [lp.logprob for lp in other.logprobs], abs=tolerance
        )
        for mine, theirs in zip(request.logprobs, other.logprobs, strict=True):
            assert [token for token, _ in mine.top] == [token for token, _ in theirs.top]


@pytest.mark.parametrize("backend", ["llguidance", "xgrammar", "fsm"])
def test_outputs_match_their_grammars_and_end_with_them(backend: str) -> None:
    reasons = set()
    for request in one_by_one(backend):
        grammar = request.params.grammar
        assert grammar is not None
        reasons.add(request.finish_reason)
        assert request.error is None
        if request.finish_reason is FinishReason.LENGTH:
            assert request.output_tokens == request.params.max_tokens
        elif request.stop_match in (None, END):
            if grammar.kind == "regex":
                assert re.fullmatch(WIZARD, request.text)
            elif grammar.kind == "choice":
                assert request.text in json.loads(grammar.text)
            else:
                jsonschema.validate(json.loads(request.text), CITY)
        if request.params.logprobs is not None:
            assert [lp.token for lp in request.logprobs] == request.output
    assert reasons == {FinishReason.STOP, FinishReason.LENGTH}
    assert any(isinstance(request.stop_match, str) for request in one_by_one(backend))


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlapped"])
@pytest.mark.parametrize("jump_forward", [True, False], ids=["jump-forward", "decoded"])
@pytest.mark.parametrize("name", SERVED)
def test_answers_are_the_same_however_they_are_served(name: str, jump_forward: bool, overlap: bool) -> None:
    config = {**SERVED[name], "jump_forward": jump_forward, "overlap": overlap}
    predicted = config.pop("predicted_output", None)
    engine = engine_for("llguidance", **config)
    for _ in ("cold", "warm"):
        assert_same(serve(engine, jobs("llguidance"), predicted_output=predicted), one_by_one("llguidance"))
    assert (engine.metrics.preemptions > 0) == ("preempts" in name)
    assert (engine.constraints.counts.passes_saved > 0) == jump_forward


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlapped"])
@pytest.mark.parametrize("backend", ["xgrammar", "fsm"])
def test_every_backend_gives_the_same_answers_with_jump_forward(backend: str, overlap: bool) -> None:
    engine = engine_for(backend, overlap=overlap, max_batch_tokens=16, max_running=6)
    assert_same(serve(engine, jobs(backend)), one_by_one(backend))


def test_our_own_machine_and_llguidance_give_the_same_answers_to_a_regex() -> None:
    work = [(prompt, SamplingParams(max_tokens=120, temperature=0, grammar=regex(WIZARD))) for prompt in PROMPTS]
    texts = [[request.text for request in serve(engine_for(backend), work)] for backend in ("llguidance", "fsm")]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlapped"])
def test_what_is_counted_of_a_request_adds_up(overlap: bool) -> None:
    engine = engine_for("llguidance", overlap=overlap)
    requests = serve(engine, jobs("llguidance"))
    chosen = 0
    for request in requests:
        constraint = request.constraint
        assert constraint is not None
        chosen += request.output_tokens - constraint.forced_tokens
        assert 0 <= constraint.passes_saved <= constraint.forced_tokens <= request.output_tokens
        assert constraint.compile_s >= 0
    counts = engine.constraints.counts
    of_all = [request.constraint for request in requests if request.constraint is not None]
    assert counts.requests == len(requests)
    assert counts.masks == chosen, "each token that isn't forced takes one mask"
    assert 0 < counts.passes_saved < counts.forced_tokens
    assert counts.mask_s == pytest.approx(sum(constraint.mask_s for constraint in of_all))
    assert counts.forced_tokens == sum(constraint.forced_tokens for constraint in of_all)
    assert counts.passes_saved == sum(constraint.passes_saved for constraint in of_all)
    assert counts.compiled == len(grammars("llguidance")), "a grammar that many share is compiled once"
    assert sum(constraint.compile_s > 0 for constraint in of_all) == counts.compiled


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlapped"])
@pytest.mark.parametrize("jump_forward", [True, False], ids=["jump-forward", "decoded"])
def test_a_constrained_run_replays_without_model_tokenizer_or_grammar(jump_forward: bool, overlap: bool) -> None:
    engine = engine_for(
        "llguidance", jump_forward=jump_forward, overlap=overlap, pool_tokens=200, max_batch_tokens=32, max_running=6
    )
    for _ in range(2):
        serve(engine, jobs("llguidance"))
    kinds = {kind for _, kind, *_ in engine.log.decisions()}
    assert {"admit", "row", "insert", "evict", "finish"} <= kinds
    assert first_difference(engine.log, replay(engine.log)) is None


@pytest.mark.parametrize(("jump_forward", "overlap"), [(True, False), (True, True), (False, True)])
def test_the_cuda_executor_gives_the_answers_of_the_cpu(jump_forward: bool, overlap: bool) -> None:
    """Constrained rows, rows that go on in forced tokens and a row without a grammar, side by side."""
    tokenizer = builtin_tokenizer()
    pair = twins(replace(SMALL, vocab_size=tokenizer.vocab_size, n_layers=1))
    size = regex(r'\{"size": "(small|medium|large)", "n": [0-9]{2}\}')
    work = [
        (PROMPTS[0], SamplingParams(max_tokens=40, temperature=0, grammar=size)),
        (PROMPTS[1], SamplingParams(max_tokens=40, temperature=0.7, seed=3, grammar=size)),
        (PROMPTS[3], SamplingParams(max_tokens=9, temperature=0, ignore_eos=True)),
        (PROMPTS[3], SamplingParams(max_tokens=40, temperature=0, logprobs=1, grammar=size)),
    ]
    answers = []
    for executor, config in (
        (cuda_executor(pair.gpu), {"jump_forward": jump_forward, "overlap": overlap}),
        (cpu_executor(pair.cpu), {"jump_forward": False, "overlap": False}),
    ):
        settings = EngineConfig(max_batch_tokens=64, max_running=8, page_size=executor.page_size, **config)
        answers.append(serve(Engine(executor, tokenizer, settings, eos=(END,)), work))
    assert_same(*answers, tolerance=1e-4)
    assert all(r.finish_reason is FinishReason.STOP for r in answers[0] if r.params.grammar is not None)
