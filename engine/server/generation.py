"""What the endpoints ask of the engine, and what they get back piece by piece. Lives on the event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple, Protocol

from engine.request import SamplingParams, TokenLogprob
from engine.tokenizer import Tokenizer


class Finish(NamedTuple):
    """How one sample ended. A sample that failed or was cut off raises ApiError instead."""

    reason: str
    """stop | length"""
    stop_match: str | int | None
    """The stop string or the token that ended it."""
    output_tokens: int
    cached_tokens: int
    """Prompt tokens found in the cache."""
    forced_tokens: int
    """Output tokens that a grammar forced."""


class Delta(NamedTuple):
    """What one sample of a generation gained."""

    index: int  # type: ignore[assignment]  # a name that tuples have
    """Of the sample, 0 .. n - 1."""
    text: str
    """Final text: no half characters, nothing of a stop string, nothing that is taken back later."""
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    """As many as tokens where `params.logprobs` is set, else none."""
    finish: Finish | None
    """Set in the last delta of the sample."""


class Generation(Protocol):
    """A prompt's n samples under way."""

    prompt: Sequence[int]
    """Token ids."""
    params: SamplingParams

    def __aiter__(self) -> AsyncIterator[Delta]:
        """Deltas of all samples as they come, until each has finished. Raises ApiError when one fails, is dropped for
        its deadline, or its reader is too slow. Leaving the loop early is no cancelling: call `cancel`."""

    @property
    def prompt_logprobs(self) -> Sequence[TokenLogprob]:
        """Of the prompt from `params.prompt_logprobs_start` on; complete once a sample has given its first delta."""

    def cancel(self) -> None:
        """Ends what is still under way; its pages are free within a step. Any number of times."""


class Service(Protocol):
    """One engine behind a thread of its own."""

    tokenizer: Tokenizer
    max_context: int
    vocab_size: int

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Off the event loop where the text is long."""

    async def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        images: Sequence[Any] = (),
        client: str = "",
        namespace: str = "",
        priority: int = 0,
        timeout: float | None = None,
        **tags: Any,
    ) -> Generation:
        """Queues a prompt. `timeout`: seconds from now after which it is dropped (None: the server's own).

        images: as of `Engine.add`. tags: conversation, program, agent, parent of `Engine.add`.
        Raises ApiError: 400 (what the engine refuses, grammars included), 429 or 503 with `retry_after`.
        """
