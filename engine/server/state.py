"""What every endpoint is made with."""

from __future__ import annotations

from dataclasses import dataclass

from engine.server.config import ServerConfig
from engine.server.conversation import Chat
from engine.server.service import EngineService


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    service: EngineService
    config: ServerConfig
    model_name: str
    """What clients call the model."""
    created: int
    """Unix time at which the model was loaded."""
    chat: Chat
    """How the model talks: its chat template and its form of tool calls."""
