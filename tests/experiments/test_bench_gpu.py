"""The GPU benchmark without a GPU: its rehearsal runs every line, and its watch, floors and reports are right."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console

from engine.kernels.roofline import Ceilings, Work
from engine.models.llama_gpu import build_gpu
from engine.models.shapes import SHAPES
from engine.models.weights import RandomWeights, Tensors, save_random, tensor_shapes
from experiments.bench.gpu import __main__ as command
from experiments.bench.gpu import floors
from experiments.bench.gpu.case import Case, Failed, Setup
from experiments.bench.gpu.differential import CpuReference, ragged
from experiments.bench.gpu.figure import Figure, against_floor, with_unit
from experiments.bench.gpu.kernels import FAMILIES
from experiments.bench.gpu.ours import REHEARSED
from experiments.bench.gpu.profile import Profile, Span, union
from experiments.bench.gpu.report import Results
from experiments.bench.gpu.stages import STAGES, Stage, limits, run_stage
from experiments.bench.gpu.twin import serving, twin
from experiments.bench.gpu.twin import tensors as named_tensors

no_gpu = pytest.mark.skipif("torch.cuda.is_available()", reason="this is about machines without a GPU")
QUIET = Console(quiet=True)


@no_gpu
def test_the_rehearsal_runs_every_stage(tmp_path: Path) -> None:
    assert command.main(["--dry-run", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("rehearsal/*/results.json")
    content = json.loads(path.read_text())
    assert content["rehearsal"] is True
    assert list(content["stages"]) == [stage.name for stage in STAGES]
    for name, stage in content["stages"].items():
        assert stage["status"] == "done", name
        assert not stage["failures"], name
        assert not stage["skipped"], name
        assert stage["figures"] or name == "tune", name
    figures = [figure for stage in content["stages"].values() for figure in stage["figures"]]
    assert all(figure["met"] is None for figure in figures), "a rehearsal meets and misses nothing"
    names = "\n".join(figure["name"] for figure in figures)
    for what in (
        "attention_decode", "attention_extend", "sharing", "rms_norm", "rope_and_store", "silu_mul", "sample",
        "matmul_invariant", "matmul_quantized", "attention_fixed_split", "decode step", "prefill", "device idle",
        "MMLU", "branches", "deterministic", "int8 KV", "fp8_e4m3 KV", "times transformers",
        "requests whose greedy tokens",
    ):  # fmt: skip
        assert what in names, what
    markdown = path.with_name("results.md").read_text()
    assert "No figure below means anything" in markdown
    assert path.with_name("profiles.md").is_file()


@no_gpu
def test_without_a_gpu_it_says_so_and_ends_with_2(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command.main(["--out", str(tmp_path)]) == 2
    assert "--dry-run" in capfd.readouterr().out
    assert not list(tmp_path.iterdir())


def test_it_needs_none_of_the_packages_that_a_gpu_machine_may_lack() -> None:
    absent = (
        "hydra",
        "omegaconf",
        "pandas",
        "pyarrow",
        "datasets",
        "greenlet",
        "jinja2",
        "matplotlib",
        "scipy",
        "dspy",
    )
    modules = ["experiments.bench.gpu.__main__", "experiments.bench.gpu.worker", *(stage.module for stage in STAGES)]
    modules += [f"experiments.bench.gpu.kernels_{family}" for family in FAMILIES]
    lines = [
        "import sys, importlib, os",
        "os.environ['TRITON_INTERPRET'] = '1'",
        f"sys.modules |= dict.fromkeys({absent!r})",
        f"for name in {modules!r}: importlib.import_module(name)",
        "from experiments.bench.gpu.prompts import mmlu",
        "print(len(mmlu(32000)[0]))",
    ]
    repository = Path(command.__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=repository, capture_output=True, text=True)
    assert done.stdout == "120\n", done.stderr


def test_a_stage_gets_its_share_of_what_is_left() -> None:
    names = [stage.name for stage in STAGES]
    whole = limits(names, 540.0, tune=False)
    assert sum(whole.values()) == pytest.approx(540.0)
    assert whole["tune"] == 0.0
    assert limits(["peers", "differential"], 90.0, tune=False) == pytest.approx({"peers": 60.0, "differential": 30.0})
    assert limits(names, 800.0, tune=True)["tune"] > 100


# ---- stages and the watch over them


def stage_of(monkeypatch: pytest.MonkeyPatch, cases: Any) -> Stage:
    module = types.ModuleType("stage_of_a_test")
    module.cases = cases  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stage_of_a_test", module)
    return Stage("made", 1.0, "stage_of_a_test")


def setup_for(folder: Path, deadline: float) -> Setup:
    return Setup(device=torch.device("cpu"), rehearsal=True, folder=folder, measured=None, deadline=deadline)


def test_a_case_that_fails_takes_no_other_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half() -> Iterator[Figure]:
        yield Figure(name="before", value=1.0)
        raise ZeroDivisionError("in the middle")

    def wrong() -> Iterator[Figure]:
        raise Failed("the numbers are wrong")
        yield

    def cases(setup: Setup) -> Iterator[Case]:
        yield Case("half", half)
        yield Case("wrong", wrong)
        yield Case("whole", lambda: [Figure(name="after", value=2.0)])
        raise KeyError("while setting up the next one")

    results = Results(tmp_path)
    run_stage(stage_of(monkeypatch, cases), setup_for(tmp_path, time.time() + 60), results, QUIET)
    stage = Results(tmp_path).content["stages"]["made"]
    assert [figure["name"] for figure in stage["figures"]] == ["before", "after"]
    assert [failure["case"] for failure in stage["failures"]] == ["half", "wrong", "setting up"]
    assert "Traceback" in stage["failures"][0]["why"]
    assert stage["failures"][1]["why"] == "the numbers are wrong"
    assert len(results.wrong) == 3


def test_no_case_begins_after_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def cases(setup: Setup) -> Iterator[Case]:
        for name in "ab":
            yield Case(name, lambda name=name: begun.append(name) or ())

    results = Results(tmp_path)
    run_stage(stage_of(monkeypatch, cases), setup_for(tmp_path, time.time() - 1), results, QUIET)
    assert begun == []
    assert [skip["case"] for skip in results.content["stages"]["made"]["skipped"]] == ["a", "b"]


WORKER = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {repository!r})
from experiments.bench.gpu.report import Results
folder, pointer = Path({folder!r}), Path({pointer!r})
folder.mkdir(exist_ok=True)
results = Results(folder)
results.write()
pointer.write_text(str(folder))
for name, does in {plan!r}:
    if results.status(name) == "waiting":
        results.begin(name, time.time(), 0.2)
        if does == "dies":
            os.kill(os.getpid(), 11)
        while does == "hangs":
            time.sleep(1)
        results.end(name, time.time())
"""


def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: list[tuple[str, str]], minutes: float) -> Results:
    pointer = tmp_path / "pointer"
    repository = str(Path(command.__file__).parents[3])
    script = WORKER.format(folder=str(tmp_path / "run"), pointer=str(pointer), plan=plan, repository=repository)

    def start(*_: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", script], start_new_session=True)

    monkeypatch.setattr(command, "start", start)
    monkeypatch.setattr(command, "GRACE_S", 0.3)
    options = command.parse([])
    options.stages = [name for name, _ in plan]
    folder = command.watch(options, tmp_path, pointer, time.time() + 60 * minutes, QUIET)
    assert folder is not None
    return Results(folder)


def test_another_worker_goes_on_where_one_hung_or_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = [("ceilings", "works"), ("tests", "dies"), ("kernels", "hangs"), ("engine", "works")]
    results = watched(tmp_path, monkeypatch, plan, minutes=1)
    statuses = {name: results.status(name) for name, _ in plan}
    assert statuses["ceilings"] == statuses["engine"] == "done"
    assert "exit code -11" in statuses["tests"]
    assert "hung" in statuses["kernels"]
    assert len(results.wrong) == 2


def test_workers_that_get_nowhere_are_not_started_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def start(options: Any, root: Path, pointer: Path, *_: Any) -> subprocess.Popen[bytes]:
        started.append(1)
        pointer.write_text(str(tmp_path / "run"))
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"], start_new_session=True)

    monkeypatch.setattr(command, "start", start)
    options = command.parse(["--only", "kernels"])
    folder = command.watch(options, tmp_path, tmp_path / "pointer", time.time() + 60, QUIET)
    assert folder is not None
    assert len(started) <= 2
    assert "exit code 3" in Results(folder).status("kernels")


def test_what_there_is_no_time_for_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait_in_vain(worker: Any, pointer: Path, deadline: float) -> str:
        while not pointer.is_file() or Results(tmp_path / "run").status("ceilings") != "running":
            time.sleep(0.05)
        return "stopped: the time was up"

    monkeypatch.setattr(command, "wait", wait_in_vain)
    results = watched(tmp_path, monkeypatch, [("ceilings", "hangs"), ("kernels", "works")], minutes=0)
    assert results.status("ceilings") == "stopped: the time was up"
    assert results.status("kernels") == "not run: the time was up"
    assert len(results.wrong) == 2


# ---- figures


CEILINGS = Ceilings("made up", 1e12, 1e14)


def test_a_floor_is_the_larger_of_both_times() -> None:
    by_bytes = against_floor("x", 2e-3, Work(10**9, 10**9), CEILINGS, target=0.5)
    assert by_bytes.floor == pytest.approx(1e-3)
    assert by_bytes.share == pytest.approx(0.5)
    assert by_bytes.met
    by_operations = against_floor("x", 1e-1, Work(1, 10**12), CEILINGS, target=0.5)
    assert by_operations.floor == pytest.approx(1e-2)
    assert by_operations.met is False


def test_targets_on_the_value_itself() -> None:
    assert Figure(name="idle", value=0.02, unit="share", target=0.03, aim="at most").met
    assert not Figure(name="idle", value=0.04, unit="share", target=0.03, aim="at most").met
    assert Figure(name="sharing", value=9.0, unit="x", target=8.0, aim="at least").met
    assert Figure(name="no target", value=9.0).met is None


def test_units() -> None:
    assert with_unit(0.00123, "s") == "1.23 ms"
    assert with_unit(2e-6, "s") == "2 µs"
    assert with_unit(7.9e14, "FLOP/s") == "790 TFLOP/s"
    assert with_unit(0.034, "share") == "3.4%"


def test_a_decode_step_of_the_7b_is_its_weights_and_contexts() -> None:
    shape = SHAPES["llama-7b"]
    per_token = shape.kv_elements_per_token * 2
    assert per_token == 2**19  # half a MiB
    work = floors.decode_step(shape, [512, 100], number_bytes=2, kv_token_bytes=per_token)
    weights = 2 * (32 * (4 * 4096 * 4096 + 3 * 4096 * 11008) + 32000 * 4096)
    assert work.bytes == weights + (512 + 100 + 2) * per_token
    attention = 32 * 4 * 32 * 128 * (512 + 100)
    assert work.operations == 2 * weights // 2 * 2 + attention


def test_a_causal_prompt_counts_only_the_scores_that_are_seen() -> None:
    seen = sum(1 for query, key in itertools.product(range(7), range(10)) if key <= query + 3)
    assert floors.attention(1, 1, 8, [7], [10]).operations == 4 * 8 * seen


def test_gaps_between_kernels() -> None:
    spans = (Span("a", 0.0, 1.0), Span("b", 0.5, 0.75), Span("a", 1.1, 2.0), Span("c", 5.0, 6.0))
    assert union(spans, 0.0) == pytest.approx(2.9)
    assert union(spans, 0.2) == pytest.approx(3.0)
    seen = Profile(2, spans)
    assert [name for name, _ in seen.by_kernel()] == ["a", "c", "b"]
    assert seen.busy_s == pytest.approx(2.9 / 2)
    assert "| `a` | 1.0 |" in seen.markdown("Steps")


def test_the_report_marks_what_was_missed(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.begin("kernels", time.time(), 1.0)
    results.add("kernels", against_floor("copy | paste", 2e-3, Work(10**9), CEILINGS, target=0.9, error=1e-3))
    results.add("kernels", Figure(name="fast", value=1e-3, floor=1e-3, target=0.9, beside={"torch": 2e-3}))
    results.failed("kernels", "wrong one", "Traceback\nValueError: no")
    results.skipped("kernels", "late one", "the time was up")
    results.end("kernels", time.time())
    text = (tmp_path / "results.md").read_text()
    assert "| copy \\| paste | 2 ms | 1 ms | 50.0% | 90% of the floor | **no** |" in text
    assert "| yes | torch 2 ms |" in text
    assert "not run: late one" in text
    assert "ValueError: no" in text
    (missed,) = results.missed
    assert missed == "kernels, copy | paste: 50.0% of the floor, target 90% of the floor"


# ---- transformers over our weights


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_runs_on_our_very_tensors(tied: bool) -> None:
    config = dataclasses.replace(REHEARSED, tied_embeddings=tied)
    with Tensors(config, RandomWeights(3), torch.float32) as tensors:
        model = build_gpu(tensors)
    peer = twin(model)
    theirs = dict(peer.named_parameters(remove_duplicate=False))
    ours = dict(named_tensors(model))
    for name, tensor in ours.items():
        assert theirs[name].data_ptr() == tensor.data_ptr(), name
    for name, shape in tensor_shapes(config).items():
        assert torch.equal(ours[name], RandomWeights(3).get(name, shape)), name
    with tempfile.TemporaryDirectory() as folder:
        save_random(config, 3, torch.float32, Path(folder))
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.arange(5, 35)[None]
    with torch.no_grad():
        assert torch.allclose(peer(tokens).logits, loaded(tokens).logits, atol=1e-5)


def test_transformers_serves_the_prompts_in_their_order() -> None:
    with Tensors(REHEARSED, RandomWeights(3), torch.float32) as tensors:
        peer = twin(build_gpu(tensors))
    prompts = [np.arange(5, 5 + n) for n in (9, 3, 14)]
    with serving(peer, prompts, 3, 64) as serve:
        run = serve(prompts, 3)
        again = serve(prompts[::-1], 3)
    for prompt, output in zip(prompts, run.outputs, strict=True):
        expected = peer.generate(
            torch.from_numpy(prompt)[None], max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert output == expected[0, len(prompt) :].tolist()
    assert again.outputs == run.outputs[::-1]
    assert 0 < run.seconds <= run.whole_s


# ---- the differential check


def test_wrong_tokens_are_told_from_near_ties() -> None:
    given = ragged(3, 12, REHEARSED.vocab_size)
    reference = CpuReference(REHEARSED, given, 4)
    assert reference.compare(reference.outputs).partings == ()
    assert reference.compare(reference.outputs).tokens == 12
    changed = [list(output) for output in reference.outputs]
    changed[1][2] = (changed[1][2] + 1) % REHEARSED.vocab_size
    found = reference.compare(changed)
    (parting,) = found.partings
    assert (parting.request, parting.position) == (1, 2)
    assert parting.margin > 0, "the CPU's token is the likeliest by its own reckoning"
    assert found.wrong(parting.margin - 1e-6) == [parting]
    assert found.wrong(parting.margin) == []
    assert found.tokens == 4 + 3 + 4
    with pytest.raises(Failed):
        reference.compare([output[:-1] for output in reference.outputs])
