"""How a call's output tokens are chosen and when they end: the language's names and defaults, which are SGLang's."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lang.schema import schema_text
from lang.tools import Tool, tool_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Values are checked by the backend that serves them, which knows what it can do."""

    max_tokens: int = 128
    min_tokens: int = 0
    """The output doesn't end before this many tokens."""
    n: int = 1
    """Samples of the same prompt. More than one makes the variable a list; the program goes on from the first."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 or -1 is off."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    forced_output: tuple[int, ...] | None = None
    """Replay: these tokens come out, whatever the model says."""
    recorded: tuple[str, ...] = ()
    """What was said here in a recorded run: one text, or one for each of n samples. Used as `outputs` says."""
    outputs: str = "free"
    """free: the model decides. recorded: `recorded` comes out, each token decoded as if the model had chosen it.
    fixed: the model decides what, but as many tokens come as the recorded output has (`max_tokens` where there is
    none). In both, a select takes its recorded choice."""
    token_healing: bool = False
    """Tokens at the prompt's end that a longer one could begin with are said again by the model; their text isn't the
    output's."""
    regex: str | None = None
    """The whole output matches it."""
    json_schema: str | None = None
    """JSON text: the output is JSON that this schema accepts."""
    stop_regex: tuple[str, ...] = ()
    """The output is cut just before the first match of one of these."""
    logprobs: int | None = None
    """None: none. k: the log-probability of each output token, and of the k likeliest."""
    tools: tuple[Tool, ...] = ()
    """What the model may ask to be called."""
    tool_choice: str = "auto"
    """auto, required, none, or the name of the tool to be called."""

    @property
    def repeats(self) -> bool:
        """The same prompt gives the same output again."""
        return self.temperature == 0 or self.seed is not None

    def over(self, values: Mapping[str, Any]) -> Sampling:
        """These values, with `values` in their place."""
        return dataclasses.replace(self, **values) if values else self


OUTPUTS = ("free", "recorded", "fixed")
"""Where a call's output comes from; see `Sampling.outputs`."""
NAMES = frozenset(field.name for field in dataclasses.fields(Sampling))


def overrides(given: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that were set (not None), in canonical form. Raises TypeError for a stop that is no text."""
    values = {name: value for name, value in given.items() if value is not None}
    if "stop" in values:
        values["stop"] = _tuple_of(values["stop"], str, "stop", "a string or a list of strings")
    if "stop_regex" in values:
        values["stop_regex"] = _tuple_of(values["stop_regex"], str, "stop_regex", "a regex or a list of them")
    if "tools" in values:
        values["tools"] = tuple(tool_of(tool) for tool in values["tools"])
    if "json_schema" in values:
        values["json_schema"] = schema_text(values["json_schema"])
    if "stop_token_ids" in values:
        values["stop_token_ids"] = _tuple_of(values["stop_token_ids"], int, "stop_token_ids", "a list of token ids")
    if "forced_output" in values:
        values["forced_output"] = _tuple_of(values["forced_output"], int, "forced_output", "a list of token ids")
    if "recorded" in values:
        values["recorded"] = _tuple_of(values["recorded"], str, "recorded", "a text, or one for each of n samples")
    if "outputs" in values and values["outputs"] not in OUTPUTS:
        raise TypeError(f"outputs={values['outputs']!r} is not allowed: it must be one of {', '.join(OUTPUTS)}")
    if values.get("top_k") == -1:
        values["top_k"] = 0
    return values


def _tuple_of(value: Any, kind: type, name: str, allowed: str) -> tuple[Any, ...]:
    items = (value,) if isinstance(value, kind) else tuple(value) if isinstance(value, Iterable) else (None,)
    if isinstance(value, str | bytes) and kind is not str:
        items = (None,)
    if not all(isinstance(item, kind) and not isinstance(item, bool) for item in items):
        raise TypeError(f"{name}={value!r} is not allowed: it must be {allowed}")
    return items


def closest(name: str, known: Iterable[str]) -> str:
    """The words `; did you mean 'x'?`, or just `;` when nothing known is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ";"
