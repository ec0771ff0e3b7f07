"""The command line around Hydra: workloads given as a file, and errors in a line or two."""

from __future__ import annotations

import hashlib
import inspect
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import conf
from experiments.config import ConfigError, RunConfig, closest, outside_file
from workloads.registry import workload_class


def admit_files(arguments: Sequence[str]) -> list[str]:
    """`workload=path/to/mine.py:Mine` made a choice that Hydra knows, also within a comma-separated sweep.

    Each file becomes an option of the group, registered in Hydra's store; everything else is left as it is.
    """
    return [_admit(argument) for argument in arguments]


def _admit(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if name != "workload" or not equals or ".py" not in value:
        return argument
    choices = []
    for choice in value.split(","):
        spec = choice.strip().strip("'\"")
        if outside_file(spec) is None and not spec.endswith(".py"):
            choices.append(choice)
            continue
        node = {"name": spec, **_parameters(spec)}
        option = f"{spec.rsplit(':', 1)[-1]}_{hashlib.sha256(spec.encode()).hexdigest()[:8]}"
        ConfigStore.instance().store(group="workload", name=option, node=node)
        choices.append(option)
    return f"{name}={','.join(choices)}"


def _parameters(spec: str) -> dict[str, Any]:
    """What the workload's class may be given, with its defaults. Raises WorkloadError where it can't be had."""
    parameters = inspect.signature(workload_class(spec)).parameters.values()
    plain = (str, int, float, bool, list, type(None))
    return {p.name: p.default for p in parameters if p.default is not p.empty and isinstance(p.default, plain)}


def composed(overrides: Sequence[str]) -> RunConfig:
    """What run.py would be told by these overrides, without its own handling of errors. Raises what Hydra raises, and
    ConfigError."""
    with hydra.initialize_config_dir(str(Path(next(iter(conf.__path__))).resolve()), version_base="1.3"):
        config = hydra.compose("config", list(overrides))
    return RunConfig.parse(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]


def explain(error: BaseException, arguments: Sequence[str]) -> str:
    """One or two lines for an error of composition: what was given, what is allowed, the closest match."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, given = str(error.missing_cfg_file or "").rpartition("/")
        options = sorted(option for option in error.options if not _is_file_option(option))
        also = ", or a file: path/to/mine.py:MyWorkload" if group == "workload" else ""
        what = f"unknown {group or 'config'} {given!r}{closest(given, options) or ';'}"
        return f"{what} available: {', '.join(options)}{also}"
    if isinstance(error, OverrideParseException):
        return f"can't read the argument {error.override!r}: it must look like name=value (quote special characters)"
    text = " ".join(str(error).split())
    key = re.search(r"Could not override '([^']+)'|Key '[^']+' is not in struct full_key: (\S+)", text)
    return text if key is None else _unknown_key(key.group(1) or key.group(2), arguments) or text


def is_composition_error(error: BaseException) -> bool:
    """Whether it came from what the user wrote in a config or on the command line."""
    if isinstance(error, HydraException | OmegaConfBaseException | ConfigError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return (
        isinstance(error, ValueError)
        and bool(frames)
        and Path(hydra.__file__).parent in Path(frames[-1].filename).parents
    )


def _is_file_option(option: str) -> bool:
    return re.search(r"_[0-9a-f]{8}$", option) is not None


def _unknown_key(full: str, arguments: Sequence[str]) -> str:
    """Empty when the key is known after all: the error is about its value."""
    prefix, _, key = full.rpartition(".")
    allowed = settings_in(prefix, arguments)
    if allowed and key not in allowed:
        return f"unknown setting {full!r}{closest(key, allowed) or ';'} allowed: {', '.join(allowed)}"
    first, top = full.split(".")[0], settings_in("", arguments)
    if not top or first in top:
        return ""
    return f"unknown setting {full!r}{closest(first, top) or ';'} allowed: {', '.join(top)}"


def settings_in(prefix: str, arguments: Sequence[str]) -> list[str]:
    """Settings below `prefix` ("" for the top) in the configuration that the arguments' choices of groups make."""
    folder = Path(next(iter(conf.__path__))).resolve()
    groups = {path.name for path in folder.iterdir() if path.is_dir()}
    chosen = [text for text in admit_files(arguments) if text.split("=")[0] in groups and "," not in text]
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(folder), version_base="1.3"):
            config: Any = hydra.compose("config", chosen)
        for part in prefix.split(".") if prefix else []:
            config = config[part]
        return [str(name) for name in config]
    except (HydraException, OmegaConfBaseException, LookupError, TypeError, ValueError):
        return []
