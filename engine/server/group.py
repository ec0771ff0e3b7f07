"""The prompts of one HTTP request: queued together, read together, cancelled together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, NamedTuple, Self

from engine.request import SamplingParams, TokenLogprob
from engine.server.errors import ApiError
from engine.server.generation import Delta, Finish, Generation, Service

Prompt = str | Sequence[int]
_MANY_LOGPROBS = 5_000
"""Some 10 ms of work."""


class Ask(NamedTuple):
    """One prompt and how to go on from it."""

    prompt: Prompt
    params: SamplingParams
    grammar_field: str | None
    """Of the request: where the params' grammar comes from."""
    images: Sequence[Any] = ()


class Sample(NamedTuple):
    """One sample, whole."""

    text: str
    tokens: list[int]
    logprobs: list[TokenLogprob]
    finish: Finish


class Piece(NamedTuple):
    prompt: int
    """Which of the group's prompts it belongs to."""
    delta: Delta


class Group:
    """Generations under way, in the order of their prompts."""

    def __init__(self, generations: Sequence[Generation]) -> None:
        self.generations = generations

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ends what is still under way."""
        for generation in self.generations:
            generation.cancel()

    @property
    def is_large(self) -> bool:
        """So many log-probabilities are asked for that other clients would wait while they are written down."""
        return sum(map(_n_logprobs, self.generations)) > _MANY_LOGPROBS

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Everything, as it comes. Raises ApiError when one of them fails."""
        if len(self.generations) == 1:
            async for delta in self.generations[0]:
                yield Piece(0, delta)
            return
        sources = [aiter(generation) for generation in self.generations]
        waiting = {asyncio.ensure_future(anext(source, None)): i for i, source in enumerate(sources)}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=waiting.__getitem__):
                    i = waiting.pop(task)
                    found = task.result()
                    if found is not None:
                        yield Piece(i, found)
                        waiting[asyncio.ensure_future(anext(sources[i], None))] = i
        finally:
            for task in waiting:
                task.cancel()

    async def collect(self) -> list[list[Sample]]:
        """The samples of each prompt, whole, in order. Raises ApiError when one of them fails."""
        return list(await asyncio.gather(*map(_collect, self.generations)))


async def queue(service: Service, asks: Sequence[Ask], **options: Any) -> Group:
    """Queues all prompts at once. `options` are those of `Service.generate`.

    Raises ApiError when one of them is refused; then none is under way.
    """
    if len(asks) == 1:
        return Group([await _queue(service, asks[0], options)])
    queued = [asyncio.ensure_future(_queue(service, ask, options)) for ask in asks]
    try:
        return Group(await asyncio.gather(*queued))
    except BaseException:
        for task in queued:
            task.cancel()
        for outcome in await asyncio.gather(*queued, return_exceptions=True):
            if not isinstance(outcome, BaseException):
                outcome.cancel()
        raise


def _n_logprobs(generation: Generation) -> int:
    params = generation.params
    if params.logprobs is None:
        return 0
    scored = 0 if params.prompt_logprobs is None else len(generation.prompt)
    return params.n * (scored + params.max_tokens) * (1 + params.logprobs)


async def _queue(service: Service, ask: Ask, options: Mapping[str, Any]) -> Generation:
    try:
        return await service.generate(ask.prompt, ask.params, images=ask.images, **options)
    except ApiError as error:
        if error.code == "invalid_grammar":
            told = f"{ask.grammar_field}: {error.message}"
            raise ApiError(error.status, told, param=ask.grammar_field, code=error.code) from None
        raise


async def _collect(generation: Generation) -> list[Sample]:
    deltas: list[list[Delta]] = [[] for _ in range(generation.params.n)]
    async for delta in generation:
        deltas[delta.index].append(delta)
    return [_joined(of_one) for of_one in deltas]


def _joined(deltas: Sequence[Delta]) -> Sample:
    finish = deltas[-1].finish
    assert finish is not None
    return Sample(
        "".join(delta.text for delta in deltas),
        [token for delta in deltas for token in delta.tokens],
        [logprob for delta in deltas for logprob in delta.logprobs],
        finish,
    )
