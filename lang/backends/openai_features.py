"""What OpenAI's endpoints serve, and servers like OpenAI's with fields of their own."""

from __future__ import annotations

from typing import Literal

from lang.backends.openai_request import Extensions
from lang.capabilities import NO_KV, Capabilities, Feature

SelectBy = Literal["logprobs", "choice", "schema"]

_EVERYWHERE = {
    Feature.STOP_REGEX: "use stop=[...] with the strings themselves",
    Feature.OUTPUTS: "a server writes what it likes, so EngineBackend; or outputs='free'",
    Feature.FORCED_OUTPUT: "replay needs token ids, so EngineBackend; or add the text itself to the prompt",
    Feature.CONCATENATE: NO_KV,
    Feature.TOKEN_HEALING: "it needs token ids, so EngineBackend; or end the prompt with a whole word and no space",
    Feature.HINTS: "the server decides alone what it keeps; nothing needs to be changed",
}
_EXTENDED = "needs radixlab's own server or vLLM, and OpenAIBackend(..., extensions='radixlab' or 'vllm')"
_WITHOUT_EXTENSIONS = {
    Feature.TOP_K: f"use top_p=...; {Feature.TOP_K} {_EXTENDED}",
    Feature.MIN_P: f"use top_p=...; {Feature.MIN_P} {_EXTENDED}",
    Feature.REPETITION_PENALTY: f"use presence_penalty or frequency_penalty; {Feature.REPETITION_PENALTY} {_EXTENDED}",
    Feature.MIN_TOKENS: f"leave it out, or ask for a length in the prompt; {Feature.MIN_TOKENS} {_EXTENDED}",
    Feature.IGNORE_EOS: f"leave it out; {Feature.IGNORE_EOS} {_EXTENDED}",
    Feature.STOP_TOKEN_IDS: f"use stop=[...] with their texts; {Feature.STOP_TOKEN_IDS} {_EXTENDED}",
}
_CHAT = {
    Feature.COMPLETION: (
        "a chat model answers messages: put the text inside user(...) and the call inside assistant(...), or use a "
        "completion model (chat=False)"
    ),
    Feature.ASSISTANT_PREFIX: (
        "OpenAI's chats begin a new message: end the assistant's message and ask again inside user(...), or use "
        "extensions='vllm' or chat=False"
    ),
}
_COMPLETIONS = {
    Feature.IMAGES: "use a chat model (chat=True)",
    Feature.TOOLS: "use a chat model (chat=True)",
}


def openai_features(
    *, chat: bool, extensions: Extensions | None = None, stream: bool = True, select: SelectBy | None = "schema"
) -> Capabilities:
    missing = {**_EVERYWHERE, **(_CHAT if chat else _COMPLETIONS)}
    if extensions is None:
        regex = (
            "use json_schema=..., or select(...) of a few texts" if chat else "use a chat model with json_schema=..."
        )
        missing |= {**_WITHOUT_EXTENSIONS, Feature.REGEX: f"{regex}; {Feature.REGEX} {_EXTENDED}"}
        if not chat:
            missing[Feature.JSON_SCHEMA] = f"use a chat model (chat=True); {Feature.JSON_SCHEMA} here {_EXTENDED}"
    elif extensions is Extensions.VLLM and chat:
        del missing[Feature.ASSISTANT_PREFIX]
    if select is None:
        missing[Feature.SELECT] = "the backend was made with select=None; give 'schema', 'choice' or 'logprobs'"
    if not stream:
        missing[Feature.STREAMING] = "the backend was made with stream=False"
    kind = "OpenAI's chat completions" if chat else "OpenAI's completions"
    return Capabilities(kind if extensions is None else f"{kind} with extensions={extensions.value!r}", missing)
