"""What each kernel must move and compute in a step of Llama 7B, and the least time that takes on each GPU. Counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from engine.kernels import (
    attention_decode,
    attention_extend,
    attention_merge,
    attention_shared_prefix,
    matmul_invariant,
    matmul_quantized,
    moe,
    rms_norm,
    rope_and_store,
    route,
    sample,
    silu_mul,
)
from engine.kernels.paged import PagedKV
from engine.kernels.roofline import GPUS, Work, floor_s

DOCS = Path(__file__).parents[2] / "docs" / "kernels.md"
BEGIN = "<!-- roofline: begin, written by python -m engine.kernels.roofline --write -->"
END = "<!-- roofline: end -->"


class Model(NamedTuple):
    """The numbers of a Llama that its steps depend on."""

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int


LLAMA_7B = Model("llama-7b", 32, 4096, 11008, 32, 32, 128, 32000)
NUMBER = 2
"""Bytes of a number in bfloat16."""


class Mixture(NamedTuple):
    """The numbers of a mixture of experts that its feed-forward layers depend on."""

    name: str
    layers: int
    hidden: int
    inner: int
    experts: int
    k: int
    """Experts a token takes."""


MIXTRAL_8X7B = Mixture("mixtral-8x7b", 32, 4096, 14336, 8, 2)
MIXTURE_TOKENS = (1, 8, 32, 128, 256, 4096)


class Step(NamedTuple):
    """Rows of one step, all alike."""

    name: str
    rows: int
    new: int
    """Tokens of each row that are computed."""
    keys: int
    """Keys of each row, the new ones included."""


STEPS = (
    Step("decode, batch 1, 512 keys", 1, 1, 512),
    Step("decode, batch 32, 512 keys", 32, 1, 512),
    Step("decode, batch 128, 512 keys", 128, 1, 512),
    Step("decode, batch 1, 8k keys", 1, 1, 8192),
    Step("decode, batch 8, 8k keys", 8, 1, 8192),
    Step("prefill, 1k tokens", 1, 1024, 1024),
    Step("prefill, 8k tokens", 1, 8192, 8192),
)


class Part(NamedTuple):
    kernel: str
    calls: int
    """In a step."""
    work: Work
    """Of one call."""


def parts(model: Model, step: Step) -> Iterator[Part]:
    """All kernels of a step in their order; matrix products also where a library does them."""
    tokens = step.rows * step.new
    m, layers = model, model.layers

    def product(name: str, n: int, k: int, *, rows: int = tokens, calls: int = layers) -> Part:
        return Part(f"product {name}", calls, matmul_invariant.work(rows, n, k, bytes_per_number=NUMBER))

    yield Part("rms_norm", 1, rms_norm.work(tokens, m.hidden, residual=False))
    yield Part("rms_norm + residual", 2 * layers, rms_norm.work(tokens, m.hidden, residual=True))
    yield product("qkv", (m.heads + 2 * m.kv_heads) * m.head_dim, m.hidden)
    yield Part("rope_and_store", layers, rope_and_store.work(tokens, m.heads, m.kv_heads, m.head_dim))
    yield attention(model, step)
    yield product("out", m.hidden, m.heads * m.head_dim)
    yield product("gate and up", 2 * m.inner, m.hidden)
    yield Part("silu_mul", layers, silu_mul.work(tokens, m.inner))
    yield product("down", m.hidden, m.inner)
    yield product("logits", m.vocab, m.hidden, rows=step.rows, calls=1)
    yield Part("sample", 1, sample.work(step.rows, m.vocab, bytes_per_number=NUMBER))


def shared_prefix_parts(model: Model, branches: int, prefix: int, own: int) -> Iterator[Part]:
    """Attention of a decode step whose rows share their first keys: read once, and without sharing."""
    m = model
    shape = (m.heads, m.kv_heads, m.head_dim)
    yield Part("attention_shared_prefix", m.layers, attention_shared_prefix.work(branches, prefix, 1, *shape))
    yield Part("attention_decode, own keys", m.layers, attention_decode.work(branches * own, branches, *shape))
    yield Part("attention_merge", m.layers, attention_merge.work(branches, m.heads, m.head_dim, 2 * branches))
    every = attention_decode.work(branches * (prefix + own), branches, *shape)
    yield Part("attention_decode without sharing", m.layers, every)


def products_in_8_bits(model: Model, step: Step) -> Iterator[Part]:
    """The products of a step whose weights are int8 or float8."""
    m, tokens = model, step.rows * step.new
    for name, rows, calls, n, k in (
        ("qkv", tokens, m.layers, (m.heads + 2 * m.kv_heads) * m.head_dim, m.hidden),
        ("out", tokens, m.layers, m.hidden, m.heads * m.head_dim),
        ("gate and up", tokens, m.layers, 2 * m.inner, m.hidden),
        ("down", tokens, m.layers, m.hidden, m.inner),
        ("logits", step.rows, 1, m.vocab, m.hidden),
    ):
        yield Part(f"matmul_quantized {name}", calls, matmul_quantized.work(rows, n, k, bytes_per_number=NUMBER))


def mixture_parts(model: Mixture, tokens: int) -> Iterator[Part]:
    """The experts of a step, in bfloat16 and with weights of 8 bits, as many of them hit as routing by lot would."""
    m = model
    hit = max(m.k, round(m.experts * (1 - (1 - m.k / m.experts) ** tokens)))
    yield Part(f"route, batch {tokens}", m.layers, route.work(tokens, m.experts, m.k, bytes_per_number=NUMBER))
    for name, size in (("moe", NUMBER), ("moe, 8-bit weights", 1)):
        work = moe.work(tokens, m.k, m.experts, m.hidden, m.inner, hit=hit, bytes_per_weight=size)
        yield Part(f"{name}, batch {tokens}, {hit} experts hit", m.layers, work)


def attention(model: Model, step: Step) -> Part:
    m = model
    if step.new == 1:
        work = attention_decode.work(step.rows * step.keys, step.rows, m.heads, m.kv_heads, m.head_dim)
        return Part("attention_decode", m.layers, work)
    q = torch.empty(step.rows * step.new, m.heads, m.head_dim, dtype=torch.bfloat16, device="meta")
    pool = torch.empty(m.kv_heads, step.rows * step.keys, m.head_dim, dtype=torch.bfloat16, device="meta")
    work = attention_extend.work(q, PagedKV(pool, pool, 1), [step.new] * step.rows, [step.keys] * step.rows)
    return Part("attention_extend", m.layers, work)


def whole(model: Model, step: Step, *, bytes_per_weight: int = NUMBER) -> Work:
    """What no step can do without: every weight once, the K and V it attends to and those it makes, and its products.

    The norms' weights, scales and the look-up of the tokens are left out: under a thousandth.
    """
    m = model
    per_token = m.hidden * (m.heads + 2 * m.kv_heads) * m.head_dim + m.heads * m.head_dim * m.hidden
    per_token += 3 * m.hidden * m.inner
    weights = m.layers * per_token + m.vocab * m.hidden
    kv_token = m.layers * 2 * m.kv_heads * m.head_dim * NUMBER
    products = 2 * step.rows * (step.new * m.layers * per_token + m.vocab * m.hidden)
    return Work(
        bytes_per_weight * weights + kv_token * step.rows * (step.keys + step.new),
        products + m.layers * attention(model, step).work.operations,
    )


def lines(model: Model = LLAMA_7B) -> list[str]:
    """The table in Markdown: whole steps, then one call of each kernel in each step."""
    text = [f"Least milliseconds of a whole step of {model.name} in bfloat16 (weights, K and V, products):", ""]
    text += _rows(["step", "GB", "GFLOP", *_names()], ([s.name, *_cells(whole(model, s), 1e9, 1e3)] for s in STEPS))
    in_8_bits = ([s.name, *_cells(whole(model, s, bytes_per_weight=1), 1e9, 1e3)] for s in STEPS)
    text += ["", "The same with weights in 8 bits (`model.weights=int8` or `fp8`):", ""]
    text += _rows(["step", "GB", "GFLOP", *_names()], in_8_bits)
    text += ["", "Least microseconds of one call of each kernel in these steps:"]
    tables = [(step.name, parts(model, step)) for step in STEPS]
    tables += [(f"{step.name}, weights in 8 bits", products_in_8_bits(model, step)) for step in (*STEPS[:3], STEPS[-1])]
    tables.append(
        ("decode, 64 branches of a 4k prefix with 64 own keys each", shared_prefix_parts(model, 64, 4096, 64))
    )
    experts = (part for tokens in MIXTURE_TOKENS for part in mixture_parts(MIXTRAL_8X7B, tokens))
    tables.append((f"the experts of {MIXTRAL_8X7B.name}", experts))
    for name, of_step in tables:
        cells = ([p.kernel, str(p.calls), *_cells(p.work, 1e6, 1e6)] for p in of_step)
        text += ["", f"**{name}**", "", *_rows(["kernel", "calls a step", "MB", "GFLOP", *_names()], cells)]
    return text


def _names() -> list[str]:
    return [gpu.name for gpu in GPUS]


def _cells(work: Work, byte_unit: float, per_second: float) -> list[str]:
    floors = (_number(per_second * floor_s(work, gpu)) for gpu in GPUS)
    return [_number(work.bytes / byte_unit), _number(work.operations / 1e9), *floors]


def _number(x: float) -> str:
    """Three digits."""
    return "-" if x == 0 else f"{x:.3g}" if x < 100 else f"{x:.0f}"


def _rows(columns: list[str], cells: Iterable[list[str]]) -> list[str]:
    return [f"| {' | '.join(texts)} |" for texts in (columns, ["---"] * len(columns), *cells)]


def write(docs: Path = DOCS) -> None:
    """Puts the table between its marks. Raises ValueError where they are missing."""
    before, begin, rest = docs.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{docs} has no marks {BEGIN!r} and {END!r} to write the table between")
    docs.write_text("\n".join([before + begin, "", *lines(), "", end + after]), encoding="utf-8")


def written(docs: Path = DOCS) -> list[str]:
    """The lines between the marks."""
    return docs.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip().splitlines()
