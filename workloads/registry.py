"""Finds a workload by its name, or in a file of yours: `mmlu`, `path/to/mine.py:MyWorkload`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from lang.sampling import closest
from workloads.base import Workload

WORKLOADS: Mapping[str, str] = {
    "dspy_rag": "workloads.dspy_rag:DSPyRAG",
    "generative_agents": "workloads.generative_agents:GenerativeAgents",
    "gsm8k": "workloads.gsm8k:GSM8K",
    "hellaswag": "workloads.hellaswag:HellaSwag",
    "line_retrieval": "workloads.line_retrieval:LineRetrieval",
    "long_doc_qa": "workloads.long_doc_qa:LongDocQA",
    "mmlu": "workloads.mmlu:MMLU",
    "multi_chain": "workloads.multi_chain:MultiChain",
    "react": "workloads.react:React",
    "tree_of_thought": "workloads.tree_of_thought:TreeOfThought",
}


class WorkloadError(ValueError):
    """The workload can't be made. The message says what was given, what is allowed and what to do."""


def load_workload(spec: str, kwargs: Mapping[str, Any] | None = None) -> Workload:
    """Makes the workload called `spec` (a name, or `path.py:Class`) with its configuration. Reads no data yet.

    Raises WorkloadError for an unknown name, a file or class that isn't there or isn't a workload, a wrong parameter.
    """
    cls = workload_class(spec)
    given = dict(kwargs or {})
    parameters = inspect.signature(cls).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for name in given:
            if name not in parameters:
                known = ", ".join(parameters) or "none"
                raise WorkloadError(
                    f"workload {spec!r} has no parameter {name!r}{closest(name, parameters)} it takes: {known}"
                )
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name not in given
    ]
    if missing:
        raise WorkloadError(f"workload {spec!r} needs {', '.join(missing)}: add workload.{missing[0]}=...")
    if isinstance(cls.__abstractmethods__, frozenset) and cls.__abstractmethods__:
        raise WorkloadError(
            f"workload {spec!r} lacks {', '.join(sorted(cls.__abstractmethods__))}(): define it in the class"
        )
    return cls(**given)


def workload_class(spec: str) -> type[Workload]:
    """The class behind `spec`. Raises WorkloadError."""
    path, colon, name = spec.rpartition(":")
    if not colon and not spec.endswith(".py"):
        if spec not in WORKLOADS:
            raise WorkloadError(
                f"unknown workload {spec!r}{closest(spec, WORKLOADS)} available: {', '.join(WORKLOADS)}, "
                "or path/to/mine.py:MyWorkload"
            )
        module, _, name = WORKLOADS[spec].partition(":")
        return getattr(importlib.import_module(module), name)
    if not colon:
        path, name = spec, ""
    found = _module_from(Path(path).expanduser(), spec)
    theirs = [
        key
        for key, value in vars(found).items()
        if inspect.isclass(value) and issubclass(value, Workload) and value.__module__ == found.__name__
    ]
    if not name:
        raise WorkloadError(
            f"workload {spec!r} doesn't say which class: {path}:{theirs[0] if theirs else 'MyWorkload'}"
        )
    cls = vars(found).get(name)
    if cls is None:
        raise WorkloadError(
            f"{path} has no class {name!r}{closest(name, theirs)} workloads in it: {', '.join(theirs) or 'none'}"
        )
    if not (inspect.isclass(cls) and issubclass(cls, Workload)):
        raise WorkloadError(f"{path}:{name} isn't a workload: make it a subclass of workloads.base.Workload")
    return cls


def _module_from(path: Path, spec: str) -> ModuleType:
    if not path.is_file():
        raise WorkloadError(
            f"workload {spec!r}: there is no file {path} (from {Path.cwd()}); give path/to/mine.py:MyWorkload"
        )
    name = f"workload_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise WorkloadError(f"workload {spec!r}: {path} isn't a Python file (*.py)")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise WorkloadError(f"workload {spec!r}: {path} can't be imported: {type(error).__name__}: {error}") from error
    return module
