"""What a program may tell of calls to come. Hints are advice: they never change an answer."""

from __future__ import annotations

from typing import NamedTuple

from lang.prompt import Prompt


class Prefetch(NamedTuple):
    """A call that begins so comes in about `steps` calls of its program."""

    prefix: Prompt
    steps: int


class Pin(NamedTuple):
    """Please keep the prefix until the time given, seconds on the backend's clock."""

    prefix: Prompt
    until: float


class Unpin(NamedTuple):
    prefix: Prompt


class ConversationEnd(NamedTuple):
    """Nothing more comes of the conversation (`Tags.conversation`)."""

    id: str


Hint = Prefetch | Pin | Unpin | ConversationEnd
