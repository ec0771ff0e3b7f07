"""POST /v1/completions: text from one prompt or several."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.request import TokenLogprob
from engine.server import asking
from engine.server.errors import ApiError, unsupported
from engine.server.generation import Delta, Finish, Generation
from engine.server.group import Ask, Group, Sample, queue
from engine.server.openai_models import CompletionRequest, CompletionResponse, PromptList
from engine.server.sampling import grammar_of, request_params
from engine.server.sse import DONE, EventStream, answer, as_json, aside, event
from engine.server.state import ServerState
from engine.server.token_logprobs import TextLogprobs, TokenTexts
from engine.server.usage import Usage

_DEFAULT_MAX_TOKENS = 16


def make_router(state: ServerState) -> APIRouter:
    router = APIRouter(tags=["OpenAI"])
    texts = TokenTexts(state.service.tokenizer)

    @router.post("/v1/completions", response_model=CompletionResponse)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        completion = _Completion(state, texts, body, request)
        if body.stream:
            return EventStream(completion.stream())
        return await answer(request.receive, completion.whole())

    return router


class _Completion:
    """One request. Choice i * n + j is sample j of prompt i."""

    def __init__(self, state: ServerState, texts: TokenTexts, body: CompletionRequest, request: Request) -> None:
        """Raises ApiError for what can be refused without the engine."""
        asking.check(state, body)
        self._prompts: PromptList = body.prompt
        if len(self._prompts) > state.config.max_prompts:
            told = f"{len(self._prompts)} prompts were given: at most {state.config.max_prompts} are allowed at once"
            raise ApiError(400, told, param="prompt", code="invalid_value")
        self._n = body.n or 1
        if body.best_of not in (None, self._n):
            raise unsupported("best_of", f"every sample is answered: leave it out, or set it to n={self._n}")
        self._service = state.service
        self._texts = texts
        self._body = body
        self._options = asking.options(request, body)
        self._head = asking.head("text_completion", "cmpl", state.model_name)
        grammar, self._grammar_field = grammar_of(body)
        self._params = request_params(
            body,
            max_tokens=_DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
            logprobs=body.logprobs,
            grammar=grammar,
        )

    async def whole(self) -> bytes:
        async with await self._queue() as group:
            found = await group.collect()
        return await aside(group.is_large, self._answer, group, found)

    def _answer(self, group: Group, found: Sequence[Sequence[Sample]]) -> bytes:
        usage = Usage.of([generation.prompt for generation in group.generations])
        choices = []
        for i, samples in enumerate(found):
            for j, sample in enumerate(samples):
                usage.add(j, sample.finish)
                choice = self._open(group, i, j)
                choices.append(choice.take(sample.text, sample.logprobs, sample.finish))
        return as_json({**self._head, "choices": choices, "usage": usage.as_data()})

    async def stream(self) -> AsyncGenerator[bytes, None]:
        async with await self._queue() as group, aclosing(group.pieces()) as pieces:
            usage = Usage.of([generation.prompt for generation in group.generations])
            wants_usage = asking.wants_usage(self._body)
            head = {**self._head, "usage": None} if wants_usage else self._head
            choices: dict[int, _Choice] = {}
            async for i, delta in pieces:
                index = i * self._n + delta.index
                begins = index not in choices
                if begins:
                    choices[index] = self._open(group, i, delta.index)
                if delta.finish is not None:
                    usage.add(delta.index, delta.finish)
                if choices[index].is_news(delta):
                    yield await aside(begins and group.is_large, choices[index].event, head, delta)
            if wants_usage:
                yield event({**self._head, "choices": [], "usage": usage.as_data()})
            yield DONE

    async def _queue(self) -> Group:
        asks = [await self._ask(prompt) for prompt in self._prompts]
        return await queue(self._service, asks, **self._options)

    async def _ask(self, prompt: str | list[int]) -> Ask:
        if not self._body.echo or self._body.logprobs is None:
            return Ask(prompt, self._params, self._grammar_field)
        ids = await self._service.tokenize(prompt) if isinstance(prompt, str) else prompt
        if len(ids) < 2:  # nothing has a log-probability: the first token has nothing before it
            return Ask(ids, self._params, self._grammar_field)
        params = dataclasses.replace(self._params, prompt_logprobs=self._body.logprobs)
        return Ask(ids, params, self._grammar_field)

    def _open(self, group: Group, i: int, j: int) -> _Choice:
        generation, given = group.generations[i], self._prompts[i]
        echo = None
        if self._body.echo:
            echo = given if isinstance(given, str) else self._service.tokenizer.decode(given)
        return _Choice(i * self._n + j, self._texts, generation, echo)


class _Choice:
    """One choice as it grows. Its first piece begins with the prompt where that is echoed."""

    def __init__(self, index: int, texts: TokenTexts, generation: Generation, echo: str | None) -> None:
        self._index = index
        self._generation = generation
        self._echo = echo
        self._logprobs: TextLogprobs | None = None
        if generation.params.logprobs is not None:
            self._logprobs = TextLogprobs(texts, generation.prompt if echo is None else ())

    def is_news(self, delta: Delta) -> bool:
        """There is something to tell; a token alone may have no text yet."""
        return bool(delta.text or delta.logprobs or delta.finish is not None or self._echo is not None)

    def event(self, head: Mapping[str, Any], delta: Delta) -> bytes:
        return event({**head, "choices": [self.take(delta.text, delta.logprobs, delta.finish)]})

    def take(self, text: str, logprobs: Sequence[TokenLogprob], finish: Finish | None) -> dict[str, Any]:
        unscored: Sequence[int] = ()
        if self._echo is not None:
            text = self._echo + text
            unscored = self._generation.prompt[:1]
            logprobs = [*self._generation.prompt_logprobs, *logprobs]
            self._echo = None
        return {
            "index": self._index,
            "text": text,
            "logprobs": None if self._logprobs is None else self._logprobs.take(logprobs, unscored),
            "finish_reason": None if finish is None else finish.reason,
        }
