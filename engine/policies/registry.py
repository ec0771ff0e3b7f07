"""Policies by name: ours, those of installed packages (entry points), those in a file.

A policy's module is imported when it's made, not before.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import zlib
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, overload

from engine.policies.base import (
    KINDS,
    AdmissionPolicy,
    EvictionPolicy,
    PolicyError,
    RetentionPolicy,
    RoutingPolicy,
    SchedulePolicy,
)
from engine.policies.names import unknown_name

__all__ = ["PolicyError", "available", "load_class", "make_policy", "policy_class"]

BUILT_IN: dict[str, dict[str, str]] = {
    "eviction": {
        "fifo": "fifo:FIFO",
        "lfu": "lfu:LFU",
        "lru": "lru:LRU",
        "random": "random:Random",
        "slru": "slru:SLRU",
    },
    "retention": {"keep_all": "keep_all:KeepAll"},
    "scheduling": {
        "cache_aware": "cache_aware:CacheAware",
        "dfs_weight": "dfs_weight:DFSWeight",
        "fcfs": "fcfs:FCFS",
        "lof": "lof:LongestOutputFirst",
        "priority": "priority:Priority",
        "random": "random:Random",
    },
    "admission": {"always": "always:Always"},
    "routing": {},
}


def _kind(kind: str) -> str:
    if kind not in KINDS:
        raise PolicyError(unknown_name("kind of policy", kind, KINDS))
    return kind


def _installed(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"radixlab.{kind}")}


def available(kind: str) -> list[str]:
    """Names of the policies of a kind: ours and those of installed packages, sorted. Imports none of them."""
    return sorted({*BUILT_IN[_kind(kind)], *_installed(kind)})


def _module_from_file(path: Path) -> ModuleType:
    name = f"radixlab_policy_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PolicyError(f"{path} can't be imported as Python: name a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look it up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise PolicyError(f"{path} failed to import: {type(error).__name__}: {error}") from error
    return module


def load_class(target: str) -> Any:
    """What `path/to/file.py:Name` stands for. Raises PolicyError naming what is missing."""
    file, _, name = target.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise PolicyError(f"{target!r}: there is no file {str(path)!r} (looked from {Path.cwd()})")
    module = _module_from_file(path.resolve())
    if not hasattr(module, name):
        classes = [n for n, v in vars(module).items() if inspect.isclass(v) and v.__module__ == module.__name__]
        raise PolicyError(f"{path}: " + unknown_name("class", name, classes))
    return getattr(module, name)


def policy_class(kind: str, name: str) -> type:
    """The class that a name, or `path/to/file.py:Class`, stands for. Raises PolicyError when there is none."""
    if ".py:" in name:
        found = load_class(name)
    elif name in BUILT_IN[_kind(kind)]:
        module, _, attribute = BUILT_IN[kind][name].partition(":")
        found = getattr(importlib.import_module(f"engine.policies.{kind}.{module}"), attribute)
    elif (point := _installed(kind).get(name)) is not None:
        try:
            found = point.load()
        except Exception as error:
            raise PolicyError(f"{kind} policy {name!r} ({point.value}) failed to import: {error}") from error
    else:
        what = unknown_name(f"{kind} policy", name, available(kind))
        if name.endswith(".py"):
            what += f"; for a class in a file write {name}:ClassName"
        raise PolicyError(what)
    base = KINDS[_kind(kind)]
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise PolicyError(
            f"{kind} policy {name!r} is {found!r}; it must be a class derived from engine.policies.base.{base.__name__}"
        )
    return found


def _allowed(make: Callable[..., Any]) -> str:
    parameters = list(inspect.signature(make).parameters.values())
    return ", ".join(str(p) for p in parameters) or "none"


@overload
def make_policy(kind: Literal["eviction"], name: str, args: Mapping[str, Any] = ...) -> EvictionPolicy: ...
@overload
def make_policy(kind: Literal["retention"], name: str, args: Mapping[str, Any] = ...) -> RetentionPolicy: ...
@overload
def make_policy(kind: Literal["scheduling"], name: str, args: Mapping[str, Any] = ...) -> SchedulePolicy: ...
@overload
def make_policy(kind: Literal["admission"], name: str, args: Mapping[str, Any] = ...) -> AdmissionPolicy: ...
@overload
def make_policy(kind: Literal["routing"], name: str, args: Mapping[str, Any] = ...) -> RoutingPolicy: ...
@overload
def make_policy(kind: str, name: str, args: Mapping[str, Any] = ...) -> Any: ...
def make_policy(kind: str, name: str, args: Mapping[str, Any] = {}) -> Any:
    """A policy of a kind ("eviction", "retention", "scheduling", "admission", "routing") with parameters `args`.

    `name` is one of `available(kind)` or `path/to/file.py:Class`. Raises PolicyError for a name or a parameter that
    isn't known, a class of another kind, a file that can't be imported.
    """
    made = policy_class(kind, name)
    parameters = inspect.signature(made).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for given in args:
        if given not in parameters and not open_ended:
            what = unknown_name(f"parameter of {kind} policy {name!r}:", str(given), parameters)
            raise PolicyError(f"{what} (signature: {_allowed(made)})")
    try:
        inspect.signature(made).bind(**args)
    except TypeError as error:
        raise PolicyError(f"{kind} policy {name!r}: {error} (signature: {_allowed(made)})") from error
    try:
        return made(**args)
    except Exception as error:
        raise PolicyError(f"{kind} policy {name!r}: {type(error).__name__}: {error}") from error
