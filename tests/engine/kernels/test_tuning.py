"""Tiles are chosen by time, among those that compute the same; what is written is whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from engine.kernels import tiles, tune
from engine.kernels.cases import Call, Case
from engine.kernels.inspection import Finding
from engine.kernels.tiles import Gpu, Shape, Tile, Tiles
from engine.kernels.tuning import Choice, difference, save, untuned
from engine.kernels.tuning import tune as choices_of

GPU = Gpu("NVIDIA Trial 1", 90, 132)
CPU = torch.device("cpu")
DEFAULT, FAST, FASTEST = (Tile({"BLOCK": size}) for size in (64, 128, 256))


class Kernel:
    """Doubles numbers; each tile takes the time it is told to, or does what it is told to instead."""

    def __init__(self, seconds: dict[int, float], instead: dict[int, Callable[[Tensor], Tensor]] | None = None) -> None:
        self.seconds, self.instead = seconds, instead or {}
        self.last = 0
        self.made: list[Tensor] = []
        self.tiles = Tiles("trial", lambda *_: DEFAULT, self.candidates)

    def candidates(self, capability: int, shape: Shape) -> list[Tile]:
        return [Tile({"BLOCK": size}) for size in self.seconds]

    def case(self, label: str = "size=8", size: int = 8, capability: int = 80) -> Case:
        def make(device: torch.device) -> Call:
            x = torch.randn(100, device=device)
            self.made.append(x.clone())

            def call(tile: Tile | None) -> Tensor:
                assert tile is not None
                self.last = tile.constants["BLOCK"]
                return self.instead.get(self.last, lambda x: x.mul_(2))(x)

            return call

        return Case(label, self.tiles, {"size": size}, make, matrix=False, capability=capability)

    def timer(self, call: Callable[[], object]) -> float:
        call()
        return self.seconds[self.last]


def _choices(kernel: Kernel, *cases: Case, late: Callable[[], bool] = lambda: False) -> list[Choice]:
    return list(choices_of(cases or (kernel.case(),), GPU, CPU, kernel.timer, late))


def test_the_fastest_tile_is_chosen() -> None:
    (choice,) = _choices(Kernel({64: 3e-6, 128: 2e-6, 256: 1e-6}))
    assert (choice.kernel, choice.shape, choice.tile) == ("trial", "size=8", FASTEST)
    assert choice.default.seconds == {"size=8": 3e-6}
    assert choice.chosen.seconds == {"size=8": 1e-6}


def test_shapes_come_in_the_order_of_their_cases_and_are_announced() -> None:
    kernel = Kernel({64: 1.0})
    cases = [kernel.case("b", size=9), kernel.case("a", size=8), kernel.case("c", size=9)]
    told: list[list[str]] = []
    choices = choices_of(
        cases, GPU, CPU, kernel.timer, lambda: False, lambda same: told.append([c.label for c in same])
    )
    assert [choice.shape for choice in choices] == ["size=9", "size=8"]
    assert told == [["b", "c"], ["a"]]


def test_noise_does_not_replace_the_default() -> None:
    assert _choices(Kernel({64: 1.0, 128: 0.99}))[0].tile == DEFAULT
    assert _choices(Kernel({64: 1.0, 128: 0.97}))[0].tile == FAST


def test_every_tile_gets_the_same_fresh_numbers() -> None:
    kernel = Kernel({64: 1.0, 128: 1.0})
    _choices(kernel)
    assert len(kernel.made) == 3  # what is expected, then each candidate; calls change them in place
    assert all(torch.equal(kernel.made[0], other) for other in kernel.made)


@pytest.mark.parametrize(
    "wrong",
    [lambda x: x * 2.1, lambda x: x * float("nan"), lambda x: torch.where(x > 1, 0, 2 * x)],
    ids=["scaled", "nan", "holes"],
)
def test_a_tile_with_another_result_is_refused(wrong: Callable[[Tensor], Tensor]) -> None:
    (choice,) = _choices(Kernel({64: 3.0, 128: 2.0, 256: 1.0}, {256: wrong}))
    assert choice.tile == FAST
    assert "differs from the default tile's" in choice.timed[2].refused


def test_a_tile_that_does_not_fit_is_refused() -> None:
    def beyond(x: Tensor) -> Tensor:
        raise OutOfResources(300000, 232448, "shared memory")

    (choice,) = _choices(Kernel({64: 3.0, 128: 2.0, 256: 1.0}, {256: beyond}))
    assert choice.tile == FAST
    assert "shared memory" in choice.timed[2].refused


def test_a_fault_of_the_gpu_ends_tuning() -> None:
    def illegal(x: Tensor) -> Tensor:
        raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        _choices(Kernel({64: 3.0, 128: 2.0}, {128: illegal}))


def test_a_default_without_numbers_stops_everything() -> None:
    with pytest.raises(RuntimeError, match="isn't a number"):
        _choices(Kernel({64: 1.0, 128: 1.0}, {64: lambda x: x * float("inf")}))


def test_integer_results_must_be_equal() -> None:
    tokens = torch.tensor([3, 1, 2])
    assert difference([tokens], [tokens.clone()]) == ""
    assert "differ" in difference([tokens], [tokens + 1])


def test_cases_of_one_shape_are_chosen_for_together() -> None:
    """256 is faster in one case by a little, slower in the other by much."""

    class Two(Kernel):
        def timer(self, call: Callable[[], object]) -> float:
            call()
            n_calls = len(self.made)  # the first two made what is expected, then case after case
            return {64: (1.0, 1.0), 256: (0.9, 3.0)}[self.last][n_calls % 2 == 0]

    kernel = Two({64: 1.0, 256: 1.0})
    (choice,) = _choices(kernel, kernel.case("a"), kernel.case("b"))
    assert choice.tile == DEFAULT
    assert set(choice.default.seconds) == {"a", "b"}


def test_what_this_gpu_cannot_run_is_left_out() -> None:
    kernel = Kernel({64: 1.0})
    case = kernel.case(capability=100)
    assert _choices(kernel, case) == []
    assert untuned([case], GPU, []) == []


def test_a_choice_is_made_of_all_candidates_or_not_at_all() -> None:
    kernel = Kernel({64: 3.0, 128: 2.0, 256: 1.0})
    checks = iter(
        [False, False, False, False, False, False, True]
    )  # time is up at the second candidate of the second shape
    cases = [kernel.case(size=8), kernel.case("size=9", size=9)]
    choices = _choices(kernel, *cases, late=lambda: next(checks))
    assert [choice.shape for choice in choices] == ["size=8"]
    assert untuned(cases, GPU, choices) == [("trial", {"size": 9})]


def test_choices_are_found_again_beside_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel({64: 3e-6, 128: 2e-6, 256: 1e-6})
    save(GPU, _choices(kernel, kernel.case("size=9", size=9)), tmp_path)
    kernel.seconds = {64: 3e-6, 128: 1e-6, 256: 2e-6}
    path = save(GPU, _choices(kernel), tmp_path)

    assert [file.name for file in tmp_path.iterdir()] == ["nvidia_trial_1.json"]
    contents = json.loads(path.read_text())
    assert Gpu(**contents["gpu"]) == GPU
    entry = contents["tiles"]["trial"]["size=8"]
    assert (entry["us"], entry["default_us"], entry["candidates"]) == ({"size=8": 1.0}, {"size=8": 3.0}, 3)
    assert entry["torch"] == torch.__version__
    assert {"triton", "cuda", "python", "date"} <= set(entry)

    monkeypatch.setattr(tiles, "TUNED", tmp_path)
    tiles.tuned.cache_clear()
    tiles._chosen.cache_clear()
    with tiles.target(GPU):
        assert tiles.choose(kernel.tiles, {"size": 8}) == FAST
        assert tiles.choose(kernel.tiles, {"size": 9}) == FASTEST
        assert tiles.choose(kernel.tiles, {"size": 10}) == DEFAULT
    tiles.tuned.cache_clear()
    tiles._chosen.cache_clear()


def test_an_interrupted_run_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel({64: 1.0, 128: 0.5})
    path = save(GPU, _choices(kernel), tmp_path)
    before = path.read_text()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    kernel.seconds = {64: 1.0, 128: 2.0}
    with pytest.raises(KeyboardInterrupt):
        save(GPU, _choices(kernel), tmp_path)
    assert path.read_text() == before


def test_files_share_the_time_and_are_compiled_before_they_are_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[str] = []

    def timer(call: Callable[[], object]) -> float:
        events.append("timed")
        return 1.0

    def inspect(files: list[str], chips: list[int], **options: object) -> Iterator[Finding]:
        assert (files, chips) == (["trial"], [90])
        for label in ("a", "a", "b"):
            events.append(f"compiled {label}")
            yield Finding("trial", label, 90, "candidate", "", None, ())

    kernel = Kernel({64: 1.0})
    cases = [kernel.case("a", size=8), kernel.case("b", size=9)]
    monkeypatch.setattr(tune, "kernel_file", lambda *_: SimpleNamespace(cases=lambda: cases))
    monkeypatch.setattr(tune, "inspect", inspect)

    choices = tune.choose_all(["trial", "trial"], GPU, 60, CPU, timer)
    assert len(choices) == 4
    assert events == 2 * ["compiled a", "compiled a", "compiled b", "timed", "timed"]
    assert "trial size=8: BLOCK=64, 4 warps, 2 stages: 1.00x the default's speed (1 tried)" in capsys.readouterr().out

    assert tune.choose_all(["trial"], GPU, -1, CPU, timer) == []
    assert "trial size=9: not tuned, the time was up" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_tuning_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err
