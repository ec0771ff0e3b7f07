"""What the bodies of several endpoints have in common: how strict they are, how outputs are sampled and constrained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from engine.byte_pair import refuse_half_characters
from engine.server.refused import Unserved, drop_neutral

MAX_TOP_LOGPROBS = 20
_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 1024
_INT32 = 2**31


class Part(BaseModel):
    """A JSON object from a client. "1" is no number and true is no 1; NaN, infinity and unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Body(Part):
    """A whole body. A field that isn't served is refused by name, unless its value asks for nothing."""

    unserved: ClassVar[Mapping[str, Unserved]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, data: Any) -> Any:
        return drop_neutral(data, cls.unserved, cls.model_fields) if isinstance(data, dict) else data


def token_ids(value: Any, name: str) -> list[int]:
    """Checks in one pass what a model would check in one error a token. Raises ValueError."""
    for i, token in enumerate(value):
        if type(token) is not int or not 0 <= token < _INT32:
            raise ValueError(f"{name}[{i}] is {token!r:.40}: it must be a token id, a whole number of 0 or more")
    return value


def _stops(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return []
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError("stop must be a string or a list of strings")
    if len(stops) > _MAX_STOPS:
        raise ValueError(f"stop has {len(stops)} strings: at most {_MAX_STOPS} are allowed")
    for stop in stops:
        if not 0 < len(stop) <= _MAX_STOP_CHARACTERS:
            raise ValueError(f"a stop string has {len(stop)} characters: from 1 to {_MAX_STOP_CHARACTERS} are allowed")
        refuse_half_characters(stop)
    return stops


_STOP_STRING = {"type": "string", "minLength": 1, "maxLength": _MAX_STOP_CHARACTERS}
Stop = Annotated[
    list[str],
    BeforeValidator(_stops),
    WithJsonSchema(
        {
            "anyOf": [
                _STOP_STRING,
                {"type": "array", "items": _STOP_STRING, "maxItems": _MAX_STOPS},
                {"type": "null"},
            ],
            "default": None,
        }
    ),
]
TokenId = Annotated[int, Field(ge=0, lt=_INT32)]


class GrammarFields(Body):
    """What the output must match: one of them at most."""

    regex: str | None = Field(None, description="The whole output matches it (Rust's regex syntax).")
    json_schema: dict[str, Any] | bool | str | None = Field(
        None, description="The output is JSON that this schema (an object, or its JSON text) accepts."
    )
    ebnf: str | None = Field(None, description="A grammar in GBNF, from the rule `root`.")
    lark: str | None = Field(None, description="A grammar in llguidance's dialect of Lark, from the rule `start`.")
    choice: list[str] | None = Field(None, description="The output is one of these texts.")


class SamplingFields(GrammarFields):
    """OpenAI's names, then what other servers have besides. Null is the default everywhere."""

    temperature: float | None = Field(None, ge=0, description="0 is greedy; 1 by default.")
    top_p: float | None = Field(None, gt=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    stop: Stop = Field(default_factory=list, description="The text is cut just before the first of these.")
    top_k: int | None = Field(None, ge=-1, lt=_INT32, description="0 and -1 are off.")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    stop_token_ids: list[TokenId] | None = Field(None, max_length=1024)
    ignore_eos: bool | None = None


class StreamOptions(Part):
    include_usage: bool | None = Field(None, description="A last chunk says what the request used.")
    include_obfuscation: Literal[False] | None = None


class RequestFields(SamplingFields):
    """What requests of OpenAI's form share besides."""

    model: str
    n: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    min_tokens: int | None = Field(None, ge=0, lt=_INT32, description="No end before this many output tokens.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=1024, description="Fair scheduling policies share between users.")
    priority: int | None = Field(None, ge=-_INT32, lt=_INT32, description="Higher goes first where the policy asks.")
    timeout: float | None = Field(None, gt=0, description="Seconds after which the request is dropped.")
