"""The CUDA executor against the CPU's: on a GPU where there is one, else with interpreted kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.executor.base import PrefixGroup
from engine.executor.cuda import CudaExecutor
from engine.executor.gpu_memory import LEAST_TOKENS
from engine.models.llama_gpu import LlamaGpu
from engine.request import PENDING, Request, SamplingParams, Status
from engine.splices import concatenated
from tests.engine.gpu_twins import DEVICE, SMALL, Driver, Twins, cpu_executor, cuda_executor, engine, gpu_model
from tests.engine.gpu_twins import prompt as random_prompt
from tests.engine.gpu_twins import twins as make_twins

GREEDY = SamplingParams(max_tokens=3, temperature=0.0, logprobs=2)
ONE_LAYER = replace(SMALL, n_layers=1)


@pytest.fixture(scope="module")
def twins() -> Twins:
    return make_twins()


@pytest.fixture(scope="module", params=[None, "int8"], ids=["16 or 32 bits", "8 bits"])
def deterministic(request: pytest.FixtureRequest) -> LlamaGpu:
    return gpu_model(ONE_LAYER, deterministic=True, kind=request.param)


def branching() -> list[list[int]]:
    """Three prompts after one prefix, and one alone."""
    shared = random_prompt(34, 0)
    return [*(shared + random_prompt(n, n) for n in (3, 5, 9)), random_prompt(7, 1)]


def served(executor: Any, prompts: Sequence[Sequence[int]], params: SamplingParams, **settings: Any) -> list[Request]:
    made = engine(executor, **settings)
    found = [request for (request,) in made.generate(prompts, params)]
    assert [request.error for request in found] == [None] * len(prompts)
    return found


def assert_same(found: Sequence[Request], expected: Sequence[Request], tolerance: float = 1e-4) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert list(ours.output) == list(theirs.output)
        for scores in ("logprobs", "prompt_logprobs"):
            for a, b in zip(getattr(ours, scores), getattr(theirs, scores), strict=True):
                assert a.token == b.token
                assert a.logprob == pytest.approx(b.logprob, abs=tolerance)
                assert [token for token, _ in a.top] == [token for token, _ in b.top]


@pytest.mark.parametrize(
    ("page_size", "settings"),
    [
        (1, {"overlap": False}),
        (1, {"overlap": True, "max_batch_tokens": 17}),
        (16, {"overlap": True}),
        (16, {"overlap": False, "cache": "none"}),
    ],
)
def test_the_engine_gives_the_cpus_answers(twins: Twins, page_size: int, settings: dict[str, Any]) -> None:
    n_pages = 320 // page_size
    expected = served(cpu_executor(twins.cpu, n_pages=n_pages, page_size=page_size), branching(), GREEDY, **settings)
    found = served(cuda_executor(twins.gpu, n_pages=n_pages, page_size=page_size), branching(), GREEDY, **settings)
    assert_same(found, expected)


@pytest.mark.parametrize(("page_size", "settings"), [(1, {"overlap": True}), (16, {"cache": "none"})])
def test_joined_branches_give_the_cpus_answers(twins: Twins, page_size: int, settings: dict[str, Any]) -> None:
    base = random_prompt(21, 0)
    tokens, splices = concatenated(base, [random_prompt(n, n) for n in (6, 9, 4)], random_prompt(3, 1))
    answers = []
    for executor in (
        cuda_executor(twins.gpu, n_pages=320 // page_size, page_size=page_size),
        cpu_executor(twins.cpu, n_pages=320 // page_size, page_size=page_size),
    ):
        made = engine(executor, **settings)
        requests = made.add(tokens, GREEDY, splices=splices)
        made.run()
        made.check()
        answers.append(requests)
    assert_same(*answers)


@pytest.mark.parametrize("kv_dtype", ["int8", "fp8_e4m3"])
def test_joined_branches_in_a_quantised_pool_are_close(twins: Twins, kv_dtype: str) -> None:
    tokens, splices = concatenated(random_prompt(13, 0), [random_prompt(n, n) for n in (6, 9)], random_prompt(3, 1))
    answers = []
    for settings in ({}, {"kv_dtype": kv_dtype}):
        made = engine(cuda_executor(twins.gpu, **settings))
        requests = made.add(tokens, replace(GREEDY, max_tokens=1), splices=splices)
        made.run()
        answers.append(requests[0])
    exact, close = answers
    assert close.logprobs[0].logprob == pytest.approx(exact.logprobs[0].logprob, abs=0.3)


def test_padded_decodes_give_the_same_answers(twins: Twins) -> None:
    """Batches of 4, 3, ... rows run as 4, 4, 2, 1 over the static buffers of the graphs."""
    lengths = [SamplingParams(max_tokens=n, temperature=0.0, logprobs=0) for n in (2, 4, 3, 1)]
    answers = []
    for overlap in (False, True):
        executor = cuda_executor(twins.gpu, max_running=4, cuda_graphs=True)
        assert executor.graphs is not None
        found = engine(executor, overlap=overlap, max_running=4).generate(branching(), lengths)
        answers.append([request for (request,) in found])
    expected = engine(cpu_executor(twins.cpu), max_running=4).generate(branching(), lengths)
    for found in answers:
        assert_same(found, [request for (request,) in expected])


def test_sampled_answers_are_those_of_the_cpu(twins: Twins) -> None:
    params = SamplingParams(
        max_tokens=3, temperature=0.8, top_p=0.9, top_k=50, repetition_penalty=1.2, frequency_penalty=0.3, seed=5, n=2
    )
    prompts = [random_prompt(9, 3), random_prompt(4, 4)]
    answers = [
        [list(r.output) for each in engine(executor, overlap=True).generate(prompts, params) for r in each]
        for executor in (cpu_executor(twins.cpu), cuda_executor(twins.gpu))
    ]
    assert answers[0] == answers[1]


def test_prompts_are_scored_like_on_the_cpu(twins: Twins) -> None:
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=2, prompt_logprobs_start=5)
    prompts = [random_prompt(23, 1), random_prompt(23, 1)[:11] + random_prompt(6, 2), random_prompt(6, 3)]
    settings = {"max_batch_tokens": 13, "overlap": True}
    expected = served(cpu_executor(twins.cpu), prompts, params, **settings)
    assert_same(served(cuda_executor(twins.gpu), prompts, params, **settings), expected)
    assert [len(request.prompt_logprobs) for request in expected] == [18, 12, 1]


def test_a_request_that_ended_meanwhile_gets_no_token(twins: Twins) -> None:
    for executor in (cuda_executor(twins.gpu), cpu_executor(twins.cpu)):
        driver = Driver(executor)  # type: ignore[arg-type]
        a, b = (driver.request(random_prompt(6, i), room=2) for i in range(2))
        pending = driver.launch([(a, 0, 6), (b, 0, 6)])
        a.status = Status.FINISHED
        result = executor.collect(executor.sample(pending, None))
        assert result.tokens[0] is None
        assert result.tokens[1] is not None
        b.status = Status.FINISHED
        assert executor.collect(executor.sample(driver.launch([(b, 0, 6)]), None)).tokens == (None,)


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_step_goes_on_from_tokens_that_nobody_has_collected(twins: Twins, cuda_graphs: bool) -> None:
    driver = Driver(cuda_executor(twins.gpu, max_running=2, cuda_graphs=cuda_graphs))
    a, b = (driver.request(random_prompt(6, i), room=3) for i in range(2))
    first = driver.executor.sample(driver.launch([(a, 0, 6), (b, 0, 6)]))
    for request in (a, b):
        request.append(PENDING)
        request.n_pending = 1
    second = driver.launch([(b, 6, 7), (a, 6, 7)])
    found = driver.executor.collect(first).tokens
    for request, token in zip((a, b), found):
        assert token is not None
        request.tokens[6], request.n_pending = token, 0
    after = driver.executor.collect(driver.executor.sample(second)).tokens
    again = Driver(cuda_executor(twins.gpu), seed=1)
    whole = [again.request(request.tokens[:7].tolist(), room=1) for request in (b, a)]
    assert again.step(*((request, 0, 7) for request in whole)).tokens == after


def test_rows_read_pages_that_others_write_in_the_same_step(twins: Twins) -> None:
    shared = random_prompt(32, 2)
    for page_size in (1, 16):
        driver = Driver(cuda_executor(twins.gpu, n_pages=320 // page_size, page_size=page_size))
        first = driver.request(shared + random_prompt(5, 5))
        second = driver.request(shared + random_prompt(9, 9), shares=(first, 32))
        alone = Driver(cuda_executor(twins.gpu, n_pages=100))
        expected = [alone.logits([(alone.request(r.key.tolist()), 0, r.n_tokens)])[0] for r in (second, first)]
        for groups in ([], [PrefixGroup((0, 1), 32)]):
            found = driver.logits(
                [(second, 32, 41), (first, 0, 37)] if not groups else [(second, 32, 41), (first, 32, 37)], groups
            )
            for ours, theirs in zip(found, expected, strict=True):
                assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_shared_prefixes_are_read_once_where_it_pays(
    twins: Twins, cuda_graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sharing is made to pay at once; a row outside the group and rows of several tokens are in the same batch."""
    monkeypatch.setattr("engine.executor.gpu_attention.pays", lambda n, *_, **__: n > 1)
    used = []
    from engine.executor import gpu_attention

    kernel = gpu_attention.attention_shared_prefix
    monkeypatch.setattr(gpu_attention, "attention_shared_prefix", lambda *a, **k: used.append(a) or kernel(*a, **k))
    driver = Driver(cuda_executor(twins.gpu, max_running=8, cuda_graphs=cuda_graphs))
    shared = random_prompt(40, 6)
    first = driver.request(shared + random_prompt(3, 1))
    members = [first, *(driver.request(shared + random_prompt(n, n), shares=(first, 40)) for n in (4, 6, 3))]
    lone = driver.request(random_prompt(25, 8))
    driver.logits([(first, 0, 40), (lone, 0, 10)])
    used.clear()
    for spans, groups in (
        ([*((r, 40, 42) for r in members), (lone, 10, 24)], [PrefixGroup((0, 1, 2, 3), 40)]),
        ([(lone, 24, 25), *((r, 42, 43) for r in members)], [PrefixGroup((1, 3), 40), PrefixGroup((2, 4), 40)]),
    ):
        plain = driver.logits(spans)
        assert not used
        sharing = driver.logits(spans, groups)
        assert used
        used.clear()
        for a, b in zip(plain, sharing, strict=True):
            assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(("kv_dtype", "tolerance"), [("int8", 0.05), ("fp8_e4m3", 0.15)])
@pytest.mark.parametrize("page_size", [1, 16])
def test_a_quantised_pool_stays_close(twins: Twins, kv_dtype: str, tolerance: float, page_size: int) -> None:
    n_pages, tokens = 64 // page_size, random_prompt(30, 4)
    found = []
    for kind in ("auto", kv_dtype):
        driver = Driver(cuda_executor(twins.gpu, n_pages=n_pages, page_size=page_size, kv_dtype=kind))
        request = driver.request(tokens)
        driver.logits([(request, 0, 17)])
        found += driver.logits([(request, 17, 30)])
    error = (found[1] - found[0]).norm() / found[0].norm()
    assert 0 < error < tolerance


def test_deterministic_logits_have_the_same_bits_whatever_is_beside_them(deterministic: LlamaGpu) -> None:
    tokens, others = random_prompt(40, 1), [random_prompt(n, n) for n in (40, 21, 9)]
    found = []
    for page_size, cuts in ((1, (40,)), (16, (13, 26, 1)), (1, (39, 1))):
        for company in (0, 3):
            driver = Driver(cuda_executor(deterministic, n_pages=320 // page_size, page_size=page_size))
            request = driver.request(tokens)
            beside = [driver.request(other) for other in others[:company]]
            start = 0
            for cut in cuts:
                rows = [*((r, min(start, r.n_tokens - 1), r.n_tokens) for r in beside), (request, start, start + cut)]
                last = driver.logits(rows)[-1]
                start += cut
            found.append(last)
    graphs = Driver(cuda_executor(deterministic, max_running=3, cuda_graphs=True))
    request = graphs.request(tokens)
    graphs.logits([(request, 0, 39)])
    found.append(graphs.logits([(request, 39, 40)])[0])
    for other in found[1:]:
        assert torch.equal(other, found[0])


def test_with_weights_in_8_bits_greedy_tokens_are_those_of_the_cpu() -> None:
    both = make_twins(kind="int8")
    prompts = branching()
    ours = served(cuda_executor(both.gpu), prompts, GREEDY)
    theirs = served(cpu_executor(both.cpu), prompts, GREEDY)
    assert [request.output for request in ours] == [request.output for request in theirs]


def test_a_row_whose_logits_are_broken_fails_alone() -> None:
    broken = gpu_model(ONE_LAYER)
    broken.embedding = broken.embedding.clone()
    broken.embedding[77] = float("nan")
    driver = Driver(cuda_executor(broken))
    good, bad = (driver.request(tokens, room=1) for tokens in ([3, 4, 5], [3, 77, 5]))
    scored = driver.request([3, 77, 5], prompt_logprobs=0)
    result = driver.step((bad, 0, 3), (good, 0, 3), (scored, 0, 3))
    assert [token is None for token in result.tokens] == [True, False, True]
    assert [error is None for error in result.errors] == [False, True, False]
    assert result.scored[2] == ()


class OutOfMemory:
    """Every pass of more than `limit` tokens fails as on a GPU that is full."""

    def __init__(self, executor: CudaExecutor, limit: int) -> None:
        self.passes: list[int] = []
        run = executor.runner.run

        def limited(step: Any, there: Any, given: Any = None) -> torch.Tensor:
            self.passes.append(len(step.arrays["tokens"]))
            if self.passes[-1] > limit:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return run(step, there, given)

        executor.runner.run = limited  # type: ignore[method-assign]


def test_a_step_that_does_not_fit_runs_in_smaller_pieces(twins: Twins) -> None:
    shared = random_prompt(24, 2)
    results = []
    for limit in (1000, 20):
        executor = cuda_executor(twins.gpu)
        driver, memory = Driver(executor), OutOfMemory(executor, limit)
        first = driver.request(shared + random_prompt(9, 9), room=1, prompt_logprobs=1)
        second = driver.request(shared + random_prompt(6, 5), shares=(first, 24), room=1, logprobs=1)
        third = driver.request(random_prompt(13, 4), prompt_logprobs=0, prompt_logprobs_start=4)
        rows = [(first, 0, 33), (second, 24, 30), (third, 0, 13)]
        results.append(driver.step(*rows, groups=[PrefixGroup((0, 1), 24)]))
        if limit == 20:
            assert memory.passes == [52, 26, 16, 16, 16, 4]
            assert executor.max_tokens == LEAST_TOKENS
            driver.step((third, 0, 13))
            assert memory.passes[6:] == [13]
    whole, cut = results
    assert cut.tokens == whole.tokens
    assert cut.errors == whole.errors == (None, None, None)
    for a, b in zip(whole.scored, cut.scored, strict=True):
        assert [x.token for x in a] == [x.token for x in b]
        assert [x.logprob for x in a] == pytest.approx([x.logprob for x in b], abs=1e-5)


def test_a_step_fails_when_even_the_smallest_piece_does_not_fit(twins: Twins) -> None:
    executor = cuda_executor(twins.gpu)
    OutOfMemory(executor, 5)
    prompts = [random_prompt(20, 1), random_prompt(4, 2)]
    made = engine(executor, max_batch_tokens=20, max_running=1)
    failed, answered = (request for (request,) in made.generate(prompts, GREEDY))
    assert failed.error is not None
    assert "OutOfMemoryError" in failed.error
    assert answered.error is None
    assert answered.output_tokens == 3


def test_misuse_is_said_clearly(twins: Twins) -> None:
    with pytest.raises(ValueError, match="n_pages=0"):
        cuda_executor(twins.gpu, n_pages=0)
    with pytest.raises(ValueError, match=r"kv_dtype='int4'.*int8, fp8_e4m3"):
        cuda_executor(twins.gpu, kv_dtype="int4")
    driver = Driver(cuda_executor(twins.gpu))
    request = driver.request([3, 4], room=1)
    with pytest.raises(ValueError, match="sample"):
        driver.executor.collect(driver.launch([(request, 0, 2)]))
    assert driver.executor.device == DEVICE.type
