"""What the engine promises of a step, each in a case small enough to follow by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from engine.engine import Engine
from engine.policies.base import RequestView, SchedulePolicy
from engine.request import FinishReason, SamplingParams, Status

HashEngine = Callable[..., Engine]
ONE = SamplingParams(max_tokens=1)


def rows(engine: Engine, step: int) -> list[tuple[int, int, int]]:
    executor: Any = engine.executor
    return [(row.request.id, row.start, row.n_new) for row in executor.batches[step].rows]


def test_waiting_requests_share_an_uncached_prefix_in_the_very_step_that_computes_it(hash_engine: HashEngine) -> None:
    engine = hash_engine(max_batch_tokens=64)
    prefix = [1, 2, 3, 4, 5]
    for tail in ([0, 1], [2, 2], [6]):
        engine.add(prefix + tail, ONE)
    done = engine.step()
    assert len(done) == 3
    assert sum(n for _, _, n in rows(engine, 0)) == 5 + 2 + 2 + 1
    assert sorted(request.n_cached for request in done) == [0, 5, 5]


def test_with_the_cache_off_nothing_is_shared(hash_engine: HashEngine) -> None:
    engine = hash_engine(max_batch_tokens=64, cache="none")
    results = engine.generate([[1, 2, 3, 4]] * 3, ONE)
    assert [request.n_cached for (request,) in results] == [0, 0, 0]
    assert engine.memory.cache.cached_tokens == 0
    assert engine.memory.pool.n_free == engine.memory.pool.n_pages


def test_the_last_prompt_token_is_always_computed(hash_engine: HashEngine) -> None:
    engine = hash_engine()
    engine.generate([[1, 2, 3, 4]], ONE)
    ((again,),) = engine.generate([[1, 2, 3, 4]], ONE)
    assert again.n_cached == 3


def test_a_long_prompt_is_chunked_and_decodes_go_on_beside_it(hash_engine: HashEngine) -> None:
    engine = hash_engine(max_batch_tokens=4, max_running=4)
    (short,) = engine.add([1], SamplingParams(max_tokens=6))
    engine.step()
    (long,) = engine.add([2] * 10, ONE)
    while not long.finished:
        engine.step()
    assert [rows(engine, i) for i in range(1, 5)] == [
        [(short.id, 1, 1), (long.id, 0, 3)],
        [(short.id, 2, 1), (long.id, 3, 3)],
        [(short.id, 3, 1), (long.id, 6, 3)],
        [(short.id, 4, 1), (long.id, 9, 1)],
    ]


def test_namespaces_never_share(hash_engine: HashEngine) -> None:
    engine = hash_engine()
    engine.generate([[1, 2, 3, 4]], ONE)
    (other,) = engine.add([1, 2, 3, 4], ONE, namespace="other")
    engine.run()
    assert other.n_cached == 0


def test_samples_of_one_prompt_share_its_kv_and_differ_in_seed(hash_engine: HashEngine) -> None:
    engine = hash_engine()
    requests = engine.add([1, 2, 3, 4], SamplingParams(max_tokens=2, n=3, seed=10))
    engine.run()
    assert [request.seed for request in requests] == [10, 11, 12]
    assert [request.n_cached for request in requests] == [0, 3, 3]
    assert {request.siblings for request in requests} == {3}


def test_a_full_pool_preempts_and_recomputes_little(hash_engine: HashEngine) -> None:
    engine = hash_engine(pool_tokens=24, max_running=2)
    for first in (1, 2):
        engine.add([first] * 4, SamplingParams(max_tokens=16), predicted_output=1)
    done = engine.run()
    assert [request.output_tokens for request in done] == [16, 16]
    assert engine.metrics.preemptions > 0
    assert engine.metrics.recomputed_tokens < 20
    engine.check()


def test_admission_keeps_what_running_requests_still_need(hash_engine: HashEngine) -> None:
    engine = hash_engine(pool_tokens=32, max_running=4)
    requests = [engine.add([i] * 4, SamplingParams(max_tokens=12), predicted_output=12)[0] for i in range(4)]
    engine.step()
    assert [request.status for request in requests] == [Status.RUNNING] * 2 + [Status.WAITING] * 2
    engine.run()
    assert engine.metrics.preemptions == 0


class Sips(SchedulePolicy):
    def chunk(self, request: RequestView, budget: int, view: Any) -> int:
        return min(2, budget)


def test_prompts_under_way_take_over_what_others_cached_meanwhile(hash_engine: HashEngine) -> None:
    engine = hash_engine(max_batch_tokens=64)
    engine.scheduler.guard.policy = Sips()
    prompt = [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]
    first, second = engine.add([*prompt, 0], ONE)[0], engine.add([*prompt, 2], ONE)[0]
    engine.run()
    assert first.n_cached + second.n_cached == len(prompt)
    assert min(first.n_cached, second.n_cached) > 0
    assert engine.executor.computed_tokens == len(prompt) + 2  # type: ignore[attr-defined]
    engine.check()
    assert engine.memory.cache.evictable_tokens == engine.memory.cache.cached_tokens


def test_a_cached_prefix_about_to_be_used_does_not_count_as_room(hash_engine: HashEngine) -> None:
    engine = hash_engine(pool_tokens=32, max_running=4)
    engine.generate([[5] * 16, [5] * 12 + [6]], SamplingParams(max_tokens=0))  # two nodes: 12 tokens, then 4
    (running,) = engine.add([1] * 8, SamplingParams(max_tokens=8), predicted_output=8)
    engine.step()
    (waiting,) = engine.add([5] * 16 + [2], SamplingParams(max_tokens=8), predicted_output=8)
    engine.step()
    assert (running.status, waiting.status) == (Status.RUNNING, Status.WAITING)
    engine.run()
    assert engine.metrics.preemptions == 0


class Unyielding(SchedulePolicy):
    def preempt(self, running: Any, waiting: Any, need: int, view: Any) -> Iterator[RequestView]:
        return iter(())


def test_the_engine_makes_room_where_the_policy_names_nobody(hash_engine: HashEngine) -> None:
    engine = hash_engine(pool_tokens=24, max_running=2)
    engine.scheduler.guard.policy = Unyielding()
    requests = [engine.add([i] * (3 + i), SamplingParams(max_tokens=16), predicted_output=1)[0] for i in (1, 2)]
    while engine.has_work:
        engine.step()
        batch = engine.executor.batches[-1]  # type: ignore[attr-defined]
        left_out = {r.id for r in requests if r.status is Status.RUNNING} - {row.request.id for row in batch.rows}
        assert not left_out, "a running request waits for memory instead of somebody giving way"
    assert [request.output_tokens for request in requests] == [16, 16]
    assert engine.metrics.preemptions > 0


def test_prompts_that_block_one_another_give_way(hash_engine: HashEngine) -> None:
    engine = hash_engine(pool_tokens=32, max_batch_tokens=8, max_running=4)
    engine.scheduler.guard.policy = Sips()
    requests = [engine.add([i] * 12, ONE)[0] for i in (1, 2)]
    engine.step()
    taken = engine.memory.pool.alloc(engine.memory.pool.n_free)  # pages that somebody else took
    assert taken is not None
    engine.step()
    assert sorted(request.status.value for request in requests) == ["running", "waiting"]
    engine.memory.pool.free(taken)
    engine.run()
    assert all(request.output_tokens == 1 for request in requests)
    engine.check()


def test_a_whole_entry_that_fills_the_pool_does_not_block_who_would_use_part_of_it(hash_engine: HashEngine) -> None:
    engine = hash_engine(pool_tokens=24, page_size=2, cache="flat", max_batch_tokens=64)
    prompt = [1, 2, 3] * 8
    requests = engine.add(prompt, SamplingParams(max_tokens=0, n=2))
    for _ in range(10):
        engine.step()
        engine.check()
    assert all(request.finished for request in requests)


def test_a_policy_may_preempt_although_memory_suffices(hash_engine: HashEngine) -> None:
    engine = hash_engine(max_running=1)

    class Urgent(SchedulePolicy):
        def preempt(self, running: Any, waiting: Any, need: int, view: Any) -> Iterator[RequestView]:
            if waiting and waiting[0].priority > running[0].priority:
                yield running[0]

        def order(self, waiting: Sequence[RequestView], view: Any) -> Iterator[RequestView]:
            return iter(sorted(waiting, key=lambda request: -request.priority))

    engine.scheduler.guard.policy = Urgent()
    (slow,) = engine.add([1, 2], SamplingParams(max_tokens=9))
    engine.step()
    (urgent,) = engine.add([3, 4], ONE, priority=1)
    done = engine.run()
    assert done == [urgent, slow]
    assert slow.preemptions == 1


def test_abort_waiting_and_running(hash_engine: HashEngine) -> None:
    engine = hash_engine(max_running=1)
    (running,) = engine.add([1, 2], SamplingParams(max_tokens=9))
    (waiting,) = engine.add([3, 4], SamplingParams(max_tokens=9))
    engine.step()
    engine.abort(running)
    engine.abort(waiting)
    assert running.finish_reason is waiting.finish_reason is FinishReason.ABORT
    assert not engine.has_work
    engine.abort(running)
    engine.check()


def test_a_failing_step_fails_its_requests_and_no_more(hash_engine: HashEngine) -> None:
    engine = hash_engine(max_running=1)
    executor: Any = engine.executor
    (first,) = engine.add([1, 2, 3], SamplingParams(max_tokens=3))
    (second,) = engine.add([1, 2, 4], SamplingParams(max_tokens=3))
    executor.fail_at.add(0)  # the prompt is in the cache by then, its KV isn't written
    engine.run()
    assert first.finish_reason is FinishReason.ERROR
    assert "the device hiccuped" in str(first.error)
    assert second.finish_reason is FinishReason.LENGTH
    engine.check()


def test_a_row_with_bad_logits_fails_alone(hash_engine: HashEngine) -> None:
    engine = hash_engine()
    executor: Any = engine.executor
    executor.bad_requests.add(0)
    (bad,) = engine.add([1, 2, 3], ONE)
    (good,) = engine.add([1, 2, 3], ONE)
    engine.run()
    assert (bad.finish_reason, bad.error) == (FinishReason.ERROR, "bad logits")
    assert good.finish_reason is FinishReason.LENGTH
    engine.check()


def test_forced_output_comes_out_and_ends_the_request(hash_engine: HashEngine) -> None:
    engine = hash_engine()
    ((request,),) = engine.generate([[1, 2]], SamplingParams(max_tokens=9, forced_output=(6, 5, 4)))
    assert request.output == [6, 5, 4]
    assert request.finish_reason is FinishReason.STOP


def test_scoring_shares_the_prompt_and_scores_each_continuation(hash_engine: HashEngine) -> None:
    engine = hash_engine(max_batch_tokens=64)
    scores = engine.score([1, 2, 3, 4, 5], [[1, 1], [2], [1, 3, 3]])
    assert [[score.token for score in choice] for choice in scores] == [[1, 1], [2], [1, 3, 3]]
    executor: Any = engine.executor
    # the last prompt position is computed for each (its logits score the first token); all before it once
    assert executor.computed_tokens == 4 + (1 + 2) + (1 + 1) + (1 + 3)


def test_a_request_that_must_compute_what_is_cached_keeps_its_own_pages(hash_engine: HashEngine) -> None:
    engine = hash_engine(max_batch_tokens=64)
    prompt = [1, 2, 3, 4, 5, 6]
    engine.generate([prompt], SamplingParams(max_tokens=0))
    scoring = SamplingParams(max_tokens=3, prompt_logprobs=0, prompt_logprobs_start=3)
    (request,) = engine.add([*prompt, 0, 0, 0], scoring)
    while engine.has_work:
        engine.step()
        engine.check()
    assert request.n_cached == 2
    assert [score.token for score in request.prompt_logprobs] == [4, 5, 6, 0, 0, 0]


def test_eos_and_stop_tokens_end_a_request_unless_told_otherwise(hash_engine: HashEngine) -> None:
    engine = hash_engine(pool_tokens=400)
    engine.eos = (0,)
    ((plain,),) = engine.generate([[1, 2]], SamplingParams(max_tokens=100))
    assert plain.finish_reason is FinishReason.STOP
    assert plain.output[-1] == plain.stop_match == 0
    ((on,),) = engine.generate([[1, 2]], SamplingParams(max_tokens=100, ignore_eos=True))
    assert on.output_tokens == 100
    stop = on.output[0]
    ((short,),) = engine.generate([[1, 2]], SamplingParams(max_tokens=100, ignore_eos=True, stop_token_ids=(stop,)))
    assert (short.output, short.stop_match) == ([stop], stop)


def test_retention_decides_what_enters_the_cache(hash_engine: HashEngine) -> None:
    engine = hash_engine()

    class Half:
        def keep(self, request: RequestView, n_new: int, ctx: Any) -> int:
            return n_new // 2

    engine.memory.guard.policy = Half()
    engine.generate([[1] * 8], SamplingParams(max_tokens=3))
    assert engine.memory.cache.cached_tokens == 4
    engine.check()


def test_a_replay_keeps_what_a_request_carries(hash_engine: HashEngine) -> None:
    from engine.replay import replay

    engine = hash_engine()
    engine.add([1, 2], ONE, parent=0, deadline=0.0, predicted_output=0, client="c", priority=-1)
    engine.run()
    arrival = next(event for event in replay(engine.log).events if event.kind == "arrive")
    assert arrival.text == next(event for event in engine.log.events if event.kind == "arrive").text
    assert '"parent": 0' in arrival.text
