"""From logits to tokens on the device, without a sort and without the host: what `engine.sampler` computes on the CPU.

For each row: mask, penalties, forbidden tokens; then the likeliest token, or with a temperature the token on which the
request's random number u falls, with s = (logit - best) / temperature and weights w = exp(s):

    top-k      the k likeliest, the lower id of equals                          (Fan et al., arXiv 1805.04833)
    top-p      of those the fewest that weigh p of their sum or more            (Holtzman et al., arXiv 1904.09751)
    min-p      of those the ones of at least min_p of the greatest weight       (Nguyen et al., arXiv 2407.01082)
    the draw   the first token up to which they weigh more than u of their sum

All four are prefixes of one order, likeliest first. So all that is needed of top-k, top-p and min-p is how much their
prefix weighs, and the draw is one more prefix: three searches for the place at which a running sum reaches a target.
Rows without top-k and top-p are drawn in the order of token ids instead, as on the CPU. Sums are integers (see
`sample_kernels`): no order of adding, no batch and no number of programs changes a bit.

Kernels, each over (rows, splits of the vocabulary), enough splits to fill the GPU at batch 1:

    penalise   only rows with penalties or min_tokens: their logits are copied in float32, the seen tokens changed there
    best       reads the logits: best place, NaN, infinity
    pick       one number a split: the greedy token, the row's status           (the last one when nothing is drawn)
    survey     reads the logits: tokens and weight above each of 16 pivots; with their totals and u, each of the three
               searches knows between which two pivots it ends
    survey     again, 16 pivots inside each of those brackets, when they hold too many tokens (flat distributions)
    collect    reads the logits: lists the tokens inside the brackets, 8 bytes each
    resolve    one program a row: the three searches, 16-way, in the list

Moves: greedy rows read their logits once, drawn ones three times (flat distributions four times); all but the first
come from the L2 cache while rows * vocab * itemsize fits in there. Nothing of the size of the logits is written except
for penalised rows. The list has room for a whole row, so rows are drawn in groups of 64 MiB of lists.
Weak case: hundreds of thousands of equal logits at a border end up in one program's list, and that row takes about a
hundred steps over it. Roofline: memory bandwidth; at batch 1 the latency of the launches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from engine import hashed_random
from engine.kernels.cases import Call, Case
from engine.kernels.launch import launch
from engine.kernels.roofline import Work
from engine.kernels.sample_kernels import (
    best_kernel,
    collect_kernel,
    penalise_kernel,
    pick_kernel,
    resolve_kernel,
    survey_kernel,
)
from engine.kernels.tiles import Shape, Tile, Tiles, choose, current_gpu

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_VOCAB = 2**19 - 1
"""So many weights of 2**44 units fit in an int64."""
LIST_BYTES = 64 << 20
PIVOTS = 64
"""16 of the first survey, 3 * 16 of the second."""
ENOUGH = 2048
"""Tokens in the brackets for which a second survey isn't worth it."""
MAX_SPLITS = 128
MAX_BLOCKS = 256
"""A program of the survey takes at most so many (`COUNT_SHIFT`)."""
OK, NAN, INFINITE, NOTHING, FORBIDDEN = range(5)
"""What `status` says of a row: sampled; its logits hold NaN; hold +inf; are all -inf; what it may take is all -inf."""


class Penalties(NamedTuple):
    """Ragged lists, one for each penalised row of the batch."""

    row: Tensor
    """int32 [penalised]"""
    first: Tensor
    """int32 [penalised + 1]: seen tokens of the i-th are first[i] .. first[i + 1]."""
    tokens: Tensor
    """int32 [seen]: distinct within a row; those outside the vocabulary are passed over."""
    counts: Tensor
    """int32 [seen]: how often each stands in the output."""
    repetition: Tensor
    """float32 [penalised], like the next two."""
    presence: Tensor
    frequency: Tensor
    forbidden_first: Tensor
    """int32 [penalised + 1], like `first`."""
    forbidden: Tensor
    """int32 [forbidden]: tokens that may not come (min_tokens)."""


class Draws(NamedTuple):
    """The rows of the batch that aren't greedy, [drawn] throughout."""

    row: Tensor
    """int32"""
    temperature: Tensor
    """float32, above 0."""
    top_k: Tensor
    """int32; 0 or the whole vocabulary: off."""
    top_p: Tensor
    """float64; 1: off."""
    min_p: Tensor
    """float32; 0: off."""
    seed: Tensor
    """int64"""
    position: Tensor
    """int64: output tokens so far."""


class Sampling(NamedTuple):
    """What is asked of each row of the batch. Nothing at all: greedy, row i of the logits is row i of the batch."""

    rows: Tensor | None = None
    """int64 [rows]: the row of the logits."""
    forced: Tensor | None = None
    """int32 [rows]: the token that comes out if the logits are sound; -1: none."""
    mask_row: Tensor | None = None
    """int32 [rows]: the row of the mask; -1: none."""
    penalised: Tensor | None = None
    """int32 [rows]: the row's number in `penalties`; -1: none."""
    penalties: Penalties | None = None
    draws: Draws | None = None


class Choice(NamedTuple):
    tokens: Tensor
    """int64 [rows]; 0 where the row failed."""
    status: Tensor
    """int32 [rows]: OK, NAN, INFINITE, NOTHING or FORBIDDEN."""


def sample(
    logits: Tensor,
    params: Sampling,
    *,
    mask: Tensor | None = None,
    out: Tensor | None = None,
    status: Tensor | None = None,
    tile: Tile | None = None,
) -> Choice:
    """Chooses a token for each row of the batch.

    logits: [any, vocab] float32, float16 or bfloat16, rows contiguous; not changed.
    mask: int32 [masks, ceil(vocab / 32)], bit j of word w set means that token 32 * w + j is allowed; row i of the
        batch has mask i, or params.mask_row[i].
    out: int64 [rows], status: int32 [rows]: where the answer goes.
    Raises ValueError for wrong shapes or dtypes, and for a vocabulary of 2**19 or more.
    """
    out, status = _check(logits, params, mask, out, status)
    n, vocab = len(out), logits.shape[1]
    tile = tile or choose(TILES, _shape(logits))
    penalised = _penalise(logits, params, tile)
    words = 0 if mask is None else mask.shape[1]
    source = (logits, logits.stride(0), params.rows, penalised, params.penalised, mask, params.mask_row, words)

    n_splits, n_blocks = _splits(n, vocab, tile)
    best = torch.empty(n, n_splits, dtype=torch.int64, device=logits.device)
    shaped = mask is not None or penalised is not None
    raw = torch.empty(n, n_splits, dtype=torch.int32, device=logits.device) if shaped else None
    launch(best_kernel, (n, n_splits), *source, best, raw, vocab, n_blocks, tile=tile)
    draws = params.draws
    best_logits = None if draws is None else torch.empty(n, dtype=torch.float32, device=logits.device)
    pick = Tile({"BLOCK": tile.constants["BLOCK"]}, num_warps=1, num_stages=1)
    args = (best, raw, n_splits, params.forced, out, status, best_logits)
    launch(pick_kernel, (n,), *args, tile=pick, MAX_SPLITS=MAX_SPLITS)
    if draws is not None:
        n_drawn = len(draws.row)
        group = max(1, LIST_BYTES // (8 * vocab))
        for start in range(0, n_drawn, group):
            some = Draws(*(of_each[start : start + group] for of_each in draws))
            _draw(source, (status, best_logits), some, vocab, out, tile)
    return Choice(out, status)


def _draw(source: tuple, found: tuple, draws: Draws, vocab: int, out: Tensor, tile: Tile) -> None:
    n, device = len(draws.row), out.device
    status, _ = found
    zeros = torch.zeros(n * (PIVOTS * 2 + 2), dtype=torch.int64, device=device)
    masses, kept, counts, keys, n_places = zeros.split([n * PIVOTS, n, n * PIVOTS // 2, n * PIVOTS // 2, n])
    counts, keys, n_places = (part.view(torch.int32) for part in (counts, keys, n_places))
    places = torch.empty(n, vocab, dtype=torch.int64, device=device)
    args = (*source, *found, *draws, keys, counts, masses, kept)
    narrow = _at_most(256, tile, num_warps=4)
    n_splits, n_blocks = _splits(n, vocab, narrow)
    for turn in range(2):
        launch(survey_kernel, (n, n_splits), *args, vocab, n_blocks, tile=narrow, ENOUGH=ENOUGH, ROUND=turn)
    middle = _at_most(1024, tile, num_warps=4)
    n_splits, n_blocks = _splits(n, vocab, middle)
    launch(collect_kernel, (n, n_splits), *args, places, n_places, vocab, n_blocks, tile=middle)
    cut = (draws.row, draws.top_k, draws.top_p, draws.seed, draws.position)
    tables = (keys, counts, masses, kept, places, n_places)
    launch(resolve_kernel, (n,), status, *cut, *tables, out, vocab, tile=_at_most(512, tile, num_warps=8))


def _at_most(block: int, tile: Tile, num_warps: int) -> Tile:
    """For the kernels that hold more for each token than a maximum."""
    return Tile({"BLOCK": min(block, tile.constants["BLOCK"])}, num_warps, num_stages=1)


def _penalise(logits: Tensor, params: Sampling, tile: Tile) -> Tensor | None:
    """The logits of the penalised rows, float32 [penalised, vocab], as their requests see them."""
    lists = params.penalties
    if lists is None:
        return None
    rows = lists.row if params.rows is None else params.rows[lists.row]
    changed = logits.index_select(0, rows).float()
    grid = (len(lists.row), 8)
    at = (logits, logits.stride(0), params.rows, changed, lists.row)
    vocab = logits.shape[1]
    tile = _at_most(256, tile, num_warps=4)  # the lists are short: a thousand tokens, say, for eight programs
    if len(lists.tokens):
        amounts = (lists.repetition, lists.presence, lists.frequency)
        launch(penalise_kernel, grid, *at, lists.first, lists.tokens, lists.counts, *amounts, vocab, tile=tile)
    if len(lists.forbidden):
        none = (None, None, None, None)
        launch(penalise_kernel, grid, *at, lists.forbidden_first, lists.forbidden, *none, vocab, tile=tile)
    return changed


def _splits(n: int, vocab: int, tile: Tile) -> tuple[int, int]:
    """Programs for a row, and blocks for each: enough to fill the GPU a few times over."""
    block = tile.constants["BLOCK"]
    blocks = triton.cdiv(vocab, block)
    wanted = min(triton.cdiv(4 * current_gpu().processors, max(n, 1)), MAX_SPLITS, blocks)
    each = min(triton.cdiv(blocks, wanted), MAX_BLOCKS)
    return triton.cdiv(blocks, each), each


def _check(
    logits: Tensor, params: Sampling, mask: Tensor | None, out: Tensor | None, status: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Where the answer goes."""
    if logits.dim() != 2 or logits.dtype not in DTYPES or logits.stride(1) != 1 or not 0 < logits.shape[1] <= MAX_VOCAB:
        raise ValueError(
            f"logits are {logits.dtype} {list(logits.shape)} with strides {logits.stride()}; they must be float32, "
            f"float16 or bfloat16 [rows, vocab] with contiguous rows and a vocabulary of 1 to {MAX_VOCAB}"
        )
    n = len(logits) if params.rows is None else len(params.rows)
    words = triton.cdiv(logits.shape[1], 32)
    if mask is not None and (mask.dtype != torch.int32 or mask.shape[1:] != (words,) or not mask.is_contiguous()):
        raise ValueError(f"the mask is {mask.dtype} {list(mask.shape)}; it must be contiguous int32 [masks, {words}]")
    if mask is not None and params.mask_row is None and len(mask) != n:
        raise ValueError(f"{len(mask)} masks for {n} rows: give one each, or params.mask_row")
    if (params.penalties is None) != (params.penalised is None):
        raise ValueError("params.penalties and params.penalised go together: give both or none")
    device = logits.device
    out = torch.empty(n, dtype=torch.int64, device=device) if out is None else out
    status = torch.empty(n, dtype=torch.int32, device=device) if status is None else status
    for name, given, dtype in (("out", out, torch.int64), ("status", status, torch.int32)):
        if given.shape != (n,) or given.dtype != dtype or not given.is_contiguous():
            raise ValueError(f"{name} is {given.dtype} {list(given.shape)}; it must be contiguous {dtype} [{n}]")
    return out, status


def sample_reference(
    logits: Tensor,
    params: Sampling,
    *,
    mask: Tensor | None = None,
    out: Tensor | None = None,
    status: Tensor | None = None,
    tile: Tile | None = None,
) -> Choice:
    """The same in plain PyTorch, a row at a time, with sorts; in float64 when given float64."""
    n = len(logits) if params.rows is None else len(params.rows)
    answers = [_sample_row(logits, params, mask, i) for i in range(n)]
    tokens = torch.tensor([token for token, _ in answers], dtype=torch.int64, device=logits.device)
    states = torch.tensor([state for _, state in answers], dtype=torch.int32, device=logits.device)
    return Choice(tokens if out is None else out.copy_(tokens), states if status is None else status.copy_(states))


def _sample_row(logits: Tensor, params: Sampling, mask: Tensor | None, i: int) -> tuple[int, int]:
    row = logits[i if params.rows is None else int(params.rows[i])]
    x = row.to(torch.promote_types(row.dtype, torch.float32)).clone()
    if x.isnan().any():
        return 0, NAN
    if (x == torch.inf).any():
        return 0, INFINITE
    if (x == -torch.inf).all():
        return 0, NOTHING
    if params.forced is not None and params.forced[i] >= 0:
        return int(params.forced[i]), OK
    if mask is not None:
        chosen = i if params.mask_row is None else int(params.mask_row[i])
        if chosen >= 0:
            ids = torch.arange(len(x), device=x.device)
            x[mask[chosen][ids // 32] >> (ids % 32) & 1 == 0] = -torch.inf
    if params.penalties is not None and params.penalised is not None and params.penalised[i] >= 0:
        _penalise_row(x, params.penalties, int(params.penalised[i]))
    if (x == -torch.inf).all():
        return 0, FORBIDDEN
    if params.draws is not None and i in params.draws.row.tolist():
        return _draw_row(x, params.draws, params.draws.row.tolist().index(i)), OK
    return _likeliest_first(x)[0], OK


def _penalise_row(x: Tensor, lists: Penalties, i: int) -> None:
    span = slice(int(lists.first[i]), int(lists.first[i + 1]))
    seen, counts = lists.tokens[span].long(), lists.counts[span].to(x)
    seen, counts = seen[seen < len(x)], counts[seen < len(x)]
    r, presence, frequency = (of_each[i].to(x) for of_each in (lists.repetition, lists.presence, lists.frequency))
    values = torch.where(x[seen] > 0, x[seen] / r, x[seen] * r)
    x[seen] = values - presence * (counts > 0) - frequency * counts
    forbidden = lists.forbidden[int(lists.forbidden_first[i]) : int(lists.forbidden_first[i + 1])].long()
    x[forbidden[forbidden < len(x)]] = -torch.inf


def _draw_row(x: Tensor, draws: Draws, i: int) -> int:
    vocab = len(x)
    weights = ((x - x.max()) / draws.temperature[i].to(x)).exp()
    top_k, top_p, min_p = int(draws.top_k[i]), float(draws.top_p[i]), float(draws.min_p[i])
    cut = 0 < top_k < vocab or top_p < 1
    order = _likeliest_first((x - x.max()) / draws.temperature[i].to(x)) if cut else list(range(vocab))
    weights = weights[order].double()
    if 0 < top_k < vocab:
        weights[top_k:] = 0
    if top_p < 1:
        before = weights.cumsum(0) - weights
        weights[before >= top_p * weights.sum()] = 0
    weights[weights < min_p] = 0
    u = hashed_random.uniform([int(draws.seed[i])], [int(draws.position[i])])[0]
    running = weights.cumsum(0)
    return order[int((running > u * running[-1]).nonzero()[0])]


def _likeliest_first(x: Tensor) -> list[int]:
    """Token ids; the lower id of equals first."""
    return x.argsort(descending=True, stable=True).tolist()


def _shape(logits: Tensor) -> Shape:
    return {"dtype": str(logits.dtype).removeprefix("torch.")}


def _default(capability: int, shape: Shape) -> Tile:
    return Tile({"BLOCK": 2048}, num_warps=4, num_stages=1)


def _candidates(capability: int, shape: Shape) -> list[Tile]:
    return [Tile({"BLOCK": block}, warps, 1) for block, warps in ((1024, 4), (2048, 4), (2048, 8), (4096, 8))]


TILES = Tiles("sample", _default, _candidates)


def work(rows: int, vocab: int, *, bytes_per_number: int = 4) -> Work:
    """The logits are read once, a token and a status are written for each row."""
    return Work(rows * (vocab * bytes_per_number + 12))


def cases() -> Iterator[Case]:
    """Greedy, drawn, and with all that can be asked for, at the vocabularies of Llama 2, Llama 3 and Gemma."""
    for vocab, dtype in (
        (32000, torch.float32),
        (128256, torch.bfloat16),
        (128256, torch.float32),
        (262144, torch.float16),
    ):
        for drawn in (False, True):
            for shaped in (False, True):
                yield _case(vocab, dtype, drawn, shaped)


def _case(vocab: int, dtype: torch.dtype, drawn: bool, shaped: bool, n: int = 32) -> Case:
    def make(device: torch.device) -> Call:
        logits = torch.randn(n, vocab, dtype=dtype, device=device)
        params = Sampling(draws=_typical_draws(n, device) if drawn else None)
        mask = None
        if shaped:
            each = torch.arange(n, dtype=torch.int32, device=device)
            lists = _typical_penalties(n, vocab, device)
            params = params._replace(
                rows=each.long(), forced=-torch.ones_like(each), mask_row=each, penalised=each, penalties=lists
            )
            mask = torch.full((n, triton.cdiv(vocab, 32)), -1, dtype=torch.int32, device=device)
        out = torch.empty(n, dtype=torch.int64, device=device)
        status = torch.empty(n, dtype=torch.int32, device=device)
        return lambda tile: sample(logits, params, mask=mask, out=out, status=status, tile=tile)

    kind = f"{'drawn' if drawn else 'greedy'}{' shaped' if shaped else ''}"
    name = str(dtype).removeprefix("torch.")
    return Case(f"vocab={vocab} {name} {kind}", TILES, {"dtype": name}, make, matrix=False)


def _typical_draws(n: int, device: torch.device) -> Draws:
    def every(value: float, dtype: torch.dtype) -> Tensor:
        return torch.full((n,), value, dtype=dtype, device=device)

    return Draws(
        torch.arange(n, dtype=torch.int32, device=device),
        every(0.8, torch.float32),
        every(50, torch.int32),
        every(0.95, torch.float64),
        every(0.01, torch.float32),
        torch.arange(n, dtype=torch.int64, device=device),
        every(10, torch.int64),
    )


def _typical_penalties(n: int, vocab: int, device: torch.device, seen: int = 1000) -> Penalties:
    def every(value: float) -> Tensor:
        return torch.full((n,), value, device=device)

    first = torch.arange(n + 1, dtype=torch.int32, device=device)
    tokens = torch.arange(seen, dtype=torch.int32, device=device).repeat(n)
    forbidden = torch.full((n,), vocab - 1, dtype=torch.int32, device=device)
    amounts = (every(1.1), every(0.5), every(0.1))
    return Penalties(first[:-1], first * seen, tokens, torch.ones_like(tokens), *amounts, first, forbidden)
