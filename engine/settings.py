"""The engine's configuration from groups of settings: a model, a policy bundle, and the engine's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from engine.config import ConfigError, EngineConfig
from engine.policies.names import closest

POLICY_PARTS = ("eviction", "retention", "schedule", "admission")
_ELSEWHERE = ("model", "dtype", "weights", "model_seed", "tokenizer", "seed")
"""Settings of the engine that come from other groups."""


def engine_config(
    *, model: Mapping[str, Any], policy: Mapping[str, Any], engine: Mapping[str, Any], seed: int
) -> EngineConfig:
    """model: name, path, dtype, weights, seed, tokenizer. policy: a bundle. engine: what was given, None
    where nothing was.

    Raises ConfigError for unknown settings and values that make no sense.
    """
    kinds = {f.name: str(f.type) for f in dataclasses.fields(EngineConfig)}
    policies = {name for part in POLICY_PARTS for name in (part, f"{part}_args")}
    allowed = [name for name in kinds if name not in _ELSEWHERE and name not in policies]
    given = {name: value for name, value in engine.items() if value is not None}
    for name, value in given.items():
        if name not in allowed:
            listed = ", ".join(allowed)
            raise ConfigError(f"unknown setting 'engine.{name}'{closest(name, allowed) or ';'} allowed: {listed}")
        _check(name, kinds[name], value)
    if policy.get("routing") is not None or policy.get("routing_args"):
        raise ConfigError(
            f"policy.routing={policy.get('routing')!r} is not served: this system is one engine with nothing to "
            "route between; leave policy.routing=null and policy.routing_args={}"
        )
    return EngineConfig(
        model=model.get("path") or model["name"],
        dtype=model["dtype"],
        weights=model.get("weights"),
        model_seed=model.get("seed", 0),
        tokenizer=model.get("tokenizer"),
        seed=seed,
        **given,
        **{name: value for name, value in policy.items() if name in policies},
    )


def _check(name: str, kind: str, value: Any) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    wanted = {
        "int": ("a whole number", whole),
        "bool": ("true or false", isinstance(value, bool)),
        "float": ("a number", whole or isinstance(value, float)),
        "str": ("a name", isinstance(value, str)),
        "Mapping[str, Any]": ("settings by name", isinstance(value, Mapping)),
    }
    allowed, fits = wanted[kind.removesuffix(" | None")]
    if not fits:
        raise ConfigError(f"engine.{name}={value!r} is not allowed: it must be {allowed}")
