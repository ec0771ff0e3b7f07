"""Outputs that a run forces: recorded ones, or as many tokens as they have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lang.sampling import Sampling

Encode = Callable[[str], Sequence[int]]
"""Token ids of a text as the output of the call's prompt."""


class Forced(NamedTuple):
    """What a call of a run with forced outputs asks for instead of what the program wrote."""

    samples: tuple[tuple[int, ...] | None, ...]
    """For each sample the tokens that come out; None: the model's own. One entry for several samples: all alike."""
    sampling: Sampling


def forced(sampling: Sampling, encode: Encode) -> Forced | None:
    """None where the run's outputs are free. Raises ValueError for a recording that can't be used.

    A recorded output is cut at `max_tokens`; what a stop, a grammar or a tool would have done is part of the recording.
    Of a fixed one the shape that a grammar asks for stays, and then its length is the grammar's.
    """
    if sampling.outputs == "free":
        return None
    texts = sampling.recorded
    if len(texts) not in (0, 1, sampling.n):
        raise ValueError(f"recorded has {len(texts)} texts for n={sampling.n} samples: give one, or one for each")
    tokens = [tuple(encode(text))[: sampling.max_tokens] for text in texts]
    if sampling.max_tokens == 0:
        return None
    if sampling.outputs == "recorded":
        if not texts:
            raise ValueError("outputs='recorded', but this call has no recorded output: gen(recorded=...), or 'fixed'")
        if not all(texts) or not all(tokens):
            raise ValueError("a recorded output is empty: an output has at least one token")
        plain = dataclasses.replace(
            sampling, regex=None, json_schema=None, stop_regex=(), min_tokens=0, token_healing=False
        )
        return Forced(tuple(tokens), plain)
    if sampling.regex is not None or sampling.json_schema is not None or sampling.tools:
        return Forced((None,), sampling)
    n = max((len(one) for one in tokens), default=sampling.max_tokens) or 1
    length = dataclasses.replace(
        sampling, max_tokens=n, min_tokens=n, ignore_eos=True, stop=(), stop_regex=(), stop_token_ids=()
    )
    return Forced((None,), length)
