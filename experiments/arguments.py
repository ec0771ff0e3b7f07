"""The command line around Hydra: workloads given as a file, and errors in a line or two."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from experiments.config import ConfigError, closest, outside_file
from workloads.registry import workload_class


def admit_files(arguments: Sequence[str]) -> list[str]:
    """`workload=path/to/mine.py:Mine` made a choice that Hydra knows, also within a comma-separated sweep.

    Each file becomes an option of the group, registered in Hydra's store; everything else is left as it is.
    """
    return [_admit(argument) for argument in arguments]


def _admit(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if name != "workload" or not equals or ".py:" not in value:
        return argument
    choices = []
    for choice in value.split(","):
        spec = choice.strip().strip("'\"")
        if outside_file(spec) is None:
            choices.append(choice)
            continue
        option = f"{spec.rsplit(':', 1)[1]}_{hashlib.sha256(spec.encode()).hexdigest()[:8]}"
        ConfigStore.instance().store(group="workload", name=option, node={"name": spec, **_parameters(spec)})
        choices.append(option)
    return f"{name}={','.join(choices)}"


def _parameters(spec: str) -> dict[str, Any]:
    """What the workload's class may be given, with its defaults. Raises WorkloadError where it can't be had."""
    parameters = inspect.signature(workload_class(spec)).parameters.values()
    plain = (str, int, float, bool, list, type(None))
    return {p.name: p.default for p in parameters if p.default is not p.empty and isinstance(p.default, plain)}


def explain(error: BaseException, config: DictConfig | None = None) -> str:
    """One or two lines for an error of composition: what was given, what is allowed, the closest match."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, given = str(error.missing_cfg_file or "").rpartition("/")
        group = group or "config"
        options = sorted(error.options)
        hint = closest(given, options)
        also = ", or a file: path/to/mine.py:MyWorkload" if group == "workload" else ""
        return f"unknown {group} {given!r}{hint or ';'} available: {', '.join(options)}{also}"
    if isinstance(error, OverrideParseException):
        return f"can't read the argument {error.override!r}: it must look like name=value (quote special characters)"
    text = " ".join(str(error).split())
    cause = error.__cause__
    unknown = re.search(
        r"Key '([^']+)' is not in struct(?: full_key: (\S+))?", text + " " + " ".join(str(cause).split())
    )
    override = re.search(r"Could not override '([^']+)'", text)
    if unknown is not None:
        full = override.group(1) if override is not None else unknown.group(2) or unknown.group(1)
        return _unknown_key(full, config)
    no_group = re.search(r"Could not override '([^']+)'\. No match in the defaults list", text)
    if no_group is not None:
        return _unknown_key(no_group.group(1), config)
    return text


def is_composition_error(error: BaseException) -> bool:
    """Whether it came from what the user wrote in a config or on the command line."""
    return isinstance(error, HydraException | OmegaConfBaseException | ConfigCompositionException | ConfigError)


def _unknown_key(full: str, config: DictConfig | None) -> str:
    allowed: list[str] = []
    prefix, _, key = full.rpartition(".")
    if config is not None:
        node = config
        for part in prefix.split(".") if prefix else []:
            node = node.get(part) if isinstance(node, DictConfig) else None
        allowed = [str(k) for k in node] if isinstance(node, DictConfig) else []
        if not allowed:  # the folder itself is misspelt
            key, allowed, full = full.split(".")[0], [str(k) for k in config], full
    listed = f" allowed{' in ' + prefix if prefix and allowed else ''}: {', '.join(allowed)}" if allowed else ""
    return f"unknown setting {full!r}{closest(key, allowed) or ';'}{listed}"
