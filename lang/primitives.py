"""What a program adds to its prompt: text, `gen`, `select`, images, roles, and these joined with `+`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lang.abstract import Abstract, is_abstract
from lang.choices import ChoicesMethod, choices_method_named
from lang.dtype import pattern_of
from lang.image import image_of
from lang.prompt import Image, RoleMark
from lang.sampling import NAMES, closest, overrides
from lang.tools import Tool


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
    recorded: str | None = None
    """The choice that was taken in a recorded run: see `Sampling.outputs`."""


@dataclass(frozen=True, slots=True)
class ImageOf(Expr):
    """A picture whose file is known when a traced program runs."""

    source: Abstract


@dataclass(frozen=True, slots=True)
class Movable(Expr):
    """Parts that may stand elsewhere: see `movable`."""

    parts: tuple[Any, ...]


Leaf = str | Gen | Select | Image | RoleMark | ImageOf | Movable | Abstract


@dataclass(frozen=True, slots=True)
class Concat(Expr):
    parts: tuple[Leaf, ...]


Part = str | Expr | Image


def parts_of(part: object) -> tuple[Leaf, ...]:
    """Flat parts of anything that may be added to a prompt. Raises TypeError for everything else."""
    if is_abstract(part):
        return (part,)  # type: ignore[return-value]
    if isinstance(part, Concat):
        return part.parts
    if isinstance(part, str | Gen | Select | Image | RoleMark | ImageOf | Movable):
        return (part,)
    hint = "use str(...)" if isinstance(part, int | float) else "read its text first, for example s['name']"
    raise TypeError(
        f"{type(part).__name__} {part!r:.80} can't be added to a prompt; text, gen(...), select(...), image(...) and "
        f"roles can: {hint}"
    )


def written_parts(part: object) -> tuple[str | Gen | Select | Image | RoleMark, ...]:
    """As `parts_of`, where the program runs: what is movable stays in its place."""
    parts = parts_of(part)
    flat = [inner for one in parts for inner in (one.parts if isinstance(one, Movable) else (one,))]
    return tuple(flat)


def image(source: str | Path | bytes) -> Concat:
    """A picture, of a file or its bytes. Raises ValueError for what is no PNG, JPEG, GIF or WebP."""
    if is_abstract(source):
        return Concat((ImageOf(source),))  # type: ignore[arg-type]
    return Concat((image_of(source),))


def movable(part: Part) -> Movable:
    """Says that this part may stand before or behind what stands next to it: the program's author doesn't mind.

    Run as it stands, it stays. The pass `code_movement` of a graph moves it to where calls share longer prefixes, up to
    the last call before it or the border of its message; whole messages move among messages. Raises TypeError for a
    call, ValueError for a message that isn't whole.
    """
    parts = parts_of(part)
    role: str | None = None
    for one in parts:
        if is_abstract(one):
            continue
        if isinstance(one, Gen | Select | Movable):
            raise TypeError("movable(...) takes text, images and whole messages: a call stays where it is")
        if isinstance(one, RoleMark):
            if one.begins == (role is not None):
                raise ValueError(f"movable(...): the message of the {one.role} isn't whole")
            role = one.role if one.begins else None
    if role is not None:
        raise ValueError(f"movable(...): the message of the {role} isn't whole")
    return Movable(parts)


def system(expr: Part) -> Concat:
    """A message of the system."""
    return _message("system", expr)


def user(expr: Part) -> Concat:
    """A message of the user."""
    return _message("user", expr)


def assistant(expr: Part) -> Concat:
    """A message of the assistant, perhaps with a `gen` or `select` in it."""
    return _message("assistant", expr)


def system_begin() -> Concat:
    return Concat((RoleMark("system", True),))


def system_end() -> Concat:
    return Concat((RoleMark("system", False),))


def user_begin() -> Concat:
    return Concat((RoleMark("user", True),))


def user_end() -> Concat:
    return Concat((RoleMark("user", False),))


def assistant_begin() -> Concat:
    return Concat((RoleMark("assistant", True),))


def assistant_end() -> Concat:
    return Concat((RoleMark("assistant", False),))


def _message(role: str, expr: Part) -> Concat:
    parts = parts_of(expr)
    within = [inner for part in parts for inner in (part.parts if type(part) is Movable else (part,))]
    if inner := next((part for part in within if type(part) is RoleMark), None):
        raise ValueError(f"{inner.role}() inside {role}(): roles can't be nested; put one after the other")
    return Concat((RoleMark(role, True), *parts, RoleMark(role, False)))


def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    *,
    min_tokens: int | None = None,
    n: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    stop_regex: str | Sequence[str] | None = None,
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
    recorded: str | Sequence[str] | None = None,
    outputs: str | None = None,
    token_healing: bool | None = None,
    logprobs: int | None = None,
    return_logprob: bool | None = None,
    top_logprobs_num: int | None = None,
    dtype: type | str | None = None,
    regex: str | None = None,
    json_schema: Mapping[str, Any] | str | type | None = None,
    choices: Sequence[str] | None = None,
    choices_method: str | ChoicesMethod | None = None,
    tools: Sequence[Tool | Mapping[str, Any] | Callable[..., Any]] | None = None,
    tool_choice: str | None = None,
    **unserved: object,
) -> Gen | Select:
    """A call of the model. What isn't given comes from `run(...)`, else from SGLang's defaults (128 tokens, at 1.0).

    `choices` makes it a `select`. `dtype` (int, float, bool, str) holds the output to how Python writes such a value;
    the variable is text all the same. `logprobs=k`, or `return_logprob=True` with `top_logprobs_num=k`, as SGLang says
    it, gives the log-probabilities in the meta info. Raises TypeError for a parameter that isn't served: none is
    ignored.
    """
    if unserved:
        raise _not_served(unserved)
    _check_name(name)
    if top_logprobs_num is not None and not return_logprob:
        raise TypeError("gen(top_logprobs_num=...) needs return_logprob=True; or say logprobs=... for both")
    if return_logprob:
        logprobs = max(logprobs or 0, top_logprobs_num or 0)
    given = {
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "n": n,
        "stop": stop,
        "stop_token_ids": stop_token_ids,
        "stop_regex": stop_regex,
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
        "recorded": recorded,
        "outputs": outputs,
        "token_healing": token_healing,
        "logprobs": logprobs,
        "regex": regex,
        "json_schema": json_schema,
        "tools": tools,
        "tool_choice": tool_choice,
    }
    shapes = {"dtype": dtype, "regex": regex, "json_schema": json_schema, "choices": choices, "tools": tools}
    said = [key for key, value in shapes.items() if value is not None]
    if len(said) > 1:
        raise TypeError(f"gen({said[0]}=..., {said[1]}=...): each says what the output looks like; give one of them")
    if choices is not None:
        given["temperature"] = temperature or None
        taken = given.pop("recorded")
        if not (taken is None or is_abstract(taken) or isinstance(taken, str)):
            raise TypeError(f"gen(choices=..., recorded={taken!r:.80}): it must be the choice that was taken")
        if set_ := [key for key, value in given.items() if value is not None]:
            raise TypeError(f"gen(choices=...) scores whole choices: {', '.join(set_)} means nothing there; remove it")
        method = choices_method or "token_length_normalized"
        return select(name, choices, choices_method=method, recorded=taken)  # type: ignore[arg-type]
    if choices_method is not None:
        raise TypeError("gen(choices_method=...) needs choices=[...]")
    if dtype is not None:
        pattern, ends = pattern_of(dtype)
        given["regex"] = pattern
        given["stop"] = [*([stop] if isinstance(stop, str) else stop or ()), *ends] or None
    return Gen(name, overrides(given))


def gen_int(name: str | None = None, max_tokens: int | None = None, **sampling: Any) -> Gen | Select:
    """`gen(dtype=int)`: digits, perhaps with a sign before them."""
    return gen(name, max_tokens, dtype=int, **sampling)


def gen_string(name: str | None = None, max_tokens: int | None = None, **sampling: Any) -> Gen | Select:
    """`gen(dtype=str)`: a string in double quotes."""
    return gen(name, max_tokens, dtype=str, **sampling)


def select(
    name: str | None = None,
    choices: Sequence[str] = (),
    temperature: float = 0.0,
    choices_method: str | ChoicesMethod = "token_length_normalized",
    recorded: str | None = None,
) -> Select:
    """The choice that the model finds likeliest after the prompt, by `choices_method`.

    recorded: the choice that is taken, once all are scored, where a run's `outputs` aren't free.
    Raises TypeError or ValueError when there is no choice, one is empty or no text, or a temperature is asked for.
    """
    _check_name(name)
    if isinstance(choices, str) or not all(is_abstract(choice) or isinstance(choice, str) for choice in choices):
        raise TypeError(f"choices={choices!r:.80} is not allowed: it must be a list of strings")
    if not choices or not all(is_abstract(choice) or choice for choice in choices):
        raise ValueError(f"choices={list(choices)!r:.80} is not allowed: it needs at least one choice, and none empty")
    if temperature != 0:
        raise ValueError(
            f"select(temperature={temperature}) isn't served: select takes the likeliest choice, temperature 0"
        )
    method = choices_method_named(choices_method) if isinstance(choices_method, str) else choices_method
    if recorded is not None and not is_abstract(recorded) and recorded not in choices:
        raise ValueError(f"select(recorded={recorded!r:.80}): it must be one of the choices {list(choices)!r:.200}")
    return Select(name, tuple(choices), method, recorded)


def _check_name(name: object) -> None:
    if name is not None and (not isinstance(name, str) or not name):
        raise TypeError(
            f"name={name!r} is not allowed: a variable's name is a string that isn't empty, or None for no variable"
        )


LATER: Mapping[str, str] = {
    "logprob_start_len": "log-probabilities are of the output; remove it",
    "return_text_in_logprobs": "the text is always there; remove it",
}


def _not_served(given: Mapping[str, object]) -> TypeError:
    name = next(iter(given))
    if name in LATER:
        return TypeError(f"gen({name}=...) isn't served: {LATER[name]}")
    known = {*NAMES, "name", "choices", "choices_method", "dtype", "return_logprob", "top_logprobs_num"}
    return TypeError(f"gen() has no parameter {name!r}{closest(name, known)} it takes: {', '.join(sorted(known))}")
