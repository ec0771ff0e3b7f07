"""What a DSPy request asks for: every field of it is served or refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dspy import lm15  # type: ignore[import-untyped]

from engine.constraints import Grammar, ToolChoice, any_json, json_schema
from engine.engine import Engine
from engine.request import RequestError, SamplingParams, Tokens
from engine.server.conversation import Chat, ToolUse
from engine.server.sampling import grammar_of
from engine.server.tool_formats import Tool, make_tool
from lang.backends.dspy_engine.errors import PROVIDER, invalid, unsupported
from lang.backends.dspy_engine.extensions import Extensions, read_extensions
from lang.backends.dspy_engine.messages import written

SUPPORTED_PARAMS = frozenset(
    (
        *("max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "stop", "seed", "user", "stream"),
        *("presence_penalty", "frequency_penalty", "logprobs", "top_logprobs", "response_format"),
        *("tools", "tool_choice", "parallel_tool_calls"),
    )
)
"""Names that DSPy's adapters may pass on."""


class Asked(NamedTuple):
    prompt: Tokens
    params: SamplingParams
    tags: dict[str, Any]
    """Those of `Engine.add`."""
    calls_tools: bool
    adaptations: tuple[lm15.Adaptation, ...] = ()
    """What was left out of a request that allows it."""


class RequestReader:
    def __init__(self, engine: Engine, chat: Chat, model_name: str | None = None) -> None:
        """See `DSPyEngine`."""
        self._engine = engine
        self._chat = chat
        self._room = min(engine.executor.max_context, engine.capacity_tokens)
        configured = engine.config.model
        self._names = {configured, Path(configured).name} if model_name is None else {model_name}

    def read(self, request: lm15.Request) -> Asked:
        """Raises RequestError, ApiError and dspy.lm15 errors."""
        self._check_model(request.model)
        config = request.config
        _refuse_unserved(config)
        extensions = read_extensions(config)
        use, callable_tools = _tool_use(request)
        calls = None
        if use.choice is not None and callable_tools:
            calls = self._chat.tool_format.grammar(callable_tools, use.choice, parallel=use.parallel)
        grammar = _grammar(config, extensions, calls)
        prompt = self._chat.encode(written(request), use)
        tags = {**extensions.tags, "client": config.user_id or ""}
        params = self._params(config, extensions, grammar, len(prompt))
        checked = self._engine.intake.check(prompt, params)
        if grammar is not None:
            self._engine.constraints.compile(grammar)  # which may take long: not on the engine's thread
        return Asked(checked, params, tags, calls is not None, _adaptations(config))

    def _check_model(self, model: str) -> None:
        if model not in self._names and model.partition("/")[2] not in self._names:
            told = f"the model {model!r:.100} is not served; this engine has {' or '.join(sorted(self._names))}"
            raise lm15.UnsupportedModelError(told, provider=PROVIDER)

    def _params(
        self, config: lm15.Config, extensions: Extensions, grammar: Grammar | None, n_prompt: int
    ) -> SamplingParams:
        """Without max_tokens, as many as there is room for."""
        given = {
            "max_tokens": config.max_tokens if config.max_tokens is not None else max(1, self._room - n_prompt),
            "temperature": config.temperature,
            "top_p": config.top_p,
            "top_k": config.top_k,
            "seed": None if config.seed is None else config.seed % 2**63,
            "presence_penalty": config.presence_penalty,
            "frequency_penalty": config.frequency_penalty,
            "logprobs": config.logprobs,
        }
        fields = {name: value for name, value in given.items() if value is not None}
        return SamplingParams(stop=tuple(config.stop), grammar=grammar, **fields, **extensions.sampling)


def _refuse_unserved(config: lm15.Config) -> None:
    if config.reasoning is not None and not config.reasoning.is_off:
        raise unsupported("config.reasoning", "the model has no hidden reasoning; use dspy.ChainOfThought")
    if config.service_tier is not None:
        raise unsupported("config.service_tier", "use the extension `priority`")
    if config.store:
        raise unsupported("config.store", "no answer is kept; leave it out")
    if config.probabilities == "required":
        raise unsupported("config.probabilities", "use logprobs, or a `select` of the language (`lang`)")
    if config.cache is not None:
        _check_cache(config.cache)


def _check_cache(cache: lm15.CacheConfig) -> None:
    """Every prefix is cached without being asked, which is all that `prefix` and `prefix_until_index` wish for."""
    if cache.mode == "off":
        raise unsupported("config.cache.mode", "make the engine with cache='none', or give a `namespace` of its own")
    if cache.retention is not None:
        raise unsupported("config.cache.retention", "the engine's eviction policy decides; leave it out")
    if cache.key is not None:
        raise unsupported("config.cache.key", "prefixes are found by what they say; to keep them apart use `namespace`")
    if cache.resource is not None:
        raise unsupported("config.cache.resource", "no prefix is stored under a name; send it, it will be found")


def _adaptations(config: lm15.Config) -> tuple[lm15.Adaptation, ...]:
    if config.probabilities is None:
        return ()
    why = "the engine measures no distribution over declared keys"
    return (lm15.Adaptation("config.probabilities", "dropped", why, asked=config.probabilities),)


def _grammar(config: lm15.Config, extensions: Extensions, calls: Grammar | None) -> Grammar | None:
    """What the output must match, if anything."""
    wanted = None
    if config.response_format is not None:
        schema = config.response_format.get("schema")
        wanted = any_json() if config.response_format["type"] == "json_object" else json_schema(schema)
    if wanted is not None and calls is not None:
        raise invalid(
            "response_format and tools that may be called were given together: an output can follow one of them; use "
            "dspy.ChatAdapter(use_native_function_calling=True) or dspy.JSONAdapter(use_native_function_calling=False)"
        )
    return grammar_of(extensions, {"tools": calls, "response_format": wanted}).grammar


def _tool_use(request: lm15.Request) -> tuple[ToolUse, Sequence[Tool]]:
    """How tools may be used, and those that may be called: all are described."""
    offered = [_tool(tool, i) for i, tool in enumerate(request.tools)]
    choice = request.config.tool_choice or lm15.ToolChoice()
    if choice.mode == "required" and not offered:
        raise invalid("config.tool_choice asks for a call and there are no tools: give them")
    if choice.mode == "none":
        return ToolUse(offered, None), ()
    kind = ToolChoice.REQUIRED if choice.mode == "required" else ToolChoice.AUTO
    allowed = [tool for tool in offered if not choice.allowed or tool.name in choice.allowed]
    return ToolUse(offered, kind, parallel=choice.parallel is not False), allowed


def _tool(tool: lm15.FunctionTool | lm15.BuiltinTool, i: int) -> Tool:
    if not isinstance(tool, lm15.FunctionTool):
        raise unsupported(f"tools[{i}]", f"the engine runs no tool of its own such as {tool.name!r}; give a function")
    try:
        return make_tool(tool.name, tool.description, tool.parameters)
    except RequestError as error:
        raise invalid(f"tools[{i}]: {error}") from None
