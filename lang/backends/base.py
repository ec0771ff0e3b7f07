"""What the language asks of whatever answers its calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from lang.choices import ChoicesMethod
from lang.sampling import Sampling


class Clock(Protocol):
    """Seconds."""

    def now(self) -> float: ...


class CallError(RuntimeError):
    """A call failed after it was accepted. The message names the variable and says why."""


class Tags(NamedTuple):
    """Whose call it is; engines and their policies look at it."""

    program: str = ""
    client: str = ""
    conversation: str = ""
    namespace: str = ""
    priority: int = 0
    due: float | None = None
    """Seconds: when the call was due; None: now."""


@dataclass(slots=True, eq=False, kw_only=True)
class Call:
    """One `gen` or `select` of a program: what was asked, and what came of it."""

    name: str | None
    """The variable."""
    prompt: str
    tags: Tags
    finished: bool = False
    texts: tuple[str, ...] = ()
    """The output: one text, or one for each of n samples. A select's is the choice taken."""
    meta: dict[str, Any] = field(default_factory=dict)
    """prompt_tokens, cached_tokens, completion_tokens (sums over its requests), finish_reason; a select adds
    choices, normalized_prompt_logprobs (mean a token, one a choice) and input_token_logprobs."""
    error: str | None = None
    requests: list[Any] = field(default_factory=list)
    """The backend's own records, in the order submitted: `engine.request.Request` for the engine."""

    @property
    def text(self) -> str:
        return self.texts[0] if self.texts else ""


class Backend(Protocol):
    """Accepts calls at once and works on all of them, one `step` at a time. One thread."""

    @property
    def clock(self) -> Clock: ...

    def generate(self, name: str | None, prompt: str, sampling: Sampling, tags: Tags) -> Call:
        """Queues a generation. Raises ValueError, and queues nothing, when it can't be served."""

    def score(self, name: str | None, prompt: str, choices: Sequence[str], method: ChoicesMethod, tags: Tags) -> Call:
        """Queues the scoring of all `choices` after `prompt`. Raises as `generate` does."""

    def step(self) -> list[Call]:
        """Does a little of the work; the calls that ended since the last step, in an order that can be repeated."""

    def abort(self, call: Call) -> None:
        """Gives the call up; it is never returned by `step` after this. A finished call is left alone."""
