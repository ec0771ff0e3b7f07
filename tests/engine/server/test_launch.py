"""From the command line to settings: what isn't known or makes no sense is refused, with the nearest that is."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import conf
from engine.config import ConfigError
from engine.server.config import ServerConfig
from engine.server.front import listen, url
from engine.server.launch import Settings

SERVER_YAML = Path(next(iter(conf.__path__))) / "server.yaml"


def test_the_groups_of_an_experiment_make_the_same_engine() -> None:
    settings = Settings(
        ["model=llama-110m", "policy=none", "engine.pool_tokens=5000", "policy.schedule=fcfs", "seed=3"]
    )
    assert settings.engine.model == "llama-110m"
    assert (settings.engine.cache, settings.engine.schedule) == ("none", "fcfs")
    assert (settings.engine.pool_tokens, settings.engine.seed) == (5000, 3)
    assert settings.server.model_name == "llama-110m"
    assert settings.engine.weights is None
    assert Settings(["model.weights=int8", "model.dtype=bfloat16"]).engine.weights == "int8"


def test_the_file_names_every_setting_and_says_what_the_class_does() -> None:
    written = OmegaConf.to_container(OmegaConf.load(SERVER_YAML))
    assert isinstance(written, dict)
    fields = {field.name: field.default for field in dataclasses.fields(ServerConfig) if field.name != "model_name"}
    assert {name: written[name] for name in fields} == fields


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("prt=80", "unknown setting 'prt'; did you mean 'port'"),
        ("+prt=80", "unknown setting 'prt'; did you mean 'port'"),
        ("engine.pool=80", "unknown setting 'engine.pool'; did you mean 'pool_tokens'"),
        ("+engine.pool=80", "unknown setting 'engine.pool'; did you mean 'pool_tokens'"),
        ("policy.evicton=lru", "unknown setting 'policy.evicton'; did you mean 'eviction'"),
        ("policy=lruu", "unknown policy 'lruu'; did you mean 'lru'"),
        ("model=tyni", "unknown model 'tyni'; did you mean 'tiny'"),
        ("port", "name=value"),
        ("port=many", "port='many' is not allowed"),
        ("port=65536", "from 0 .* to 65535"),
        ("max_waiting=0", "max_waiting=0 is not allowed: it must be 1 or more"),
        ("timeout_s=.nan", "timeout_s"),
        ("allow_unauthenticated=perhaps", "true or false"),
        ("seed=-1", "seed=-1"),
        ("engine.page_size=0", "page_size=0"),
        ("model.weights=int4", "model.weights='int4' is not allowed: choose one of int8, fp8, or null"),
    ],
)
def test_what_makes_no_sense_is_refused(argument: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Settings([argument])


@pytest.mark.parametrize(
    ("host", "only_this_machine"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("example.org", False),
    ],
)
def test_a_host_is_known_to_be_this_machine_only(host: str, only_this_machine: bool) -> None:
    assert ServerConfig(host=host).loopback is only_this_machine


def test_a_port_that_is_taken_is_told() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    with taken, pytest.raises(ConfigError, match=r"can't listen .* port=0 takes any"):
        listen(ServerConfig(port=taken.getsockname()[1]))


def test_port_0_takes_one_that_is_free() -> None:
    with listen(ServerConfig(port=0)) as listener:
        assert url(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert listener.getsockname()[1] > 0
