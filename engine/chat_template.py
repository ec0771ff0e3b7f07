"""From the messages of a chat to the prompt that a model was trained on, by the model's own template."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from engine.byte_pair import BytePairTokenizer
from engine.control_tokens import ControlTokens
from engine.pictures import PLACE
from engine.request import RequestError
from engine.template_sandbox import Sandbox, TemplateLimit, free_variables, literal_text
from engine.tokenizer import Tokenizer

PLAIN = """\
{{- bos_token or '' }}
{%- for message in messages %}
{{- '### ' + message.role + '\\n' + (message.content or '') }}
{{- (eos_token or '') if message.role == 'assistant' else '' }}
{{- '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### assistant\\n' }}{% endif %}"""
"""For tokenizers that come without a template:

    <s>### system
    Be brief.

    ### user
    Hello.

    ### assistant
"""

IMAGE = "".join(secrets.choice("0123456789") for _ in range(30))
"""Stands for a picture in a message's content. Nobody outside this process can write it."""

Message = Mapping[str, Any]
"""As templates know it: role (system, user, assistant, tool), content (text), for an assistant perhaps tool_calls, each
{"id", "type": "function", "function": {"name", "arguments": a dict}}, for a tool tool_call_id and name."""


class TemplateError(ValueError):
    """The template can't be read or compiled. The message says which one and why."""


class ChatTemplate:
    """A tokenizer's chat template. Safe to use from several threads at once.

    The sources are the model's or the operator's, never a client's.
    """

    def __init__(self, tokenizer: Tokenizer, sources: Mapping[str, str], origin: str) -> None:
        """sources: `default` and perhaps `tool_use`, taken for messages with tools. origin: where they come from.

        Raises TemplateError.
        """
        if "default" not in sources:
            raise TemplateError(f"the chat template of {origin} has no `default` among {', '.join(sources) or 'none'}")
        self.origin = origin
        self.source = sources["default"]
        self._tokenizer = tokenizer
        try:
            self._plain = _Compiled(tokenizer, self.source)
            tool_use = sources.get("tool_use")
            self._with_tools = self._plain if tool_use is None else _Compiled(tokenizer, tool_use)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"the chat template of {origin} is wrong in line {error.lineno}: {error}") from None
        self.knows_tools = self._with_tools.knows_tools
        """It describes tools and writes calls and their results itself."""

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] = (), continue_last: bool = False
    ) -> str:
        """The prompt as text, for people: see `encode` for the tokens."""
        return self._render(self._with_tools if tools else self._plain, messages, tools, continue_last)

    def encode(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] = (), continue_last: bool = False
    ) -> list[int]:
        """The prompt as tokens. The text of a control token in a message stays text (see `ControlTokens`).

        tools: {"type": "function", "function": {"name", "description", "parameters"}} each.
        continue_last: the answer goes on from the last message instead of beginning a new one.
        IMAGE in a content becomes PLACE. Raises RequestError when the template refuses the messages, takes too much, or
        loses an image.
        """
        compiled = self._with_tools if tools else self._plain
        marked = compiled.control.mark([list(messages), list(tools)])
        rendered = self._render(compiled, marked.value[0], marked.value[1], continue_last)
        first, *rest = rendered.split(IMAGE)
        ids = self._tokens(compiled, first, marked.found)
        for part in rest:
            ids += [PLACE, *(self._tokens(compiled, part, marked.found) if part else ())]
        if compiled.takes_parts:
            ids = [PLACE if token == compiled.image_id else token for token in ids]
        shown, given = ids.count(PLACE), sum((message.get("content") or "").count(IMAGE) for message in messages)
        if shown != given:
            raise RequestError(f"the chat template shows {shown} of {given} images: give images in user messages alone")
        return ids

    def _tokens(self, compiled: _Compiled, rendered: str, is_marked: bool) -> list[int]:
        if is_marked or isinstance(self._tokenizer, BytePairTokenizer):  # which reads no token from text
            return compiled.control.encode(rendered)
        return list(self._tokenizer.encode(rendered, add_special_tokens=False))

    def _render(
        self,
        compiled: _Compiled,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        continue_last: bool,
    ) -> str:
        end = None
        if continue_last:
            end = secrets.token_hex(12) + " "
            messages = _with_end(messages, end)
        if compiled.takes_parts:
            messages = [_in_parts(message) for message in messages]
        variables = {
            **self._tokenizer.special_tokens,
            "messages": messages,
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": not continue_last,
        }
        try:
            rendered = compiled.sandbox.render(variables)
        except TemplateLimit as error:
            raise RequestError(f"the chat template can't be rendered for these messages: {error}") from None
        except jinja2.TemplateError as error:
            raise RequestError(f"the chat template refuses these messages: {error.message or error}") from None
        except Exception as error:
            raise RequestError(f"the chat template can't be rendered for these messages: {error}") from None
        return rendered if end is None else _until(rendered, end)


class _Compiled:
    def __init__(self, tokenizer: Tokenizer, source: str) -> None:
        self.sandbox = Sandbox(source)
        self.control = ControlTokens(tokenizer, literal_text(source))
        self.knows_tools = "tools" in free_variables(source)
        self.takes_parts = self._takes_parts(tokenizer)
        """It reads contents as lists of texts and images, not as texts (LLaVA's own template)."""
        self.image_id = self._image_id(tokenizer) if self.takes_parts else None
        """The token that it writes for an image in such a list."""

    def _probe(self, tokenizer: Tokenizer, content: Any) -> str:
        """Nothing where it refuses."""
        asked = {"messages": [{"role": "user", "content": content}], "tools": None, "documents": None}
        try:
            return self.sandbox.render({**tokenizer.special_tokens, **asked, "add_generation_prompt": True})
        except Exception:
            return ""

    def _takes_parts(self, tokenizer: Tokenizer) -> bool:
        if IMAGE in self._probe(tokenizer, IMAGE):
            return False
        return IMAGE in self._probe(tokenizer, [{"type": "text", "text": IMAGE}])

    def _image_id(self, tokenizer: Tokenizer) -> int | None:
        text = {"type": "text", "text": IMAGE}
        without, with_one = (self._probe(tokenizer, parts) for parts in ([text], [{"type": "image"}, text]))
        ids = tokenizer.added_tokens
        return next((ids[name] for name in ids if with_one.count(name) == without.count(name) + 1), None)


def load_chat_template(tokenizer: Tokenizer, file: Path | None = None) -> ChatTemplate:
    """The template in the file, else the tokenizer's own, else a plain one (`PLAIN`). Raises TemplateError."""
    if file is not None:
        try:
            source = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateError(f"the chat template {file} can't be read: {error}") from None
        return ChatTemplate(tokenizer, {"default": source}, str(file))
    if tokenizer.chat_templates:
        return ChatTemplate(tokenizer, tokenizer.chat_templates, "the tokenizer")
    return ChatTemplate(tokenizer, {"default": PLAIN}, "radixlab (a plain one: the tokenizer has none)")


def _in_parts(message: Message) -> Message:
    """With its content as a list; an image stands between texts on lines of their own."""
    content = message.get("content")
    if not isinstance(content, str):
        return message
    parts: list[dict[str, str]] = []
    pieces = content.split(IMAGE)
    for i, text in enumerate(pieces):
        if i:
            parts.append({"type": "image"})
        own = text.removeprefix("\n") if i else text
        own = own.removesuffix("\n") if i < len(pieces) - 1 else own
        if own:
            parts.append({"type": "text", "text": own})
    return {**message, "content": parts}


def _with_end(messages: Sequence[Message], end: str) -> list[Message]:
    """The messages with a mark where the last one's text ends."""
    if not messages or not isinstance(messages[-1].get("content"), str):
        raise RequestError("to go on from the last message it must have a text as its content")
    return [*messages[:-1], {**messages[-1], "content": f"{messages[-1]['content']}{end}"}]


def _until(rendered: str, end: str) -> str:
    """end: the mark, with a space after it."""
    at = rendered.rfind(end.strip())
    if at < 0:
        raise RequestError("the chat template leaves the last message out, so that the answer can't go on from it")
    kept = rendered[:at]
    return kept if rendered.startswith(end, at) else kept.rstrip()  # a template that trims would have trimmed it
