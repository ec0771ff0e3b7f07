"""From logits to tokens: masks, penalties, temperature, top-k, top-p, min-p, and the log-probabilities asked for.

Every random number is a function of the request's seed and its output position alone, and every row is computed by
itself, so what a request samples doesn't depend on the batch around it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from engine import hashed_random
from engine.logprobs import likeliest, precision_of, rows_of, score
from engine.masked_logits import candidates, have_few, likeliest_allowed, only_allowed, stacked
from engine.penalties import is_penalised, penalise
from engine.request import Request, TokenLogprob

_CANDIDATES = 1024
"""Likeliest tokens looked at first for top-p; rows that need more are sorted whole."""
_LEAST_WEIGHT = 2.0**-100
"""A token that weighs less than this share of the likeliest one isn't drawn: random numbers are multiples of 2**-52."""


class Sampled(NamedTuple):
    """One entry a row."""

    tokens: tuple[int | None, ...]
    """None where the row failed."""
    logprobs: tuple[TokenLogprob | None, ...]
    """Of the chosen token, where `params.logprobs` asks for it."""
    errors: tuple[str | None, ...]


def sample(logits: torch.Tensor, requests: Sequence[Request], masks: Sequence[Any] | None = None) -> Sampled:
    """Chooses the next token of each request.

    logits: [rows, vocab], any floating dtype; not changed. Row i belongs to requests[i], whose output so far is
        `tokens[prompt_tokens:n_tokens]`.
    masks: for each row None or a packed bitmask, int32 [ceil(vocab / 32)] (NumPy or torch): bit j of word w set means
        that token 32 * w + j is allowed.

    In this order: mask, repetition penalty, presence and frequency penalties, min_tokens; then, unless the temperature
    is 0, temperature, top-k, top-p (of what top-k left, renormalised), min-p. Ties go to the lower id. A token of
    `forced_output` is taken as it is. Rows whose logits hold NaN or +inf, or that may take no token, fail alone.
    Raises ValueError when the number or the shape of rows or masks is wrong.
    """
    n_rows, vocab = _check_shapes(logits, requests, masks)
    if n_rows == 0:
        return Sampled((), (), ())
    best, argmax = logits.max(dim=-1)
    errors = [_not_finite(value) for value in best.tolist()]
    tokens: list[int | None] = argmax.tolist()
    allowed = [None] * n_rows if masks is None else masks
    free = [i for i, request in enumerate(requests) if errors[i] is None and request.params.forced_output is None]
    shaped = [i for i in free if _needs_shaping(requests[i])]
    greedy = [i for i in free if allowed[i] is not None and not _needs_shaping(requests[i])]
    few = _drawn_among_few(shaped, requests, allowed)
    whole = [i for i in shaped if i not in few]
    chosen: dict[int, int | None] = {}
    if greedy:
        theirs, favourites = stacked([allowed[i] for i in greedy]), [tokens[i] or 0 for i in greedy]
        chosen |= zip(greedy, likeliest_allowed(rows_of(logits, greedy), theirs, favourites), strict=True)
    if few:
        found = candidates(logits, stacked([allowed[i] for i in few]), few)
        places = _choose(found.logits.to(precision_of(logits)), [requests[i] for i in few], vocab)
        chosen |= zip(few, found.tokens_at(places), strict=True)
    if whole:
        rows = rows_of(logits, whole)
        limited = _limited(rows, [allowed[i] for i in whole])
        work = limited.to(precision_of(logits), copy=limited is rows)
        chosen |= zip(whole, _choose(work, [requests[i] for i in whole], vocab), strict=True)
    for i, token in chosen.items():
        tokens[i] = token
        if token is None:
            errors[i] = "every token is forbidden here: the mask, min_tokens or the model's own -inf left none"
    for i, request in enumerate(requests):
        if request.params.forced_output is not None and errors[i] is None:
            tokens[i], errors[i] = _forced(request, vocab)
    for i, error in enumerate(errors):
        if error is not None:
            tokens[i] = None
    return Sampled(tuple(tokens), _sampled_logprobs(logits, requests, tokens), tuple(errors))


def _check_shapes(logits: torch.Tensor, requests: Sequence[Request], masks: Sequence[Any] | None) -> tuple[int, int]:
    if logits.ndim != 2 or len(logits) != len(requests):
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} for {len(requests)} requests: [requests, vocab] is needed"
        )
    n_rows, vocab = logits.shape
    if masks is not None and len(masks) != n_rows:
        raise ValueError(f"{len(masks)} masks were given for {n_rows} rows: one each (or None) is needed")
    words = (vocab + 31) // 32
    for mask in masks or ():
        if mask is not None and tuple(mask.shape) != (words,):
            raise ValueError(f"a mask has the shape {tuple(mask.shape)}: a vocabulary of {vocab} needs int32 [{words}]")
    return n_rows, vocab


def _not_finite(best: float) -> str | None:
    if math.isnan(best) or best == math.inf:
        return f"the model's logits hold {best}: its weights or its input are broken"
    if best == -math.inf:
        return "the model's logits are all -inf: it allows no token"
    return None


def _needs_shaping(request: Request) -> bool:
    """The answer isn't simply the likeliest token that is allowed."""
    return request.params.temperature > 0 or is_penalised(request.params) or _too_early_to_end(request)


def _drawn_among_few(shaped: Sequence[int], requests: Sequence[Request], masks: Sequence[Any]) -> list[int]:
    """Rows whose mask allows little, and whose logits no other parameter changes."""
    masked = [i for i in shaped if masks[i] is not None]
    masked = [i for i in masked if not is_penalised(requests[i].params) and not _too_early_to_end(requests[i])]
    return (
        [i for i, few in zip(masked, have_few(stacked([masks[i] for i in masked])), strict=True) if few]
        if masked
        else []
    )


def _too_early_to_end(request: Request) -> bool:
    return request.output_tokens < request.params.min_tokens


def _limited(rows: torch.Tensor, masks: Sequence[Any]) -> torch.Tensor:
    """The rows [rows, vocab] with -inf where the masks forbid a token; themselves where no row has a mask."""
    masked = [i for i, mask in enumerate(masks) if mask is not None]
    if not masked:
        return rows
    limited = only_allowed(rows_of(rows, masked), stacked([masks[i] for i in masked]))
    if len(masked) == len(masks):
        return limited
    rows = rows.clone()
    rows[masked] = limited
    return rows


def _choose(work: torch.Tensor, requests: Sequence[Request], vocab: int) -> list[int | None]:
    """The token of each row of `work` [rows, vocab], which it changes; None where nothing is allowed.

    For rows without penalties or min_tokens, `work` may hold some columns of the vocabulary only, in its order, that
    all others are -inf in; the answer is a column then, and that of the same token.
    """
    penalise(work, requests)
    for i, request in enumerate(requests):
        if _too_early_to_end(request):
            ends = set(request.params.stop_token_ids)
            if not request.params.ignore_eos:
                ends.update(request.eos)
            work[i, [token for token in ends if token < vocab]] = -math.inf
    best, argmax = work.max(dim=-1)
    possible = (best > -math.inf).tolist()
    tokens: list[int | None] = [t if ok else None for t, ok in zip(argmax.tolist(), possible, strict=True)]
    drawn = [i for i, request in enumerate(requests) if possible[i] and request.params.temperature > 0]
    if drawn:
        rows = [requests[i] for i in drawn]
        heat = torch.tensor([r.params.temperature for r in rows], dtype=work.dtype, device=work.device)
        heat.clamp_(min=torch.finfo(work.dtype).tiny)
        scaled = (rows_of(work, drawn) - rows_of(best, drawn).unsqueeze(1)).div_(heat.unsqueeze(1))
        for i, token in zip(drawn, _draw(scaled, rows, vocab), strict=True):
            tokens[i] = token
    return tokens


def _draw(scaled: torch.Tensor, requests: Sequence[Request], vocab: int) -> list[int]:
    """Inverse-CDF sampling of each row of `scaled` [rows, some columns]: log-weights whose largest is 0."""
    numbers = hashed_random.uniform([r.seed for r in requests], [r.output_tokens for r in requests])
    u = torch.from_numpy(numbers).to(scaled.device)
    tokens = [0] * len(requests)
    open_rows: list[int] = []
    cut_rows: list[int] = []
    for i, request in enumerate(requests):
        params = request.params
        (cut_rows if 0 < params.top_k < vocab or params.top_p < 1 else open_rows).append(i)
    if open_rows:
        weights = _weights(rows_of(scaled, open_rows))
        _drop_improbable(weights, [requests[i] for i in open_rows])
        for i, token in zip(open_rows, _invert(weights, rows_of(u, open_rows)), strict=True):
            tokens[i] = token
    width = max([requests[i].params.top_k or _CANDIDATES for i in cut_rows], default=0)
    while cut_rows:
        width = min(width, vocab)
        rows = rows_of(scaled, cut_rows)
        kept = [requests[i] for i in cut_rows]
        weights, ids, complete = _nucleus(rows, kept, width, vocab)
        _drop_improbable(weights, kept)
        places = torch.tensor(_invert(weights, rows_of(u, cut_rows)), device=ids.device)
        for i, token in zip(cut_rows, ids.gather(1, places.unsqueeze(1)).squeeze(1).tolist(), strict=True):
            tokens[i] = token
        cut_rows = [i for i, done in zip(cut_rows, complete, strict=True) if not done]
        width = vocab
    return tokens


def _nucleus(
    scaled: torch.Tensor, requests: Sequence[Request], width: int, vocab: int
) -> tuple[torch.Tensor, torch.Tensor, list[bool]]:
    """Top-k and top-p among the `width` likeliest tokens of each row.

    Returns weights (0 where cut) and columns, both [rows, width or all], and whether `width` was enough for the row.
    Top-p keeps the smallest set of likeliest tokens whose probability reaches p (Holtzman et al., arXiv 1904.09751).
    """
    top, ids = likeliest(scaled, min(width, scaled.shape[1]))
    weights = _weights(top)
    limits = [r.params.top_k if 0 < r.params.top_k < vocab else vocab for r in requests]
    limit = torch.tensor(limits, device=scaled.device).unsqueeze(1)
    p = torch.tensor([r.params.top_p for r in requests], dtype=torch.float64, device=scaled.device).unsqueeze(1)
    weights *= torch.arange(weights.shape[1], device=scaled.device) < limit
    cumulative = _running_sum(weights)
    total = cumulative[:, -1:].clone()
    unlimited = [i for i, n in enumerate(limits) if n > width]
    if unlimited:
        total[unlimited] = _running_sum(_weights(rows_of(scaled, unlimited)))[:, -1:]
    before = cumulative - weights
    weights *= (p >= 1) | (before < p * total)
    enough = cumulative[:, -1:] >= p * total
    return weights, ids, [n <= width or bool(e) for n, e in zip(limits, enough.squeeze(1).tolist(), strict=True)]


def _weights(scaled: torch.Tensor) -> torch.Tensor:
    """exp. What is next to nothing is made 0 here: a vectorised exp takes ten times as long over -inf and underflow."""
    weights = scaled.clamp(min=math.log(_LEAST_WEIGHT) - 1).exp_()
    return torch.threshold_(weights, _LEAST_WEIGHT, 0.0)


def _drop_improbable(weights: torch.Tensor, requests: Sequence[Request]) -> None:
    """Min-p (Nguyen et al., arXiv 2407.01082), in place. The largest of `weights` [rows, n] is 1."""
    floors = [r.params.min_p for r in requests]
    if any(floors):
        floor = torch.tensor(floors, dtype=weights.dtype, device=weights.device).unsqueeze(1)
        weights.masked_fill_(weights < floor, 0.0)


def _invert(weights: torch.Tensor, u: torch.Tensor) -> list[int]:
    """The first place of each row of `weights` [rows, n] at which the running sum exceeds u of the total."""
    cumulative = _running_sum(weights)
    wanted = (u * cumulative[:, -1]).unsqueeze(1)
    return torch.searchsorted(cumulative, wanted, right=True).squeeze(1).tolist()


def _running_sum(weights: torch.Tensor) -> torch.Tensor:
    """float64 [rows, n]. One row after another from left to right, so no row depends on how many there are."""
    return weights.double().cumsum(dim=-1)


def _forced(request: Request, vocab: int) -> tuple[int | None, str | None]:
    forced = request.params.forced_output or ()
    position = request.output_tokens
    if position >= len(forced):
        return None, f"forced_output has {len(forced)} tokens and output token {position + 1} was asked for"
    if forced[position] >= vocab:
        return None, f"forced_output holds token {forced[position]}: ids go from 0 to {vocab - 1}"
    return forced[position], None


def _sampled_logprobs(
    logits: torch.Tensor, requests: Sequence[Request], tokens: Sequence[int | None]
) -> tuple[TokenLogprob | None, ...]:
    out: list[TokenLogprob | None] = [None] * len(requests)
    wanted: list[int] = []
    targets: list[int] = []
    for i, (request, token) in enumerate(zip(requests, tokens, strict=True)):
        if request.params.logprobs is not None and token is not None:
            wanted.append(i)
            targets.append(token)
    if wanted:
        width = max(requests[i].params.logprobs or 0 for i in wanted)
        for i, found in zip(wanted, score(rows_of(logits, wanted), targets, width), strict=True):
            out[i] = found._replace(top=found.top[: requests[i].params.logprobs])
    return tuple(out)
