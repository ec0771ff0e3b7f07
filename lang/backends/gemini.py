"""Google's Gemini models through Google's own client."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lang.backends.api import Answer, ApiBackend, Grow, Work
from lang.backends.chat import turns
from lang.backends.choice_schema import check_method, choice_in, choice_meta, choice_schema
from lang.backends.gemini_answer import Samples
from lang.backends.gemini_features import check_schema, gemini_features
from lang.backends.gemini_request import asked, held_to, offered, sampled
from lang.capabilities import NotServed
from lang.choices import ChoicesMethod
from lang.prompt import Prompt
from lang.sampling import Sampling

if TYPE_CHECKING:
    from google import genai

_SAMPLED = ("gemini-1", "gemini-2")
"""Gemini's later models ignore temperature, top_p and top_k, or ask for requests without them."""


class GeminiBackend(ApiBackend):
    """`GeminiBackend("gemini-3.8-flash")`; `base_url` names a proxy.

    sampling: the model takes temperature, top_p, top_k, penalties and n. By default Gemini's up to 2.5 and models of
    other names do; to the others programs must not set them.
    stream: answers come in pieces, but for several samples. concurrency: requests under way at a time.
    timeout (seconds), max_retries (by default the client's number, 4): the client's own, as is what it takes from the
    environment; or give a `client`.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        sampling: bool | None = None,
        stream: bool = True,
        concurrency: int = 128,
        timeout: float | None = None,
        max_retries: int | None = None,
        client: genai.Client | None = None,
    ) -> None:
        """Raises ImportError without the client library, ValueError without a key."""
        given = {"base_url": base_url, "api_key": api_key, "timeout": timeout, "max_retries": max_retries}
        self._client = _client({name: value for name, value in given.items() if value is not None}, client)
        self._model = model
        self._stream = stream
        name = model.rpartition("/")[2]
        self._sampling = not name.startswith("gemini-") or name.startswith(_SAMPLED) if sampling is None else sampling
        super().__init__(gemini_features(sampling=self._sampling, stream=stream), concurrency=concurrency)

    def _generation(self, prompt: Prompt, sampling: Sampling) -> Work:
        fields: dict[str, Any] = {
            "max_output_tokens": sampling.max_tokens,
            **sampled(sampling, served=self._sampling),
        }
        if sampling.json_schema is not None:
            schema = json.loads(sampling.json_schema)
            check_schema(schema)
            fields |= held_to(schema)
        if sampling.tools:
            if sampling.n > 1:
                raise NotServed("gen(tools=..., n=...) isn't served together: tools are called by one sample; use fork")
            fields |= offered(sampling.tools, sampling.tool_choice)
        request = self._request(prompt, fields)

        async def work(grow: Grow) -> Answer:
            return await self._ask(request, sampling.n, grow)

        return work

    def _selection(self, prompt: Prompt, choices: Sequence[str], method: ChoicesMethod) -> Work:
        """Without max_output_tokens: the schema bounds what is said, and what is thought before would count too."""
        check_method(method, self.capabilities.backend)
        greedy = {"temperature": 0.0} if self._sampling else {}
        request = self._request(prompt, {**greedy, **held_to(choice_schema(choices))})

        async def work(grow: Grow) -> Answer:
            answer = await self._ask(request, 1, lambda _text: None)
            return Answer((choice_in(answer.texts[0], choices),), choice_meta(answer.meta, choices))

        return work

    def _request(self, prompt: Prompt, fields: dict[str, Any]) -> dict[str, Any]:
        contents, system = asked(turns(prompt, self.capabilities.backend))
        # Programs call their tools themselves.
        config = {**system, **fields, "automatic_function_calling": {"disable": True}}
        return {"model": self._model, "contents": contents, "config": config}

    async def _ask(self, request: dict[str, Any], n: int, grow: Grow) -> Answer:
        models = self._client.aio.models
        samples = Samples(n, grow)
        if self._stream and n == 1:  # how several would stream isn't documented
            async for chunk in await models.generate_content_stream(**request):
                samples.take(chunk)
        else:
            samples.take(await models.generate_content(**request))
        return samples.answer()

    async def _close_client(self) -> None:
        await self._client.aio.aclose()
        self._client.close()


def _client(options: dict[str, Any], client: genai.Client | None) -> genai.Client:
    try:
        import google.genai as genai
    except ImportError as error:
        raise ImportError("GeminiBackend needs Google's client: pip install 'radixlab[gemini]'") from error
    if client is None:
        return _made(genai, **options)
    if options:
        raise TypeError(f"give {', '.join(options)} to the client itself: GeminiBackend(client=...) takes it as it is")
    if not isinstance(client, genai.Client):
        raise TypeError(f"client is {type(client).__name__}: it must be google.genai.Client, whose .aio is used")
    return client


def _made(
    genai: Any,
    base_url: str | None = None,
    api_key: str | None = None,
    timeout: float | None = None,
    max_retries: int | None = None,
) -> genai.Client:
    """The library tries nothing again unless it is told to; its own numbers then are the default here."""
    attempts = None if max_retries is None else max_retries + 1
    options = genai.types.HttpOptions(
        base_url=base_url,
        timeout=None if timeout is None else math.ceil(timeout * 1000),  # milliseconds
        retry_options=genai.types.HttpRetryOptions(attempts=attempts),
    )
    try:
        return genai.Client(api_key=api_key, http_options=options)
    except ValueError as error:
        raise ValueError(
            "GeminiBackend needs a key: give api_key=..., or set GEMINI_API_KEY or GOOGLE_API_KEY (any text for a "
            f"server that asks for none). The client says: {error}"
        ) from error
