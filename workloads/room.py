"""How long outputs may get where prompt and outputs must fit into a context together."""

from __future__ import annotations

from workloads.data import DataError


def output_tokens(asked: int, limit: int | None, prompt_tokens: int, n_outputs: int = 1) -> int:
    """`max_tokens` of each of `n_outputs` that end up in one prompt with `prompt_tokens` of other text.

    At most `asked`; limit None: just that. Raises DataError where not one token is left for each.
    """
    if limit is None:
        return asked
    room = (limit - prompt_tokens) // n_outputs
    if room < 1:
        raise DataError(
            f"max_context_tokens={limit} leaves no room for {n_outputs} outputs behind a prompt of {prompt_tokens} "
            "tokens; give more"
        )
    return min(asked, room)


def need_temperature(temperature: object) -> None:
    """Raises ValueError for what is no number from 0 on; None passes."""
    if temperature is None:
        return
    if not isinstance(temperature, int | float) or isinstance(temperature, bool) or not 0 <= temperature < 100:
        raise ValueError(f"temperature={temperature!r} is not allowed: it must be a number, 0 or more")
