"""What Prometheus reads: requests as they end, and the engine's own counters as they stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.engine import Engine
from engine.server.engine_thread import End

if TYPE_CHECKING:
    from engine.server.service import EngineService

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0, 600.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)


class ServerMetrics:
    """Counts since the server began. Never the text, the tokens or the key of a request."""

    def __init__(self, service: EngineService) -> None:
        self.registry = registry = CollectorRegistry()
        self.answers = Counter(
            "radixlab_http_requests", "HTTP requests answered", ("path", "status"), registry=registry
        )
        self.samples = Counter(
            "radixlab_samples", "Outputs that ended, by how they did", ("outcome",), registry=registry
        )
        self.refused = Counter(
            "radixlab_refused", "Prompts refused before they were queued, by status", ("status",), registry=registry
        )
        self.cut = Counter("radixlab_streams_cut", "Generations whose reader was too slow", registry=registry)
        self.prompt_tokens = Counter(
            "radixlab_prompt_tokens", "Prompt tokens of the outputs that ended", registry=registry
        )
        self.cached_tokens = Counter(
            "radixlab_cached_prompt_tokens", "Prompt tokens of those that were found in the cache", registry=registry
        )
        self.output_tokens = Counter("radixlab_output_tokens", "Output tokens", registry=registry)
        self.forced_tokens = Counter("radixlab_forced_tokens", "Output tokens that a grammar forced", registry=registry)
        self.first_token = Histogram(
            "radixlab_time_to_first_token_seconds",
            "From the arrival of a prompt to the first token of an output",
            buckets=_SECONDS,
            registry=registry,
        )
        self.per_token = Histogram(
            "radixlab_time_per_output_token_seconds",
            "Of an output, from its second token on: the mean",
            buckets=_TOKEN_SECONDS,
            registry=registry,
        )
        self.whole = Histogram(
            "radixlab_request_seconds",
            "From the arrival of a prompt to the last token of an output",
            buckets=_SECONDS,
            registry=registry,
        )
        self.queued = Histogram(
            "radixlab_queue_seconds",
            "From the arrival of a prompt to its first step",
            buckets=_SECONDS,
            registry=registry,
        )
        registry.register(_EngineCounters(service))

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def ended(self, end: End, outcome: str) -> None:
        """A sample ended. `outcome`: see `Stream.outcome`."""
        self.samples.labels(outcome).inc()
        self.output_tokens.inc(end.output_tokens)
        self.forced_tokens.inc(end.forced_tokens)
        if end.admitted_at is None:
            return
        self.queued.observe(end.admitted_at - end.arrival)
        self.prompt_tokens.inc(end.prompt_tokens)
        self.cached_tokens.inc(end.cached_tokens)
        if end.first_token_at is None or end.last_token_at is None:
            return
        self.first_token.observe(end.first_token_at - end.arrival)
        self.whole.observe(end.finished_at - end.arrival)
        if end.output_tokens > 1:
            self.per_token.observe((end.last_token_at - end.first_token_at) / (end.output_tokens - 1))


class _EngineCounters(Collector):
    """The engine's counters, read while it runs: each is right, two of them may be a step apart."""

    def __init__(self, service: EngineService) -> None:
        self._service = service

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        service, engine = self._service, self._service.engine
        memory, scheduler, counts = engine.memory, engine.scheduler, engine.constraints.counts
        cache = memory.cache
        yield GaugeMetricFamily("radixlab_running", "Outputs that are being computed", service.running)
        yield GaugeMetricFamily("radixlab_waiting", "Outputs that wait for their first step", service.waiting)
        yield GaugeMetricFamily("radixlab_ready", "1 while requests are taken", int(service.ready))
        yield GaugeMetricFamily("radixlab_pool_tokens", "Size of the KV pool", engine.capacity_tokens)
        yield GaugeMetricFamily("radixlab_pool_free_tokens", "Of the pool", memory.pool.n_free * memory.page_size)
        yield GaugeMetricFamily("radixlab_pool_cached_tokens", "Of the pool, in the cache", cache.cached_tokens)
        yield GaugeMetricFamily("radixlab_pool_evictable_tokens", "Of those, not in use", cache.evictable_tokens)
        yield CounterMetricFamily("radixlab_evicted_tokens", "Tokens evicted", cache.evicted_tokens)
        yield CounterMetricFamily(
            "radixlab_refetched_tokens", "Tokens computed again after they were evicted", cache.refetched_tokens
        )
        yield CounterMetricFamily(
            "radixlab_recomputed_tokens", "Tokens computed again after a preemption", scheduler.recomputed_tokens
        )
        yield CounterMetricFamily("radixlab_preemptions", "Outputs put back in the queue", scheduler.preemptions)
        if (eyes := getattr(engine.executor, "eyes", None)) is not None:
            yield CounterMetricFamily("radixlab_images_encoded", "Images that the model's eyes looked at", eyes.encoded)
            yield CounterMetricFamily(
                "radixlab_images_found", "Images computed whose encoding was still there", eyes.found
            )
        yield _evicted_idle(engine)
        yield from _policies(engine)
        yield CounterMetricFamily("radixlab_grammar_requests", "Outputs with a grammar", counts.requests)
        yield CounterMetricFamily(
            "radixlab_grammar_passes_saved", "Forward passes that forced tokens didn't need", counts.passes_saved
        )
        yield CounterMetricFamily("radixlab_grammar_masks", "Masks computed", counts.masks)
        yield CounterMetricFamily("radixlab_grammar_mask_seconds", "Computing masks, in threads", counts.mask_s)
        yield CounterMetricFamily("radixlab_grammar_wait_seconds", "Steps held up by masks", counts.waited_s)
        yield CounterMetricFamily("radixlab_grammar_compile_seconds", "Compiling grammars", counts.compile_s)


def _evicted_idle(engine: Engine) -> Metric:
    found = engine.memory.evicted_idle
    buckets, total = [], 0
    for bound, count in zip((*map(str, found.bounds), "+Inf"), found.counts):
        total += count
        buckets.append((bound, total))
    name, told = "radixlab_evicted_page_idle_seconds", "Pages evicted, by the time since they were last used"
    return HistogramMetricFamily(name, told, buckets=buckets, sum_value=found.total)


def _policies(engine: Engine) -> Iterator[Metric]:
    """Time in the policies' own code; what it asks the engine while it decides counts too."""
    seconds = CounterMetricFamily("radixlab_policy_seconds", "Spent in the policy's hooks", labels=("kind",))
    calls = CounterMetricFamily("radixlab_policy_calls", "Calls of the policy's hooks", labels=("kind",))
    guards = {
        "scheduling": engine.scheduler.guard,
        "retention": engine.memory.guard,
        "admission": engine.admission,
        "eviction": engine.memory.cache.guard,
    }
    for kind, guard in guards.items():
        seconds.add_metric((kind,), guard.seconds)
        calls.add_metric((kind,), guard.calls)
    yield seconds
    yield calls
