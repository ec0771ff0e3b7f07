"""Anthropic's models, and servers that speak its messages protocol, through Anthropic's own client."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lang.backends.api import Answer, AnswerError, ApiBackend, Grow, Work
from lang.backends.chat import Turns, turns
from lang.backends.choice_schema import check_method, choice_in, choice_meta, choice_schema, room
from lang.capabilities import NO_KV, Capabilities, Feature, NotServed
from lang.choices import ChoicesMethod
from lang.prompt import Image, Message, Prompt
from lang.sampling import Sampling
from lang.tools import CHOICES, Tool, ToolCall

if TYPE_CHECKING:
    import anthropic
    from anthropic.types import Message as Said

_GO_ON = ("claude-haiku-4-5", "claude-opus-4-5", "claude-sonnet-4-5")
"""The last of Anthropic's models that go on with a message of their own; later ones refuse it."""
_REASONS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}
_TOOL_CHOICES = {"auto": "auto", "required": "any", "none": "none"}
_ALONE = "Anthropic's messages have one sample: use fork(n) and a gen in each branch"

_MISSING = {
    Feature.COMPLETION: (
        "a chat model answers messages: put the text inside user(...) and the call inside assistant(...)"
    ),
    Feature.REGEX: "use json_schema=..., or select(...) of a few texts",
    Feature.STOP_REGEX: "use stop=[...] with the strings themselves",
    Feature.LOGPROBS: "Anthropic's messages tell none: use EngineBackend or OpenAIBackend",
    Feature.N: _ALONE,
    Feature.SEED: "Anthropic's messages have none: leave it out, or use EngineBackend or OpenAIBackend",
    Feature.MIN_P: "leave it out, or use EngineBackend",
    Feature.REPETITION_PENALTY: "leave it out, or use EngineBackend",
    Feature.PRESENCE_PENALTY: "leave it out, or use EngineBackend or OpenAIBackend",
    Feature.FREQUENCY_PENALTY: "leave it out, or use EngineBackend or OpenAIBackend",
    Feature.MIN_TOKENS: "leave it out, or ask for a length in the prompt",
    Feature.IGNORE_EOS: "leave it out, or use EngineBackend",
    Feature.STOP_TOKEN_IDS: "use stop=[...] with their texts",
    Feature.OUTPUTS: "a server writes what it likes, so EngineBackend; or outputs='free'",
    Feature.FORCED_OUTPUT: "replay needs token ids, so EngineBackend; or add the text itself to the prompt",
    Feature.CONCATENATE: NO_KV,
    Feature.TOKEN_HEALING: "it needs token ids, so EngineBackend; or end the prompt with a whole word and no space",
    Feature.HINTS: "the server decides alone what it keeps; nothing needs to be changed",
}


def anthropic_features(*, sampling: bool, prefill: bool, stream: bool = True) -> Capabilities:
    missing = dict(_MISSING)
    if not sampling:
        missing[Feature.TOP_K] = "Anthropic's API takes none since 2026-10-21: leave it out"
    if not prefill:
        missing[Feature.ASSISTANT_PREFIX] = (
            "the model goes on with no message of its own: end it and ask again inside user(...), or use "
            f"{', '.join(_GO_ON)}"
        )
    if not stream:
        missing[Feature.STREAMING] = "the backend was made with stream=False"
    return Capabilities("Anthropic's messages", missing)


class AnthropicBackend(ApiBackend):
    """`AnthropicBackend("claude-opus-5-5")`; `base_url` names another server of the same protocol.

    sampling: the server takes temperature, top_p and top_k. Anthropic's own takes none of them since 2026-10-21, so
    there programs must not set them; others are taken to.
    prefill: the model goes on with an assistant message that the program began. By default what Anthropic's model of
    that name does, and yes for other servers.
    stream: answers come in pieces. concurrency: requests under way at a time.
    timeout (seconds), max_retries: the client's own, as is what it takes from the environment; or give a `client`.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        sampling: bool | None = None,
        prefill: bool | None = None,
        stream: bool = True,
        concurrency: int = 128,
        timeout: float | None = None,
        max_retries: int | None = None,
        client: anthropic.AsyncAnthropic | None = None,
    ) -> None:
        """Raises ImportError without the client library, ValueError without a key."""
        given = {"base_url": base_url, "api_key": api_key, "timeout": timeout, "max_retries": max_retries}
        self._client = _client({name: value for name, value in given.items() if value is not None}, client)
        self._model = model
        self._stream = stream
        self._hosted = (self._client.base_url.host or "").endswith("anthropic.com")
        self._sampling = not self._hosted if sampling is None else sampling
        goes_on = not self._hosted or model.startswith(_GO_ON) if prefill is None else prefill
        features = anthropic_features(sampling=self._sampling, prefill=goes_on, stream=stream)
        super().__init__(features, concurrency=concurrency)

    def _generation(self, prompt: Prompt, sampling: Sampling) -> Work:
        said = turns(prompt, self.capabilities.backend)
        fields: dict[str, Any] = {"max_tokens": sampling.max_tokens, **self._sampled(sampling)}
        if sampling.stop:
            fields["stop_sequences"] = self._stops(sampling.stop)
        if sampling.json_schema is not None:
            fields |= self._held_to(json.loads(sampling.json_schema), said, "gen(json_schema=...)")
        if sampling.tools:
            fields |= _offered(sampling.tools, sampling.tool_choice)
        body = self._body(said, fields)

        async def work(grow: Grow) -> Answer:
            return _answer(await self._ask(body, grow))

        return work

    def _selection(self, prompt: Prompt, choices: Sequence[str], method: ChoicesMethod) -> Work:
        check_method(method, self.capabilities.backend)
        said = turns(prompt, self.capabilities.backend)
        fields = {
            "max_tokens": room(choices),
            **(self._sampled(Sampling(temperature=0)) if self._sampling else {}),
            **self._held_to(choice_schema(choices), said, "select(...)"),
        }
        body = self._body(said, fields)

        async def work(grow: Grow) -> Answer:
            answer = _answer(await self._ask(body, lambda _text: None))
            return Answer((choice_in(answer.texts[0], choices),), choice_meta(answer.meta, choices))

        return work

    def _sampled(self, sampling: Sampling) -> dict[str, Any]:
        """Only what isn't the default. The client has no names for these any more."""
        asked = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        default = Sampling()
        extra = {name: value for name, value in asked.items() if value != getattr(default, name)}
        if extra and not self._sampling:
            name, value = next(iter(extra.items()))
            raise NotServed(
                f"gen({name}={value}) isn't served by {self.capabilities.backend}: Anthropic's API takes none since "
                "2026-10-21; leave it out, or make the backend with sampling=True and a client that asks for an "
                "older version"
            )
        return {"extra_body": extra} if extra else {}

    def _stops(self, stops: Sequence[str]) -> list[str]:
        if self._hosted and (blank := [stop for stop in stops if not stop.strip()]):
            raise NotServed(
                f"gen(stop={blank[0]!r}) isn't served by {self.capabilities.backend}: a stop must be more than white "
                "space; cut the text in the program instead"
            )
        return list(stops)

    def _held_to(self, schema: dict[str, Any], said: Turns, what: str) -> dict[str, Any]:
        if said.prefix:
            raise NotServed(
                f"{what} after text of the same assistant message isn't served by {self.capabilities.backend}: end "
                "that message, or put the text inside user(...)"
            )
        return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}

    def _body(self, said: Turns, fields: dict[str, Any]) -> dict[str, Any]:
        n = next(i for i, message in enumerate(said.messages) if message.role != "system")
        system = [block for message in said.messages[:n] for block in _blocks(message)]
        messages = [{"role": message.role, "content": _blocks(message)} for message in said.messages[n:]]
        return {"model": self._model, "messages": messages, **({"system": system} if system else {}), **fields}

    async def _ask(self, body: dict[str, Any], grow: Grow) -> Said:
        endpoint: Any = self._client.messages
        if not self._stream:
            return await endpoint.create(**body)
        async with endpoint.stream(**body) as stream:
            async for text in stream.text_stream:
                grow(text)
            return await stream.get_final_message()

    async def _close_client(self) -> None:
        await self._client.close()


def _answer(said: Said) -> Answer:
    text = "".join(block.text for block in said.content if block.type == "text")
    if said.stop_reason is None:
        raise AnswerError(f"the answer broke off after {len(text)} characters: no end was told")
    if said.stop_reason == "refusal":
        raise AnswerError(f"the model refused to answer (after {len(text)} characters)")
    calls = [block for block in said.content if block.type == "tool_use"]
    if said.stop_reason == "max_tokens" and calls and calls[-1] is said.content[-1]:
        raise AnswerError(f"the call of tool {calls[-1].name!r} was cut off: give more max_tokens")
    usage = said.usage
    cached = usage.cache_read_input_tokens or 0
    return Answer(
        texts=(text,),
        meta={
            "prompt_tokens": usage.input_tokens + cached + (usage.cache_creation_input_tokens or 0),
            "cached_tokens": cached,
            "completion_tokens": usage.output_tokens,
            "finish_reason": _REASONS.get(said.stop_reason, said.stop_reason),
        },
        tool_calls=tuple(ToolCall(block.id, block.name, dict(block.input)) for block in calls),
    )


def _blocks(message: Message) -> list[dict[str, Any]]:
    return [_block(part) for part in message.content]


def _block(part: str | Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    data = base64.b64encode(part.data).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": part.media_type, "data": data}}


def _offered(tools: Sequence[Tool], choice: str) -> dict[str, Any]:
    told = [
        {"name": tool.name, "description": tool.description, "input_schema": json.loads(tool.parameters)}
        for tool in tools
    ]
    chosen = {"type": _TOOL_CHOICES[choice]} if choice in CHOICES else {"type": "tool", "name": choice}
    return {"tools": told, "tool_choice": chosen}


def _client(options: dict[str, Any], client: anthropic.AsyncAnthropic | None) -> anthropic.AsyncAnthropic:
    try:
        import anthropic
    except ImportError as error:
        raise ImportError("AnthropicBackend needs Anthropic's client: pip install 'radixlab[anthropic]'") from error
    if client is None:
        made = anthropic.AsyncAnthropic(**options)
        if made.api_key is None and made.auth_token is None and made.credentials is None:
            raise ValueError(
                "AnthropicBackend needs a key: give api_key=..., or set ANTHROPIC_API_KEY (any text for a server that "
                "asks for none)"
            )
        return made
    if options:
        raise TypeError(
            f"give {', '.join(options)} to the client itself: AnthropicBackend(client=...) takes it as it is"
        )
    if not isinstance(client, anthropic.AsyncAnthropic):
        raise TypeError(
            f"client is {type(client).__name__}: it must be anthropic.AsyncAnthropic, as calls go side by side"
        )
    return client
