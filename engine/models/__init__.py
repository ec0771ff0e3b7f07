"""Models of the Llama family: configuration, weights, the forward pass."""

from engine.models.config import ModelConfig, ModelError
from engine.models.llama import Llama
from engine.models.load import load_model

__all__ = ["Llama", "ModelConfig", "ModelError", "load_model"]
