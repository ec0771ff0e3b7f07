"""Families of models by the `model_type` of their `config.json`: ours, and those of installed packages.

A family's module is imported when one of its models is met, not before.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from engine.models.config import ModelError

if TYPE_CHECKING:
    from engine.models.family import Family

GROUP = "radixlab.models"
"""Entry points of packages that bring families: `model_type = package.module:FAMILY`."""

FAMILIES: dict[str, str] = {
    "llama": "engine.models.llama_variants:LLAMA",
    "mistral": "engine.models.llama_variants:MISTRAL",
    "qwen2": "engine.models.llama_variants:QWEN2",
    "qwen3": "engine.models.llama_variants:QWEN3",
    "mixtral": "engine.models.mixtral:MIXTRAL",
    "llava": "engine.models.llava:LLAVA",
}
"""model_type -> module:object. A new family is a line here."""


def available() -> list[str]:
    """Every model_type that is served. Imports none of them."""
    return [*FAMILIES, *sorted(point.name for point in entry_points(group=GROUP) if point.name not in FAMILIES)]


def family_named(model_type: object) -> Family:
    """The family of that `model_type`. Raises ModelError for one that isn't there or is no Family."""
    from engine.models.family import Family

    if isinstance(model_type, str) and model_type in FAMILIES:
        target = FAMILIES[model_type]
    else:
        installed = {point.name: point.value for point in entry_points(group=GROUP)}
        if not isinstance(model_type, str) or model_type not in installed:
            raise ModelError(f"architecture {model_type!r} isn't supported; available model_type: {_named()}")
        target = installed[model_type]
    module, _, name = target.partition(":")
    try:
        family = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(f"the family of model_type {model_type!r} ({target}) can't be imported: {error}") from error
    if not isinstance(family, Family) or family.model_type != model_type:
        raise ModelError(
            f"{target} is {family!r}: for model_type {model_type!r} it must be an engine.models.family.Family with "
            "that model_type"
        )
    return family


def family_of_files(config: Mapping[str, Any]) -> Family:
    """The family of the contents of a `config.json`. Raises ModelError for one that can't generate text here."""
    model_type, architectures = config.get("model_type"), config.get("architectures") or []
    if model_type not in available():
        raise ModelError(
            f"architecture {model_type!r} ({', '.join(map(str, architectures)) or 'none given'}) isn't supported; "
            f"available model_type: {_named()}"
        )
    family = family_named(model_type)
    ending = "For" + family.architecture.rpartition("For")[2]
    for name in architectures:
        if not str(name).endswith(ending):
            raise ModelError(f"architecture {name!r} isn't supported: only ...{ending} models generate text")
    return family


def _named() -> str:
    return ", ".join(available())
