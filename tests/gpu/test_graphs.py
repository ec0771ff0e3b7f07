"""A graph gives the very bits of the launches that were captured, and nobody waits for the device before `collect`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.executor.base import PrefixGroup, Row
from engine.executor.gpu_plan import make_plan
from engine.executor.gpu_step import padded_decode
from engine.models.llama_gpu import LlamaGpu
from tests.engine.gpu_twins import SMALL, Driver, cuda_executor, gpu_model, prompt

pytestmark = pytest.mark.gpu
MOST = 4


@pytest.fixture(scope="module", params=[False, True], ids=["fast", "deterministic"])
def model(request: pytest.FixtureRequest) -> LlamaGpu:
    config = replace(SMALL, max_position_embeddings=1024, max_context=1024)
    return gpu_model(
        config, torch.bfloat16 if torch.cuda.is_available() else torch.float32, deterministic=request.param
    )


@pytest.mark.parametrize("shares", [False, True])
def test_a_replay_has_the_bits_of_the_launches_it_replays(
    model: LlamaGpu, shares: bool, real: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.executor.gpu_attention.pays", lambda n, *_, **__: n > 1)
    length = 600 if real else 40
    executor = cuda_executor(model, n_pages=4 * length, max_running=MOST, cuda_graphs=True)
    driver = Driver(executor)
    first = driver.request(prompt(length, 0))
    others = [driver.request([*first.key[: length - 8], *prompt(8, n)], shares=(first, length - 8)) for n in (1, 2)]
    driver.logits([(first, 0, length), *((r, length - 8, length) for r in others)])
    groups = [PrefixGroup((0, 1, 2), length - 8)] if shares else []
    for members in ([first], [first, *others], others):
        kept = groups if len(members) == 3 else []
        rows = [(r, length - 1, length) for r in members]
        replayed = torch.cat(driver.logits(rows, kept))
        plan = make_plan([Row(*row[:2], 1, True) for row in rows], executor.tables)
        assert executor.graphs is not None
        size = executor.graphs.size_for(len(rows))
        assert size is not None
        step = padded_decode(plan, kept, executor.layout, size, executor.max_context)
        assert step.stage.shares == (bool(kept) and not model.deterministic)
        eager = executor.runner.run(step, executor._upload(step.arrays))[: len(rows)].cpu()
        assert torch.equal(replayed, eager)


def test_launch_and_sample_never_wait_for_the_device(model: LlamaGpu, real: bool) -> None:
    if not real:
        pytest.skip("the CPU is never waited for")
    driver = Driver(cuda_executor(model, n_pages=2000, max_running=MOST, cuda_graphs=True))
    a, b = (driver.request(prompt(n, n), room=4, logprobs=2) for n in (300, 20))
    driver.step((a, 0, 200), (b, 0, 20))  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        prefill = driver.executor.sample(driver.launch([(a, 200, 300), (b, 19, 20)]))
        decode = driver.executor.sample(driver.launch([(a, 299, 300), (b, 19, 20)]))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert driver.executor.collect(prefill).tokens == driver.executor.collect(decode).tokens
