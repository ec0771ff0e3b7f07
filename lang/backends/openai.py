"""OpenAI's models, and any server that speaks OpenAI's protocol, through OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lang.backends.api import Answer, ApiBackend, Grow, Work
from lang.backends.chat import turns
from lang.backends.choice_schema import check_method, choice_in, choice_meta, choice_schema, one_of, room
from lang.backends.echoed_scores import Echoed, echoed, echoed_scores
from lang.backends.openai_answer import Samples, summed, usage_meta
from lang.backends.openai_features import SelectBy, openai_features
from lang.backends.openai_request import Extensions, offered, response_format, sampled
from lang.capabilities import NotServed
from lang.choices import ChoicesMethod
from lang.prompt import PLAIN, ChatStyle, Prompt
from lang.sampling import Sampling

if TYPE_CHECKING:
    import openai

_COMPLETION_MODELS = ("davinci-002", "babbage-002", "gpt-3.5-turbo-instruct")
_ECHOLESS = "gpt-3.5-turbo-instruct"
"""Takes no echo together with logprobs."""


class OpenAIBackend(ApiBackend):
    """`OpenAIBackend("gpt-5.2")`, or `OpenAIBackend("tiny", base_url="http://127.0.0.1:30000/v1", api_key="none")`.

    chat: chat completions or the older completions, where roles are written as text in `style`; by default what
    OpenAI's model of that name needs, and chat for other names.
    extensions: the server takes more than OpenAI's (regex, top_k, ...): "radixlab" for our own, "vllm".
    select: how choices are picked. "logprobs" scores them by the three rules (completions whose server echoes
    log-probabilities); "choice" (extensions) and "schema" (chat) have the model write one of them; None refuses.
    stream: answers come in pieces. concurrency: requests under way at a time.
    timeout (seconds), max_retries: the client's own, as is what it takes from the environment; or give a `client`.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        chat: bool | None = None,
        extensions: str | None = None,
        select: str | None = "auto",
        style: ChatStyle = PLAIN,
        stream: bool = True,
        concurrency: int = 128,
        timeout: float | None = None,
        max_retries: int | None = None,
        client: openai.AsyncOpenAI | None = None,
    ) -> None:
        """Raises ImportError without the client library, ValueError without a key or for options that can't be."""
        given = {"base_url": base_url, "api_key": api_key, "timeout": timeout, "max_retries": max_retries}
        self._client = _client({name: value for name, value in given.items() if value is not None}, client)
        self._model = model
        self._chat = not model.startswith(_COMPLETION_MODELS) if chat is None else chat
        self._extensions = None if extensions is None else _extensions(extensions)
        self._select = _select_by(select, model, self._chat, self._extensions)
        self._stream = stream
        self._hosted = (self._client.base_url.host or "").endswith(("openai.com", "openai.azure.com"))
        features = openai_features(chat=self._chat, extensions=self._extensions, stream=stream, select=self._select)
        super().__init__(features, style=style, concurrency=concurrency)

    def _generation(self, prompt: Prompt, sampling: Sampling) -> Work:
        fields, extra = sampled(sampling, chat=self._chat, hosted=self._hosted), {}
        if self._extensions is not None:
            extra = self._extensions.sampling(sampling)
            if sampling.regex is not None:
                extra |= self._extensions.constraint("regex", sampling.regex)
        if sampling.json_schema is not None:
            schema = json.loads(sampling.json_schema)
            if self._chat:
                fields["response_format"] = response_format(schema, "output")
            elif self._extensions is not None:
                extra |= self._extensions.constraint("json_schema", schema)
        if sampling.tools:
            if sampling.n > 1:
                raise NotServed("gen(tools=..., n=...) isn't served together: tools are called by one sample; use fork")
            fields |= offered(sampling.tools, sampling.tool_choice)
        if sampling.logprobs is not None:
            fields |= (
                {"logprobs": True, "top_logprobs": sampling.logprobs} if self._chat else {"logprobs": sampling.logprobs}
            )
        body = self._body(prompt, fields, extra)

        async def work(grow: Grow) -> Answer:
            return (await self._samples(body, sampling.n, grow)).answer()

        return work

    def _selection(self, prompt: Prompt, choices: Sequence[str], method: ChoicesMethod) -> Work:
        if self._select == "logprobs":
            return self._scoring(prompt.text(self.style), choices, method)
        check_method(method, self.capabilities.backend)
        fields = sampled(Sampling(temperature=0, max_tokens=room(choices)), chat=self._chat, hosted=self._hosted)
        if self._hosted:  # the schema bounds what is said, and what some of its models think before counts too
            fields.pop("max_completion_tokens", None)
        extra: dict[str, Any] = {}
        if self._select == "schema":
            fields["response_format"] = response_format(choice_schema(choices), "choice")
        elif self._extensions is not None:
            extra = self._extensions.constraint("choice", list(choices))
        body = self._body(prompt, fields, extra)
        read = choice_in if self._select == "schema" else one_of

        async def work(grow: Grow) -> Answer:
            answer = (await self._samples(body, 1, _nobody)).answer()
            return Answer((read(answer.texts[0], choices),), choice_meta(answer.meta, choices))

        return work

    def _scoring(self, prompt: str, choices: Sequence[str], method: ChoicesMethod) -> Work:
        if not prompt:
            raise NotServed(
                f"select at the very beginning isn't served by {self.capabilities.backend}: put text before it"
            )

        async def work(grow: Grow) -> Answer:
            usages = []

            async def echo(prompts: Sequence[str]) -> list[Echoed]:
                completion = await self._client.completions.create(
                    model=self._model, prompt=list(prompts), max_tokens=0, echo=True, logprobs=0, temperature=0
                )
                usages.append(usage_meta(completion.usage))
                return [echoed(choice) for choice in sorted(completion.choices, key=lambda choice: choice.index)]

            scores = await echoed_scores(echo, prompt, choices, method)
            meta = {
                **summed(usages),
                "choices": tuple(choices),
                "normalized_prompt_logprobs": [score.mean_logprob for score in scores],
                "input_token_logprobs": [list(score.logprobs) for score in scores],
            }
            return Answer((choices[method.pick(scores)],), meta)

        return work

    def _body(self, prompt: Prompt, fields: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        body = {"model": self._model, **fields}
        if not self._chat:
            body["prompt"] = prompt.text(self.style)
        else:
            said = turns(prompt, self.capabilities.backend)
            body["messages"] = [message.as_data() for message in said.messages]
            if said.prefix:  # only vLLM's extension gets here
                extra = {**extra, "continue_final_message": True, "add_generation_prompt": False}
        if self._stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return {**body, "extra_body": extra} if extra else body

    async def _samples(self, body: dict[str, Any], n: int, grow: Grow) -> Samples:
        endpoint: Any = self._client.chat.completions if self._chat else self._client.completions
        samples = Samples(n, grow)
        if not self._stream:
            samples.take(await endpoint.create(**body))
            return samples
        async with await endpoint.create(**body) as stream:
            async for chunk in stream:
                samples.take(chunk)
        return samples

    async def _close_client(self) -> None:
        await self._client.close()


def _client(options: dict[str, Any], client: openai.AsyncOpenAI | None) -> openai.AsyncOpenAI:
    try:
        import openai
    except ImportError as error:
        raise ImportError("OpenAIBackend needs OpenAI's client: pip install 'radixlab[openai]'") from error
    if client is None:
        try:
            return openai.AsyncOpenAI(**options)
        except openai.OpenAIError as error:
            raise ValueError(
                "OpenAIBackend needs a key: give api_key=..., or set OPENAI_API_KEY (any text for a server that asks "
                "for none)"
            ) from error
    if options:
        raise TypeError(f"give {', '.join(options)} to the client itself: OpenAIBackend(client=...) takes it as it is")
    if not isinstance(client, openai.AsyncOpenAI):
        raise TypeError(f"client is {type(client).__name__}: it must be openai.AsyncOpenAI, as calls go side by side")
    return client


def _extensions(name: str) -> Extensions:
    try:
        return Extensions(name)
    except ValueError:
        raise ValueError(f"unknown extensions {name!r}; available: {', '.join(Extensions)}") from None


def _select_by(given: str | None, model: str, chat: bool, extensions: Extensions | None) -> SelectBy | None:
    """Raises ValueError for a way that the endpoint hasn't."""
    constrained: SelectBy = "schema" if extensions is None else "choice"
    if given == "auto":
        if chat:
            return constrained
        return None if model.startswith(_ECHOLESS) else "logprobs"
    if given is None:
        return None
    ways: dict[str, tuple[SelectBy, bool, str]] = {
        "logprobs": ("logprobs", not chat, "completions (chat=False)"),
        "choice": ("choice", extensions is not None, "extensions='radixlab' or 'vllm'"),
        "schema": ("schema", chat, "chat completions (chat=True)"),
    }
    if given not in ways:
        raise ValueError(f"select={given!r} is not allowed: it must be 'auto', {', '.join(map(repr, ways))} or None")
    way, possible, needs = ways[given]
    if not possible:
        raise ValueError(f"select={given!r} needs {needs}")
    return way


def _nobody(_text: str) -> None:
    """A choice isn't told before it is whole."""
