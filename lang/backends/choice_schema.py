"""`select` where a server tells no log-probabilities of a prompt: the model itself writes one of the choices.

The rule is greedy decoding held to the choices (each token is the likeliest of those that lead to a choice), which is
what `greedy_token_selection` computes from log-probabilities, but for what the form around the choice does to them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lang.backends.api import AnswerError
from lang.capabilities import NotServed
from lang.choices import ChoicesMethod

CONSTRAINED = "constrained_decoding"
"""What `choices_method` says in the meta info of such a select."""


def check_method(method: ChoicesMethod, backend: str) -> None:
    """Raises NotServed for the rule that has nothing to do with greedy decoding."""
    if method.needs_unconditional:
        raise NotServed(
            f"select(choices_method={method.name!r}) isn't served by {backend}: it needs log-probabilities of the "
            "prompt; use greedy_token_selection, or a completion model whose server echoes them"
        )


def choice_schema(choices: Sequence[str]) -> dict[str, Any]:
    """An object with one field, because APIs want an object at the top."""
    return {
        "type": "object",
        "properties": {"choice": {"type": "string", "enum": list(dict.fromkeys(choices))}},
        "required": ["choice"],
        "additionalProperties": False,
    }


def room(choices: Sequence[str]) -> int:
    """Tokens that any choice takes at most, written as JSON with some space around: a token is a byte or more."""
    return 64 + 2 * max(len(json.dumps(choice)) for choice in choices)


def choice_in(text: str, choices: Sequence[str]) -> str:
    """Raises AnswerError when the text isn't JSON with one of the choices."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    found = value.get("choice") if isinstance(value, dict) else None
    return one_of(found if isinstance(found, str) else text, choices)


def one_of(text: str, choices: Sequence[str]) -> str:
    """Raises AnswerError when it isn't."""
    if text not in choices:
        raise AnswerError(f"the server was to answer one of {list(choices)!r:.200}, and said {text!r:.200}")
    return text


def choice_meta(meta: dict[str, Any], choices: Sequence[str]) -> dict[str, Any]:
    return {**meta, "choices": tuple(choices), "choices_method": CONSTRAINED}
