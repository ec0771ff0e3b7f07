"""The serving engine. Importing it doesn't import torch; making an engine does."""

from engine.config import ConfigError, EngineConfig
from engine.engine import Engine
from engine.make import make_engine
from engine.request import FinishReason, Request, RequestError, SamplingParams, Status, TokenLogprob

__all__ = [
    "ConfigError",
    "Engine",
    "EngineConfig",
    "FinishReason",
    "Request",
    "RequestError",
    "SamplingParams",
    "Status",
    "TokenLogprob",
    "make_engine",
]
