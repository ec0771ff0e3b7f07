"""The contract between the scheduler and whatever runs the model. The executor alone knows the hardware."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from engine.request import Request, TokenLogprob

Slots = npt.NDArray[np.int64]
_NOTHING = range(0)


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
    def end(self) -> int:
        return self.start + self.n_new

    @property
    def awaits_token(self) -> bool:
        """The next token is to be chosen: the request goes on, and no grammar has said meanwhile what comes."""
        return self.sample and not self.request.finished and self.end == self.request.n_tokens

    @property
    def logit_start(self) -> int:
        """First position whose logits are needed; start + n_new when none is.

        The logits at position p score the token at p + 1.
        """
        sampled = self.end - 1 if self.sample else self.end
        scored = self._scored
        return min(scored.start - 1, sampled) if scored else sampled

    @property
    def n_scored(self) -> int:
        """Known tokens whose log-probability this row's logits give: positions logit_start + 1 and on."""
        scored = self._scored
        return scored.stop - 1 - self.logit_start if scored else 0

    @property
    def n_likeliest(self) -> int:
        """How many of the likeliest tokens are wanted beside each scored one."""
        params = self.request.params
        return max(params.prompt_logprobs or 0, params.logprobs or 0)

    @property
    def _scored(self) -> range:
        """Positions of the prompt tokens, and of the output tokens that a grammar forced, that are to be scored.

        The same at launch and at collect: a row scores only behind its start, where no earlier step does.
        """
        request, params = self.request, self.request.params
        if params.prompt_logprobs is None and (params.logprobs is None or request.constraint is None):
            return _NOTHING
        parts = []
        if params.prompt_logprobs is not None:
            last = min(self.end, request.prompt_tokens - 1)
            parts.append(range(max(self.start + 1, params.prompt_logprobs_start), last + 1))
        if params.logprobs is not None and request.constraint is not None:
            first = max(self.start + 1, request.prompt_tokens + len(request.logprobs))
            last = min(self.end, request.n_tokens - request.n_pending - 1)
            parts.append(range(first, last + 1))
        wanted = [part for part in parts if part]
        return range(wanted[0].start, wanted[-1].stop) if wanted else _NOTHING


class PrefixGroup(NamedTuple):
    """Rows of a batch whose first `n_tokens` tokens live in the very same pages."""

    rows: tuple[int, ...]
    n_tokens: int


class KVCopy(NamedTuple):
    """K and V of some tokens go to other slots, where they stand for later positions.

    K is turned on by the difference (rotary embeddings compose: RoFormer, arXiv 2104.09864, section 3.2.2); V knows no
    position.
    """

    source: Slots
    """int64 [tokens]: slot s is token s % page_size of page s // page_size."""
    target: Slots
    """int64 [tokens], none of them in `source`."""
    position: int
    """Of the first token in the source; the others follow."""
    turn: int
    """Positions by which the tokens stand later in the target, 0 or more."""


class Batch(NamedTuple):
    step: int
    rows: tuple[Row, ...]
    prefix_groups: tuple[PrefixGroup, ...] = ()
    copies: tuple[KVCopy, ...] = ()
    """Done one after the other, after the step before and before any row is computed: a copy may read what one before
    it wrote, and overwrite what one before it read."""


class RowRecord(NamedTuple):
    """What a recorded run knew of a row beyond its token."""

    stop: str | None = None
    """The stop string that ended it."""
    forced: tuple[int, ...] = ()
    """Tokens that its grammar forced after it."""
    complete: bool = False
    """Its grammar ended the output."""
    n_again: int | None = None
    """Its output tokens that begin within what token healing took back, once that is known."""


class StepResult(NamedTuple):
    """What a step gave, one entry a row of the batch."""

    tokens: tuple[int | None, ...]
    """The next token; None where the row didn't sample or failed."""
    logprobs: tuple[TokenLogprob | None, ...]
    """Of the sampled token, where `params.logprobs` asks for it."""
    scored: tuple[tuple[TokenLogprob, ...], ...]
    """Of the `n_scored` known tokens that the row's logits score, in order."""
    errors: tuple[str | None, ...]
    """Why a row failed (logits that aren't finite, say); it fails alone."""
    seconds: float
    """Time the step took on the device, from launch to collected."""
    recorded: tuple[RowRecord, ...] | None = None
    """Replay only, so that neither a tokenizer nor a grammar is needed."""


class Executor(Protocol):
    """Runs batches over a KV pool of `n_pages` pages of `page_size` tokens."""

    page_size: int
    n_pages: int
    max_context: int
    """Longest prompt + output the model takes, tokens."""
    vocab_size: int
    device: str

    def launch(self, batch: Batch) -> Any:
        """Makes the batch's copies and starts the forward pass; returns at once where the device allows it."""

    def sample(self, pending: Any, masks: Sequence[Any] | None) -> Any:
        """Chooses the tokens. `masks` (one packed bitmask or None a row) may arrive while the forward pass runs."""

    def collect(self, pending: Any) -> StepResult:
        """Waits for the step and brings its result to the host."""
