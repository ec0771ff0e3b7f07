"""Pictures through the CUDA executor as through the CPU's: on a GPU if there is one, else with interpreted kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from engine.config import EngineConfig
from engine.engine import Engine
from engine.executor.base import Executor, PrefixGroup
from engine.executor.gpu_setup import busiest_step
from engine.models.config import ModelConfig
from engine.models.llava import load_vision
from engine.models.preprocess import picture_reader
from engine.models.vision_config import VisionConfig
from engine.pictures import PLACE, place
from engine.request import Request, SamplingParams
from tests.engine.gpu_twins import DEVICE, SMALL, Driver, Loud, Twins, cpu_executor, cuda_executor
from tests.engine.gpu_twins import prompt as words
from tests.engine.gpu_twins import twins as make_twins
from tests.engine.pictures.conftest import draw, file_of

EYES = VisionConfig(hidden_size=32, intermediate_size=48, n_layers=3, n_heads=4, image_size=28, patch_size=7)
SEEING = replace(SMALL, vision=EYES)
READER = picture_reader(SEEING, None)
PROMPTS = [
    [*words(5, 1), PLACE, *words(7, 2)],
    [*words(5, 1), PLACE, PLACE],
    words(9, 4),
]
FILES = [[file_of(draw(0))], [file_of(draw(0)), file_of(draw(1))], []]
GREEDY = SamplingParams(max_tokens=4, temperature=0.0, logprobs=2, ignore_eos=True)


def seeing_twins(config: ModelConfig = SEEING, **settings: Any) -> Twins:
    made = make_twins(config, **settings)
    made.cpu.vision = load_vision(config, Loud().get, lambda _: True, torch.float32)
    on_device = load_vision(
        config, lambda name, shape: Loud().get(name, shape).to(DEVICE), lambda _: True, torch.float32
    )
    made.gpu.vision = on_device
    return made


@pytest.fixture(scope="module")
def twins() -> Twins:
    return seeing_twins()


def served(executor: Executor, *, rounds: int = 1, **settings: Any) -> list[Request]:
    """All prompts at once, `rounds` times: from the second on they come from the cache."""
    config = EngineConfig(**{"max_batch_tokens": 64, "max_running": 4, "page_size": executor.page_size, **settings})
    engine = Engine(executor, None, config, pictures=READER)
    found: list[Request] = []
    for _ in range(rounds):
        for prompt, files in zip(PROMPTS, FILES, strict=True):
            found += engine.add(prompt, GREEDY, images=files)
        while engine.has_work:
            engine.step()
    assert [request.error for request in found] == [None] * len(found)
    return found


def assert_same(found: Sequence[Request], expected: Sequence[Request]) -> None:
    assert [request.output for request in found] == [request.output for request in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert [a.logprob for a in ours.logprobs] == pytest.approx([b.logprob for b in theirs.logprobs], abs=1e-4)


@pytest.fixture(scope="module")
def on_the_cpu(twins: Twins) -> list[Request]:
    return served(cpu_executor(twins.cpu), rounds=2)


def test_another_picture_has_other_logits(twins: Twins) -> None:
    """Else the comparisons of this page would show nothing."""
    driver = Driver(cuda_executor(twins.gpu))
    one, other = asked(driver, 0), asked(driver, 0, FILES[1][1:])
    a, b = driver.logits([(request, 0, request.n_tokens) for request in (one, other)])
    assert (a[-1] - b[-1]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("page_size", "graphs", "settings"),
    [(1, False, {}), (1, True, {"max_batch_tokens": 7}), (16, False, {"max_batch_tokens": 9, "overlap": True})],
    ids=["plain", "cut, with graphs", "pages, cut, overlapped"],
)
def test_a_prompt_with_pictures_is_answered_as_on_the_cpu(
    twins: Twins, on_the_cpu: list[Request], page_size: int, graphs: bool, settings: dict[str, Any]
) -> None:
    executor = cuda_executor(
        twins.gpu, n_pages=320 // page_size, page_size=page_size, max_running=4, cuda_graphs=graphs
    )
    assert_same(served(executor, rounds=2, **settings), on_the_cpu)
    assert executor.eyes is not None
    assert executor.eyes.encoded == 2  # pictures, however many prompts and chunks hold them


def test_weights_in_8_bits_leave_the_eyes_as_they_are() -> None:
    both = seeing_twins(kind="int8")
    assert both.gpu.vision is not None
    assert both.gpu.vision.first.weight.dtype == torch.float32
    ours, theirs = served(cuda_executor(both.gpu)), served(cpu_executor(both.cpu))
    assert [request.output for request in ours] == [request.output for request in theirs]


def asked(driver: Driver, i: int, files: Sequence[bytes] | None = None) -> Request:
    """A request of PROMPTS[i], with its own pictures or others."""
    pictures = [READER.read(file) for file in (FILES[i] if files is None else files)]
    key, placed = place(PROMPTS[i], pictures, EYES.n_tokens)
    request = driver.request(key.tolist())
    request.pictures = placed
    return request


def test_a_row_of_one_position_of_a_picture_goes_by_no_graph(twins: Twins) -> None:
    """Such a row looks like one that decodes; a graph has no room for what the eyes say."""
    expected = Driver(cuda_executor(twins.gpu))
    whole = asked(expected, 1)
    last = whole.n_tokens - 1
    [found] = expected.logits([(whole, 0, whole.n_tokens)])
    driver = Driver(cuda_executor(twins.gpu, max_running=2, cuda_graphs=True))
    request, beside = asked(driver, 1), asked(driver, 2)
    driver.logits([(request, 0, last), (beside, 0, 8)])
    ours, _ = driver.logits([(request, last, last + 1), (beside, 8, 9)])
    assert torch.allclose(ours, found[-1:], atol=1e-4)


def test_pieces_of_a_step_may_end_within_a_picture(twins: Twins) -> None:
    found = []
    for most in (None, 5):
        driver = Driver(cuda_executor(twins.gpu))
        driver.executor.max_tokens = most
        rows = [(request, 0, request.n_tokens) for request in (asked(driver, i) for i in range(3))]
        found.append([logits[-1] for logits in driver.logits(rows)])
    for whole, cut in zip(*found, strict=True):
        assert torch.allclose(whole, cut, atol=1e-4)


def test_pictures_of_a_shared_prefix_are_read_once_where_it_pays(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.executor.gpu_attention.pays", lambda n, *_, **__: n > 1)
    shared = 5 + EYES.n_tokens
    found = []
    for groups in ([], [PrefixGroup((0, 1), shared)]):
        driver = Driver(cuda_executor(twins.gpu))
        first, second = asked(driver, 0), asked(driver, 1)
        driver.logits([(first, 0, shared)])
        second.pages[:shared] = first.pages[:shared]
        found.append(driver.logits([(first, shared, first.n_tokens), (second, shared, second.n_tokens)], groups))
    for plain, sharing in zip(*found, strict=True):
        assert torch.allclose(plain, sharing, atol=1e-4)


def test_the_busiest_step_of_a_model_that_sees_is_full_of_pictures(
    twins: Twins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the memory which the eyes take isn't given to the pool."""
    executor = cuda_executor(twins.gpu, n_pages=1, max_running=2)
    assert executor.eyes is not None
    seen: list[Any] = []
    given = executor.eyes.given
    monkeypatch.setattr(executor.eyes, "given", lambda rows: [seen.append(given(rows)), seen[-1]][1])
    busiest_step(executor, 1 + 40, 2)
    assert executor.eyes.encoded == 1
    assert [len(np.unique(each.at.cpu())) for each in seen if each is not None] == [32]
    busiest_step(executor, 2, 2)
    assert len(seen) == 1
