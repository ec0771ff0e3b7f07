"""What Gemini's API says, as its clients get it, and a server's answer to any request."""

from __future__ import annotations

import json
import zlib
from typing import Any


def gemini_answer(*candidates: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A whole answer, or a piece of one."""
    return {"candidates": list(candidates), **more}


def gemini_candidate(*parts: str | dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    told = [{"text": part} if isinstance(part, str) else part for part in parts]
    ending = {} if finish is None else {"finishReason": finish}
    return {"content": {"role": "model", "parts": told}, "index": 0, **ending, **more}


def gemini_chunk(*parts: str | dict[str, Any], finish: str | None = None, **more: Any) -> str:
    return gemini_event(gemini_answer(gemini_candidate(*parts, finish=finish), **more))


def gemini_event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}"


def gemini_reply(path: str, body: dict[str, Any]) -> Any:
    """Suits the request: a text that depends on what was said, or what its schema asks for, in pieces for a stream."""
    config = body.get("generationConfig", {})
    schema = config.get("responseJsonSchema")
    said = f"{zlib.crc32(json.dumps(body['contents']).encode()):08x} is my answer"
    text = said if schema is None else json.dumps(_instance(schema))
    usage = {"promptTokenCount": 7, "candidatesTokenCount": 5, "totalTokenCount": 12}
    if ":streamGenerateContent" in path:
        return [gemini_chunk(text[:4]), gemini_chunk(text[4:], finish="STOP", usageMetadata=usage)]
    n = config.get("candidateCount", 1)
    return gemini_answer(*(gemini_candidate(text, finish="STOP", index=i) for i in range(n)), usageMetadata=usage)


def _instance(schema: dict[str, Any]) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    if schema["type"] == "object":
        return {name: _instance(part) for name, part in schema["properties"].items()}
    return {"boolean": True, "string": "a text"}[schema["type"]]
