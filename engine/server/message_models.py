"""The bodies of /v1/messages and /v1/messages/count_tokens, as Anthropic's clients send them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from engine.server.fields import Body, Part
from engine.server.refused import Unserved

MESSAGES: Mapping[str, Unserved] = {
    "thinking": Unserved("the model has no thinking of its own to show", ({"type": "disabled"},)),
    "container": Unserved("no code is run here"),
    "mcp_servers": Unserved("no other server is asked; give tools with an input_schema", ([],)),
    "context_management": Unserved("send the messages that the model is to see", ({},)),
    "diagnostics": Unserved("see /cache for what the cache holds"),
    "inference_geo": Unserved("everything runs on this machine"),
    "service_tier": Unserved("there is one tier", ("auto", "standard_only")),
    "speed": Unserved("there is one speed", ("standard",)),
    "user_profile_id": Unserved("use metadata.user_id"),
    "workspace_id": Unserved("there are no workspaces"),
}
COUNT_TOKENS: Mapping[str, Unserved] = MESSAGES

# Tags of alternatives begin with a capital: messages about errors leave them out of a field's path.


def _kind(value: Any) -> str | None:
    given = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return given.title() if isinstance(given, str) else None


def _text_or_blocks(value: Any) -> str:
    return "Text" if isinstance(value, str) else "Blocks"


class CacheControl(Part):
    """Accepted, and changes nothing: every prefix is cached, and found, without a mark."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Block(Part):
    cache_control: CacheControl | None = None


class TextBlock(Block):
    type: Literal["text"]
    text: str
    citations: Annotated[list[Any], Field(max_length=0)] | None = None


class Base64Source(Part):
    type: Literal["base64"]
    media_type: str
    data: str


class UrlSource(Part):
    type: Literal["url"]
    url: str


class ImageBlock(Block):
    type: Literal["image"]
    source: Annotated[
        Annotated[Base64Source, Tag("Base64")] | Annotated[UrlSource, Tag("Url")],
        Discriminator(
            _kind,
            custom_error_type="source",
            custom_error_message="the source of an image must be base64",
        ),
    ]


class ToolUseBlock(Block):
    type: Literal["tool_use"]
    id: str = Field(min_length=1, max_length=256)
    name: str = Field(min_length=1, max_length=128)
    input: dict[str, Any]
    caller: None = None
    toolset_name: None = None


_ResultBlock = Annotated[
    Annotated[TextBlock, Tag("Text")] | Annotated[ImageBlock, Tag("Image")],
    Discriminator(
        _kind,
        custom_error_type="block",
        custom_error_message="blocks of a tool's result are served of the types text and image",
    ),
]


class ToolResultBlock(Block):
    type: Literal["tool_result"]
    tool_use_id: str
    content: Annotated[
        Annotated[str, Tag("Text")] | Annotated[list[_ResultBlock], Tag("Blocks")], Discriminator(_text_or_blocks)
    ] = ""
    is_error: bool | None = None
    toolset_name: None = None


_Block = Annotated[
    Annotated[TextBlock, Tag("Text")]
    | Annotated[ImageBlock, Tag("Image")]
    | Annotated[ToolUseBlock, Tag("Tool_Use")]
    | Annotated[ToolResultBlock, Tag("Tool_Result")],
    Discriminator(
        _kind,
        custom_error_type="block",
        custom_error_message="blocks are served of the types text, image, tool_use and tool_result",
    ),
]
Texts = Annotated[
    Annotated[str, Tag("Text")] | Annotated[list[TextBlock], Tag("Blocks")], Discriminator(_text_or_blocks)
]


class Turn(Part):
    role: Literal["user", "assistant", "system"]
    content: Annotated[
        Annotated[str, Tag("Text")] | Annotated[list[_Block], Tag("Blocks")], Discriminator(_text_or_blocks)
    ]

    @property
    def blocks(self) -> list[TextBlock | ImageBlock | ToolUseBlock | ToolResultBlock]:
        return [TextBlock(type="text", text=self.content)] if isinstance(self.content, str) else list(self.content)


class ToolParam(Block):
    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = Field(None, description="The input always follows the schema.")
    eager_input_streaming: bool | None = Field(None, description="The input is always streamed as it comes.")


class ToolChoiceParam(Part):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class JsonOutput(Part):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Part):
    format: JsonOutput | None = None
    effort: None = None


class Metadata(Part):
    user_id: str | None = Field(None, max_length=1024, description="Fair scheduling policies share between users.")


class CountTokensRequest(Body):
    unserved = COUNT_TOKENS

    model: str
    messages: list[Turn] = Field(min_length=1, max_length=100_000)
    system: Texts | None = None
    tools: list[ToolParam] | None = None
    tool_choice: ToolChoiceParam | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None


class MessagesRequest(CountTokensRequest):
    unserved = MESSAGES

    max_tokens: int = Field(ge=1, lt=2**31)
    stop_sequences: list[Annotated[str, Field(min_length=1, max_length=1024)]] | None = Field(None, max_length=16)
    temperature: float | None = Field(None, ge=0, description="0 is greedy; 1 by default.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, lt=2**31, description="0 is off.")
    stream: bool | None = None
    metadata: Metadata | None = None
