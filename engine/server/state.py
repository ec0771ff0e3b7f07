"""What every endpoint is made with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.server.config import ServerConfig
from engine.server.service import EngineService


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    service: EngineService
    config: ServerConfig
    model_name: str
    """What clients call the model."""
    created: int
    """Unix time at which the model was loaded."""
    chat: Any = None
    """The tokenizer's chat template; None where it has none."""
    images: Any = None
    """Reads images; None where the model takes none."""
