"""A server from the command line's settings."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import conf
from engine.config import ConfigError, EngineConfig
from engine.engine import Engine
from engine.policies.names import closest, unknown_name
from engine.server.config import ServerConfig
from engine.server.conversation import Chat
from engine.server.service import EngineService
from engine.server.state import ServerState
from engine.settings import engine_config

GROUPS = ("model", "policy", "engine")
_PATHS = ("api_keys_file", "chat_template", "images_dir")


class Settings:
    """What the command line says. Raises ConfigError."""

    def __init__(self, arguments: Sequence[str]) -> None:
        data = compose(arguments)
        groups = {name: data.pop(name) for name in GROUPS}
        seed, record, name = data.pop("seed"), data.pop("record"), data.pop("served_name")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
            raise ConfigError(f"seed={seed!r} is not allowed: it must be a whole number from 0 to 2**31-1")
        self.engine: EngineConfig = engine_config(
            model=groups["model"], policy=groups["policy"], engine=groups["engine"], seed=seed
        )
        self.policy: str = groups["policy"]["name"]
        self.record = None if record is None else Path(record)
        paths = {key: Path(data[key]) for key in _PATHS if data[key] is not None}
        known = [field.name for field in dataclasses.fields(ServerConfig)]
        for key in data:
            if key not in known:
                raise ConfigError(f"unknown setting {key!r}{closest(key, known) or ';'} allowed: {', '.join(known)}")
        self.server = ServerConfig(
            model_name=name or groups["model"].get("path") or groups["model"]["name"],
            **{key: value for key, value in (data | paths).items() if value is not None},
        )


def compose(arguments: Sequence[str]) -> dict[str, Any]:
    """conf/server.yaml with the groups it names and the arguments `name=value`. Raises ConfigError."""
    try:
        return _composed(arguments)
    except OverrideParseException as error:
        raise ConfigError(f"can't read the argument {error.override!r}: it must look like name=value") from None
    except MissingConfigException as error:
        group, _, given = str(error.missing_cfg_file or "").rpartition("/")
        raise ConfigError(unknown_name(group or "config", given, error.options or ())) from None
    except (HydraException, OmegaConfBaseException) as error:
        told = _unknown_setting(arguments) or " ".join(str(error).split())
        raise ConfigError(told) from None


def _composed(arguments: Sequence[str]) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    folder = Path(next(iter(conf.__path__))).resolve()
    with hydra.initialize_config_dir(str(folder), version_base="1.3"):
        settings: Any = OmegaConf.to_container(hydra.compose("server", list(arguments)), resolve=True)
    return settings


def _unknown_setting(arguments: Sequence[str]) -> str:
    """Says which argument names a setting that isn't there; empty when all of them are."""
    choices = [text for text in arguments if text.partition("=")[0] in GROUPS]
    known: Any = _composed(choices)
    for text in arguments:
        inside: Any = known
        path = text.partition("=")[0].lstrip("+~").split(".")
        for depth, part in enumerate(path):
            if not isinstance(inside, Mapping):
                break
            if part not in inside:
                name, names = ".".join(path[: depth + 1]), list(inside)
                return f"unknown setting {name!r}{closest(part, names) or ';'} allowed: {', '.join(names)}"
            inside = inside[part]
    return ""


def make_state(engine: Engine, config: ServerConfig) -> ServerState:
    """Raises TemplateError for a chat template that can't be used."""
    service = EngineService(engine, config)
    return ServerState(
        service=service,
        config=config,
        model_name=config.model_name or engine.config.model,
        created=int(time.time()),
        chat=Chat.of(service.tokenizer, config),
    )
