"""Pictures through the CUDA executor, on a GPU where there is one, else with interpreted kernels: the CPU's answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from engine.config import EngineConfig
from engine.engine import Engine
from engine.executor.base import Executor
from engine.models.llava import load_vision
from engine.models.preprocess import picture_reader
from engine.models.vision_config import VisionConfig
from engine.pictures import PLACE
from engine.request import Request, SamplingParams
from tests.engine.gpu_twins import DEVICE, SMALL, Loud, Twins, cpu_executor, cuda_executor, prompt
from tests.engine.gpu_twins import twins as make_twins
from tests.engine.pictures.conftest import draw, file_of

SEEING = replace(
    SMALL,
    vision=VisionConfig(
        hidden_size=32, intermediate_size=48, n_layers=2, n_heads=2, image_size=28, patch_size=7, image_token_id=None
    ),
)
PARAMS = SamplingParams(max_tokens=3, temperature=0.0, logprobs=2)
ASKED: list[tuple[list[int], list[bytes]]] = [
    ([*prompt(5, 0), PLACE, *prompt(4, 1)], [file_of(draw(0))]),
    ([*prompt(5, 0), PLACE, *prompt(3, 2)], [file_of(draw(0))]),
    ([*prompt(5, 0), PLACE, PLACE], [file_of(draw(1)), file_of(draw(0))]),
    (prompt(9, 3), []),
]


@pytest.fixture(scope="module")
def twins() -> Twins:
    made = make_twins(SEEING)
    weights = Loud()
    made.gpu.vision = load_vision(SEEING, lambda n, s: weights.get(n, s).to(DEVICE), lambda _: True, torch.float32)
    made.cpu.vision = load_vision(SEEING, weights.get, lambda _: True, torch.float32)
    return made


def served(executor: Executor, **settings: Any) -> tuple[list[Request], Engine]:
    config = {"max_batch_tokens": 64, "max_running": 8, "page_size": executor.page_size, **settings}
    engine = Engine(executor, None, EngineConfig(**config), pictures=picture_reader(SEEING, None))
    requests = []
    for asked, images in ASKED:
        requests += engine.add(asked, PARAMS, images=images)
    engine.run()
    engine.check()
    assert [request.error for request in requests] == [None] * len(requests)
    return requests, engine


@pytest.mark.parametrize(
    ("page_size", "cuda_graphs", "settings"),
    [
        (1, False, {"overlap": False}),
        (1, True, {"overlap": True, "max_batch_tokens": 17}),
        (16, True, {"overlap": True, "cache": "none"}),
    ],
    ids=["plain", "cut, with graphs", "uncached"],
)
def test_answers_about_pictures_are_the_cpus(
    twins: Twins, page_size: int, cuda_graphs: bool, settings: dict[str, Any]
) -> None:
    """Steps that compute images' positions stand beside decodes: graphs take steps of decodes alone."""
    n_pages = 320 // page_size
    expected, theirs = served(cpu_executor(twins.cpu, n_pages=n_pages, page_size=page_size), **settings)
    executor = cuda_executor(twins.gpu, n_pages=n_pages, page_size=page_size, cuda_graphs=cuda_graphs)
    found, ours = served(executor, **settings)
    for a, b in zip(found, expected, strict=True):
        assert a.output == b.output
        assert a.n_cached == b.n_cached
        assert [x.logprob for x in a.logprobs] == pytest.approx([x.logprob for x in b.logprobs], abs=1e-4)
    assert ours.metrics.images_encoded == theirs.metrics.images_encoded == 2


def test_a_picture_on_the_device_matters(twins: Twins) -> None:
    """Else the test above could pass with pictures that nobody looks at."""
    engine = served(cuda_executor(twins.gpu))[1]
    logprobs = []
    for seed in (0, 1):
        [request] = engine.add(ASKED[0][0], PARAMS, images=[file_of(draw(seed))])
        engine.run()
        logprobs.append(request.logprobs[0].top[0][1])
    assert np.abs(logprobs[0] - logprobs[1]) > 1e-3
