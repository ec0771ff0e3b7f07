"""Floors are counted from shapes; the docs show the current ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.kernels.roofline import GPUS, Work, floor_s
from engine.kernels.roofline_table import (
    LLAMA_7B,
    MIXTRAL_8X7B,
    STEPS,
    lines,
    parts,
    products_in_8_bits,
    whole,
    written,
)
from engine.models.shapes import SHAPES
from experiments.bench.gpu import floors


def test_a_floor_is_the_slower_of_memory_and_matrix_units() -> None:
    h200 = GPUS[-1]
    assert floor_s(Work(bytes=4_800_000_000), h200) == pytest.approx(1e-3)
    assert floor_s(Work(bytes=1, operations=989 * 10**9), h200) == pytest.approx(1e-3)


def test_the_model_is_the_one_that_the_engine_serves() -> None:
    config = SHAPES["llama-7b"]
    assert LLAMA_7B[1:] == (
        config.n_layers,
        config.hidden_size,
        config.intermediate_size,
        config.n_heads,
        config.n_kv_heads,
        config.head_dim,
        config.vocab_size,
    )


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_whole_steps_agree_with_the_count_of_the_benchmarks(step: object) -> None:
    config = SHAPES["llama-7b"]
    kv_token = 2 * 2 * config.n_layers * config.n_kv_heads * config.head_dim
    other = floors.step(config, [step.new] * step.rows, [step.keys] * step.rows, step.rows, 2, kv_token)
    work = whole(LLAMA_7B, step)
    assert work.bytes == pytest.approx(other.bytes, rel=1e-3)
    assert work.operations == pytest.approx(other.operations, rel=1e-3)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_kernels_of_a_step_do_all_its_products_and_move_all_its_weights_and_keys(step: object) -> None:
    of_step = list(parts(LLAMA_7B, step))
    work = whole(LLAMA_7B, step)
    assert sum(part.calls * part.work.operations for part in of_step) == pytest.approx(work.operations, rel=1e-3)
    assert sum(part.calls * part.work.bytes for part in of_step) >= 0.999 * work.bytes


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_weights_in_8_bits_halve_what_products_move_and_leave_what_they_compute(step: object) -> None:
    plain = [part for part in parts(LLAMA_7B, step) if part.kernel.startswith("product")]
    in_8_bits = list(products_in_8_bits(LLAMA_7B, step))
    assert [part.calls * part.work.operations for part in in_8_bits] == [p.calls * p.work.operations for p in plain]
    saved = sum(a.calls * a.work.bytes - b.calls * b.work.bytes for a, b in zip(plain, in_8_bits))
    weights = whole(LLAMA_7B, step).bytes - whole(LLAMA_7B, step, bytes_per_weight=1).bytes
    assert saved == pytest.approx(weights, rel=2e-3)


def test_docs_show_the_current_floors() -> None:
    assert written() == lines(), "run python -m engine.kernels.roofline --write"


def test_the_command_prints_the_table() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "engine.kernels.roofline"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[1:] == lines()


def test_the_mixture_of_the_table_is_the_named_shape() -> None:
    shape = SHAPES[MIXTRAL_8X7B.name]
    sizes = (shape.n_layers, shape.hidden_size, shape.intermediate_size, shape.n_experts, shape.n_experts_per_token)
    assert MIXTRAL_8X7B[1:] == sizes
