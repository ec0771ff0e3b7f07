"""Calls that `num_api_spec_tokens` saves on a profile of many fields, over a scripted API that counts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lang as sgl
from lang.backends.mock import MockBackend

FIELDS = ("Name", "House", "Occupation", "Born", "Pet", "Wand", "Fear", "Friend")
ANSWERS = ("Ada Grey", "the blue one", "keeper of maps", "in a snowy March", "an old owl", "yew", "deep water", "Tom")
STRANGE = "Hair: grey"
"""A field that the program doesn't ask for."""


@sgl.function
def profile(s: Any, who: str) -> None:
    s += f"A profile of {who}."
    for field in FIELDS:
        s += f"\n{field}: " + sgl.gen(field, stop="\n", max_tokens=24)


class ScriptedApi(MockBackend):
    """Goes on with the profile from where the prompt ends; after every `strays`-th field with one of its own."""

    def __init__(self, strays: int = 0) -> None:
        super().__init__(reply=self._rest, speculates=True)
        self._strays = strays

    def _rest(self, prompt: str) -> str:
        at = prompt.count("\n") - 1
        lines = [ANSWERS[at]]
        for i in range(at + 1, len(FIELDS)):
            if self._strays and i % self._strays == 0:
                lines.append(STRANGE)
            lines.append(f"{FIELDS[i]}: {ANSWERS[i]}")
        return "\n".join(lines)


def speculation(programs: int, spec_tokens: Sequence[int]) -> list[dict[str, Any]]:
    """Raises RuntimeError when an answer is another than without speculation."""
    batch = [(f"person {i}",) for i in range(programs)]
    rows = []
    for strays in (0, 3):
        plain = ScriptedApi(strays)
        expected = [state.text() for state in profile.run_batch(batch, backend=plain, temperature=0)]
        for n in spec_tokens:
            api = ScriptedApi(strays)
            states = profile.run_batch(batch, backend=api, num_api_spec_tokens=n, temperature=0)
            if [state.text() for state in states] != expected:
                raise RuntimeError(f"speculation with {n} tokens changed the answers")
            counts = [state.speculation() for state in states]
            wasted = [count.wasted_tokens for count in counts]
            rows.append(
                {
                    "model_strays_after_every": strays or None,
                    "num_api_spec_tokens": n,
                    "programs": programs,
                    "gens": len(FIELDS) * programs,
                    "calls_without": len(plain.log),
                    "calls": len(api.log),
                    "saved_calls": sum(count.saved_calls for count in counts),
                    "wasted_tokens": None if None in wasted else sum(n for n in wasted if n is not None),
                    "prompt_tokens_without": sum(call.meta["prompt_tokens"] for call in plain.log),
                    "prompt_tokens": sum(call.meta["prompt_tokens"] for call in api.log),
                }
            )
    return rows
