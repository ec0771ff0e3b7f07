"""What is refused, and in whose name: requests, configurations, policies that break the rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from engine.config import ConfigError, EngineConfig
from engine.engine import Engine
from engine.policies.base import Accept, Reject, RequestView, RetryAt, SchedulePolicy
from engine.policies.registry import PolicyError
from engine.request import FinishReason, RequestError, SamplingParams

HashEngine = Callable[..., Engine]
ONE = SamplingParams(max_tokens=1)


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], {}, "the prompt is empty"),
        ("text", {}, "no tokenizer"),
        ([1, 7], {}, "token id 7; the model knows ids from 0 to 6"),
        ([1, -3], {}, "token id -3"),
        ([[1], [2]], {}, "flat list of token ids"),
        ([1.5], {}, "flat list of token ids"),
        (["a"], {}, "flat list of token ids"),
        ([1] * 60, {"max_tokens": 9}, "60 prompt tokens + max_tokens=9 = 69 is more than the KV pool of 64"),
        ([1] * 38, {"max_tokens": 3}, "= 41 is more than the model's context of 40"),
        ([1], {"stop": ("x",)}, "stop strings need a tokenizer"),
        ([1], {"forced_output": (9,)}, "forced_output has token id 9"),
        ([1, 2], {"prompt_logprobs": 0, "prompt_logprobs_start": 2}, "leaves nothing to score"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_with_a_reason(
    hash_engine: HashEngine, prompt: Any, params: dict[str, Any], message: str
) -> None:
    engine = hash_engine(executor={"max_context": 40 if "context" in message else 1000})
    with pytest.raises(RequestError, match=message.replace("+", r"\+")):
        engine.add(prompt, SamplingParams(**{"max_tokens": 1, **params}))
    assert not engine.has_work
    results = engine.generate([prompt, [1, 2]], [SamplingParams(**{"max_tokens": 1, **params}), ONE])
    assert results[0][0].finish_reason is FinishReason.ERROR
    assert results[1][0].output_tokens == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1), ("max_tokens", 1.5), ("max_tokens", True), ("temperature", float("nan")),
        ("temperature", -1.0), ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1), ("min_p", 2.0), ("n", 0),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 5e-324),
        ("repetition_penalty", 1e9),
        ("presence_penalty", 3.0), ("frequency_penalty", float("inf")), ("stop", "x"), ("stop", ("",)),
        ("stop_token_ids", (-1,)), ("seed", -1), ("logprobs", -1), ("min_tokens", 200), ("forced_output", ()),
        ("temperature", "hot"),
    ],
)  # fmt: skip
def test_sampling_values_that_make_no_sense_are_named(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"{field}=.* is not allowed: it must be"):
        SamplingParams(**{field: value})


class Stubborn(SchedulePolicy):
    def order(self, waiting: Sequence[RequestView], view: Any) -> Iterator[RequestView]:
        return iter(())


class Confused(SchedulePolicy):
    def order(self, waiting: Sequence[RequestView], view: Any) -> Iterator[RequestView]:
        yield waiting[0]
        yield waiting[0]


class Greedy(SchedulePolicy):
    def chunk(self, request: RequestView, budget: int, view: Any) -> int:
        return 0


class Clumsy(SchedulePolicy):
    def order(self, waiting: Sequence[RequestView], view: Any) -> Iterator[RequestView]:
        yield from sorted(waiting, key=lambda request: request.nothing)  # type: ignore[attr-defined]


class Absent(SchedulePolicy):
    def order(self, waiting: Sequence[RequestView], view: Any) -> Any:
        return None


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Stubborn, "Stubborn: order: yielded none of 2 waiting"),
        (Confused, "Confused: order: yielded request 0, which isn't waiting"),
        (Greedy, "Greedy: chunk: gave 0 tokens"),
        (Clumsy, "Clumsy: order: raised AttributeError: .*nothing"),
        (Absent, "Absent: order: returned None, which isn't an iterator"),
    ],
)
def test_a_policy_that_breaks_the_rules_is_named(hash_engine: HashEngine, policy: type, message: str) -> None:
    engine = hash_engine()
    engine.scheduler.guard.policy = policy()
    engine.add([1, 2, 3], ONE)
    engine.add([4, 5, 6], ONE)
    with pytest.raises(PolicyError, match=message) as caught:
        engine.run()
    assert policy.__name__ in str(caught.value)


class Picky:
    def admit(self, request: RequestView, view: Any) -> Any:
        if request.client == "late":
            return RetryAt(0.05) if view.now < 0.05 else Reject("too late")
        return Reject("no guests") if request.client == "guest" else Accept()


def test_admission_policies_refuse_and_defer(hash_engine: HashEngine) -> None:
    engine = hash_engine()
    engine.admission.policy = Picky()
    with pytest.raises(RequestError, match="no guests"):
        engine.add([1], ONE, client="guest")
    (late,) = engine.add([1], ONE, client="late")
    assert not late.finished
    assert engine.run() == [late]
    assert late.error == "too late"
    assert engine.clock.now() >= 0.05


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"page_size": 0}, "page_size=0"),
        ({"max_running": 9, "max_batch_tokens": 8}, "max_running=9 is above"),
        ({"pool_tokens": 3, "page_size": 4}, "holds no page"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**config)


def test_retention_and_admission_policies_that_break_the_rules_are_named(hash_engine: HashEngine) -> None:
    class Shrugs:
        def keep(self, request: RequestView, n_new: int, ctx: Any) -> Any:
            return None

        def admit(self, request: RequestView, view: Any) -> Any:
            return "maybe"

    engine = hash_engine()
    engine.memory.guard.policy = Shrugs()
    engine.add([1, 2], ONE)
    with pytest.raises(PolicyError, match="Shrugs: keep: gave None"):
        engine.step()
    engine = hash_engine()
    engine.admission.policy = Shrugs()
    with pytest.raises(PolicyError, match="Shrugs: admit: gave 'maybe'"):
        engine.add([1, 2], ONE)


class Second:
    """Refuses the second request it sees, or asks for a time that has passed."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked = 0

    def admit(self, request: RequestView, view: Any) -> Any:
        self.asked += 1
        return self.answer if self.asked == 2 else Accept()


def test_samples_of_a_prompt_are_admitted_together_or_not_at_all(hash_engine: HashEngine) -> None:
    engine = hash_engine()
    engine.admission.policy = Second(Reject("full"))
    with pytest.raises(RequestError, match="full"):
        engine.add([1, 2], SamplingParams(max_tokens=2, n=3))
    assert not engine.has_work
    engine.check()


def test_a_retry_must_lie_ahead(hash_engine: HashEngine) -> None:
    engine = hash_engine()
    engine.admission.policy = Second(RetryAt(0.0))
    engine.add([1, 2], ONE)
    with pytest.raises(PolicyError, match="it must lie ahead"):
        engine.add([1, 2], ONE)


def test_a_deferred_request_can_be_aborted(hash_engine: HashEngine) -> None:
    engine = hash_engine()
    engine.admission.policy = Second(RetryAt(1e9))
    engine.add([1, 2], ONE)
    (deferred,) = engine.add([1, 2], ONE)
    engine.abort(deferred)
    assert deferred.finish_reason is FinishReason.ABORT
    assert len(engine.run()) == 1
