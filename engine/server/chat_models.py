"""The body of /v1/chat/completions and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from engine.server.fields import MAX_TOP_LOGPROBS, Part, RequestFields
from engine.server.openai_models import UsageData
from engine.server.refused import CHAT

# Tags of alternatives begin with a capital: messages about errors leave them out of a field's path.


def _by(field: str, told: str) -> Discriminator:
    """Chosen by what stands in that field, whose value is the tag with small letters. told: what is allowed."""

    def tag(value: Any) -> str | None:
        given = value.get(field) if isinstance(value, Mapping) else getattr(value, field, None)
        return given.capitalize() if isinstance(given, str) else None

    return Discriminator(tag, custom_error_type=field, custom_error_message=told)


def _text_or_parts(value: Any) -> str:
    return "Text" if isinstance(value, str) else "Parts"


class TextPart(Part):
    type: Literal["text"]
    text: str


class ImageUrl(Part):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Part):
    type: Literal["image_url"]
    image_url: ImageUrl


class RefusalPart(Part):
    type: Literal["refusal"]
    refusal: str


Texts = Annotated[Annotated[str, Tag("Text")] | Annotated[list[TextPart], Tag("Parts")], Discriminator(_text_or_parts)]
_UserPart = Annotated[
    Annotated[TextPart, Tag("Text")] | Annotated[ImagePart, Tag("Image_url")],
    _by("type", "the type of a part must be text or image_url"),
]
_AssistantPart = Annotated[
    Annotated[TextPart, Tag("Text")] | Annotated[RefusalPart, Tag("Refusal")],
    _by("type", "the type of a part must be text or refusal"),
]


class SystemMessage(Part):
    role: Literal["system", "developer"]
    content: Texts
    name: str | None = None


class UserMessage(Part):
    role: Literal["user"]
    content: Annotated[
        Annotated[str, Tag("Text")] | Annotated[list[_UserPart], Tag("Parts")], Discriminator(_text_or_parts)
    ]
    name: str | None = None


class CalledFunction(Part):
    name: str
    arguments: str = Field(description="A JSON object, as text.")


class ToolCall(Part):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class AssistantMessage(Part):
    """Fields that are null or empty in OpenAI's answers are taken back as they were given."""

    role: Literal["assistant"]
    content: (
        Annotated[
            Annotated[str, Tag("Text")] | Annotated[list[_AssistantPart], Tag("Parts")], Discriminator(_text_or_parts)
        ]
        | None
    ) = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: None = None
    audio: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class ToolMessage(Part):
    role: Literal["tool"]
    content: Texts
    tool_call_id: str
    name: str | None = None


Message = Annotated[
    Annotated[SystemMessage, Tag("System")]
    | Annotated[SystemMessage, Tag("Developer")]
    | Annotated[UserMessage, Tag("User")]
    | Annotated[AssistantMessage, Tag("Assistant")]
    | Annotated[ToolMessage, Tag("Tool")],
    _by("role", "the role of a message must be system, developer, user, assistant or tool"),
]


class Function(Part):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of an object; none: no arguments.")
    strict: bool | None = Field(None, description="Arguments always follow the schema.")


class FunctionTool(Part):
    type: Literal["function"]
    function: Function


class NamedFunction(Part):
    name: str


class NamedTool(Part):
    type: Literal["function"]
    function: NamedFunction


ToolChoiceField = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("Text")] | Annotated[NamedTool, Tag("Parts")],
    Discriminator(_text_or_parts),
]


class SchemaFormat(Part):
    name: str
    description: str | None = None
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="The output always follows the schema.")


class TextFormat(Part):
    type: Literal["text"]


class ObjectFormat(Part):
    type: Literal["json_object"]


class JsonSchemaFormat(Part):
    type: Literal["json_schema"]
    json_schema: SchemaFormat


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("Text")]
    | Annotated[ObjectFormat, Tag("Json_object")]
    | Annotated[JsonSchemaFormat, Tag("Json_schema")],
    _by("type", "the type must be text, json_object or json_schema"),
]


class ChatRequest(RequestFields):
    unserved = CHAT

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(
        None, ge=0, lt=2**31, description="By default as many as the context has room for."
    )
    max_tokens: int | None = Field(None, ge=0, lt=2**31, description="The older name of max_completion_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS, description="Needs logprobs.")
    response_format: ResponseFormat | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoiceField | None = Field(None, description="auto where there are tools.")
    parallel_tool_calls: bool | None = Field(None, description="Several calls may follow one another; true by default.")


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[ContentLogprob]
    refusal: None = None


class AnsweredCall(BaseModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    tool_calls: list[AnsweredCall] | None = None


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatResponse(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageData
