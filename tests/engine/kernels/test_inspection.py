"""Inspection sees what a launch would compile, and what is wrong with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.kernels import inspection, sass
from engine.kernels.cases import Call, Case
from engine.kernels.chips import CHIPS, blocks_per_processor
from engine.kernels.compile import Compiled, compile_launch
from engine.kernels.compiled_table import page, rows_on, table_rows, version_on
from engine.kernels.inspection import Finding
from engine.kernels.launch import Launch
from engine.kernels.tiles import Shape, Tile, Tiles

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def trials() -> dict[str, dict[str, Any]]:
    """What inspection says of `trial_kernels.py`, by trial and chip."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("trial_kernels.py")],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_loads_are_as_wide_as_the_alignment_and_the_stride_of_the_launch_allow(trials: dict[str, Any]) -> None:
    for chip in (86, 90):
        assert (trials[f"aligned sm_{chip}"]["wide"], trials[f"aligned sm_{chip}"]["narrow"]) == (2, 0)
        assert trials[f"one element further sm_{chip}"]["narrow"] > 0
        assert trials[f"stride 2 sm_{chip}"]["narrow"] > 0, "a stride other than 1 isn't a constant"
        assert trials[f"with another sm_{chip}"]["wide"] == 3, "a tensor in place of None is other code"


def test_products_use_the_matrix_units_of_each_chip(trials: dict[str, Any]) -> None:
    assert set(trials["product sm_86"]["matrix"]) == {"HMMA"}
    assert set(trials["product sm_90"]["matrix"]) == {"HGMMA"}
    assert trials["product sm_90"]["dots"] == 1
    assert trials["product sm_90"]["copies"]["LDGSTS"] > 0
    assert trials["float32 product sm_90"]["dots"] == 0, "no matrix unit multiplies float32 exactly"


def test_spills_are_a_problem_of_chosen_tiles_only(trials: dict[str, Any]) -> None:
    trial = trials["too many numbers a thread sm_90"]
    assert trial["spills"] > 100
    assert trial["stack"] > 0
    assert [problem.split(":")[0] for problem in trial["problems"]] == ["spills"]
    assert trial["as candidate"] == []
    assert trials["product sm_86"]["problems"] == trials["product sm_90"]["problems"] == []


def test_shared_memory_beyond_the_chip_is_a_problem_of_every_tile(trials: dict[str, Any]) -> None:
    for chip, limit in ((86, 99), (90, 227)):
        trial = trials[f"too many stages sm_{chip}"]
        assert trial["blocks"] == 0
        assert trial["problems"] == trial["as candidate"]
        assert f"a block may have {limit}" in trial["problems"][0]


def test_products_without_matrix_instructions_are_a_problem() -> None:
    scalar = COMPILED._replace(matrix={})
    assert inspection.code_problems(scalar, CHIPS[90], chosen=True) == ["2 matrix products and no matrix instruction"]
    assert inspection.code_problems(COMPILED, CHIPS[90], chosen=True) == []


@pytest.mark.parametrize(
    ("chip", "registers", "shared", "warps", "blocks"),
    [
        (90, 32, 0, 4, 16),  # 64 warps
        (86, 32, 0, 4, 12),  # 48 warps
        (80, 255, 0, 4, 2),  # 8 warps of 8192 registers
        (90, 168, 0, 8, 1),  # 12 warps fit, 16 would be two blocks
        (90, 33, 0, 1, 32),  # 48 warps fit, 32 blocks
        (90, 64, 96 * 1024, 4, 2),
        (90, 64, 113 * 1024, 4, 2),  # 113 KiB and the reserved one, twice, are all 228
        (90, 64, 114 * 1024, 4, 1),
        (86, 64, 99 * 1024, 4, 1),
        (86, 64, 99 * 1024 + 1, 4, 0),
        (80, 64, 163 * 1024, 4, 1),
    ],
)
def test_blocks_on_a_processor(chip: int, registers: int, shared: int, warps: int, blocks: int) -> None:
    assert blocks_per_processor(CHIPS[chip], registers=registers, shared=shared, warps=warps) == blocks


def test_tensor_memory_limits_blocks_too() -> None:
    assert blocks_per_processor(CHIPS[100], registers=64, shared=0, warps=4, tensor_columns=256) == 2


def test_machine_code_is_counted_by_kind() -> None:
    usage = " Function f:\n  REG:40 STACK:8 SHARED:1024 LOCAL:0 CONSTANT[0]:944 TEXTURE:0 SURFACE:0 SAMPLER:0\n"
    listing = """
        /*0000*/                   LDC R1, c[0x0][0x37c] ;
        /*0010*/              @!P0 LDG.E.128 R8, [R18.64] ;
        /*0020*/             @!UP1 LDG.E.U16 R8, [R18.64] ;
        /*0030*/                   LDGSTS.E.BYPASS.LTC128B.128 [R8], [R18.64] ;
        /*0040*/               @P3 STL.64 [R1], R4 ;
        /*0050*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24 ;
        /*0060*/                   STG.E.64 desc[UR8][R2.64], R4 ;
        /*0070*/                   LDGSTS.E.LTC128B [R8], [R18.64] ;
"""
    code = sass.parse(usage, listing)
    assert code == sass.Sass(40, 8, 1024, 1, {"HGMMA": 1}, {"LDGSTS": 2}, wide=2, narrow=3)
    with pytest.raises(ValueError, match="no kernel"):
        sass.parse("", listing)


def _tiles(shape: Shape, candidates: int = 2) -> Tiles:
    def some(capability: int, shape: Shape) -> list[Tile]:
        return [Tile({"BLOCK": 64 * (i + 1)}) for i in range(candidates)]

    return Tiles("trial", lambda *_: Tile({"BLOCK": 64}), some)


COMPILED = Compiled("trial_kernel", 40, 0, 0, 1024, 3, {"HMMA": 4}, {}, 2, 0, 2)


class _Kernels(list[Case]):
    """In place of a kernel file."""

    def cases(self) -> list[Case]:
        return self


def _found(
    monkeypatch: pytest.MonkeyPatch, launched: list[Tile], *, matrix: bool = True, candidates: int = 2, dots: int = 2
) -> list[str]:
    """Problems that inspection finds in a case whose launcher launches these tiles."""
    shape: Shape = {"size": 8}

    def make(device: torch.device) -> Call:
        assert device.type == "meta"

        def call(tile: Tile | None) -> None:
            for one in launched:
                inspection_launch(one)

        return call

    def inspection_launch(tile: Tile) -> None:
        from engine.kernels.launch import launch

        launch(None, (1,), tile=tile)

    case = Case("size=8", _tiles(shape, candidates), shape, make, matrix)
    monkeypatch.setattr(inspection, "kernel_file", lambda *_: _Kernels([case]))
    monkeypatch.setattr(
        inspection, "compile_launch", lambda *_: COMPILED._replace(dots=dots, matrix={"HMMA": 4} if dots else {})
    )
    inspection._cases.cache_clear()
    findings = list(inspection.inspect(["trial"], [90], all_tiles=False, processes=1))
    inspection._cases.cache_clear()
    return [problem for found in findings for problem in found.problems]


def test_a_case_must_launch_the_tile_of_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _found(monkeypatch, [Tile({"BLOCK": 64})]) == []
    (problem,) = _found(monkeypatch, [Tile({"BLOCK": 128})])
    assert problem.startswith("nothing was launched with BLOCK=64")


def test_a_default_must_be_a_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    (problem,) = _found(monkeypatch, [Tile({"BLOCK": 64})], candidates=0)
    assert problem.endswith("isn't among its candidates")


def test_a_matrix_case_must_have_products(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _found(monkeypatch, [Tile({"BLOCK": 64})], dots=0) == ["it should have matrix products and has none"]
    assert _found(monkeypatch, [Tile({"BLOCK": 64})], dots=0, matrix=False) == []


def test_products_of_float32_must_not_be_rounded_by_the_matrix_units() -> None:
    exact = COMPILED._replace(dots=0)
    (problem,) = inspection.code_problems(exact, CHIPS[100], chosen=True)
    assert "float32, which they would round" in problem
    assert inspection.code_problems(exact._replace(matrix={}), CHIPS[100], chosen=True) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels aren't interpreted here")
def test_interpreted_kernels_are_not_compiled() -> None:
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        compile_launch(Launch(None, (1,), (), {}, Tile({})), CHIPS[90])


def test_the_page_has_the_rows_of_default_tiles_once() -> None:
    one = Finding("trial", "size=8", 90, "default", "BLOCK=64", COMPILED, ())
    findings = [
        one,
        one._replace(case="size=16"),  # the same code
        one._replace(choice="candidate", code=COMPILED._replace(registers=99)),
        one._replace(capability=100),
        one._replace(file="other", case="size=9", code=COMPILED._replace(registers=41)),
    ]
    text = page(findings)
    (row,) = rows_on(text, "trial", 90)
    assert row.startswith("| size=8 | trial_kernel | sm_90 | BLOCK=64 | 40 | 0 | 1.0 | 3 | 4 HMMA | - | 2 / 0 |")
    assert len(rows_on(text, "trial", 100)) == 1
    assert "| 41 |" in rows_on(text, "other", 90)[0]
    assert table_rows(findings[:1]) == [row]
    assert version_on(text)[0].isdigit()
    assert "| 99 |" not in text
