"""An output as the content blocks of Anthropic's form, whole and as the events of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pydantic_core

from engine.server.generation import Finish
from engine.server.tool_calls import CallArguments, CallEnd, CallStart, Content, Event, ToolCallParser


class Blocks:
    """The blocks of one answer as they grow."""

    def __init__(self, parser: ToolCallParser | None) -> None:
        """parser: where tools may be called."""
        self._parser = parser
        self._open = False
        """The last block goes on."""
        self._arguments = ""
        self.content: list[dict[str, Any]] = []
        """Whole once the output is over."""
        self.finish: Finish | None = None

    @property
    def called(self) -> bool:
        return any(block["type"] == "tool_use" for block in self.content)

    def take(self, text: str, finish: Finish | None) -> Iterator[dict[str, Any]]:
        """What the blocks gain, as events."""
        found: list[Event] = [Content(text)] if text else []
        if self._parser is not None:
            found = self._parser.push(text)
            if finish is not None:
                found += self._parser.finish()
        for news in found:
            match news:
                case Content(text=said):
                    yield from self._say(said)
                case CallStart(id=call_id, name=name):
                    yield from self._close()
                    yield self._begin({"type": "tool_use", "id": call_id, "name": name, "input": {}})
                    self._arguments = ""
                case CallArguments(text=piece):
                    self._arguments += piece
                    yield self._gain({"type": "input_json_delta", "partial_json": piece})
                case CallEnd():
                    # of arguments that were cut off, what stands there for certain
                    self.content[-1]["input"] = pydantic_core.from_json(self._arguments, allow_partial=True)
                    yield from self._close()
        if finish is not None:
            self.finish = finish
            yield from self._close()

    def _say(self, text: str) -> Iterator[dict[str, Any]]:
        if not self._open:
            yield self._begin({"type": "text", "text": ""})
        self.content[-1]["text"] += text
        yield self._gain({"type": "text_delta", "text": text})

    def _begin(self, block: dict[str, Any]) -> dict[str, Any]:
        self._open = True
        self.content.append(block)
        return {"type": "content_block_start", "index": len(self.content) - 1, "content_block": dict(block)}

    def _gain(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self.content) - 1, "delta": delta}

    def _close(self) -> Iterator[dict[str, Any]]:
        if self._open:
            self._open = False
            yield {"type": "content_block_stop", "index": len(self.content) - 1}
