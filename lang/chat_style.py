"""How a chat template writes roles, found out by asking it: `ChatStyle` from the texts that it renders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lang.prompt import ChatStyle, Prompt, RoleMark

Render = Callable[[Sequence[Mapping[str, str]]], str]
"""Messages of role and content, to a text that ends where the assistant's next message begins."""

_SAID = ("The first of all.", "What is asked.", "What is answered.", "What is asked next.")


class NoStyle(ValueError):
    """The template doesn't render a chat as its messages, one after the other. The message says what to do."""


def style_of(render: Render, name: str, bos: str = "") -> ChatStyle:
    """Raises NoStyle. A template that takes no system message gives a style without one.

    bos: the text of the token that begins every prompt, if there is one.
    """
    try:
        return _style(render, name, bos)
    except _Unlike as unlike:
        raise NoStyle(
            f"{name} doesn't write a chat as its messages one after the other ({unlike}), so that a program can't "
            "write it piece by piece: give style=ChatStyle(name, begin, end), or use text without roles"
        ) from None


class _Unlike(Exception):
    pass


def _style(render: Render, name: str, bos: str) -> ChatStyle:
    first, after_user, before_user, asks = _between(render, ("user", "assistant", "user"))
    lead = after_user.removeprefix(asks)
    if lead.isspace():  # the model writes the space before its answer itself
        after_user = asks
    else:
        lead = ""
    start = bos if bos and first.startswith(bos) else ""
    before_system: str | None
    after_system: str | None
    try:
        before_system, after_system, *_ = _between(render, ("system", "user", "assistant", "user"))
    except _Refused:
        before_system = after_system = None
    candidates = [first.removeprefix(start), before_user]
    if before_system is not None:
        candidates.insert(0, before_system.removeprefix(start).replace("system", "user"))
    follows = [text for text in (before_user, after_system) if text is not None]
    begin_user = next((text for text in candidates if text and all(t.endswith(text) for t in (*follows, first))), None)
    if begin_user is None:
        raise _Unlike("a user's message begins otherwise after each kind of message")
    end_assistant = before_user.removesuffix(begin_user)
    begin_assistant = begin_user.replace("user", "assistant")
    if begin_assistant == begin_user or not after_user.endswith(begin_assistant):
        begin_assistant = after_user.removeprefix(end_assistant) if after_user.startswith(end_assistant) else ""
    begin = {"user": begin_user, "assistant": begin_assistant}
    end = {"user": after_user.removesuffix(begin_assistant), "assistant": end_assistant}
    if before_system is not None and after_system is not None:
        begin["system"], end["system"] = before_system.removeprefix(start), after_system.removesuffix(begin_user)
    style = ChatStyle(name, begin, end, start, first.removeprefix(start).removesuffix(begin_user))
    for roles in (
        ("user",),
        ("user", "assistant", "user"),
        ("system", "user"),
        ("system", "user", "assistant", "user"),
    ):
        if "system" in roles and "system" not in begin:
            continue
        if _written(style, roles, lead) != render(_chat(roles)):
            raise _Unlike(f"{', '.join(roles)}: rendered together they aren't their parts joined")
    return style


class _Refused(Exception):
    pass


def _chat(roles: Sequence[str]) -> list[dict[str, str]]:
    said = _SAID if roles[0] == "system" else _SAID[1:]
    return [{"role": role, "content": text} for role, text in zip(roles, said)]


def _between(render: Render, roles: Sequence[str]) -> list[str]:
    """The texts before, between and after the contents."""
    chat = _chat(roles)
    try:
        text = render(chat)
    except ValueError as error:
        if roles[0] == "system":
            raise _Refused from error
        raise _Unlike(str(error)) from None
    parts = []
    for message in chat:
        before, found, text = text.partition(message["content"])
        if not found:
            raise _Unlike(f"it leaves out or changes a message of the role {message['role']}")
        parts.append(before)
    return [*parts, text]


def _written(style: ChatStyle, roles: Sequence[str], lead: str) -> str:
    pieces: list[str | RoleMark] = []
    for message in _chat(roles):
        role, text = message["role"], message["content"]
        pieces += [RoleMark(role, True), lead + text if role == "assistant" else text, RoleMark(role, False)]
    return Prompt.of([*pieces, RoleMark("assistant", True)]).text(style)
