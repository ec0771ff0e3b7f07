"""What a backend can do, and what a call asks for. What isn't served is refused before the call is sent."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter

from lang.prompt import Prompt, RoleMark
from lang.sampling import Sampling


class Feature(enum.StrEnum):
    COMPLETION = "completion"
    """Text without roles."""
    CHAT = "chat"
    """Roles."""
    ASSISTANT_PREFIX = "assistant_prefix"
    """An assistant message that the model goes on with."""
    SELECT = "select"
    REGEX = "regex"
    JSON_SCHEMA = "json_schema"
    STOP_REGEX = "stop_regex"
    IMAGES = "images"
    TOOLS = "tools"
    LOGPROBS = "logprobs"
    STREAMING = "streaming"
    N = "n"
    SEED = "seed"
    STOP = "stop"
    STOP_TOKEN_IDS = "stop_token_ids"
    TOP_K = "top_k"
    MIN_P = "min_p"
    REPETITION_PENALTY = "repetition_penalty"
    PRESENCE_PENALTY = "presence_penalty"
    FREQUENCY_PENALTY = "frequency_penalty"
    MIN_TOKENS = "min_tokens"
    IGNORE_EOS = "ignore_eos"
    FORCED_OUTPUT = "forced_output"
    OUTPUTS = "outputs"
    """Outputs that are recorded, or as long as recorded ones."""
    TOKEN_HEALING = "token_healing"
    CONCATENATE = "concatenate"
    """Branches joined by their KV."""
    HINTS = "hints"
    """Advice, so that nothing is refused where it is missing: it is left."""


CONCATENATING = "join('concate_and_append')"
NO_KV = "use join() and add the branches' texts to the parent, as in s += ''.join(s['x'])"
"""Instead of it, where a server decides alone what it does with KV."""


class NotServed(ValueError):
    """The backend can't do what a call asks for. The message says what to use instead."""


@dataclass(frozen=True)
class Capabilities:
    backend: str
    missing: Mapping[Feature, str] = field(default_factory=dict)
    """What isn't served, and what to use instead. What isn't named here is served."""

    def need(self, feature: Feature, what: str) -> None:
        """Raises NotServed for `what`, as the program wrote it."""
        if feature in self.missing:
            raise NotServed(f"{what} isn't served by {self.backend}: {self.missing[feature]}")


def features_of(prompt: Prompt, sampling: Sampling) -> Iterator[tuple[Feature, str]]:
    """What a `gen` after this prompt asks for, with the words that asked for it."""
    yield from _of_prompt(prompt)
    yield from _of_sampling(sampling)


def features_of_select(prompt: Prompt) -> Iterator[tuple[Feature, str]]:
    yield Feature.SELECT, "select(...)"
    yield from _of_prompt(prompt)


def _of_prompt(prompt: Prompt) -> Iterator[tuple[Feature, str]]:
    marks = [i for i, piece in enumerate(prompt.pieces) if isinstance(piece, RoleMark)]
    if not marks:
        yield Feature.COMPLETION, "a call outside of any role"
    else:
        last = prompt.pieces[marks[-1]]
        yield Feature.CHAT, f"{last.role if isinstance(last, RoleMark) else 'user'}(...)"
        if last == RoleMark("assistant", True) and marks[-1] < len(prompt.pieces) - 1:
            yield Feature.ASSISTANT_PREFIX, "a call after text of the same assistant message"
    if prompt.images:
        yield Feature.IMAGES, "image(...)"
    if prompt.has_joined_branches:
        yield Feature.CONCATENATE, CONCATENATING


_SET_BY: Mapping[str, Feature] = {
    "regex": Feature.REGEX,
    "json_schema": Feature.JSON_SCHEMA,
    "stop_regex": Feature.STOP_REGEX,
    "tools": Feature.TOOLS,
    "logprobs": Feature.LOGPROBS,
    "n": Feature.N,
    "seed": Feature.SEED,
    "stop": Feature.STOP,
    "stop_token_ids": Feature.STOP_TOKEN_IDS,
    "top_k": Feature.TOP_K,
    "min_p": Feature.MIN_P,
    "repetition_penalty": Feature.REPETITION_PENALTY,
    "presence_penalty": Feature.PRESENCE_PENALTY,
    "frequency_penalty": Feature.FREQUENCY_PENALTY,
    "min_tokens": Feature.MIN_TOKENS,
    "ignore_eos": Feature.IGNORE_EOS,
    "forced_output": Feature.FORCED_OUTPUT,
    "outputs": Feature.OUTPUTS,
    "token_healing": Feature.TOKEN_HEALING,
}
_values = attrgetter(*_SET_BY)
_DEFAULTS = _values(Sampling())


def _of_sampling(sampling: Sampling) -> Iterator[tuple[Feature, str]]:
    for (name, feature), value, default in zip(_SET_BY.items(), _values(sampling), _DEFAULTS):
        if value != default:
            asked = "gen(regex=...) or gen(dtype=...)" if name == "regex" else f"gen({name}=...)"
            yield feature, asked
