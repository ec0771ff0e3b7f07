"""What a program adds to its prompt: text, `gen`, `select`, and these joined with `+`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

from lang.choices import ChoicesMethod, choices_method_named
from lang.sampling import NAMES, closest, overrides


class Expr:
    """A part of a prompt. `"text" + gen("x") + "more"` is one too."""

    __slots__ = ()

    def __add__(self, other: Part) -> Concat:
        return Concat((*parts_of(self), *parts_of(other)))

    def __radd__(self, other: Part) -> Concat:
        return Concat((*parts_of(other), *parts_of(self)))


@dataclass(frozen=True, slots=True)
class Gen(Expr):
    """The model writes here; the output is the variable `name`."""

    name: str | None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Only what the call itself set; the rest comes from the run."""


@dataclass(frozen=True, slots=True)
class Select(Expr):
    """The likeliest of `choices` goes here; it is the variable `name`."""

    name: str | None
    choices: tuple[str, ...]
    method: ChoicesMethod


@dataclass(frozen=True, slots=True)
class Concat(Expr):
    parts: tuple[str | Expr, ...]


Part = Union[str, "Expr"]


def parts_of(part: object) -> tuple[str | Expr, ...]:
    """Flat parts of anything that may be added to a prompt. Raises TypeError for everything else."""
    if isinstance(part, Concat):
        return part.parts
    if isinstance(part, str | Expr):
        return (part,)
    hint = "use str(...)" if isinstance(part, int | float) else "read its text first, for example s['name']"
    raise TypeError(
        f"{type(part).__name__} {part!r:.80} can't be added to a prompt; text, gen(...) and select(...) can: {hint}"
    )


def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    *,
    min_tokens: int | None = None,
    n: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    presence_penalty: float | None = None,
    frequency_penalty: float | None = None,
    ignore_eos: bool | None = None,
    seed: int | None = None,
    forced_output: Sequence[int] | None = None,
    choices: Sequence[str] | None = None,
    choices_method: str | ChoicesMethod | None = None,
    **unserved: object,
) -> Gen | Select:
    """A call of the model. What isn't given comes from `run(...)`, else from SGLang's defaults (128 tokens, at 1.0).

    `choices` makes it a `select`. Raises TypeError for a parameter that isn't served: none is ignored.
    """
    if unserved:
        raise _not_served(unserved)
    if choices is not None:
        sampled = {"max_tokens": max_tokens, "n": n, "stop": stop, "temperature": temperature or None}
        if given := [key for key, value in sampled.items() if value is not None]:
            raise TypeError(f"gen(choices=...) scores whole choices: {', '.join(given)} means nothing there; remove it")
        return select(name, choices, choices_method=choices_method or "token_length_normalized")
    if choices_method is not None:
        raise TypeError("gen(choices_method=...) needs choices=[...]")
    _check_name(name)
    given_values = {
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "n": n,
        "stop": stop,
        "stop_token_ids": stop_token_ids,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "ignore_eos": ignore_eos,
        "seed": seed,
        "forced_output": forced_output,
    }
    return Gen(name, overrides(given_values))


def select(
    name: str | None = None,
    choices: Sequence[str] = (),
    temperature: float = 0.0,
    choices_method: str | ChoicesMethod = "token_length_normalized",
) -> Select:
    """The choice that the model finds likeliest after the prompt, by `choices_method`.

    Raises TypeError or ValueError when there is no choice, one is empty or no text, or a temperature is asked for.
    """
    _check_name(name)
    if isinstance(choices, str) or not all(isinstance(choice, str) for choice in choices):
        raise TypeError(f"choices={choices!r:.80} is not allowed: it must be a list of strings")
    if not choices or not all(choices):
        raise ValueError(f"choices={list(choices)!r:.80} is not allowed: it needs at least one choice, and none empty")
    if temperature != 0:
        raise ValueError(
            f"select(temperature={temperature}) isn't served: select takes the likeliest choice, temperature 0"
        )
    method = choices_method_named(choices_method) if isinstance(choices_method, str) else choices_method
    return Select(name, tuple(choices), method)


def _check_name(name: object) -> None:
    if name is not None and (not isinstance(name, str) or not name):
        raise TypeError(
            f"name={name!r} is not allowed: a variable's name is a string that isn't empty, or None for no variable"
        )


LATER: Mapping[str, str] = {
    "regex": "constrained output",
    "json_schema": "constrained output",
    "stop_regex": "constrained output",
    "dtype": "constrained output",
    "return_logprob": "log-probabilities of outputs",
    "logprob_start_len": "log-probabilities of outputs",
    "top_logprobs_num": "log-probabilities of outputs",
    "return_text_in_logprobs": "log-probabilities of outputs",
}


def _not_served(given: Mapping[str, object]) -> TypeError:
    name = next(iter(given))
    if name in LATER:
        return TypeError(f"gen({name}=...) isn't served: the language has no {LATER[name]} yet; remove it")
    known = {*NAMES, "name", "choices", "choices_method"}
    return TypeError(f"gen() has no parameter {name!r}{closest(name, known)} it takes: {', '.join(sorted(known))}")
