"""POST /generate, /tokenize and /detokenize: token ids in and out, parameters for each prompt, scoring."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.clock import stopwatch
from engine.request import TokenLogprob
from engine.server import asking
from engine.server.chat_prompt import encode_chat, read_tools
from engine.server.conversation import ToolUse
from engine.server.errors import ApiError, unsupported
from engine.server.generation import Delta, Finish, Generation
from engine.server.group import Ask, Group, Sample, queue
from engine.server.native_models import (
    DetokenizeRequest,
    DetokenizeResponse,
    GenerateRequest,
    GenerateResponse,
    NativeSampling,
    TokenizeRequest,
    TokenizeResponse,
)
from engine.server.sampling import grammar_of, sampling_params
from engine.server.service import LONG_TEXT
from engine.server.sse import DONE, EventStream, answer, as_json, aside, event
from engine.server.state import ServerState
from engine.server.token_logprobs import TokenTexts, native_logprobs, native_top


def make_router(state: ServerState) -> APIRouter:
    router = APIRouter(tags=["native"])
    service = state.service
    texts = TokenTexts(service.tokenizer)

    @router.post("/generate", response_model=GenerateResponse | list[GenerateResponse])
    async def generate(body: GenerateRequest, request: Request) -> Response:
        asked = _Generate(state, texts, body)
        if body.stream:
            return EventStream(asked.stream())
        return await answer(request.receive, asked.whole())

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> TokenizeResponse:
        if body.messages is not None:
            prompt = await encode_chat(state, body.messages, ToolUse(read_tools(body.tools or ())))
            if prompt.images:
                raise unsupported("messages", "an image's positions have no tokens; leave images out")
            tokens = prompt.tokens
        else:
            assert body.text is not None
            tokens = await service.tokenize(body.text, add_special_tokens=body.add_special_tokens is not False)
        return TokenizeResponse(tokens=tokens, count=len(tokens), max_model_len=asking.room(state, 0))

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> DetokenizeResponse:
        unknown = next((token for token in body.tokens if token >= service.vocab_size), None)
        if unknown is not None:
            told = f"token id {unknown} is unknown; the model knows ids from 0 to {service.vocab_size - 1}"
            raise ApiError(400, told, param="tokens", code="invalid_value")
        return DetokenizeResponse(text=await aside(len(body.tokens) > LONG_TEXT, service.tokenizer.decode, body.tokens))

    return router


class _Generate:
    """One request. Output i * n + j is sample j of prompt i, where all prompts have the same n."""

    def __init__(self, state: ServerState, texts: TokenTexts, body: GenerateRequest) -> None:
        """Raises ApiError for what can be refused without the engine."""
        self._body = body
        self._texts = texts
        self._service = state.service
        prompts = body.prompts
        if len(prompts) > state.config.max_prompts:
            told = f"{len(prompts)} prompts were given: at most {state.config.max_prompts} are allowed at once"
            raise ApiError(400, told, param="text", code="invalid_value")
        given = body.sampling_params or NativeSampling.model_validate({})
        each = given if isinstance(given, list) else [given] * len(prompts)
        for sampling in each:
            asking.check_samples(state, sampling.n)
        if len({sampling.n or 1 for sampling in each}) > 1:
            raise ApiError(400, "n must be the same for all prompts", param="sampling_params", code="invalid_value")
        if body.top_logprobs_num and not body.return_logprob:
            told = "top_logprobs_num needs return_logprob: true"
            raise ApiError(400, told, param="top_logprobs_num", code="invalid_value")
        self._n = each[0].n or 1
        self._asks = [self._read(prompt, sampling) for prompt, sampling in zip(prompts, each, strict=True)]
        self._options = {
            "client": body.user or "",
            "conversation": body.conversation or "",
            "program": body.program or "",
            "agent": body.agent or "",
            "priority": body.priority or 0,
            "timeout": body.timeout,
        }
        self._id = asking.new_id()
        self._begun = stopwatch()

    def _read(self, prompt: str | list[int], sampling: NativeSampling) -> Ask:
        grammar, field = grammar_of(sampling)
        params = sampling_params(
            sampling,
            max_tokens=sampling.max_new_tokens,
            min_tokens=sampling.min_new_tokens,
            n=sampling.n,
            seed=sampling.seed,
            logprobs=(self._body.top_logprobs_num or 0) if self._body.return_logprob else None,
            grammar=grammar,
        )
        return Ask(prompt, params, field)

    async def whole(self) -> bytes:
        async with await self._queue() as group:
            found = await group.collect()
        return await aside(group.is_large, self._answer, group, found)

    def _answer(self, group: Group, found: Sequence[Sequence[Sample]]) -> bytes:
        outputs = []
        for i, samples in enumerate(found):
            for j, sample in enumerate(samples):
                output = self._open(group, i, j)
                outputs.append(output.take(sample.text, sample.tokens, sample.logprobs, sample.finish))
        return as_json(outputs if self._body.is_list or self._n > 1 else outputs[0])

    async def stream(self) -> AsyncGenerator[bytes, None]:
        async with await self._queue() as group, aclosing(group.pieces()) as pieces:
            outputs: dict[int, _Output] = {}
            async for i, delta in pieces:
                index = i * self._n + delta.index
                begins = index not in outputs
                if begins:
                    outputs[index] = self._open(group, i, delta.index)
                yield await aside(begins and group.is_large, outputs[index].event, index, delta)
            yield DONE

    async def _queue(self) -> Group:
        asks = [await self._scored(ask) for ask in self._asks]
        return await queue(self._service, asks, **self._options)

    async def _scored(self, ask: Ask) -> Ask:
        """With the prompt's log-probabilities, where they are asked for."""
        start, prompt = self._scored_from, ask.prompt
        if start is None:
            return ask
        ids = await self._service.tokenize(prompt) if isinstance(prompt, str) else prompt
        if start >= len(ids):
            told = f"logprob_start_len={start} is past the end of a prompt of {len(ids)} tokens: lower it"
            raise ApiError(400, told, param="logprob_start_len", code="invalid_value")
        if len(ids) == 1:  # nothing has a log-probability: the first token has nothing before it
            return ask._replace(prompt=ids)
        params = dataclasses.replace(
            ask.params, prompt_logprobs=ask.params.logprobs, prompt_logprobs_start=max(start, 1)
        )
        return ask._replace(prompt=ids, params=params)

    @property
    def _scored_from(self) -> int | None:
        """The first position of the prompt whose log-probability is asked for."""
        start = self._body.logprob_start_len
        return start if self._body.return_logprob and start is not None and start >= 0 else None

    def _open(self, group: Group, i: int, j: int) -> _Output:
        name = self._id if len(self._asks) * self._n == 1 else f"{self._id}-{i * self._n + j}"
        return _Output(name, self._begun, group.generations[i], self._scored_from, self._body, self._texts)


class _Output:
    """One output as it grows. Its first piece tells the prompt's log-probabilities."""

    def __init__(
        self,
        name: str,
        begun: float,
        generation: Generation,
        scored_from: int | None,
        body: GenerateRequest,
        texts: TokenTexts,
    ) -> None:
        self._name, self._begun = name, begun
        self._generation = generation
        self._scored_from = scored_from
        self._body = body
        self._texts = texts
        self._n_tokens = 0

    def event(self, index: int, delta: Delta) -> bytes:
        return event({"index": index, **self.take(delta.text, delta.tokens, delta.logprobs, delta.finish)})

    def take(
        self, text: str, tokens: Sequence[int], logprobs: Sequence[TokenLogprob], finish: Finish | None
    ) -> dict[str, Any]:
        self._n_tokens += len(tokens)
        meta: dict[str, Any] = {
            "id": self._name,
            "finish_reason": None if finish is None else {"type": finish.reason, "matched": finish.stop_match},
            "prompt_tokens": len(self._generation.prompt),
            "completion_tokens": self._n_tokens,
        }
        if finish is not None:
            meta["cached_tokens"] = finish.cached_tokens
            meta["forced_tokens"] = finish.forced_tokens
            meta["e2e_latency"] = stopwatch() - self._begun
        if self._body.return_logprob:
            meta |= self._input_logprobs() | self._told("output", logprobs)
        return {"text": text, "output_ids": list(tokens), "meta_info": meta}

    def _input_logprobs(self) -> dict[str, Any]:
        start, self._scored_from = self._scored_from, None
        if start is None:
            return {}
        told = self._told("input", self._generation.prompt_logprobs)
        if start == 0:  # the first token has nothing before it
            first = self._generation.prompt[0]
            told["input_token_logprobs"].insert(0, (None, first, self._texts.text(first)))
            if self._body.top_logprobs_num:
                told["input_top_logprobs"].insert(0, None)
        return told

    def _told(self, of: str, logprobs: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        told: dict[str, list[Any]] = {f"{of}_token_logprobs": [*native_logprobs(self._texts, logprobs)]}
        if self._body.top_logprobs_num:
            told[f"{of}_top_logprobs"] = [*native_top(self._texts, logprobs)]
        return told
