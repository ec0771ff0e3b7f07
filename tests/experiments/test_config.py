"""What a run is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import conf
from experiments.arguments import admit_files
from experiments.config import ConfigError, RunConfig
from experiments.systems.radixlab import engine_config

CONF = str(Path(next(iter(conf.__path__))).resolve())
MINE = """
from workloads.base import Workload
class Mine(Workload):
    def __init__(self, n: int = 3, data_dir: str | None = None) -> None: ...
    def jobs(self): return []
"""


def composed(*overrides: str) -> RunConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        settings: Any = OmegaConf.to_container(compose("config", admit_files(overrides)), resolve=True)
    return RunConfig.parse(settings)


@pytest.mark.parametrize("bundle", sorted(path.stem for path in Path(CONF, "policy").glob("*.yaml")))
def test_every_bundle_makes_an_engine_configuration(bundle: str) -> None:
    config = composed(f"policy={bundle}")
    assert config.policy_label == config.policy["name"] == bundle
    made = engine_config(config)
    assert (made.eviction, made.schedule) == (config.policy["eviction"], config.policy["schedule"])
    assert made.cache == ("none" if bundle == "none" else "radix")
    assert (made.grammar_backend, made.jump_forward) == ("llguidance", True)


def test_overrides_reach_the_engine() -> None:
    config = composed(
        *("policy.eviction=lfu", "policy.schedule=dfs_weight", "engine.page_size=16", "engine.cache=flat", "seed=3"),
        *("engine.pool_tokens=4096", "model=llama-110m", "model.dtype=bfloat16", "+policy.eviction_args.alpha=0.5"),
        "model.weights=int8",
    )
    made = engine_config(config)
    assert (made.eviction, made.schedule, made.page_size, made.cache) == ("lfu", "dfs_weight", 16, "flat")
    assert (made.pool_tokens, made.model, made.dtype, made.seed) == (4096, "llama-110m", "bfloat16", 3)
    assert made.eviction_args == {"alpha": 0.5}
    assert made.weights == "int8"
    assert config.hash != composed("model=llama-110m", "model.dtype=bfloat16").hash
    of_the_gpu = ("device=cpu", "kv_dtype=int8", "memory_fraction=0.5", "cuda_graphs=false", "overlap=true")
    made = engine_config(composed(*(f"engine.{setting}" for setting in of_the_gpu), "engine.deterministic=true"))
    assert (made.device, made.kv_dtype, made.memory_fraction) == ("cpu", "int8", 0.5)
    assert (made.cuda_graphs, made.overlap, made.deterministic) == (False, True, True)
    made = engine_config(composed("engine.grammar_backend=fsm", "engine.jump_forward=false"))
    assert (made.grammar_backend, made.jump_forward) == ("fsm", False)
    assert config.policy_label == "lru+eviction=lfu+schedule=dfs_weight+alpha=0.5+cache=flat"


def test_a_path_wins_over_the_named_model() -> None:
    assert engine_config(composed("model.path=some/folder")).model == "some/folder"


def test_equal_settings_have_equal_hashes_whatever_does_not_matter() -> None:
    base = composed("workload.limit=5").hash
    assert composed("workload.limit=5", "force=true", "outputs=elsewhere", "debug=true").hash == base
    assert composed("workload.limit=6").hash != base
    assert composed("workload.limit=5", "seed=1").hash != base
    assert composed("workload.limit=5", "policy.eviction=lfu").hash != base


def test_the_hash_follows_the_contents_of_outside_files(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("A = 1")
    one = composed(f"policy.eviction={mine}:Mine")
    assert one.policy_label == "lru+eviction=Mine"
    before = one.hash
    mine.write_text("A = 2")
    assert composed(f"policy.eviction={mine}:Mine").hash != before


def test_a_workload_file_is_a_choice_with_its_own_settings(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    config = composed(f"workload={tmp_path}/mine.py:Mine", "workload.n=7")
    assert config.workload == f"{tmp_path}/mine.py:Mine"
    assert config.workload_label == "Mine"
    assert config.workload_args == {"n": 7, "data_dir": None}


def test_a_workload_file_within_a_sweep_stays_one_choice_of_several(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (argument,) = admit_files([f"workload=mmlu,{tmp_path}/mine.py:Mine,hellaswag"])
    first, mine, last = argument.removeprefix("workload=").split(",")
    assert (first, last) == ("mmlu", "hellaswag")
    assert composed(f"workload={mine}").workload == f"{tmp_path}/mine.py:Mine"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("parallel=0", "parallel=0 is not allowed: it must be a whole number, 1 or more"),
        ("parallel=two", "parallel='two' is not allowed"),
        ("rate=-1", "above 0"),
        ("repeats=1.5", "repeats=1.5"),
        ("seed=-1", "from 0"),
        ("warmup=maybe", "true or false"),
        ("+policy.evictoin=lfu", "unknown setting 'policy.evictoin'; did you mean 'eviction'"),
        ("+paralel=3", "did you mean 'parallel'"),
        ("cells=3", "list of overrides"),
    ],
)
def test_values_that_make_no_sense_are_told(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        composed(override)


def test_closed_and_open_loop_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"parallel=3 and rate=5.*give one"):
        composed("parallel=3", "rate=5")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("engine.page_size=abc", "whole number"),
        ("engine.hints=5", "true or false"),
        ("engine.overlap=perhaps", "engine.overlap='perhaps' is not allowed: it must be true or false"),
        ("engine.memory_fraction=most", "engine.memory_fraction='most' is not allowed: it must be a number"),
        ("engine.kv_dtype=8", "engine.kv_dtype=8 is not allowed: it must be a name"),
        ("+engine.pagesize=3", "did you mean 'page_size'"),
        ("policy.routing=random", "policy.routing=.random. is not served"),
        ("+policy.routing_args.k=2", "is not served"),
    ],
)
def test_engine_settings_are_checked(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        engine_config(composed(override))
