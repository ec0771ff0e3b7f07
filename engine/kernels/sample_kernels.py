"""The Triton kernels behind `engine.kernels.sample`, which says what they compute and in what order they run.

Every number that decides is an integer, so sums and maxima come out the same in any order: a token's weight is
exp(s) in units of 2**-44 (int64), a logit is the int32 whose order is that of the float32, and logit and token id
together are one int64, a *place*: there are no ties among places. Atomic additions and any split of a row over programs
therefore give the same bits.

s = (logit - the row's best) / temperature. Tokens whose weight is 0 in those units (s below -30.5) don't exist here.

| place, 63 bits | high 32 | low 31 | order |
| rows that are cut (top-k or top-p) | s | 2**31 - 1 - token id | likeliest first, the lower id of equals first |
| rows that aren't | -1 - token id | -s | by token id |
"""

from __future__ import annotations

import triton
import triton.language as tl

UNIT = tl.constexpr(2.0**44)
"""2**18 weights of at most 2**44 stay below 2**63."""
COUNT_SHIFT = tl.constexpr(53)
ONE_TOKEN = tl.constexpr(1 << 53)
"""Tokens are counted above the sum of their weights: 256 of them fit."""
LEAST_S = tl.constexpr(-31.0)
BIAS = tl.constexpr(1 << 31)
LOW = tl.constexpr((1 << 31) - 1)
NO_KEY = tl.constexpr((1 << 31) - 1)
"""Above every key."""
EVERY_KEY = tl.constexpr(-(1 << 31))
"""Below every key."""
NO_PLACE = tl.constexpr((1 << 63) - 1)
NAN_KEY = tl.constexpr((1 << 31) - 1)
INF_KEY = tl.constexpr(0x7F800000)
MINUS_INF_KEY = tl.constexpr(-0x7F800001)
SEARCHES = tl.constexpr(3)
"""Top-k, top-p and the draw: each looks for the place at which a running sum reaches its target."""


@triton.jit
def _ordered(x):
    """float32 -> int32 of the same order (-0 is 0, NaN is above all)."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(x == x, bits ^ ((bits >> 31) & LOW), NAN_KEY)


@triton.jit
def _float_of(key):
    """What `_ordered` was made from."""
    return (key ^ ((key >> 31) & LOW)).to(tl.float32, bitcast=True)


@triton.jit
def _place(key, low):
    return ((key.to(tl.int64) + BIAS) << 31) | low.to(tl.int64)


@triton.jit
def _key_of(place):
    return ((place >> 31) - BIAS).to(tl.int32)


@triton.jit
def _low_of(place):
    return (place & LOW).to(tl.int32)


@triton.jit
def _weight(s):
    """exp(s) in float32 and in units."""
    w = tl.exp(s)
    return w, (w * UNIT).to(tl.int64)


@triton.jit
def _mix64(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def _uniform(seed, position):
    """`engine.hashed_random.uniform` of int64 seed and position: float64."""
    golden = tl.full([], 0x9E3779B97F4A7C15, tl.uint64)
    counter = (position + 1).to(tl.uint64)
    bits = _mix64(_mix64(seed.to(tl.uint64, bitcast=True) + golden) + counter * golden)
    return (bits >> 12).to(tl.int64).to(tl.float64) * 2.220446049250313e-16


@triton.jit
def _row_of(rows, row):
    """Which row of the logits is the batch's `row`."""
    if rows is not None:
        return tl.load(rows + row).to(tl.int64)
    return row.to(tl.int64)


@triton.jit
def _penalised_row(slots, row):
    if slots is not None:
        return tl.load(slots + row).to(tl.int64)
    return tl.full([], -1, tl.int64)


@triton.jit
def _shape(x, ids, inside, slot, penalised, vocab, mask, mask_rows, words, row):
    """The logits as the request may take them: penalised ones in their place, -inf where the mask forbids."""
    if penalised is not None:  # noqa: SIM102 (this one is decided when the kernel is compiled)
        if slot >= 0:
            x = tl.load(penalised + slot * vocab + ids, mask=inside, other=float("-inf"))
    if mask is not None:
        at = row.to(tl.int64)
        if mask_rows is not None:
            at = tl.load(mask_rows + row).to(tl.int64)
        if at >= 0:
            word = tl.load(mask + at * words + (ids >> 5), mask=inside, other=0)
            x = tl.where(((word >> (ids & 31)) & 1) != 0, x, float("-inf"))
    return x


@triton.jit
def penalise_kernel(
    logits,
    stride,
    rows,
    penalised,
    of,
    first,
    tokens,
    counts,
    repetition,
    presence,
    frequency,
    vocab,
    BLOCK: tl.constexpr,
):
    """Program (slot, part): the seen tokens of one row, by the formula of `engine.penalties.penalise`.

    Without `repetition` the tokens are forbidden instead. What isn't finite stays, to be found and reported.
    """
    slot = tl.program_id(0)
    row = tl.load(of + slot)
    source = logits + _row_of(rows, row) * stride
    target = penalised + slot.to(tl.int64) * vocab
    end = tl.load(first + slot + 1)
    for start in range(tl.load(first + slot) + tl.program_id(1) * BLOCK, end, tl.num_programs(1) * BLOCK):
        at = start + tl.arange(0, BLOCK)
        token = tl.load(tokens + at, mask=at < end, other=0)
        inside = (at < end) & (token < vocab)
        x = tl.load(source + token, mask=inside, other=0.0).to(tl.float32)
        if repetition is not None:
            count = tl.load(counts + at, mask=inside, other=0)
            r = tl.zeros([BLOCK], tl.float32) + tl.load(repetition + slot)
            x = tl.where(x > 0, tl.div_rn(x, r), x * r)
            x = x - tl.where(count > 0, tl.load(presence + slot), 0.0)
            # the product in float64 and rounded: a fused multiply-add would round otherwise than the CPU does
            often = (tl.load(frequency + slot).to(tl.float64) * count.to(tl.float64)).to(tl.float32)
            x = x - often
        else:
            x = tl.where(x < float("inf"), float("-inf"), x)
        tl.store(target + token, x, mask=inside)


@triton.jit(do_not_specialize=["n_blocks"])
def best_kernel(
    logits, stride, rows, penalised, slots, mask, mask_rows, words, best, raw, vocab, n_blocks, BLOCK: tl.constexpr
):
    """Program (row, split): the best place of its stretch of the row, and the greatest logit before shaping."""
    row = tl.program_id(0)
    split = tl.program_id(1)
    n_splits = tl.num_programs(1)
    source = logits + _row_of(rows, row) * stride
    slot = _penalised_row(slots, row)
    end = tl.minimum((split + 1) * n_blocks, tl.cdiv(vocab, BLOCK))
    greatest = tl.full([BLOCK], EVERY_KEY, tl.int32)
    found = tl.zeros([BLOCK], tl.int64)
    for block in range(split * n_blocks, end):
        ids = block * BLOCK + tl.arange(0, BLOCK)
        inside = ids < vocab
        x = tl.load(source + ids, mask=inside, other=float("-inf")).to(tl.float32)
        if raw is not None:
            greatest = tl.maximum(greatest, _ordered(x))
        x = _shape(x, ids, inside, slot, penalised, vocab, mask, mask_rows, words, row)
        found = tl.maximum(found, tl.where(inside, _place(_ordered(x), ids ^ LOW), 0))
    tl.store(best + row * n_splits + split, tl.max(found, axis=0))
    if raw is not None:
        tl.store(raw + row * n_splits + split, tl.max(greatest, axis=0))


@triton.jit
def pick_kernel(
    best, raw, n_splits, forced, tokens, status, best_logits, MAX_SPLITS: tl.constexpr, BLOCK: tl.constexpr
):
    """Program (row): the greedy token, and what is wrong with the row if anything is."""
    row = tl.program_id(0)
    splits = tl.arange(0, MAX_SPLITS)
    there = splits < n_splits
    place = tl.max(tl.load(best + row * n_splits + splits, mask=there, other=0), axis=0)
    key = _key_of(place)
    greatest = key
    if raw is not None:
        greatest = tl.max(tl.load(raw + row * n_splits + splits, mask=there, other=EVERY_KEY), axis=0)
    wrong = tl.where(key <= MINUS_INF_KEY, 4, 0)
    token = (_low_of(place) ^ LOW).to(tl.int64)
    if forced is not None:
        to_be = tl.load(forced + row).to(tl.int64)
        token = tl.where(to_be >= 0, to_be, token)
        wrong = tl.where(to_be >= 0, 0, wrong)
    wrong = tl.where(greatest <= MINUS_INF_KEY, 3, wrong)
    wrong = tl.where(greatest == INF_KEY, 2, wrong)
    wrong = tl.where(greatest == NAN_KEY, 1, wrong)
    tl.store(status + row, wrong)
    tl.store(tokens + row, tl.where(wrong == 0, token, 0))
    if best_logits is not None:
        tl.store(best_logits + row, _float_of(key))


@triton.jit
def _weigh(x, ids, inside, best, temperature, min_p, by_id):
    """Key, s as an ordered int32, weight in units, and the weight if min-p keeps it."""
    gap = tl.where(inside & (x > float("-inf")), x - best, float("-inf"))
    s = tl.div_rn(gap, tl.zeros_like(gap) + temperature)
    w, weight = _weight(s)
    s = _ordered(s)
    kept = tl.where(w < min_p, 0, weight)
    weight = tl.where(by_id, kept, weight)
    return tl.where(by_id, -1 - ids, s), s, weight, kept


@triton.jit
def _share(p, mass):
    """The least sum that is p of the mass or more."""
    return tl.maximum(tl.minimum(tl.math.ceil(p * mass.to(tl.float64)).to(tl.int64), mass), 1)


@triton.jit
def _target(u, mass):
    """The least sum that is more than u of the mass."""
    return tl.maximum(tl.minimum(tl.math.floor(u * mass.to(tl.float64)).to(tl.int64) + 1, mass), 1)


@triton.jit
def _least_mass(keys, measures, masses, target):
    """A lower bound of the mass up to where the running measure reaches the target."""
    return tl.max(tl.where(measures < target, masses, 0), axis=0)


@triton.jit
def _most_mass(measures, masses, target):
    return tl.min(tl.where(measures >= target, masses, NO_PLACE), axis=0)


@triton.jit
def _aim(keys, counts, masses, kept_mass, top_k, top_p, u):
    """Between which keys each of the three searches must go on: [below, above) of top-k, top-p and the draw.

    keys [n] in any order, with how many tokens have that key or more and how much they weigh; EVERY_KEY is among them.
    """
    n_tokens = tl.max(counts, axis=0)
    total = tl.max(masses, axis=0)
    few = (top_k > 0) & (top_k < n_tokens)
    k_above = tl.where(few, tl.min(tl.where(counts < top_k, keys, NO_KEY), axis=0), NO_KEY)
    k_below = tl.where(few, tl.max(tl.where(counts >= top_k, keys, EVERY_KEY), axis=0), NO_KEY)
    least = tl.where(few, _least_mass(keys, counts, masses, top_k), total)
    most = tl.where(few, _most_mass(counts, masses, top_k), total)

    cut = top_p < 1
    low, high = _share(top_p, least), _share(top_p, most)
    p_above = tl.where(cut, tl.min(tl.where(masses < low, keys, NO_KEY), axis=0), NO_KEY)
    p_below = tl.where(cut, tl.max(tl.where(masses >= high, keys, EVERY_KEY), axis=0), NO_KEY)
    least = tl.where(cut, low, least)
    most = tl.where(cut, _most_mass(masses, masses, high), most)

    low, high = _target(u, tl.minimum(least, kept_mass)), _target(u, tl.minimum(most, kept_mass))
    u_above = tl.min(tl.where(masses < low, keys, NO_KEY), axis=0)
    u_below = tl.max(tl.where(masses >= high, keys, EVERY_KEY), axis=0)
    return k_below, k_above, p_below, p_above, u_below, u_above


@triton.jit
def _up_to(keys, sums, key):
    """The sum over all tokens of that key or more; the key is one of `keys`, or NO_KEY."""
    return tl.max(tl.where(keys >= key, sums, 0), axis=0)


@triton.jit
def _spread(below, above, by_id, vocab):
    """15 keys evenly between two, in s or in token ids, and the lower one itself: [16]."""
    j = tl.arange(0, 16)
    low = tl.where(below == EVERY_KEY, LEAST_S, _float_of(below))
    high = tl.where(above > 0, 0.0, _float_of(above))
    by_s = _ordered(high + (low - high) * ((j + 1).to(tl.float32) / 16))
    first = tl.maximum(below, -1 - vocab).to(tl.int64)
    last = tl.minimum(above, 0).to(tl.int64)
    by_token = (last + (first - last) * (j + 1) // 16).to(tl.int32)
    return tl.where(j == 15, below, tl.where(by_id, by_token, by_s))


@triton.jit(do_not_specialize=["n_blocks"])
def survey_kernel(
    logits, stride, rows, penalised, slots, mask, mask_rows, words, status, best_logits,
    row_of, temperatures, top_ks, top_ps, min_ps, seeds, positions,
    keys, counts, masses, kept_masses, vocab, n_blocks,
    ENOUGH: tl.constexpr, ROUND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (draw, split): how many tokens of its stretch have a key of at least each pivot, and how much they weigh.

    Round 0: 16 pivots over everything. Round 1: 16 in the bracket of each search, if they hold more than ENOUGH tokens.
    """
    draw = tl.program_id(0)
    split = tl.program_id(1)
    row = tl.load(row_of + draw)
    if tl.load(status + row) != 0:
        return
    top_k, top_p, min_p = tl.load(top_ks + draw), tl.load(top_ps + draw), tl.load(min_ps + draw)
    by_id = ((top_k <= 0) | (top_k >= vocab)) & (top_p >= 1)
    table = draw * 64
    lanes = tl.arange(0, 16)
    source = logits + _row_of(rows, row) * stride
    slot = _penalised_row(slots, row)
    best, temperature = tl.load(best_logits + row), tl.load(temperatures + draw)
    end = tl.minimum((split + 1) * n_blocks, tl.cdiv(vocab, BLOCK))

    if ROUND == 0:
        by_s = _ordered(((lanes + 1) * (lanes + 1)).to(tl.float32) * LEAST_S / 256)
        by_token = -1 - ((lanes + 1).to(tl.int64) * vocab // 16).to(tl.int32)
        pivots = tl.where(lanes == 15, EVERY_KEY, tl.where(by_id, by_token, by_s))
        n_searches = 1
    else:
        old = tl.load(keys + table + lanes)
        n, m = tl.load(counts + table + lanes), tl.load(masses + table + lanes)
        u = _uniform(tl.load(seeds + draw), tl.load(positions + draw))
        kept_mass = tl.load(kept_masses + draw)
        k_below, k_above, p_below, p_above, u_below, u_above = _aim(old, n, m, kept_mass, top_k, top_p, u)
        n_between = _up_to(old, n, k_below) - _up_to(old, n, k_above)
        n_between += _up_to(old, n, p_below) - _up_to(old, n, p_above)
        n_between += _up_to(old, n, u_below) - _up_to(old, n, u_above)
        n_searches = tl.where(n_between > ENOUGH, SEARCHES, 0)
        pivots = tl.full([16], NO_KEY, tl.int32)
        if split == 0:
            for i in tl.static_range(3):
                tl.store(keys + table + 16 * (i + 1) + lanes, pivots)

    for search in range(n_searches):
        needed = True
        if ROUND == 1:
            below = tl.where(search == 0, k_below, tl.where(search == 1, p_below, u_below))
            above = tl.where(search == 0, k_above, tl.where(search == 1, p_above, u_above))
            needed = below < above
            pivots = _spread(below, above, by_id, vocab)
        if needed:
            at = table + 16 * (search + ROUND) + lanes
            above_pivots = tl.zeros([16, BLOCK], tl.int64)
            kept_here = tl.zeros([BLOCK], tl.int64)
            for block in range(split * n_blocks, end):
                ids = block * BLOCK + tl.arange(0, BLOCK)
                inside = ids < vocab
                x = tl.load(source + ids, mask=inside & (slot < 0), other=float("-inf")).to(tl.float32)
                x = _shape(x, ids, inside, slot, penalised, vocab, mask, mask_rows, words, row)
                key, _, weight, kept = _weigh(x, ids, inside, best, temperature, min_p, by_id)
                token = tl.where(weight > 0, weight + ONE_TOKEN, 0)
                above_pivots += tl.where(key[None, :] >= pivots[:, None], token[None, :], 0)
                kept_here += kept
            tl.atomic_add(counts + at, tl.sum((above_pivots >> COUNT_SHIFT).to(tl.int32), axis=1), sem="relaxed")
            tl.atomic_add(masses + at, tl.sum(above_pivots & (ONE_TOKEN - 1), axis=1), sem="relaxed")
            if ROUND == 0:
                tl.atomic_add(kept_masses + draw, tl.sum(kept_here, axis=0), sem="relaxed")
            if split == 0:
                tl.store(keys + at, pivots)


@triton.jit(do_not_specialize=["n_blocks"])
def collect_kernel(
    logits, stride, rows, penalised, slots, mask, mask_rows, words, status, best_logits,
    row_of, temperatures, top_ks, top_ps, min_ps, seeds, positions,
    keys, counts, masses, kept_masses, places, n_places, vocab, n_blocks, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (draw, split): the places inside the searches' brackets, listed in any order."""
    draw = tl.program_id(0)
    split = tl.program_id(1)
    row = tl.load(row_of + draw)
    if tl.load(status + row) != 0:
        return
    top_k, top_p, min_p = tl.load(top_ks + draw), tl.load(top_ps + draw), tl.load(min_ps + draw)
    by_id = ((top_k <= 0) | (top_k >= vocab)) & (top_p >= 1)
    lanes = draw * 64 + tl.arange(0, 64)
    u = _uniform(tl.load(seeds + draw), tl.load(positions + draw))
    pivots, n_up_to, mass_up_to = tl.load(keys + lanes), tl.load(counts + lanes), tl.load(masses + lanes)
    kept_mass = tl.load(kept_masses + draw)
    k_below, k_above, p_below, p_above, u_below, u_above = _aim(pivots, n_up_to, mass_up_to, kept_mass, top_k, top_p, u)
    source = logits + _row_of(rows, row) * stride
    slot = _penalised_row(slots, row)
    best, temperature = tl.load(best_logits + row), tl.load(temperatures + draw)
    end = tl.minimum((split + 1) * n_blocks, tl.cdiv(vocab, BLOCK))
    for block in range(split * n_blocks, end):
        ids = block * BLOCK + tl.arange(0, BLOCK)
        inside = ids < vocab
        x = tl.load(source + ids, mask=inside & (slot < 0), other=float("-inf")).to(tl.float32)
        x = _shape(x, ids, inside, slot, penalised, vocab, mask, mask_rows, words, row)
        key, s, weight, _ = _weigh(x, ids, inside, best, temperature, min_p, by_id)
        between = ((key >= k_below) & (key < k_above)) | ((key >= p_below) & (key < p_above))
        between = (between | ((key >= u_below) & (key < u_above))) & (weight > 0)
        n = tl.sum(between.to(tl.int32), axis=0)
        if n > 0:
            begin = tl.atomic_add(n_places + draw, n, sem="relaxed")
            at = begin + tl.cumsum(between.to(tl.int32), axis=0) - 1
            place = _place(key, tl.where(by_id, -s, ids ^ LOW))
            tl.store(places + draw.to(tl.int64) * vocab + at, place, mask=between)


@triton.jit
def _weight_of(place, by_id):
    s = tl.where(by_id, -_low_of(place), _key_of(place))
    _, weight = _weight(_float_of(tl.where(place < 0, MINUS_INF_KEY, s)))
    return weight


@triton.jit
def _reach(places, n, below, above, need, by_count, by_id, BLOCK: tl.constexpr):
    """The place at which the running measure (tokens or their weight) of those of keys below `above` reaches `need`.

    Returns it and the mass from `above` down to it, itself included.
    """
    lanes = tl.arange(0, 16)
    top = (above.to(tl.int64) + BIAS) << 31
    low = (below.to(tl.int64) + BIAS) << 31
    high = top
    passed = tl.zeros([], tl.int64)
    while high - low > 1:
        # to the outermost places that are left: equal logits are parted by their ids at once, one place ends the search
        least = tl.full([BLOCK], NO_PLACE, tl.int64)
        most = tl.zeros([BLOCK], tl.int64)
        for start in range(0, n, BLOCK):
            at = start + tl.arange(0, BLOCK)
            place = tl.load(places + at, mask=at < n, other=-1)
            inside = (place >= low) & (place < high)
            least = tl.minimum(least, tl.where(inside, place, NO_PLACE))
            most = tl.maximum(most, tl.where(inside, place, 0))
        low = tl.min(least, axis=0)
        high = tl.max(most, axis=0) + 1
        step = (high - low + 15) // 16
        pivots = tl.maximum(high - step * (lanes + 1), low)
        more = tl.zeros([16, BLOCK], tl.int64)
        for start in range(0, n, BLOCK):
            at = start + tl.arange(0, BLOCK)
            place = tl.load(places + at, mask=at < n, other=-1)
            measure = tl.where(by_count, 1, _weight_of(place, by_id))
            measure = tl.where(place < high, measure, 0)
            more += tl.where(place[None, :] >= pivots[:, None], measure[None, :], 0)
        sums = passed + tl.sum(more, axis=1)
        reached = sums >= need
        low = tl.max(tl.where(reached, pivots, low), axis=0)
        passed = tl.max(tl.where(reached, passed, sums), axis=0)
        high = tl.min(tl.where(reached, high, pivots), axis=0)
    mass = tl.zeros([BLOCK], tl.int64)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        place = tl.load(places + at, mask=at < n, other=-1)
        mass += tl.where((place >= low) & (place < top), _weight_of(place, by_id), 0)
    return low, tl.sum(mass, axis=0)


@triton.jit
def resolve_kernel(
    status, row_of, top_ks, top_ps, seeds, positions,
    keys, counts, masses, kept_masses, places, n_places, tokens, vocab,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (draw): where top-k ends, where top-p ends, and the token that the random number falls on."""
    draw = tl.program_id(0)
    row = tl.load(row_of + draw)
    if tl.load(status + row) != 0:
        return
    top_k, top_p = tl.load(top_ks + draw), tl.load(top_ps + draw)
    by_id = ((top_k <= 0) | (top_k >= vocab)) & (top_p >= 1)
    lanes = draw * 64 + tl.arange(0, 64)
    pivots, n_up_to, mass_up_to = tl.load(keys + lanes), tl.load(counts + lanes), tl.load(masses + lanes)
    kept_mass = tl.load(kept_masses + draw)
    u = _uniform(tl.load(seeds + draw), tl.load(positions + draw))
    k_below, k_above, p_below, p_above, u_below, u_above = _aim(pivots, n_up_to, mass_up_to, kept_mass, top_k, top_p, u)
    here = places + draw.to(tl.int64) * vocab
    n = tl.load(n_places + draw)
    mass = tl.max(mass_up_to, axis=0)
    place = tl.zeros([], tl.int64)
    for search in range(3):
        below = tl.where(search == 0, k_below, tl.where(search == 1, p_below, u_below))
        above = tl.where(search == 0, k_above, tl.where(search == 1, p_above, u_above))
        if below < above:
            before = _up_to(pivots, mass_up_to, above)
            if search == 2:
                mass = tl.minimum(mass, kept_mass)
            need = tl.where(search == 1, _share(top_p, mass), _target(u, mass)) - before
            need = tl.where(search == 0, (top_k - _up_to(pivots, n_up_to, above)).to(tl.int64), need)
            place, more = _reach(here, n, below, above, need, search == 0, by_id, BLOCK)
            mass = before + more
    token = tl.where(by_id, -1 - _key_of(place), _low_of(place) ^ LOW)
    tl.store(tokens + row, token.to(tl.int64))
