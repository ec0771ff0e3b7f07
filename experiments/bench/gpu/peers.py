"""transformers' continuous batching on the same weights and prompts, in the same process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from engine.request import Tokens
from experiments.bench.gpu import ours
from experiments.bench.gpu.case import Case, Failed, Setup
from experiments.bench.gpu.engine import Bench
from experiments.bench.gpu.figure import Figure
from experiments.bench.gpu.ours import Served
from experiments.bench.gpu.prompts import total
from experiments.bench.gpu.twin import PeerRun, serving, twin

LEAST_EQUAL = 0.5
"""Share of first tokens that must agree: in 16 bit near-ties fall either way, with wrong weights hardly any agree."""


class Load(NamedTuple):
    name: str
    prompts: Sequence[Tokens]
    new_tokens: int


def cases(setup: Setup) -> Iterator[Case]:
    bench = Bench(setup)
    loads = make_loads(bench)
    executor, config = bench.on()
    mine: dict[str, Served] = {}
    for load in loads:
        ours.serve(executor, config, load.prompts, load.new_tokens)  # compiles what these shapes need
        mine[load.name] = ours.serve(executor, config, load.prompts, load.new_tokens)
    del executor
    bench.drop()
    peer = twin(bench.model)
    for load in loads:
        yield Case(load.name, partial(compare, bench, peer, load, mine[load.name]))


def make_loads(bench: Bench) -> list[Load]:
    mmlu, what = bench.mmlu_prompts()
    n, tokens, new = bench.setup.pick((32, 512, 64), (2, 6, 2))
    loads = [Load(f"{what}, {k} new", mmlu, k) for k in bench.setup.pick((1, 32), (1,))]
    return [*loads, Load(f"{n} prompts of {tokens}, {new} new", bench.prompts(n, tokens, seed=9), new)]


def compare(bench: Bench, peer: object, load: Load, mine: Served) -> Iterator[Figure]:
    theirs = peer_run(bench, peer, load)
    pairs = list(zip(mine.outputs, theirs.outputs, strict=True))
    first = sum(a[0] == b[0] for a, b in pairs) / len(pairs)
    whole = sum(a == b for a, b in pairs)
    attention = peer.config._attn_implementation  # type: ignore[attr-defined]
    note = (
        f"first tokens equal in {first:.0%}, whole outputs in {whole} of {len(pairs)}; transformers' attention: "
        f"{attention}; its whole call took {theirs.whole_s:.2f} s"
    )
    yield Figure(
        name=f"ours, {load.name}",
        value=mine.seconds,
        beside={"transformers": theirs.seconds},
        note=f"{total(load.prompts):,} prompt tokens, {mine.computed_tokens:,} computed",
    )
    yield Figure(name=f"times transformers, {load.name}", value=theirs.seconds / mine.seconds, unit="x", note=note)
    if first < LEAST_EQUAL:
        raise Failed(f"only {first:.0%} of the first tokens agree with transformers': one of the two is wrong")


def peer_run(bench: Bench, peer: object, load: Load) -> PeerRun:
    """The second of two runs; the first one, on other tokens of the same lengths, makes pool and graphs."""
    others = [bench.prompts(1, len(prompt), seed=77 + i)[0] for i, prompt in enumerate(load.prompts)]
    with serving(peer, load.prompts, load.new_tokens, bench.config.max_batch_tokens) as serve:
        serve(others, load.new_tokens)
        return serve(load.prompts, load.new_tokens)
