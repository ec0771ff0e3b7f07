"""From the fields of a request to the engine's sampling parameters. The one place where their names meet."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from engine import constraints
from engine.constraints import Grammar
from engine.request import RequestError, SamplingParams
from engine.server.errors import ApiError
from engine.server.fields import GrammarFields, RequestFields, SamplingFields

_MAKERS: Mapping[str, Callable[[Any], Grammar]] = {
    "regex": constraints.regex,
    "json_schema": constraints.json_schema,
    "ebnf": constraints.ebnf,
    "lark": constraints.lark,
    "choice": constraints.choices,
}
_NAMED = re.compile(r"(\w+)=")


def bad_request(error: RequestError, param: str | None = None) -> ApiError:
    """400 for what the engine refuses; its messages begin with the parameter's name where one is to blame."""
    named = _NAMED.match(str(error))
    return ApiError(400, str(error), param=param or (named[1] if named else None), code="invalid_value")


class Wanted(NamedTuple):
    """What an output must match, and the field of the request that says so."""

    grammar: Grammar | None = None
    field: str | None = None


def grammar_of(fields: GrammarFields, others: Mapping[str, Grammar | None] | None = None) -> Wanted:
    """others: grammars that the request asks for in other ways, by the field that does.

    Raises ApiError when there are two, or one can't be read.
    """
    found = [Wanted(grammar, name) for name, grammar in (others or {}).items() if grammar is not None]
    for name, make in _MAKERS.items():
        value = getattr(fields, name)
        if value is not None:
            try:
                found.append(Wanted(make(value), name))
            except RequestError as error:
                raise bad_request(error, name) from None
    if len(found) > 1:
        names = " and ".join(str(wanted.field) for wanted in found)
        told = f"{names} were given together: an output can follow one of them; take the others out"
        raise ApiError(400, told, param=found[-1].field, code="invalid_value")
    return found[0] if found else Wanted()


def sampling_params(fields: SamplingFields, **settings: Any) -> SamplingParams:
    """settings: what the endpoint decides (`max_tokens`, `n`, `logprobs`, `grammar`, ...). Raises ApiError."""
    given = {
        "temperature": fields.temperature,
        "top_p": fields.top_p,
        "top_k": None if fields.top_k is None else max(fields.top_k, 0),
        "min_p": fields.min_p,
        "presence_penalty": fields.presence_penalty,
        "frequency_penalty": fields.frequency_penalty,
        "repetition_penalty": fields.repetition_penalty,
        "stop": tuple(fields.stop),
        "stop_token_ids": tuple(fields.stop_token_ids or ()),
        "ignore_eos": fields.ignore_eos,
        **settings,
    }
    try:
        return SamplingParams(**{name: value for name, value in given.items() if value is not None})
    except RequestError as error:
        raise bad_request(error) from None


def request_params(fields: RequestFields, **settings: Any) -> SamplingParams:
    """`sampling_params` of a request of OpenAI's form."""
    seed = None if fields.seed is None else fields.seed % 2**63
    return sampling_params(fields, n=fields.n, seed=seed, min_tokens=fields.min_tokens, **settings)
