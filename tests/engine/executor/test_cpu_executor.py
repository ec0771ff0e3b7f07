"""The CPU executor as the engine drives it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from engine.executor import cpu
from engine.executor.base import Batch, Row
from engine.executor.cpu import CpuExecutor, default_pool_tokens
from engine.models import Llama, load_model
from engine.models.shapes import SHAPES
from engine.request import Request, SamplingParams


@pytest.fixture(scope="module")
def tiny() -> Llama:
    return load_model("tiny", "float64")


def request(tokens: list[int], pages: list[int], params: SamplingParams, room: int = 0) -> Request:
    stored = np.array(tokens + [0] * room, np.int64)
    return Request(
        id=0,
        key=stored[: len(tokens)],
        params=params,
        tokens=stored,
        n_tokens=len(tokens),
        pages=np.array(pages, np.int32),
    )


def step(executor: CpuExecutor, *rows: Row) -> cpu.StepResult:
    return executor.collect(executor.sample(executor.launch(Batch(0, rows)), None))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("page_size", [1, 16])
def test_stories_come_out_as_expected(models_dir: Path, dtype: str, page_size: int) -> None:
    folder = models_dir / "stories260k"
    executor = CpuExecutor(load_model(str(folder), dtype), n_pages=208 // page_size, page_size=page_size)
    pages = list(reversed(range(208 // page_size)))
    story = request([1], pages, SamplingParams(max_tokens=199, temperature=0.0), room=199)
    for start in range(199):
        (token,) = step(executor, Row(story, start, 1, True)).tokens
        assert token is not None
        story.append(token)
    text = Tokenizer.from_file(str(folder / "tokenizer.json")).decode(list(story.output))
    assert text.strip() == (folder / "expected_greedy.txt").read_text(encoding="utf-8").strip()


def test_rows_that_do_not_sample_give_no_token(tiny: Llama) -> None:
    executor = CpuExecutor(tiny, n_pages=64, page_size=1)
    greedy = SamplingParams(max_tokens=4, temperature=0.0, logprobs=2)
    a, b, c = (request(list(range(3, 13)), list(range(n, n + 20)), greedy, room=4) for n in (0, 20, 40))
    result = step(executor, Row(a, 0, 6, False), Row(b, 0, 10, True), Row(c, 0, 1, False))
    assert result.tokens[0] is None
    assert result.tokens[2] is None
    assert result.errors == (None, None, None)
    assert result.logprobs[0] is None
    chosen = result.logprobs[1]
    assert chosen is not None
    assert chosen.token == result.tokens[1] == chosen.top[0][0]
    assert result.seconds > 0
    rest = step(executor, Row(c, 1, 9, True), Row(a, 6, 4, True))
    assert rest.tokens == (result.tokens[1],) * 2


def test_a_step_without_logits_still_stores_kv(tiny: Llama) -> None:
    executor = CpuExecutor(tiny, n_pages=32, page_size=4)
    prompt = request(list(range(5, 25)), list(range(5)), SamplingParams(max_tokens=1, temperature=0.0), room=1)
    assert step(executor, Row(prompt, 0, 12, False)).tokens == (None,)
    cut = step(executor, Row(prompt, 12, 8, True))
    assert step(executor, Row(prompt, 0, 20, True)).tokens == cut.tokens


@pytest.mark.parametrize(("start_at", "cuts"), [(1, (20,)), (1, (7, 1, 12)), (9, (8, 12)), (9, (3, 17)), (19, (20,))])
def test_prompt_logprobs_do_not_depend_on_chunks(tiny: Llama, start_at: int, cuts: tuple[int, ...]) -> None:
    tokens = np.random.default_rng(0).integers(3, 500, 20).tolist()
    params = SamplingParams(max_tokens=0, prompt_logprobs=3, prompt_logprobs_start=start_at)
    prompt = request(tokens, list(range(20)), params)
    executor = CpuExecutor(tiny, n_pages=20, page_size=1)
    found, start = [], 0
    for cut in cuts:
        found += step(executor, Row(prompt, start, cut, False)).scored[0]
        start += cut
    assert [entry.token for entry in found] == tokens[start_at:]
    all_of = replace(params, prompt_logprobs_start=1)
    whole = step(executor, Row(request(tokens, list(range(20)), all_of), 0, 20, False)).scored[0]
    for entry, expected in zip(found, whole[start_at - 1 :], strict=True):
        assert entry.logprob == pytest.approx(expected.logprob, abs=1e-10)
        assert [token for token, _ in entry.top] == [token for token, _ in expected.top]


def test_a_row_whose_logits_are_broken_fails_alone(tiny: Llama) -> None:
    broken = load_model("tiny", "float32", seed=4)
    broken.embedding = broken.embedding.clone()
    broken.embedding[77] = float("nan")
    executor = CpuExecutor(broken, n_pages=40, page_size=1)
    greedy = SamplingParams(max_tokens=1, temperature=0.0)
    good, bad = request([3, 4, 5], [0, 1, 2], greedy, room=1), request([3, 77, 5], [3, 4, 5], greedy, room=1)
    result = step(executor, Row(bad, 0, 3, True), Row(good, 0, 3, True))
    assert result.tokens[0] is None
    assert result.errors[0] is not None
    assert result.errors[1] is None
    assert result.tokens[1] is not None
    scored = replace(greedy, max_tokens=0, prompt_logprobs=0)
    result = step(executor, Row(request([3, 77, 5], [6, 7, 8], scored), 0, 3, False), Row(good, 0, 3, True))
    assert result.errors[0] is not None
    assert result.scored[0] == ()
    assert result.tokens[1] is not None


def test_the_default_pool_fits_the_memory_but_holds_a_context(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SHAPES["llama-110m"]
    per_token = 2 * 12 * 4 * 64 * 2
    monkeypatch.setattr(cpu, "_free_memory", lambda: 4 * 20_000 * per_token)
    assert default_pool_tokens(config, torch.bfloat16) == 20_000
    assert default_pool_tokens(config, torch.float32) == 10_000
    monkeypatch.setattr(cpu, "_free_memory", lambda: 1 << 50)
    assert default_pool_tokens(config, torch.bfloat16) == cpu.DEFAULT_POOL_TOKENS
    monkeypatch.setattr(cpu, "_free_memory", lambda: 0)
    assert default_pool_tokens(config, torch.bfloat16) == config.max_context


def test_misuse_is_said_clearly(tiny: Llama) -> None:
    with pytest.raises(ValueError, match="n_pages=0"):
        CpuExecutor(tiny, n_pages=0, page_size=1)
    executor = CpuExecutor(tiny, n_pages=8, page_size=1)
    prompt = request([3, 4], [0, 1], SamplingParams(max_tokens=1), room=1)
    with pytest.raises(ValueError, match="sample"):
        executor.collect(executor.launch(Batch(0, (Row(prompt, 0, 2, True),))))
