"""The engine: requests in, tokens out. One `step` is one pass of the scheduler and one forward pass."""

from __future__ import annotations

import dataclasses
import heapq
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engine.cache import make_cache
from engine.cache.page_pool import PagePool
from engine.clock import Clock, WallClock, stopwatch
from engine.config import ConfigError, EngineConfig
from engine.constraints.base import GrammarLimits, Mask
from engine.constraints.grammar import Grammar
from engine.constraints.recorded import NoConstraints, RecordedConstraints
from engine.constraints.session import Constraint, Constraints
from engine.cost import UNIT, PrefillCost
from engine.executor.base import Batch, Executor, StepResult
from engine.intake import Intake
from engine.log import Event, Log
from engine.loop import Failure, Loop
from engine.memory import KVMemory
from engine.meter import Meter, StepTimes
from engine.metrics import Metrics
from engine.output import Outputs
from engine.pictures import PictureReader
from engine.policies.base import Accept, Hint, Reject, RetryAt, broken
from engine.policies.guard import Guard
from engine.policies.registry import make_policy
from engine.request import (
    AdmissionRefused,
    Fault,
    FinishReason,
    Request,
    RequestError,
    SamplingParams,
    Status,
    TokenLogprob,
    Tokens,
)
from engine.scheduler import Limits, Scheduler
from engine.splices import Splice, cut, peak_pages
from engine.taking import Taking
from engine.tokenizer import Tokenizer


class Engine:
    """Serves requests over one executor. Not thread-safe: one thread adds, steps and aborts.

    `tokenizer` may be None: then prompts are token ids and there is no text.
    """

    def __init__(
        self,
        executor: Executor,
        tokenizer: Tokenizer | None,
        config: EngineConfig,
        *,
        clock: Clock | None = None,
        eos: Sequence[int] = (),
        cost: PrefillCost = UNIT,
        text_is_recorded: bool = False,
        keep_history: bool = True,
        pictures: PictureReader | None = None,
    ) -> None:
        """`keep_history`: keep the decision log and a sample a step, which grow for ever."""
        if config.overlap is None:
            config = dataclasses.replace(config, overlap=executor.device.startswith("cuda"))
        self.executor = executor
        self.tokenizer = tokenizer
        self.config = config
        self.clock = clock if clock is not None else WallClock()
        self.eos = tuple(eos)
        self.intake = Intake(
            tokenizer,
            vocab_size=executor.vocab_size,
            max_context=executor.max_context,
            capacity_tokens=executor.n_pages * config.page_size,
            page_size=config.page_size,
            text_is_recorded=text_is_recorded,
            pictures=pictures,
        )
        self.image_tokens = 0 if pictures is None else pictures.n_tokens
        """Positions that an image takes in a prompt; 0 where the model takes none."""
        self.on_finish: list[Callable[[Request], None]] = []
        self.log = Log(
            {
                "engine": dataclasses.asdict(config),
                "n_pages": executor.n_pages,
                "max_context": executor.max_context,
                "vocab_size": executor.vocab_size,
                "eos": list(eos),
                "cost": list(dataclasses.astuple(cost)),
            },
            keep=keep_history,
        )
        self.outputs = Outputs(tokenizer, text_is_recorded=text_is_recorded)
        self.constraints = self._make_constraints(text_is_recorded)
        self._deferred: list[tuple[float, int, Request]] = []
        self.loop = Loop(executor, self._take, self._fail, self._masks)
        self._n_steps = 0
        self._next_id = 0
        args = {
            kind: dict(getattr(config, f"{kind}_args")) for kind in ("eviction", "retention", "schedule", "admission")
        }
        cache = make_cache(
            config.cache,
            page_size=config.page_size,
            capacity_tokens=executor.n_pages * config.page_size,
            eviction=make_policy("eviction", config.eviction, args["eviction"]),
            rng=random.Random(f"{config.seed}/eviction"),
            cost=cost,
        )
        memory = KVMemory(
            cache,
            PagePool(executor.n_pages),
            make_policy("retention", config.retention, args["retention"]),
            self.log,
        )
        self.admission = Guard(make_policy("admission", config.admission, args["admission"]))
        self.scheduler = Scheduler(
            memory=memory,
            policy=make_policy("scheduling", config.schedule, args["schedule"]),
            limits=Limits(config.max_batch_tokens, config.max_running),
            rng=random.Random(f"{config.seed}/scheduling"),
            log=self.log,
        )
        self.taking = Taking(self.outputs, self.scheduler)
        self.memory = memory
        self.meter = Meter(self.scheduler, keep_steps=keep_history, eyes=getattr(executor, "eyes", None))

    def _make_constraints(self, recorded: bool) -> Constraints | RecordedConstraints:
        if recorded:
            return RecordedConstraints()
        if self.tokenizer is None:
            return NoConstraints()
        try:
            limits = GrammarLimits(**self.config.grammar_limits)
        except TypeError as error:
            names = ", ".join(field.name for field in dataclasses.fields(GrammarLimits))
            raise ConfigError(f"engine.grammar_limits: {error}; allowed: {names}") from None
        return Constraints(
            self.tokenizer,
            vocab_size=self.executor.vocab_size,
            eos=self.eos,
            backend=self.config.grammar_backend,
            jump_forward=self.config.jump_forward,
            limits=limits,
        )

    @property
    def metrics(self) -> Metrics:
        """What was counted since the engine was made, or since `reset_metrics`."""
        return self.meter.metrics

    # ---- requests

    @property
    def has_work(self) -> bool:
        """Something waits, runs, or is on its way back from the device."""
        return bool(self.scheduler.waiting or self.scheduler.running or self._deferred or self.loop.under_way)

    @property
    def idle_until(self) -> float | None:
        """When the next step is due, on the engine's clock, if all there is to do is to wait; a step would sleep."""
        if not self._deferred or self.scheduler.waiting or self.scheduler.running or self.loop.under_way:
            return None
        return self._deferred[0][0]

    @property
    def capacity_tokens(self) -> int:
        return self.memory.cache.capacity_tokens

    def add(
        self,
        prompt: str | Sequence[int] | np.ndarray,
        params: SamplingParams | None = None,
        *,
        images: Sequence[Any] = (),
        splices: Sequence[Splice] = (),
        due: float | None = None,
        namespace: str = "",
        client: str = "",
        conversation: str = "",
        program: str = "",
        agent: str = "",
        parent: int | None = None,
        siblings: int = 1,
        priority: int = 0,
        deadline: float | None = None,
        predicted_output: int | None = None,
    ) -> list[Request]:
        """Queues a prompt; returns its `params.n` requests.

        `images`: for each place in the prompt (`<image>` in text, -1 in token ids) a picture: a file's bytes, its
        path, or a PIL image. Its positions are part of the key: the same picture hits the cache, another never does.
        `splices`: parts of it that are branches which don't see one another (`engine.splices.concatenated`). Their KV
        is copied from where the branches themselves were served, as far as that is cached, and computed otherwise.
        What is computed on top of them is never cached, so that each such request takes its own copies. A token
        whose logits are needed (the prompt's last, the one before the first that is scored) is computed in its place:
        it sees all, and when a splice ends with it, it is no longer a part of that.

        `due`: when it should have been sent, seconds on the engine's clock (None: now); latencies count from it.
        `siblings`: how many prompts, this one included, are submitted together; `parent`: the request that computes
        what they begin with.
        Raises RequestError when it can't be served; then nothing was queued.
        """
        params = params if params is not None else SamplingParams()
        now = self.clock.now()
        try:
            checked, pictures = self.intake.check_with_images(prompt, params, images)
            if pictures and splices:
                raise RequestError("images in a prompt with joined branches (splices) aren't served: use one of them")
            key, taken_back = self.constraints.heal(checked, params)
            splices = self.intake.check_splices(key, params, cut(splices, len(key)) if taken_back else splices)
            if not isinstance(siblings, int) or siblings < 1:
                raise RequestError(f"siblings={siblings!r} is not allowed: it must be 1 (itself alone) or more")
            constraints = self._constraints_of(params, taken_back)
            begins_with = self._begin(params, constraints) if constraints else ()
        except RequestError as error:
            self.metrics.rejected += 1
            self._input("reject", now, text=str(error))
            raise
        tags: dict[str, Any] = {
            "namespace": namespace,
            "client": client,
            "conversation": conversation,
            "program": program,
            "agent": agent,
            "parent": parent,
            "priority": priority,
            "deadline": deadline,
            "predicted_output": predicted_output,
        }
        due = now if due is None else due
        arrival = {
            "params": _changed(params),
            "due": due,
            **{name: v for name, v in tags.items() if v not in ("", None)},
        }
        if siblings > 1:
            arrival["siblings"] = siblings
        if begins_with:
            arrival["forced"] = begins_with
        if taken_back:
            arrival["taken_back"] = taken_back
        if splices:
            arrival["splices"] = [splice.as_data() for splice in splices]
        self._input("arrive", now, request=self._next_id, tokens=key, text=json.dumps(arrival))
        room = np.empty(len(key) + params.max_tokens, np.int64)
        room[: len(key)] = key
        room[len(key) : len(key) + len(begins_with)] = begins_with
        shape: dict[str, Any] = {}
        if splices:
            peak = peak_pages(splices, len(room), self.config.page_size) * self.config.page_size
            shape = {"splices": splices, "n_cacheable": splices[0].at, "peak_tokens": peak}
        requests = []
        for i in range(params.n):
            request = Request(
                id=self._next_id,
                key=key,
                params=params,
                siblings=siblings * params.n,
                arrival=due,
                added_at=now,
                seed=self._seed(params, i),
                eos=self.eos,
                taken_back=taken_back,
                pictures=pictures,
                tokens=room if i == 0 else room.copy(),
                n_tokens=len(key) + len(begins_with),
                constraint=constraints[i] if constraints else None,
                pages=np.empty(-(-len(room) // self.config.page_size), np.int32),
                **shape,
                **tags,
            )
            self._next_id += 1
            requests.append(request)
        for request in requests:
            self._ask_admission(request, now)
            if request.error is not None:
                for sibling in requests[: request.id - requests[0].id]:
                    self._end(sibling, FinishReason.ABORT, now)
                raise AdmissionRefused(f"refused by the admission policy: {request.error}")
        if constraints:
            self.constraints.prepare(constraints)
        return requests

    def _constraints_of(self, params: SamplingParams, taken_back: Sequence[int]) -> list[Constraint]:
        """One for each sample, if there is something to hold it to. Raises RequestError."""
        each = (self.constraints.open(params, taken_back) for _ in range(params.n))
        return [constraint for constraint in each if constraint is not None]

    def _begin(self, params: SamplingParams, constraints: Sequence[Constraint]) -> tuple[int, ...]:
        """What every sample of the prompt begins with."""
        begun = [constraint.begin(params.max_tokens) for constraint in constraints]
        for constraint in constraints:
            constraint.passes_saved += len(begun[0])
        return begun[0]

    def _seed(self, params: SamplingParams, i: int) -> int:
        """The given seed plus the sample's number, else one made from the engine's seed and the request's number."""
        if params.seed is not None:
            return (params.seed + i) % 2**63
        return random.Random(f"{self.config.seed}/{self._next_id}").getrandbits(63)

    def _ask_admission(self, request: Request, now: float) -> None:
        self.scheduler.view.now = now
        answer = self.admission.ask("admit", request, self.scheduler.view)
        if isinstance(answer, Reject):
            request.status, request.finish_reason, request.error = Status.FINISHED, FinishReason.ERROR, answer.reason
            request.fault, request.finished_at = Fault.LOAD, now
            self.metrics.rejected += 1
            self._decide("refuse", now, request.id, answer.reason)
        elif isinstance(answer, RetryAt):
            if not answer.time > now:
                raise broken(self.admission.policy, "admit", f"said RetryAt({answer.time}) at {now}: it must lie ahead")
            heapq.heappush(self._deferred, (answer.time, request.id, request))
            self._decide("defer", now, request.id, repr(answer.time))
        elif isinstance(answer, Accept):
            self.scheduler.add(request)
        else:
            what = f"gave {answer!r}; it must be Accept(), Reject(...) or RetryAt(...)"
            raise broken(self.admission.policy, "admit", what)

    def abort(self, request: Request) -> None:
        """Ends a request at any stage; no effect on a finished one."""
        if request.finished:
            return
        now = self.clock.now()
        self._input("abort", now, request=request.id)
        self._end(request, FinishReason.ABORT, now)

    def hint(self, hint: Hint) -> None:
        """Passes a program's hint to the policies (unless `config.hints` is off)."""
        if not self.config.hints:
            return
        prefix = getattr(hint, "prefix", ())
        rest = {k: v for k, v in hint._asdict().items() if k != "prefix"}
        self._input("hint", self.clock.now(), tokens=prefix, text=json.dumps({"kind": type(hint).__name__, **rest}))
        self.scheduler.hint(hint)

    # ---- running

    def step(self) -> list[Request]:
        """One pass and one forward pass. Returns the requests that finished in it, in a fixed order.

        With `config.overlap` the pass is made while the step before runs on the device: tokens and ends are known one
        step late, and come out the same.
        """
        self._wait_for_deferred()
        begun = stopwatch()
        self.meter.begin()
        now = self.clock.now()
        self._input("begin", now)
        done = self._retry_deferred(now)
        batch = self.scheduler.schedule(self._n_steps, now)
        n_running = len(self.scheduler.running)
        launched = stopwatch()
        done += self.loop.overlapped(batch) if self.config.overlap else self.loop.plain(batch)
        if batch.rows:
            times = StepTimes(begun, launched, self.loop.collected, stopwatch())
            self.meter.stepped(batch, n_running, self.clock.now(), times)
        self._n_steps += 1
        return done

    def _take(self, batch: Batch, result: StepResult) -> list[Request]:
        """Hands a step's tokens to their requests. Returns those that end with it."""
        now = self.clock.now()
        taken = self.taking.take(batch, result, now)
        self._input("result", now, step=batch.step, tokens=taken.tokens, text=taken.extra)
        for request, reason in taken.ends:
            self._end(request, reason, now)
        going_on = [request.constraint for request in taken.grown if not request.finished]
        self.constraints.prepare([constraint for constraint in going_on if constraint is not None])
        return [request for request, _ in taken.ends]

    def _masks(self, batch: Batch) -> Sequence[Mask | None] | None:
        """What grammars allow the rows whose next token is to be chosen."""
        return self.constraints.masks([row.request.constraint if row.awaits_token else None for row in batch.rows])

    def _fail(self, batch: Batch, failure: Failure) -> list[Request]:
        """A step failed: so do its requests, and no more. KV it may have left half-written is forgotten."""
        now = self.clock.now()
        why = f"the step failed: {type(failure.error).__name__}: {failure.error}"
        self._input("failure", now, step=batch.step, a=failure.stage, text=why)
        failed = list(dict.fromkeys(row.request.root for row in batch.rows if not row.request.root.finished))
        for request in failed:
            request.error, request.fault = why, Fault.ENGINE
            self._end(request, FinishReason.ERROR, now)
        self.scheduler.put_back()
        self.memory.reset()
        return failed

    def _end(self, request: Request, reason: FinishReason, now: float) -> None:
        request.forget_pending()
        if request.output_tokens:  # a step under way may compute the last token too: nobody needs that
            request.n_computed = min(request.n_computed, request.n_tokens - 1)
        if request.id in self.scheduler:
            self.scheduler.finish(request, reason, keep=reason is not FinishReason.ERROR)
        else:
            self._deferred = [entry for entry in self._deferred if entry[2] is not request]
            heapq.heapify(self._deferred)
            request.status, request.finish_reason = Status.FINISHED, reason
        request.finished_at = now
        if request.constraint is not None:
            self.constraints.ended(request.constraint)
        self.outputs.close(request)
        for listener in self.on_finish:
            listener(request)

    # ---- deferred requests

    def _wait_for_deferred(self) -> None:
        until = self.idle_until
        if until is not None:
            self.clock.sleep_until(until)

    def _retry_deferred(self, now: float) -> list[Request]:
        refused = []
        due = []
        while self._deferred and self._deferred[0][0] <= now:
            due.append(heapq.heappop(self._deferred)[2])
        for request in due:
            self._ask_admission(request, now)
            if request.finished:
                refused.append(request)
                for listener in self.on_finish:
                    listener(request)
        return refused

    # ---- conveniences

    def run(self) -> list[Request]:
        """Steps until nothing is left. Returns the requests in the order in which they finished."""
        done = []
        while self.has_work:
            done += self.step()
        return done

    def generate(
        self, prompts: Sequence[str | Sequence[int] | np.ndarray], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[list[Request]]:
        """Serves all prompts at once; a list of `n` finished requests for each, in order.

        A prompt that can't be served comes back as one finished request with `error` set; the others go on.
        """
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise RequestError(
                f"{len(prompts)} prompts but {len(each)} sampling parameters: give one for each, or one for all"
            )
        results: list[list[Request]] = []
        for prompt, wanted in zip(prompts, each):
            try:
                results.append(self.add(prompt, wanted))
            except RequestError as error:
                failed = Request(id=-1, key=np.empty(0, np.int64), params=wanted, error=str(error))
                failed.status, failed.finish_reason = Status.FINISHED, FinishReason.ERROR
                results.append([failed])
        self.run()
        return results

    def score(self, prompt: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[tuple[TokenLogprob, ...]]:
        """Log-probability of each token of each continuation after the prompt, whose KV they share."""
        params = SamplingParams(max_tokens=0, prompt_logprobs=0, prompt_logprobs_start=len(prompt))
        results = self.generate([[*prompt, *continuation] for continuation in continuations], params)
        for (request,) in results:
            if request.error is not None:
                raise RequestError(request.error)
        return [tuple(request.prompt_logprobs) for (request,) in results]

    def flush_cache(self) -> None:
        """Forgets every cached prefix that no running request uses."""
        self._input("flush", self.clock.now())
        self.memory.reset()

    def reset_metrics(self) -> None:
        """Starts counting afresh. The log goes on, with a mark: it must hold all that led to the engine's state."""
        self._input("measure", self.clock.now())
        self.meter.reset()

    def check(self) -> None:
        """Raises AssertionError when an invariant of the cache or the pool doesn't hold. O(size); for tests."""
        self.memory.check(self.scheduler.running.values())

    # ---- the log

    def _input(
        self,
        kind: str,
        now: float,
        *,
        step: int | None = None,
        request: int = -1,
        a: int = 0,
        tokens: Sequence[int] | Tokens = (),
        text: str = "",
    ) -> None:
        step = self._n_steps if step is None else step
        self.log.add(Event(step, now, "input", kind, request, a, 0, tokens, text))

    def _decide(self, kind: str, now: float, request: int, text: str) -> None:
        self.log.add(Event(self._n_steps, now, "decision", kind, request, 0, 0, (), text))


def _changed(params: SamplingParams) -> dict[str, Any]:
    """The parameters that differ from their defaults."""
    fields = ((f.name, f.default, getattr(params, f.name)) for f in dataclasses.fields(params))
    changed = {name: value for name, default, value in fields if value != default}
    return {name: value.as_data() if isinstance(value, Grammar) else value for name, value in changed.items()}
