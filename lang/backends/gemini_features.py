"""What Gemini's API serves, and of JSON schemas what it keeps to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lang.capabilities import NO_KV, Capabilities, Feature, NotServed

NAME = "Gemini's generateContent"
_GONE = "Gemini's models take none from version 3 on: leave it out"

_MISSING = {
    Feature.COMPLETION: (
        "a chat model answers messages: put the text inside user(...) and the call inside assistant(...)"
    ),
    Feature.ASSISTANT_PREFIX: (
        "Gemini's models refuse a last message of their own since version 3.6: end it and ask again inside user(...)"
    ),
    Feature.REGEX: "use json_schema=... (Gemini's schemas have no pattern), or select(...) of a few texts",
    Feature.STOP_REGEX: "use stop=[...] with the strings themselves",
    Feature.MIN_P: "leave it out, or use EngineBackend",
    Feature.REPETITION_PENALTY: "leave it out, or use EngineBackend",
    Feature.MIN_TOKENS: "leave it out, or ask for a length in the prompt",
    Feature.IGNORE_EOS: "leave it out, or use EngineBackend",
    Feature.STOP_TOKEN_IDS: "use stop=[...] with their texts",
    Feature.CONCATENATE: NO_KV,
    Feature.TOKEN_HEALING: "it needs token ids, so EngineBackend; or end the prompt with a whole word and no space",
    Feature.OUTPUTS: "a server writes what it likes, so EngineBackend; or outputs='free'",
    Feature.FORCED_OUTPUT: "replay needs token ids, so EngineBackend; or add the text itself to the prompt",
    Feature.HINTS: "the server decides alone what it keeps; nothing needs to be changed",
}
_WITHOUT_SAMPLING = {
    Feature.N: "Gemini's models have one sample from version 3 on: use fork(n) and a gen in each branch",
    Feature.TOP_K: _GONE,
    Feature.PRESENCE_PENALTY: _GONE,
    Feature.FREQUENCY_PENALTY: _GONE,
}

_KEPT = frozenset(
    {
        "$id",
        "$defs",
        "$ref",
        "$anchor",
        "type",
        "format",
        "title",
        "description",
        "enum",
        "items",
        "prefixItems",
        "minItems",
        "maxItems",
        "minimum",
        "maximum",
        "anyOf",
        "properties",
        "additionalProperties",
        "required",
        "propertyOrdering",
    }
)
"""What the API documents for `responseJsonSchema`, but oneOf, which it reads as anyOf."""
_REMARKS = frozenset(["$schema", "$comment", "default", "examples", "deprecated", "readOnly", "writeOnly"])
"""Nothing that an output could break."""
_INSTEAD = {
    "const": "write an enum of one",
    "oneOf": "it would be read as anyOf: write that",
    "definitions": "use $defs",
}


def gemini_features(*, sampling: bool, stream: bool = True) -> Capabilities:
    """sampling: the model takes temperature, top_p, top_k, penalties and n."""
    missing = {**_MISSING, **({} if sampling else _WITHOUT_SAMPLING)}
    if not stream:
        missing[Feature.STREAMING] = "the backend was made with stream=False"
    return Capabilities(NAME, missing)


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raises NotServed for what the API would ignore: it promises nothing of outputs then."""
    for where, keyword, instead in _ignored(schema, "the schema"):
        raise NotServed(f"gen(json_schema=...) isn't served by {NAME}: it ignores {keyword} (in {where}); {instead}")


def _ignored(schema: Any, where: str) -> Iterator[tuple[str, str, str]]:
    if not isinstance(schema, Mapping):  # true and false
        return
    for keyword, value in schema.items():
        if keyword not in _KEPT | _REMARKS:
            otherwise = "leave it out and check the output, or use EngineBackend or OpenAIBackend"
            yield where, repr(keyword), _INSTEAD.get(keyword, otherwise)
        elif keyword == "enum" and any(
            isinstance(one, bool) or not isinstance(one, str | int | float) for one in value
        ):
            yield where, f"enum {value!r:.60}", "an enum holds strings and numbers: use type for the others"
        elif keyword in ("properties", "$defs"):
            for name, part in value.items():
                yield from _ignored(part, repr(name))
        elif keyword in ("items", "additionalProperties"):
            yield from _ignored(value, where)
        elif keyword in ("anyOf", "prefixItems"):
            for part in value:
                yield from _ignored(part, where)


def _may_be_listed(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)
