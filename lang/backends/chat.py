"""A prompt as the turns of a chat API, which writes the assistant's messages and nothing else."""

from __future__ import annotations

from typing import NamedTuple

from lang.capabilities import NotServed
from lang.prompt import Image, Message, Prompt


class Turns(NamedTuple):
    messages: tuple[Message, ...]
    prefix: bool
    """The last message is the assistant's own, begun: the model is to go on with it."""


def turns(prompt: Prompt, backend: str) -> Turns:
    """Messages that say nothing are left out. Raises NotServed where the model would have to write something else."""
    try:
        messages = prompt.messages()
    except ValueError as error:
        raise NotServed(f"{backend}: {error}") from None
    if not messages or not messages[-1].open:
        raise NotServed(f"{backend} writes only messages of the assistant: put the gen or select inside assistant(...)")
    if messages[-1].role != "assistant":
        raise NotServed(
            f"{backend} writes only messages of the assistant: this gen or select is inside {messages[-1].role}(...)"
        )
    for message in messages:
        if message.role != "user" and any(isinstance(part, Image) for part in message.content):
            raise NotServed(f"{backend} takes images in messages of the user: put it inside user(...)")
    told = tuple(message for message in messages if message.content)
    if all(message.role == "system" for message in told):
        raise NotServed(f"{backend} needs a message to answer: put text inside user(...) before the gen or select")
    return Turns(told, prefix=bool(messages[-1].content))
