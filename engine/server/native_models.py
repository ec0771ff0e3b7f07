"""The bodies of the native endpoints and what they answer. Names are SGLang's where it has them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema, model_validator

from engine.server.chat_models import FunctionTool, Message
from engine.server.fields import MAX_TOP_LOGPROBS, Body, SamplingFields, token_ids
from engine.server.refused import NATIVE

_TOKEN = {"type": "integer", "minimum": 0}
_TOKENS = {"type": "array", "items": _TOKEN, "minItems": 1}


def _id_lists(value: Any) -> Any:
    """One list of token ids or several. Raises ValueError."""
    if not isinstance(value, list) or not value:
        raise ValueError("it must be a list of token ids, or a list of such lists, and not empty")
    if not isinstance(value[0], list):
        return token_ids(value, "input_ids")
    if not all(isinstance(ids, list) for ids in value):
        raise ValueError("it mixes lists of token ids with something else: send one kind")
    return [token_ids(ids, f"input_ids[{i}]") for i, ids in enumerate(value)]


def _ids(value: Any) -> Any:
    if not isinstance(value, list):
        raise ValueError("it must be a list of token ids")
    return token_ids(value, "tokens")


def _either(value: dict[str, Any], names: tuple[str, ...]) -> str:
    """The one that is given. Raises ValueError."""
    given = [name for name in names if value.get(name) is not None]
    if len(given) != 1:
        raise ValueError(f"give one of {' and '.join(names)}; {len(given) or 'none'} of them are there")
    return given[0]


class NativeSampling(SamplingFields):
    unserved = NATIVE

    max_new_tokens: int | None = Field(None, ge=0, lt=2**31, description="128 by default; 0 computes the prompt only.")
    min_new_tokens: int | None = Field(None, ge=0, lt=2**31)
    n: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, lt=2**63)


class GenerateRequest(Body):
    unserved = NATIVE

    text: str | Annotated[list[str], Field(min_length=1)] | None = None
    input_ids: Annotated[
        Any,
        BeforeValidator(lambda value: None if value is None else _id_lists(value)),
        WithJsonSchema({"anyOf": [_TOKENS, {"type": "array", "items": _TOKENS, "minItems": 1}, {"type": "null"}]}),
    ] = Field(None, description="Instead of text.")
    sampling_params: NativeSampling | list[NativeSampling] | None = Field(
        None, description="One for all prompts, or one for each."
    )
    return_logprob: bool | None = Field(None, description="Log-probabilities of output tokens (see logprob_start_len).")
    logprob_start_len: int | None = Field(
        None, ge=-1, lt=2**31, description="The prompt's from this position on; -1, the default: none of them."
    )
    top_logprobs_num: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    stream: bool | None = Field(None, description="Events with what is new: texts and ids are to be joined.")
    user: str | None = Field(None, max_length=1024)
    conversation: str | None = Field(None, max_length=1024, description="For policies that know conversations.")
    program: str | None = Field(None, max_length=1024)
    agent: str | None = Field(None, max_length=1024)
    priority: int | None = Field(None, ge=-(2**31), lt=2**31)
    timeout: float | None = Field(None, gt=0, description="Seconds after which the request is dropped.")

    @model_validator(mode="after")
    def _check(self) -> GenerateRequest:
        _either(self.__dict__, ("text", "input_ids"))
        n = len(self.prompts)
        if isinstance(self.sampling_params, list) and len(self.sampling_params) != n:
            raise ValueError(
                f"sampling_params has {len(self.sampling_params)} entries for {n} prompts: give one for each, "
                "or one for all"
            )
        return self

    @property
    def is_list(self) -> bool:
        """Several prompts were given, be they one: the answer is a list."""
        return isinstance(self.text, list) or (self.input_ids is not None and isinstance(self.input_ids[0], list))

    @property
    def prompts(self) -> list[str | list[int]]:
        given: Any = self.text if self.text is not None else self.input_ids
        return list(given) if self.is_list else [given]


class FinishedBy(BaseModel):
    type: Literal["stop", "length"]
    matched: str | int | None = Field(None, description="The stop string, or the token that ended the output.")


TokenLogprobData = tuple[float | None, int, str]
"""Log-probability (null where the token has nothing before it), token id, text."""


class MetaInfo(BaseModel):
    id: str
    finish_reason: FinishedBy | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = Field(None, description="Prompt tokens found in the cache; with the end.")
    forced_tokens: int | None = Field(None, description="Output tokens that a grammar forced; with the end.")
    e2e_latency: float | None = Field(None, description="Seconds; with the end.")
    input_token_logprobs: list[TokenLogprobData] | None = None
    input_top_logprobs: list[list[TokenLogprobData] | None] | None = None
    output_token_logprobs: list[TokenLogprobData] | None = None
    output_top_logprobs: list[list[TokenLogprobData]] | None = None


class GenerateResponse(BaseModel):
    """Also an event of a stream, which holds what is new and says which output it belongs to."""

    text: str
    output_ids: list[int]
    meta_info: MetaInfo
    index: int | None = Field(None, description="In a stream: prompt * n + sample.")


class TokenizeRequest(Body):
    text: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, description="Instead of text, by the chat template.")
    tools: list[FunctionTool] | None = Field(None, description="With messages.")
    add_special_tokens: bool | None = Field(
        None, description="With text: begin it as the model wants; true by default."
    )

    @model_validator(mode="after")
    def _check(self) -> TokenizeRequest:
        if _either(self.__dict__, ("text", "messages")) == "text" and self.tools:
            raise ValueError("tools go with messages, not with text")
        if self.messages is not None and self.add_special_tokens is not None:
            raise ValueError("add_special_tokens goes with text: of messages the chat template decides")
        return self


class TokenizeResponse(BaseModel):
    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizeRequest(Body):
    tokens: Annotated[Any, BeforeValidator(_ids), WithJsonSchema({"type": "array", "items": _TOKEN})]


class DetokenizeResponse(BaseModel):
    text: str
