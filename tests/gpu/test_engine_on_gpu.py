"""The engine on a GPU: its graphs, its loops and its quantised pools give the answers that plain execution gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from engine.executor.base import Batch
from engine.request import SamplingParams, Tokens

if TYPE_CHECKING:
    from tests.gpu.conftest import Server

pytestmark = pytest.mark.gpu


def ragged(vocabulary: int, lengths: list[int], seed: int = 0) -> list[Tokens]:
    rng = np.random.default_rng(seed)
    return [rng.integers(5, vocabulary, n) for n in lengths]


@pytest.fixture(scope="module")
def prompts(server: Server, real: bool) -> list[Tokens]:
    return ragged(server.shape.vocab_size, [1, 7, 64, 129, 300, 513, 40, 41, 42] if real else [1, 5])


@pytest.fixture(scope="module")
def new_tokens(real: bool) -> int:
    return 24 if real else 2


def test_graphs_give_the_bits_of_plain_launches(server: Server, prompts: list[Tokens], new_tokens: int) -> None:
    """In deterministic mode: else a graph's padding may change how a library's product rounds."""
    graphs, eager = (
        server.serve(prompts, new_tokens, cuda_graphs=cuda_graphs, deterministic=True) for cuda_graphs in (True, False)
    )
    assert graphs.answers == eager.answers


def test_graphs_serve_batches_of_every_size(server: Server, prompts: list[Tokens]) -> None:
    """Requests that end one after another take the batch down through all sizes of the ladder."""
    lengths = range(2, 2 + len(prompts))
    engine = server.engine(dtype="float32", cuda_graphs=True)
    alone = [server.serve([prompt], n, engine=engine).answers[0] for prompt, n in zip(prompts, lengths, strict=True)]
    engine.flush_cache()
    requests = []
    for prompt, n in zip(prompts, lengths, strict=True):
        requests += engine.add(prompt, SamplingParams(max_tokens=n, temperature=0.0, ignore_eos=True))
    engine.run()
    equal = [list(request.output) == answer.tokens for request, answer in zip(requests, alone, strict=True)]
    assert sum(equal) >= len(prompts) - 1, "in float32 a near-tie between a batch and alone is rare"


@pytest.mark.parametrize("deterministic", [False, True])
def test_overlapped_loop_gives_the_tokens_of_the_plain_one(
    server: Server, prompts: list[Tokens], new_tokens: int, deterministic: bool
) -> None:
    drawn = {"temperature": 0.8, "top_p": 0.95, "seed": 11, "repetition_penalty": 1.1}
    for params in ({}, drawn) if not deterministic else (drawn,):
        both = [
            server.serve(prompts, new_tokens, overlap=overlap, deterministic=deterministic, params=params)
            for overlap in (False, True)
        ]
        assert [answer.tokens for answer in both[0].answers] == [answer.tokens for answer in both[1].answers]


def test_deterministic_bits_dont_depend_on_batch_chunking_or_cache(
    server: Server, prompts: list[Tokens], new_tokens: int, real: bool
) -> None:
    reference = server.serve(prompts, new_tokens, deterministic=True, cache="none").answers
    least = 64 if real else 3
    eager = server.engine(deterministic=True, cache="none", cuda_graphs=False)
    alone = [server.serve([prompt], new_tokens, engine=eager).answers[0] for prompt in prompts]
    assert alone == reference, "alone and without graphs"
    chunked = server.serve(
        prompts, new_tokens, deterministic=True, cache="none", max_batch_tokens=least, max_running=least
    )
    assert chunked.answers == reference, "in chunks"
    engine = server.engine(deterministic=True, cache="radix")
    assert server.serve(prompts, new_tokens, engine=engine).answers == reference, "cold cache"
    warm = server.serve(prompts, new_tokens, engine=engine)
    assert warm.answers == reference, "warm cache"
    assert sum(request.n_cached for request in warm.requests) > 0


def test_branches_of_a_shared_prefix_answer_as_they_do_alone(server: Server, real: bool, new_tokens: int) -> None:
    """The prefix is read once for all of them where that pays; the tokens are those of requests served alone."""
    prefix, n = (1500, 24) if real else (6, 2)
    rng = np.random.default_rng(3)
    shared = rng.integers(5, server.shape.vocab_size, prefix)
    prompts = [np.concatenate([shared, rng.integers(5, server.shape.vocab_size, 2)]) for _ in range(n)]
    together = server.serve(prompts, new_tokens, dtype="float32")
    engine = server.engine(dtype="float32", cache="none")
    alone = [server.serve([prompt], new_tokens, engine=engine).answers[0] for prompt in prompts]
    assert sum(request.n_cached for request in together.requests) > 0
    for a, b in zip(together.answers, alone, strict=True):
        first = next((i for i, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=True)) if x != y), None)
        same = len(a.tokens) if first is None else first
        assert np.allclose(a.logprobs[:same], b.logprobs[:same], atol=1e-3)
        if first is not None:
            assert abs(a.logprobs[first] - b.logprobs[first]) < 1e-3, "outputs part, and not at a near-tie"


@pytest.mark.parametrize("kind", ["int8", "fp8_e4m3"])
def test_a_quantised_pool_changes_logits_a_little(server: Server, prompts: list[Tokens], real: bool, kind: str) -> None:
    if real and kind == "fp8_e4m3" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no float8 on this GPU")
    plain = server.serve(prompts, 1, kv_dtype="auto")
    quantised = server.serve(prompts, 1, kv_dtype=kind)
    scored = {"prompt_logprobs": 0}
    differ = [abs(a.logprobs[0] - b.logprobs[0]) for a, b in zip(plain.answers, quantised.answers, strict=True)]
    assert max(differ) < 0.25
    assert any(differ), "nothing changed at all: is the pool quantised?"
    same = [server.serve(prompts[-1:], 1, kv_dtype=kind, params=scored).requests[0].prompt_logprobs for _ in range(2)]
    assert same[0] == same[1]


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_weights_in_8_bits_change_logits_a_little(server: Server, prompts: list[Tokens], real: bool, kind: str) -> None:
    if real and kind == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no float8 on this GPU")
    plain = server.serve(prompts, 1)
    quantised = server.serve(prompts, 1, weights=kind)
    differ = [abs(a.logprobs[0] - b.logprobs[0]) for a, b in zip(plain.answers, quantised.answers, strict=True)]
    assert max(differ) < 0.25
    assert any(differ), "nothing changed at all: are the weights quantised?"


def test_weights_in_8_bits_give_the_same_bits_in_deterministic_mode(
    server: Server, prompts: list[Tokens], new_tokens: int
) -> None:
    settings = {"weights": "int8", "deterministic": True, "cache": "none"}
    together = server.serve(prompts, new_tokens, **settings).answers
    engine = server.engine(**settings)
    assert [server.serve([prompt], new_tokens, engine=engine).answers[0] for prompt in prompts] == together


class NoWaiting:
    """An executor in whose `launch` and `sample` nothing may wait for the device."""

    def __init__(self, executor: Any) -> None:
        self._executor = executor

    def launch(self, batch: Batch) -> Any:
        return self._watched(self._executor.launch, batch)

    def sample(self, pending: Any, masks: Any) -> Any:
        return self._watched(self._executor.sample, pending, masks)

    def _watched(self, call: Any, *args: Any) -> Any:
        if not torch.cuda.is_available():
            return call(*args)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return call(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_launch_and_sample_never_wait_for_the_device(
    server: Server, prompts: list[Tokens], new_tokens: int, cuda_graphs: bool
) -> None:
    warm = server.serve(prompts, new_tokens, cuda_graphs=cuda_graphs)
    engine = server.engine(NoWaiting, overlap=True, cuda_graphs=cuda_graphs)
    watched = server.serve(prompts, new_tokens, engine=engine)
    assert [answer.tokens for answer in watched.answers] == [answer.tokens for answer in warm.answers]


def test_too_little_memory_for_a_step_makes_it_smaller(server: Server, real: bool) -> None:
    if not real:
        pytest.skip("the CPU's memory isn't filled up for a test")
    prompts = ragged(server.shape.vocab_size, [1000] * 8, seed=4)
    engine = server.engine(dtype="float32", max_batch_tokens=8192, cuda_graphs=False)
    expected = server.serve(prompts, 4, engine=engine)
    engine.flush_cache()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    ballast = torch.empty(max(0, free - (48 << 20)), dtype=torch.uint8, device="cuda")
    try:
        found = server.serve(prompts, 4, engine=engine)
    finally:
        del ballast
        torch.cuda.empty_cache()
    assert engine.executor.max_tokens is not None, "the memory was enough after all: nothing was tested"
    equal = sum(a.tokens == b.tokens for a, b in zip(expected.answers, found.answers, strict=True))
    assert equal >= 7, "smaller products round otherwise: a near-tie may fall the other way"


def test_greedy_tokens_are_those_of_the_cpu(server: Server, real: bool) -> None:
    from experiments.bench.gpu.differential import NEAR_TIE, CpuReference, gpu_outputs, ragged

    n, longest, tokens = (8, 150, 24) if real else (2, 5, 2)
    given = ragged(n, longest, server.shape.vocab_size)
    reference = CpuReference(server.shape, given, tokens)
    for dtype, near_tie in NEAR_TIE.items():
        found = reference.compare(gpu_outputs(server.shape, given, tokens, dtype, server.device))
        assert found.wrong(near_tie) == []
        assert found.tokens > n
