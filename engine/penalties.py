"""Repetition, presence and frequency penalties over the tokens that a request has seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from engine.request import Request, SamplingParams


def is_penalised(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


class SeenTokens:
    """The distinct tokens of a request and how often its output holds each; a step costs what is new since the last."""

    __slots__ = ("_counts", "_slot", "_tokens", "until")

    def __init__(self, prompt: npt.NDArray[np.int64]) -> None:
        distinct = np.unique(prompt)
        distinct = distinct[distinct >= 0]  # image positions are negative keys and have no logit
        self._tokens = distinct
        self._counts = np.zeros(len(distinct), np.int64)
        self._slot = {token: i for i, token in enumerate(distinct.tolist())}
        self.until = len(prompt)
        """Tokens of the request that are counted."""

    def catch_up(self, request: Request) -> None:
        for token in request.tokens[self.until : request.n_tokens].tolist():
            slot = self._slot.setdefault(token, len(self._slot))
            if slot == len(self._tokens):
                self._tokens = np.concatenate((self._tokens, np.zeros(max(16, slot), np.int64)))
                self._counts = np.concatenate((self._counts, np.zeros(max(16, slot), np.int64)))
            self._tokens[slot] = token
            self._counts[slot] += 1
        self.until = request.n_tokens

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        """Distinct token ids of prompt and output, [n]."""
        return self._tokens[: len(self._slot)]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """How often each of `tokens` stands in the output, [n]."""
        return self._counts[: len(self._slot)]


def seen_tokens(request: Request) -> SeenTokens:
    """The request's counts, kept in its `seen` and brought up to `n_tokens`."""
    seen = request.seen
    if not isinstance(seen, SeenTokens) or seen.until > request.n_tokens:
        seen = request.seen = SeenTokens(request.tokens[: request.prompt_tokens])
    seen.catch_up(request)
    return seen


def penalise(logits: torch.Tensor, requests: Sequence[Request]) -> None:
    """Changes `logits` [rows, vocab] (float32 or float64) in place, row i by the penalties of requests[i].

    Repetition as in CTRL (arXiv 1909.05858, section 4.1) in the form that transformers gave it: positive logits are
    divided, negative ones multiplied. Presence and frequency as in the OpenAI API: subtracted once for each distinct
    token of the output, and once for each time that it stands there.
    """
    rows: list[int] = []
    parts: list[SeenTokens] = []
    for i, request in enumerate(requests):
        if is_penalised(request.params):
            rows.append(i)
            parts.append(seen_tokens(request))
    if not rows:
        return
    lengths = [len(part.tokens) for part in parts]

    def spread(values: Sequence[float]) -> torch.Tensor:
        return torch.from_numpy(np.repeat(np.asarray(values, np.float64), lengths)).to(logits)

    params = [requests[i].params for i in rows]
    row = torch.from_numpy(np.repeat(rows, lengths)).to(logits.device)
    token = torch.from_numpy(np.concatenate([part.tokens for part in parts])).to(logits.device)
    count = torch.from_numpy(np.concatenate([part.counts for part in parts])).to(logits)
    repetition = spread([p.repetition_penalty for p in params])
    presence = spread([p.presence_penalty for p in params])
    frequency = spread([p.frequency_penalty for p in params])
    value = logits[row, token]
    value = torch.where(value > 0, value / repetition, value * repetition)
    value -= presence * (count > 0)
    value -= frequency * count
    logits[row, token] = value
