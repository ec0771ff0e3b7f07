"""What stands before a call: text, images, and where roles begin and end."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Image:
    """A picture as it was read. Equal pictures are equal whatever file they came from."""

    data: bytes
    media_type: str
    """image/png, image/jpeg, ..."""

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def data_url(self) -> str:
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode()}"

    def __repr__(self) -> str:
        return f"<image {self.media_type}, {len(self.data)} bytes>"


class RoleMark(NamedTuple):
    """A role begins or ends here."""

    role: str
    begins: bool


class BranchMark(NamedTuple):
    """What a branch wrote begins or ends here, joined by its KV: it saw what stood before its fork and itself."""

    begins: bool
    prefix: tuple[Any, ...] = ()
    """Where it begins: the pieces before its fork."""


Piece = str | Image | RoleMark | BranchMark


class Message(NamedTuple):
    role: str
    content: tuple[str | Image, ...]
    """Neighbouring texts are one."""
    open: bool
    """Its end hasn't come: the model goes on with it."""

    def as_data(self) -> dict[str, Any]:
        """As OpenAI writes it: the content is text, or a list of parts when there are images in it."""
        if any(isinstance(part, Image) for part in self.content):
            parts = [
                {"type": "text", "text": part}
                if isinstance(part, str)
                else {"type": "image_url", "image_url": {"url": part.data_url}}
                for part in self.content
            ]
            return {"role": self.role, "content": parts}
        return {"role": self.role, "content": "".join(part for part in self.content if isinstance(part, str))}


class ChatStyle(NamedTuple):
    """How a model writes roles in a text: what stands before and after a message of each."""

    name: str
    begin: Mapping[str, str]
    end: Mapping[str, str]
    start: str = ""
    """Before the first message."""
    default_system: str = ""
    """After `start` where the first message isn't the system's: a message that the model is used to."""


PLAIN = ChatStyle(
    "plain",
    {"system": "### system\n", "user": "### user\n", "assistant": "### assistant\n"},
    {"system": "\n\n", "user": "\n\n", "assistant": "\n\n"},
)
"""For models whose tokenizer has no chat template: the server's built-in template in pairs."""


@dataclass(frozen=True)
class Prompt:
    """Pieces in their order. Text outside of any role is allowed: then `messages` has no use for it (see there)."""

    pieces: tuple[Piece, ...] = ()

    @classmethod
    def of(cls, pieces: Iterable[Piece]) -> Prompt:
        """Neighbouring texts are joined, empty ones left out."""
        pieces = tuple(pieces)
        if len(pieces) == 1 and pieces[0]:
            return cls(pieces)
        return cls(tuple(_joined(pieces)))

    def __add__(self, other: Prompt) -> Prompt:
        return Prompt.of((*self.pieces, *other.pieces))

    @property
    def has_roles(self) -> bool:
        return any(isinstance(piece, RoleMark) for piece in self.pieces)

    @property
    def has_joined_branches(self) -> bool:
        """Branches in it are joined by their KV."""
        return any(isinstance(piece, BranchMark) for piece in self.pieces)

    @property
    def ordinary(self) -> Prompt:
        """What stands before the first branch that is joined by its KV."""
        first = next((i for i, piece in enumerate(self.pieces) if isinstance(piece, BranchMark)), len(self.pieces))
        return Prompt(self.pieces[:first])

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(piece for piece in self.pieces if isinstance(piece, Image))

    def render(self, style: ChatStyle) -> Iterator[str | Image]:
        """Text and images, roles written in the style. Neighbouring texts aren't joined.

        Raises ValueError for a role that the style doesn't know.
        """
        first = next((piece for piece in self.pieces if isinstance(piece, RoleMark)), None)
        if first is not None:
            yield style.start
            if first.role != "system":
                yield style.default_system
        for piece in self.pieces:
            if isinstance(piece, BranchMark):
                continue
            if isinstance(piece, RoleMark):
                known = style.begin if piece.begins else style.end
                if piece.role not in known:
                    raise ValueError(
                        f"{style.name} has no message of the {piece.role}: it knows {', '.join(sorted(known))}; say "
                        "it in the user's message"
                    )
                yield known[piece.role]
            else:
                yield piece

    def text(self, style: ChatStyle = PLAIN, image: str = "<image>") -> str:
        """All of it as text; `image` stands for a picture."""
        if len(self.pieces) == 1 and isinstance(self.pieces[0], str):
            return self.pieces[0]
        return "".join(part if isinstance(part, str) else image for part in self.render(style))

    def messages(self) -> tuple[Message, ...]:
        """The messages, for chat APIs.

        Without any role the whole prompt is one user message. Raises ValueError for text or images between roles.
        """
        if not self.has_roles:
            return (Message("user", tuple(p for p in self.pieces if isinstance(p, str | Image)), False),)
        out: list[Message] = []
        role: str | None = None
        content: list[str | Image] = []
        for piece in self.pieces:
            if isinstance(piece, RoleMark):
                if not piece.begins:
                    out.append(Message(piece.role, tuple(content), False))
                role, content = (piece.role if piece.begins else None), []
            elif isinstance(piece, BranchMark):
                continue
            elif role is None:
                raise ValueError(
                    f"{piece!r:.60} stands between roles: a chat has only messages; put it inside system(), user() or "
                    "assistant()"
                )
            else:
                content.append(piece)
        if role is not None:
            out.append(Message(role, tuple(content), True))
        return tuple(out)


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    texts: list[str] = []
    for piece in pieces:
        if isinstance(piece, str):
            if piece:
                texts.append(piece)
            continue
        if texts:
            yield "".join(texts)
            texts = []
        yield piece
    if texts:
        yield "".join(texts)
