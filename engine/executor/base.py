"""The contract between the scheduler and whatever runs the model. The executor alone knows the hardware."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from engine.request import Request, TokenLogprob


class ExecutorDead(Exception):
    """The executor can't run another step (a lost device, a recording that doesn't fit). Other errors cost one step."""


class Row(NamedTuple):
    """One request's share of a step: tokens[start : start + n_new] are computed on top of the KV of tokens[:start].

    Decode is `n_new == 1`; a chunk of a prompt, forced tokens or jump-forward are more. The KV of tokens[:start] may be
    written by another row of the same step: K and V of a layer are stored before that layer's attention.
    """

    request: Request
    start: int
    n_new: int
    sample: bool
    """The row ends at the last known token: the logits of its last position give the next one."""

    @property
    def logit_start(self) -> int:
        """First position whose logits are needed; start + n_new when none is.

        The logits at position p score the token at p + 1, so prompt log-probabilities from s on need p >= s - 1.
        """
        end = self.start + self.n_new
        sampled = end - 1 if self.sample else end
        params = self.request.params
        if params.prompt_logprobs is None:
            return sampled
        scored = max(self.start, params.prompt_logprobs_start - 1)
        return min(scored, sampled) if scored < self.request.prompt_tokens - 1 else sampled

    @property
    def n_scored(self) -> int:
        """Prompt tokens whose log-probability this row's logits give: positions logit_start + 1 and on."""
        if self.request.params.prompt_logprobs is None:
            return 0
        return max(0, min(self.start + self.n_new, self.request.prompt_tokens - 1) - self.logit_start)


class PrefixGroup(NamedTuple):
    """Rows of a batch whose first `n_tokens` tokens live in the very same pages."""

    rows: tuple[int, ...]
    n_tokens: int


class Batch(NamedTuple):
    step: int
    rows: tuple[Row, ...]
    prefix_groups: tuple[PrefixGroup, ...] = ()


class StepResult(NamedTuple):
    """What a step gave, one entry a row of the batch."""

    tokens: tuple[int | None, ...]
    """The next token; None where the row didn't sample or failed."""
    logprobs: tuple[TokenLogprob | None, ...]
    """Of the sampled token, where `params.logprobs` asks for it."""
    prompt_logprobs: tuple[tuple[TokenLogprob, ...], ...]
    """Of the `n_scored` prompt tokens that the row's logits score, in order."""
    errors: tuple[str | None, ...]
    """Why a row failed (logits that aren't finite, say); it fails alone."""
    seconds: float
    """Time the step took on the device, from launch to collected."""
    stop_hits: tuple[str | None, ...] | None = None
    """Replay only: the stop string that ended the recorded row, so that no tokenizer is needed."""


class Executor(Protocol):
    """Runs batches over a KV pool of `n_pages` pages of `page_size` tokens."""

    page_size: int
    n_pages: int
    max_context: int
    """Longest prompt + output the model takes, tokens."""
    vocab_size: int
    device: str

    def launch(self, batch: Batch) -> Any:
        """Starts the forward pass; returns at once where the device allows it."""

    def sample(self, pending: Any, masks: Sequence[Any] | None) -> Any:
        """Chooses the tokens. `masks` (one packed bitmask or None a row) may arrive while the forward pass runs."""

    def collect(self, pending: Any) -> StepResult:
        """Waits for the step and brings its result to the host."""
