"""Policies by name, from packages and from files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import engine.policies.registry as registry
from engine.policies.base import KINDS, AdmissionPolicy, EvictionPolicy, RoutingPolicy, SchedulePolicy
from engine.policies.registry import PolicyError, available, make_policy

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("kind", KINDS)
def test_every_policy_listed_can_be_made(kind: str) -> None:
    for name in available(kind):
        assert isinstance(make_policy(kind, name), KINDS[kind])


def test_what_is_there() -> None:
    assert available("eviction") == ["fifo", "lfu", "lru", "random", "slru"]
    assert available("scheduling") == ["cache_aware", "dfs_weight", "fcfs", "lof", "priority", "random"]
    assert available("retention") == ["keep_all"]
    assert available("admission") == ["always"]


def test_parameters_reach_the_policy() -> None:
    assert make_policy("eviction", "slru", {"protected_hits": 5}).protected_hits == 5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "name", "args", "why"),
    [
        (
            "eviction",
            "lur",
            {},
            r"unknown eviction policy 'lur'; did you mean 'lru'\? available: fifo, lfu, lru, random",
        ),
        ("eviction", "zzz", {}, r"unknown eviction policy 'zzz'; available: fifo"),
        ("evictions", "lru", {}, r"unknown kind of policy 'evictions'; did you mean 'eviction'"),
        ("scheduling", "lru", {}, r"unknown scheduling policy 'lru'; .*available: cache_aware"),
        ("routing", "any", {}, r"unknown routing policy 'any'; available: none"),
        ("eviction", "slru", {"protect": 3}, r"unknown parameter .*'protect'; did you mean 'protected_hits'"),
        ("eviction", "lru", {"alpha": 3}, r"unknown parameter of eviction policy 'lru': 'alpha'; available: none"),
        ("eviction", "slru", {"protected_hits": 0}, r"protected_hits=0 must be 1 or more"),
        ("scheduling", "cache_aware", {"refresh": "many"}, r"'cache_aware': TypeError"),
        ("eviction", "no/such.py:Mine", {}, r"there is no file 'no/such.py'"),
        ("eviction", "mine.py", {}, r"for a class in a file write mine.py:ClassName"),
    ],
)
def test_a_mistake_is_named(kind: str, name: str, args: dict[str, object], why: str) -> None:
    with pytest.raises(PolicyError, match=why):
        make_policy(kind, name, args)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


MINE = """
from dataclasses import dataclass
from engine.policies.base import EvictionPolicy

@dataclass
class Mine(EvictionPolicy):
    alpha: float = 0.5
    def key(self, node, ctx):
        return (self.alpha,)

class Needs(EvictionPolicy):
    def __init__(self, alpha, *, beta=1):
        self.alpha = alpha

number = 3
"""


def test_a_class_in_a_file_with_parameters(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", MINE)
    made = make_policy("eviction", f"{file}:Mine", {"alpha": 2.0})
    assert isinstance(made, EvictionPolicy)
    assert made.alpha == 2.0  # type: ignore[attr-defined]


def test_two_files_of_the_same_name_do_not_mix(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = write(tmp_path / "a" / "mine.py", MINE)
    second = write(tmp_path / "b" / "mine.py", MINE.replace("0.5", "0.25"))
    made = [make_policy("eviction", f"{file}:Mine") for file in (first, second)]
    assert [policy.alpha for policy in made] == [0.5, 0.25]  # type: ignore[attr-defined]
    assert len({type(policy).__module__ for policy in made}) == 2


@pytest.mark.parametrize(
    ("name", "args", "why"),
    [
        ("Mien", {}, r"unknown class 'Mien'; did you mean 'Mine'\? available: Mine, Needs"),
        ("Needs", {}, r"missing a required argument: 'alpha' \(signature: alpha, beta=1\)"),
        ("Needs", {"alhpa": 1}, r"'alhpa'; did you mean 'alpha'\? available: alpha, beta"),
        ("number", {}, r"is 3; it must be a class derived from engine.policies.base.EvictionPolicy"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path: Path, name: str, args: dict[str, object], why: str) -> None:
    file = write(tmp_path / "mine.py", MINE)
    with pytest.raises(PolicyError, match=why):
        make_policy("eviction", f"{file}:{name}", args)


def test_a_class_of_another_kind_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", MINE)
    with pytest.raises(PolicyError, match=r"must be a class derived from engine\.policies\.base\.SchedulePolicy"):
        make_policy("scheduling", f"{file}:Mine")


def test_a_file_that_fails_to_import_says_why(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", "import no_such_module_anywhere")
    with pytest.raises(PolicyError, match=r"mine.py failed to import: ModuleNotFoundError: .*no_such_module_anywhere"):
        make_policy("eviction", f"{file}:Mine")


def test_installed_packages_bring_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shed(AdmissionPolicy):
        pass

    class Route(RoutingPolicy):
        pass

    def fail() -> None:
        raise ImportError("no module named 'gone'")

    points = {
        "radixlab.admission": [SimpleNamespace(name="shed", value="pkg:Shed", load=lambda: Shed)],
        "radixlab.routing": [SimpleNamespace(name="route", value="pkg:Route", load=lambda: Route)],
        "radixlab.eviction": [SimpleNamespace(name="gone", value="gone:Gone", load=fail)],
    }
    monkeypatch.setattr(registry, "entry_points", lambda group: points.get(group, []))
    assert available("admission") == ["always", "shed"]
    assert isinstance(make_policy("admission", "shed"), Shed)
    assert isinstance(make_policy("routing", "route"), Route)
    with pytest.raises(
        PolicyError, match=r"eviction policy 'gone' \(gone:Gone\) failed to import: no module named 'gone'"
    ):
        make_policy("eviction", "gone")
    with pytest.raises(PolicyError, match="unknown eviction policy 'gon'; did you mean 'gone'"):
        make_policy("eviction", "gon")


def test_a_built_in_name_cannot_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    point = SimpleNamespace(name="lru", value="pkg:Fake", load=lambda: SchedulePolicy)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "radixlab.eviction" else [])
    assert type(make_policy("eviction", "lru")).__module__ == "engine.policies.eviction.lru"


def test_neither_torch_nor_hypothesis_is_imported_and_policies_only_when_made() -> None:
    code = """
import sys
import engine
import engine.cache, engine.cache.page_pool, engine.policies.registry as registry
print("torch" in sys.modules, "hypothesis" in sys.modules)
registry.available("eviction")
print("engine.policies.eviction.slru" in sys.modules)
registry.make_policy("eviction", "slru")
print("engine.policies.eviction.slru" in sys.modules)
import engine.conformance
print("torch" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.split() == ["False", "False", "False", "True", "False"], run.stderr
