"""The program: as in the benchmark of the SGLang paper."""

from __future__ import annotations

import lang


@lang.function
def ask_about_picture(
    s: lang.ProgramState, picture: bytes, question: str, max_tokens: int, recorded: str | None = None
) -> None:
    s += lang.user(lang.image(picture) + question)
    s += lang.assistant(lang.gen("answer", max_tokens=max_tokens, temperature=0, recorded=recorded))
