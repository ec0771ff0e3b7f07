"""One question of the compiled DSPy program, and one recorded call, in the language."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lang

if TYPE_CHECKING:
    from workloads.dspy_rag.pipeline import Compiled

ROLES = {"system": lang.system, "user": lang.user, "assistant": lang.assistant}


@lang.function
def answer_from_passages(
    s: lang.ProgramState,
    rag: Compiled,
    question: str,
    max_tokens: int,
    temperature: float,
    retrieval_seconds: float,
    recorded: str,
) -> None:
    """Retrieves, and sends the messages that DSPy would. retrieval_seconds: how long the search takes elsewhere."""
    if retrieval_seconds > 0:
        s.sleep(retrieval_seconds)
    for role, content in rag.messages(question, rag.retrieve(question)):
        s += ROLES[role](content)
    s += lang.assistant(
        lang.gen("completion", max_tokens=max_tokens, temperature=temperature, recorded=recorded),
    )


@lang.function
def recorded_call(s: lang.ProgramState, prompt: str, max_tokens: int, recorded: str) -> None:
    s += lang.user(prompt)
    s += lang.assistant(lang.gen("completion", max_tokens=max_tokens, temperature=0, recorded=recorded))
