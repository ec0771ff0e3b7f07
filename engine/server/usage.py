"""What a request used, as OpenAI's clients read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.server.generation import Finish


@dataclass(slots=True)
class Usage:
    """Tokens. A prompt counts once however many samples it has; so do its tokens that were in the cache."""

    prompt: int = 0
    output: int = 0
    cached: int = 0
    forced: int = 0

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]]) -> Usage:
        return cls(prompt=sum(map(len, prompts)))

    def add(self, sample: int, finish: Finish) -> None:
        """A sample has ended; of a prompt's samples the first (0) says what was cached."""
        self.output += finish.output_tokens
        self.forced += finish.forced_tokens
        if sample == 0:
            self.cached += finish.cached_tokens

    def as_data(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.output,
            "total_tokens": self.prompt + self.output,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"forced_tokens": self.forced},
        }
