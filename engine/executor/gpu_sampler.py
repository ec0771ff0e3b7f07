"""`engine.sampler` on the device: the same tokens, errors and log-probabilities; nobody waits before they are needed.

What the requests ask for goes over in one upload (none when all are greedy and ask for nothing), the kernels of
`engine.kernels.sample` choose, and what comes out is copied back asynchronously.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.executor.gpu_device import Download, Upload
from engine.kernels.sample import FORBIDDEN, INFINITE, NAN, NOTHING, OK, Draws, Penalties, Sampling, sample
from engine.penalties import is_penalised, seen_tokens
from engine.request import Request, TokenLogprob
from engine.sampler import Sampled

ERRORS = {
    NAN: "the model's logits hold nan: its weights or its input are broken",
    INFINITE: "the model's logits hold inf: its weights or its input are broken",
    NOTHING: "the model's logits are all -inf: it allows no token",
    FORBIDDEN: "every token is forbidden here: the mask, min_tokens or the model's own -inf left none",
}
SCORE_BYTES = 64 << 20
"""Of int64 keys of the vocabulary that are in memory at a time when log-probabilities are ranked."""
_LEAST_TEMPERATURE = float(np.finfo(np.float32).tiny)
_MOST_INT32 = 2**31 - 1

Arrays = dict[str, npt.NDArray]


class Likeliest(NamedTuple):
    """Log-probabilities on their way to the host: of a token a row, and the `k` likeliest of each row."""

    own: Tensor
    """float32 [rows]"""
    values: Tensor
    """float32 [rows, k], the likeliest first, ties by lower id."""
    ids: Tensor
    """int32 [rows, k]"""


class PendingSample:
    """Tokens that are being chosen."""

    def __init__(
        self,
        download: Download | None,
        forced_errors: dict[int, str],
        scored: Sequence[int],
        widths: Sequence[int],
        n: int,
    ) -> None:
        self._download = download
        self._forced_errors = forced_errors
        self._scored, self._widths = scored, widths
        self._n = n

    def wait(self) -> Sampled:
        """The tokens, once they are there. What had become of the requests meanwhile makes no difference."""
        if self._download is None:
            return Sampled((), (), ())
        tokens_there, status, *scores = self._download.wait()
        codes = status.tolist()
        tokens: list[int | None] = tokens_there.tolist()
        errors: list[str | None] = [None] * self._n
        logprobs: list[TokenLogprob | None] = [None] * self._n
        if any(codes) or self._forced_errors:
            for i, code in enumerate(codes):
                errors[i] = self._forced_errors.get(i) if code == OK else ERRORS[code]
                if errors[i] is not None:
                    tokens[i] = None
        if scores:
            targets = [tokens[i] for i in self._scored]
            found = _token_logprobs(Likeliest(*scores), [t or 0 for t in targets], self._widths)
            for i, target, logprob in zip(self._scored, targets, found, strict=True):
                if target is not None:
                    logprobs[i] = logprob
        return Sampled(tuple(tokens), tuple(logprobs), tuple(errors))


class PendingScores:
    """Log-probabilities of given tokens that are being computed."""

    def __init__(self, download: Download | None, targets: Sequence[int], k: int, error: str | None) -> None:
        self._download = download
        self._targets, self._k = targets, k
        self._error = error

    def wait(self) -> tuple[TokenLogprob, ...]:
        """Raises ValueError for logits that hold NaN or +inf, and for targets outside the vocabulary."""
        if self._error is not None:
            raise ValueError(self._error)
        if self._download is None:
            return ()
        found = Likeliest(*self._download.wait())
        for i, value in enumerate(found.own.tolist()):
            if math.isnan(value):
                raise ValueError(f"the logits at row {i} can't be scored: they hold NaN or +inf, or are all -inf")
        return tuple(_token_logprobs(found, self._targets, [self._k] * len(self._targets)))


class GpuSampler:
    """Chooses tokens from logits on the device."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.vocab_size = vocab_size
        self.device = device
        self._upload = Upload(device)

    @torch.inference_mode()
    def launch(
        self,
        logits: Tensor,
        requests: Sequence[Request],
        masks: Sequence[Any] | None = None,
        *,
        rows_of: Tensor | None = None,
        out: Tensor | None = None,
    ) -> PendingSample:
        """Starts to choose the next token of each request; returns at once.

        logits: [any, vocab] on the device, float32, float16 or bfloat16; not changed.
        rows_of: int64 [requests] on the device: each one's row of the logits; None: row i is of requests[i].
        masks: for each row None or a packed bitmask, int32 [ceil(vocab / 32)] (NumPy, or torch on the host).
        out: int64 [requests] on the device, filled with the tokens as soon as they are chosen (0 where the row failed).
        Raises ValueError when the number or the shape of rows or masks is wrong.
        """
        n = len(requests)
        self._check(logits, n, masks, rows_of)
        if n == 0:
            return PendingSample(None, {}, (), (), 0)
        arrays, forced_errors = _asked(requests, masks, self.vocab_size)
        scored = [i for i, request in enumerate(requests) if request.params.logprobs is not None]
        widths = [requests[i].params.logprobs or 0 for i in scored]
        if scored and len(scored) < n:
            arrays["scored"] = np.array(scored, np.int64)
        there = self._upload(arrays) if arrays else {}
        mask = there.get("mask")
        tokens, status = sample(logits, _on_device(there, rows_of), mask=mask, out=out)
        wanted = [tokens, status]
        if scored:
            chosen = there.get("scored")
            rows, targets = rows_of, tokens
            if chosen is not None:
                rows, targets = chosen if rows_of is None else rows_of[chosen], tokens[chosen]
            wanted += _likeliest(logits, rows, targets, max(widths))
        return PendingSample(Download(wanted), forced_errors, scored, widths, n)

    @torch.inference_mode()
    def score(self, logits: Tensor, targets: Sequence[int] | npt.NDArray[np.int64], k: int) -> PendingScores:
        """Starts to compute the log-probability of targets[i] under logits[i], with the k likeliest tokens.

        logits: [positions, vocab] on the device. What `engine.logprobs.score` gives. What is wrong with a value is
        raised by `wait()`; ValueError here when the numbers of rows and targets differ.
        """
        ids = np.asarray(targets, np.int64)
        if len(logits) != len(ids):
            raise ValueError(f"{len(ids)} targets were given for {len(logits)} rows of logits: one each is needed")
        vocab = logits.shape[-1]
        outside = ids[(ids < 0) | (ids >= vocab)]
        if len(outside):
            return PendingScores(None, (), k, f"token {outside[0]} can't be scored: ids go from 0 to {vocab - 1}")
        if not len(ids):
            return PendingScores(None, (), k, None)
        there = self._upload({"targets": ids})["targets"]
        return PendingScores(Download(list(_likeliest(logits, None, there, k))), ids.tolist(), k, None)

    def _check(self, logits: Tensor, n: int, masks: Sequence[Any] | None, rows_of: Tensor | None) -> None:
        rows = len(logits) if rows_of is None else len(rows_of)
        if logits.ndim != 2 or rows != n or logits.shape[1] != self.vocab_size:
            raise ValueError(
                f"logits of shape {tuple(logits.shape)}, {rows} rows of them for {n} requests: "
                f"[requests, {self.vocab_size}] is needed, or rows_of [requests]"
            )
        if masks is not None and len(masks) != n:
            raise ValueError(f"{len(masks)} masks were given for {n} rows: one each (or None) is needed")
        words = (self.vocab_size + 31) // 32
        for mask in masks or ():
            if mask is not None and tuple(mask.shape) != (words,):
                raise ValueError(
                    f"a mask has the shape {tuple(mask.shape)}: a vocabulary of {self.vocab_size} needs int32 [{words}]"
                )


def _asked(requests: Sequence[Request], masks: Sequence[Any] | None, vocab: int) -> tuple[Arrays, dict[int, str]]:
    """What goes to the device (nothing when all are greedy and ask for nothing), and which forced tokens are wrong."""
    n = len(requests)
    arrays: Arrays = {}
    forced_errors: dict[int, str] = {}
    forced = np.full(n, -1, np.int32)
    drawn: list[int] = []
    penalised: list[int] = []
    masked: list[int] = []
    for i, request in enumerate(requests):
        params = request.params
        if params.forced_output is not None:
            forced[i], error = _forced(request, params.forced_output, vocab)
            if error is not None:
                forced_errors[i] = error
            continue
        if params.temperature > 0:
            drawn.append(i)
        if is_penalised(params) or request.output_tokens < params.min_tokens:
            penalised.append(i)
        if masks is not None and masks[i] is not None:
            masked.append(i)
    if (forced >= 0).any():
        arrays["forced"] = forced
    if masked and masks is not None:
        arrays["mask"] = np.stack([np.asarray(masks[i], np.int32) for i in masked])
        arrays["mask_row"] = _numbers(masked, n)
    if penalised:
        arrays["penalised"] = _numbers(penalised, n)
        arrays |= _penalties(penalised, [requests[i] for i in penalised], vocab)
    if drawn:
        arrays |= _draws(drawn, [requests[i] for i in drawn])
    return arrays, forced_errors


def _on_device(there: dict[str, Tensor], rows: Tensor | None) -> Sampling:
    penalties = draws = None
    if "penalised" in there:
        penalties = Penalties(*(there[f"penalties.{name}"] for name in Penalties._fields))
    if "draws.row" in there:
        draws = Draws(*(there[f"draws.{name}"] for name in Draws._fields))
    return Sampling(rows, there.get("forced"), there.get("mask_row"), there.get("penalised"), penalties, draws)


def _numbers(chosen: Sequence[int], n: int) -> npt.NDArray[np.int32]:
    """Each row's place among the chosen, -1 for the others."""
    numbers = np.full(n, -1, np.int32)
    numbers[chosen] = np.arange(len(chosen), dtype=np.int32)
    return numbers


def _forced(request: Request, forced: Sequence[int], vocab: int) -> tuple[int, str | None]:
    """The token (0 for one that can't come) and what is wrong with it."""
    position = request.output_tokens
    if position >= len(forced):
        return 0, f"forced_output has {len(forced)} tokens and output token {position + 1} was asked for"
    if forced[position] >= vocab:
        return 0, f"forced_output holds token {forced[position]}: ids go from 0 to {vocab - 1}"
    return forced[position], None


def _penalties(rows: Sequence[int], requests: Sequence[Request], vocab: int) -> Arrays:
    none = np.empty(0, np.int64)
    tokens: list[npt.NDArray[np.int64]] = []
    counts: list[npt.NDArray[np.int64]] = []
    forbidden: list[npt.NDArray[np.int64]] = []
    for request in requests:
        seen = seen_tokens(request) if is_penalised(request.params) else None
        tokens.append(none if seen is None else seen.tokens)
        counts.append(none if seen is None else seen.counts)
        ends: set[int] = set()
        if request.output_tokens < request.params.min_tokens:
            ends.update(request.params.stop_token_ids)
            if not request.params.ignore_eos:
                ends.update(request.eos)
        forbidden.append(np.array(sorted(token for token in ends if 0 <= token < vocab), np.int64))
    params = [request.params for request in requests]
    return {
        "penalties.row": np.array(rows, np.int32),
        "penalties.first": _starts(tokens),
        "penalties.tokens": np.concatenate(tokens).astype(np.int32),
        "penalties.counts": np.concatenate(counts).astype(np.int32),
        "penalties.repetition": np.array([p.repetition_penalty for p in params], np.float32),
        "penalties.presence": np.array([p.presence_penalty for p in params], np.float32),
        "penalties.frequency": np.array([p.frequency_penalty for p in params], np.float32),
        "penalties.forbidden_first": _starts(forbidden),
        "penalties.forbidden": np.concatenate(forbidden).astype(np.int32),
    }


def _starts(lists: Sequence[npt.NDArray]) -> npt.NDArray[np.int32]:
    return np.cumsum([0, *map(len, lists)], dtype=np.int32)


def _draws(rows: Sequence[int], requests: Sequence[Request]) -> Arrays:
    params = [request.params for request in requests]
    return {
        "draws.row": np.array(rows, np.int32),
        "draws.temperature": np.array([max(p.temperature, _LEAST_TEMPERATURE) for p in params], np.float32),
        "draws.top_k": np.array([min(p.top_k, _MOST_INT32) for p in params], np.int32),
        "draws.top_p": np.array([p.top_p for p in params], np.float64),
        "draws.min_p": np.array([p.min_p for p in params], np.float32),
        "draws.seed": np.array([request.seed for request in requests], np.int64),
        "draws.position": np.array([request.output_tokens for request in requests], np.int64),
    }


def _likeliest(logits: Tensor, rows: Tensor | None, targets: Tensor, k: int) -> Likeliest:
    """Log-probabilities of targets [n] under the rows of the logits, and the k likeliest, in blocks of bounded memory.

    One int64 holds a log-probability and its token so that a selection without ties ranks them: lower ids first.
    """
    vocab = logits.shape[1]
    k = min(k, vocab)
    at_once = max(1, SCORE_BYTES // (8 * vocab))
    parts: list[Likeliest] = []
    for start in range(0, len(targets), at_once):
        some = slice(start, start + at_once)
        chosen = logits[some] if rows is None else logits.index_select(0, rows[some])
        logprobs = torch.log_softmax(chosen, dim=-1, dtype=torch.float32)
        own = logprobs.gather(1, targets[some].unsqueeze(1)).squeeze(1)
        if k == 0:
            none = own.new_empty(len(own), 0)
            parts.append(Likeliest(own, none, none.int()))
            continue
        bits = (logprobs + 0.0).view(torch.int32)  # -0 becomes 0
        ordered = bits ^ ((bits >> 31) & _MOST_INT32)
        ids = torch.arange(vocab, dtype=torch.int64, device=logits.device)
        top = ((ordered.to(torch.int64) << 32) | (_MOST_INT32 - ids)).topk(k, dim=-1).values
        ids = _MOST_INT32 - (top & _MOST_INT32)
        parts.append(Likeliest(own, logprobs.gather(1, ids), ids.int()))
    return parts[0] if len(parts) == 1 else Likeliest(*(torch.cat(part) for part in zip(*parts)))


def _token_logprobs(found: Likeliest, targets: Sequence[int], widths: Sequence[int]) -> list[TokenLogprob]:
    """Tokens of probability 0 are left out of the likeliest."""
    values, ids = found.values.tolist(), found.ids.tolist()
    return [
        TokenLogprob(
            target,
            own,
            tuple((t, v) for t, v in zip(row_ids[:width], row_values[:width], strict=True) if v > -math.inf),
        )
        for target, own, row_ids, row_values, width in zip(
            targets, found.own.tolist(), ids, values, widths, strict=True
        )
    ]
