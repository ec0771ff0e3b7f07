"""Runs batches on an NVIDIA GPU with Triton kernels. On the device `cpu`, under Triton's interpreter, for tests.

Nothing before `collect` waits for the device: what a step is told goes over in one asynchronous copy, tokens that were
sampled stay there as the next step's input, and what comes back is waited for by its own event.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.executor.base import Batch, KVCopy, PrefixGroup, StepResult
from engine.executor.eyes import Eyes
from engine.executor.gpu_attention import Layout
from engine.executor.gpu_device import Timer, Upload
from engine.executor.gpu_graphs import DecodeGraphs, Kind, ladder
from engine.executor.gpu_memory import LEAST_TOKENS, Piece
from engine.executor.gpu_plan import Longs, Plan, decodes_only, idle_decodes, make_plan
from engine.executor.gpu_pool import GpuPool, kv_dtype_named
from engine.executor.gpu_sampler import GpuSampler, PendingSample, PendingScores
from engine.executor.gpu_step import Runner, host_step, padded_decode
from engine.executor.gpu_tables import Tables
from engine.models.llama_gpu import LlamaGpu
from engine.request import TokenLogprob


class Pending(NamedTuple):
    """A step under way."""

    batch: Batch
    logits: Tensor
    """[positions, vocab] on the device, to be read before the next launch."""
    first_logit: Longs
    """[rows]: where each row's begin; rows stand in any order."""
    n_logits: Longs
    """[rows]"""
    timer: Timer
    chosen: tuple[int, ...] = ()
    """Rows that sample."""
    sampled: PendingSample | None = None
    scored: tuple[tuple[int, PendingScores], ...] = ()
    """Rows with known tokens that are scored."""

    def row_logits(self, row: int) -> Tensor:
        """[n_logits, vocab] of one row of the batch."""
        first = int(self.first_logit[row])
        return self.logits[first : first + int(self.n_logits[row])]


class CudaExecutor:
    """Runs batches of a model over a KV pool of `n_pages` pages of `page_size` tokens.

    max_running: requests that may run at once.
    kv_dtype: auto (the model's) | int8 | fp8_e4m3.
    cuda_graphs: decode steps are replayed from graphs, captured here.
    Whether it is deterministic is up to the model it is given.
    """

    def __init__(
        self,
        model: LlamaGpu,
        *,
        n_pages: int,
        page_size: int,
        device: torch.device,
        max_running: int = 256,
        kv_dtype: str = "auto",
        cuda_graphs: bool = True,
    ) -> None:
        if n_pages < 1 or page_size < 1:
            raise ValueError(f"a pool of n_pages={n_pages} of page_size={page_size} tokens: both must be at least 1")
        config = model.config
        self.model = model
        self.device = device.type
        self.page_size = page_size
        self.n_pages = n_pages
        self.max_context = config.max_context
        self.vocab_size = config.vocab_size
        self.max_tokens: int | None = None
        """New tokens of one pass through the model; None until memory has turned out too small for one."""
        stored = kv_dtype_named(kv_dtype, model.dtype)
        self.pool = GpuPool(config, n_pages=n_pages, page_size=page_size, dtype=stored, device=device)
        max_pages = -(-config.max_context // page_size)
        self.tables = Tables(n_tables=max_running + 1, max_pages=max_pages, page_size=page_size, device=device)
        self.layout = Layout(config, model.dtype, stored, deterministic=model.deterministic)
        self.runner = Runner(model, self.pool, self.tables, self.layout)
        self.eyes = None if model.vision is None else Eyes(model.vision, device)
        self.graphs: DecodeGraphs | None = None
        self._device = device
        self._upload = Upload(device)
        self._sampler = GpuSampler(config.vocab_size, device)
        if cuda_graphs:
            self.graphs = DecodeGraphs(
                self.runner.run, self._upload, ladder(max_running), config.vocab_size, model.dtype
            )
            self._capture(self.graphs)

    # ---- the forward pass

    @torch.inference_mode()
    def launch(self, batch: Batch) -> Pending:
        """Queues the copies and the forward pass; in several pieces when it doesn't fit in memory at once."""
        timer = Timer(self._device)
        for copy in batch.copies:
            self._copy(copy)
        done: list[tuple[Piece, Plan, Tensor]] = []
        rest: Piece | None = Piece(batch.rows, tuple(range(len(batch.rows))))
        while rest is not None:
            piece, after = (rest, None) if self.max_tokens is None else rest.cut(self.max_tokens)
            found = self._try(piece, batch.prefix_groups)
            if found is None:
                self.max_tokens = max(LEAST_TOKENS, piece.n_tokens // 2)
            else:
                done.append((piece, *found))
                rest = after
        if len(done) == 1:
            _, plan, logits = done[0]
            return Pending(batch, logits, plan.first_logit, plan.n_logits, timer)
        return Pending(batch, *_in_batch_order(len(batch.rows), done), timer)

    def _copy(self, copy: KVCopy) -> None:
        old = np.arange(copy.position, copy.position + len(copy.source))
        there = self._upload({"source": copy.source, "target": copy.target, "old": old, "new": old + copy.turn})
        self.pool.copy(
            there["source"],
            there["target"],
            self.runner.model.turn_between(there["old"], there["new"]) if copy.turn else None,
        )

    def _try(self, piece: Piece, groups: Sequence[PrefixGroup]) -> tuple[Plan, Tensor] | None:
        """A piece's plan and logits; None when it needs more memory than there is and can be cut."""
        try:
            return self._forward(piece, groups)
        except Exception as error:
            self.tables.forget([row.request for row in piece.rows])
            if not isinstance(error, torch.cuda.OutOfMemoryError) or piece.n_tokens <= LEAST_TOKENS:
                raise
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _forward(self, piece: Piece, groups: Sequence[PrefixGroup]) -> tuple[Plan, Tensor]:
        plan = make_plan(piece.rows, self.tables)
        groups = piece.groups(groups) if groups else ()
        given = self.eyes.given(plan.packed) if self.eyes is not None and plan.packed else None
        if given is None and (found := self._replay(plan, groups)) is not None:
            return plan, found
        step = host_step(plan, groups, self.layout)
        there = self._upload(step.arrays)
        self.runner.apply(step, there)
        return plan, self.runner.run(step, there, given)

    def _replay(self, plan: Plan, groups: Sequence[PrefixGroup]) -> Tensor | None:
        """Logits of a step of decodes, from its graph; None when it is none, or there is none."""
        if self.graphs is None or not decodes_only(plan):
            return None
        n_rows = len(plan.tokens)
        size = self.graphs.size_for(n_rows)
        if size is None:
            return None
        step = padded_decode(plan, groups, self.layout, size, self.max_context)
        if not self.graphs.fits(step):
            return None
        there = self.graphs.stage(step)
        self.runner.apply(step, there)
        return self.graphs.replay(step, there, n_rows)

    def _capture(self, graphs: DecodeGraphs) -> None:
        """For each size, and again for those whose rows may share a prefix."""
        steps = {}
        for n in graphs.sizes:
            for shares in (False, True):
                if shares and not self.layout.worth_sharing(n, n, self.max_context):
                    continue
                plan = idle_decodes(n)
                steps[Kind(n, shares)] = padded_decode(plan, (), self.layout, n, self.max_context, shares=shares)
        graphs.capture(steps)

    # ---- tokens

    @torch.inference_mode()
    def sample(self, pending: Pending, masks: Sequence[Any] | None = None) -> Pending:
        """Queues the choice of the next token of the rows that still await one, and the scores that are asked for.

        masks: a packed bitmask or None for each row.
        """
        rows = pending.batch.rows
        alive = [i for i, row in enumerate(rows) if not row.request.finished]
        chosen = [i for i in alive if rows[i].awaits_token]
        requests = [rows[i].request for i in chosen]
        last = pending.first_logit[chosen] + pending.n_logits[chosen] - 1
        there = self._upload({"last": last, "tables": self.tables.of(requests)})
        tokens = torch.empty(len(chosen), dtype=torch.int64, device=self._device)
        given = None if masks is None else [masks[i] for i in chosen]
        sampled = self._sampler.launch(pending.logits, requests, given, rows_of=there["last"], out=tokens)
        self.tables.last_token.index_copy_(0, there["tables"], tokens)
        scored = tuple((i, self._score(pending, i)) for i in alive if rows[i].n_scored)
        pending.timer.stop()
        return pending._replace(chosen=tuple(chosen), sampled=sampled, scored=scored)

    def _score(self, pending: Pending, i: int) -> PendingScores:
        row = pending.batch.rows[i]
        n, first = row.n_scored, row.logit_start + 1
        return self._sampler.score(pending.row_logits(i)[:n], row.request.tokens[first : first + n], row.n_likeliest)

    def collect(self, pending: Pending) -> StepResult:
        """Waits for the step's result. Raises ValueError when `sample` wasn't called."""
        if pending.sampled is None:
            raise ValueError("collect() needs what sample() returned")
        n = len(pending.batch.rows)
        tokens: list[int | None] = [None] * n
        logprobs: list[TokenLogprob | None] = [None] * n
        scored: list[tuple[TokenLogprob, ...]] = [()] * n
        errors: list[str | None] = [None] * n
        for i, token, logprob, error in zip(pending.chosen, *pending.sampled.wait(), strict=True):
            tokens[i], logprobs[i], errors[i] = token, logprob, error
        for i, scores in pending.scored:
            try:
                scored[i] = scores.wait()
            except ValueError as error:
                tokens[i], logprobs[i], errors[i] = None, None, errors[i] or str(error)
        seconds = pending.timer.seconds()
        return StepResult(tuple(tokens), tuple(logprobs), tuple(scored), tuple(errors), seconds)


def _in_batch_order(n: int, done: Sequence[tuple[Piece, Plan, Tensor]]) -> tuple[Tensor, Longs, Longs]:
    """Logits of all pieces, those of a row together, with first_logit and n_logits."""
    parts: list[list[Longs]] = [[] for _ in range(n)]
    offset = 0
    for piece, plan, logits in done:
        for row, first, count in zip(piece.of, plan.first_logit, plan.n_logits):
            parts[row].append(offset + np.arange(first, first + count))
        offset += len(logits)
    n_logits = np.array([sum(map(len, of_row)) for of_row in parts], np.int64)
    at = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *(run for of_row in parts for run in of_row)]))
    logits = torch.cat([logits for _, _, logits in done])
    return logits[at.to(logits.device)], np.cumsum(n_logits) - n_logits, n_logits
