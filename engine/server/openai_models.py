"""The bodies of /v1/completions and what it answers, and what chat completions share with it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from engine.server.fields import MAX_TOP_LOGPROBS, RequestFields, TokenId, token_ids
from engine.server.refused import COMPLETIONS

PromptList = list[str | list[int]]


def _prompts(value: Any) -> PromptList:
    """One prompt or several, text or token ids, as a list. Raises ValueError."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError("prompt must be text, a list of texts, a list of token ids or a list of such lists")
    first = value[0]
    if isinstance(first, str):
        if not all(isinstance(text, str) for text in value):
            raise ValueError("prompt mixes texts with something else: send one kind")
        return list(value)
    if isinstance(first, list):
        if not all(isinstance(ids, list) for ids in value):
            raise ValueError("prompt mixes lists of token ids with something else: send one kind")
        return [token_ids(ids, f"prompt[{i}]") for i, ids in enumerate(value)]
    return [token_ids(value, "prompt")]


_TOKEN = {"type": "integer", "minimum": 0}
Prompts = Annotated[
    Any,
    BeforeValidator(_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                {"type": "array", "items": _TOKEN, "minItems": 1},
                {"type": "array", "items": {"type": "array", "items": _TOKEN}, "minItems": 1},
            ]
        }
    ),
]
"""After the check a PromptList."""


class CompletionRequest(RequestFields):
    unserved = COMPLETIONS

    prompt: Prompts
    max_tokens: int | None = Field(None, ge=0, lt=2**31, description="16 by default; 0 computes the prompt only.")
    best_of: int | None = Field(None, ge=1, description="Not served, unless it equals n.")
    echo: bool | None = Field(None, description="The text begins with the prompt, and so do the logprobs.")
    logprobs: int | None = Field(
        None, ge=0, le=MAX_TOP_LOGPROBS, description="Log-probabilities, with so many of the likeliest tokens."
    )


class CachedTokens(BaseModel):
    cached_tokens: int


class ForcedTokens(BaseModel):
    forced_tokens: int = Field(description="Output tokens that a grammar forced.")


class UsageData(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ForcedTokens


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionResponse(BaseModel):
    """Also a chunk of a stream, which is without usage but for the last."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageData | None = None


__all__ = ["CompletionRequest", "CompletionResponse", "PromptList", "TokenId", "UsageData"]
