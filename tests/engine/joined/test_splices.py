"""What joined prompts are, what is refused, and what each of them takes and leaves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.engine import Engine
from engine.executor.base import Batch, StepResult
from engine.request import FinishReason, RequestError, SamplingParams, TooLong
from engine.splices import JoinedPrompt, Splice, concatenated, cut, peak_pages
from tests.engine.joined.test_traffic import plans, write
from tests.engine.joined_hash import Written, assert_the_cache_is_true, make

BASE, ONE, TWO, THREE, TAIL = [1, 2, 0, 1], [2, 2, 1], [0, 0, 1, 1, 2], [1, 0], [2, 1]
PARAMS = SamplingParams(max_tokens=4)


def joined(branches: list[list[int]], tail: list[int] = TAIL) -> dict[str, Any]:
    tokens, splices = concatenated(BASE, branches, tail)
    return {"prompt": tokens, "splices": splices}


def expected(branches: list[list[int]], n: int, tail: list[int] = TAIL) -> list[int]:
    prompt = Written()
    prompt.append(BASE)
    grown = [prompt.copy() for _ in branches]
    for one, own in zip(grown, branches):
        one.append(own)
    prompt.join(grown)
    prompt.append(tail)
    return prompt.go_on(n)


def plain(tokens: list[int], n: int) -> list[int]:
    prompt = Written()
    prompt.append(tokens)
    return prompt.go_on(n)


def test_the_first_branch_is_ordinary_text_and_empty_ones_are_nothing() -> None:
    assert concatenated(BASE, [ONE], TAIL) == ([*BASE, *ONE, *TAIL], ())
    assert concatenated(BASE, [[], ONE, []], TAIL) == ([*BASE, *ONE, *TAIL], ())
    assert concatenated(BASE, [ONE, [], TWO], TAIL) == ([*BASE, *ONE, *TWO, *TAIL], (Splice(4, 7, 5),))


def test_a_prompt_may_go_on_between_the_fork_and_the_join() -> None:
    prompt = JoinedPrompt(BASE)
    branch = prompt.copy()
    branch.append(TWO)
    prompt.append(ONE)
    prompt.join([branch], fork=len(BASE))
    assert prompt.splices == [Splice(4, 7, 5)]
    other = JoinedPrompt([3, *TWO])
    with pytest.raises(ValueError, match="branch 0 doesn't begin with the 4 tokens before the fork"):
        prompt.join([other], fork=4)


def test_what_lies_behind_a_cut_is_ordinary_text() -> None:
    splices = (Splice(2, 4, 6, (Splice(3, 4, 4),)), Splice(10, 12, 3))
    assert cut(splices, 13) == (splices[0], Splice(10, 12, 1))
    assert cut(splices, 8) == (Splice(2, 4, 4, (Splice(3, 4, 2),)),)
    assert cut(splices, 4) == ()


@given(plan=plans)
@settings(deadline=None, max_examples=50)
def test_splices_survive_being_written_down(plan: Any) -> None:
    for splice in write(JoinedPrompt(), [[1], ("join", [plan, [2], plan]), [0]]).splices:
        assert Splice.from_data(splice.as_data()) == splice


@pytest.mark.parametrize(
    ("splices", "message"),
    [
        ([Splice(4, 7, 0)], "of 1 or more tokens"),
        ([Splice(4, 7, 8)], "the prompt's end at 14"),
        ([Splice(4, 4, 2)], "its fork must be from 0 to before where it stands, 4"),
        ([Splice(-1, 4, 2)], "its fork must be from 0"),
        ([Splice(4, 7, 3), Splice(4, 9, 2)], "ends at 10"),
        ([Splice(4, 7, 3), Splice(8, 11, 2)], "lies inside another branch"),
        ([Splice(4, 7, 3, (Splice(3, 5, 1),))], "its fork must be from 4"),
        ([Splice(4, 7, 3, (Splice(4, 6, 4),))], "the prompt's end at 7"),
    ],
)
def test_splices_that_make_no_sense_are_refused(splices: list[Splice], message: str) -> None:
    engine = make()
    with pytest.raises(RequestError, match=message):
        engine.add([*BASE, *ONE, *TWO, *TAIL], PARAMS, splices=splices)
    assert not engine.has_work


def scoring(start: int) -> SamplingParams:
    return SamplingParams(max_tokens=0, prompt_logprobs=0, prompt_logprobs_start=start)


def test_logits_within_branches_are_refused_since_they_are_copied() -> None:
    engine = make()
    given = joined([ONE, TWO])
    end = len(BASE) + len(ONE) + len(TWO)
    with pytest.raises(
        RequestError, match=rf"prompt_logprobs_start={end - 1} asks .* from the last one's end on, {end}"
    ):
        engine.add(**given, params=scoring(end - 1))
    assert not engine.has_work


def test_the_token_before_the_first_that_is_scored_is_computed_in_its_place() -> None:
    """As before the first that is sampled, so that a choice is scored by the logits that an output begins with."""
    engine = make(pool_tokens=200)
    end = len(BASE) + len(ONE) + len(TWO)
    (scored,) = engine.add(**joined([ONE, TWO]), params=scoring(end))
    (sampled,) = engine.add(**joined([ONE, TWO], []), params=PARAMS)
    engine.run()
    assert [one.token for one in scored.prompt_logprobs] == TAIL
    assert scored.splices == sampled.splices == (Splice(4, 7, 4),)
    assert list(sampled.output) == expected([ONE, TWO[:-1]], 4, TWO[-1:])


@given(plan=plans, page_size=st.sampled_from([1, 2, 4]), cache=st.sampled_from(["radix", "flat", "none"]))
@settings(deadline=None, max_examples=100)
def test_what_just_fits_is_served_and_what_can_never_fit_is_refused(plan: Any, page_size: int, cache: str) -> None:
    whole = [[1, 1, 0], ("join", [[2, 0, 1], plan, [1, 2]]), [2]]
    prompt = write(JoinedPrompt(), whole)
    peak = peak_pages(prompt.splices, len(prompt.tokens) + 3, page_size)
    engine = make(pool_tokens=peak * page_size, page_size=page_size, cache=cache)
    params = SamplingParams(max_tokens=3)
    for branch in ([1, 1, 0, 2, 0, 1], [1, 1, 0, 1, 2]):  # so that the cache has something that is in the way
        engine.add(branch, SamplingParams(max_tokens=0))
        engine.run()
    (request,) = engine.add(prompt.tokens, params, splices=prompt.splices)
    for _ in range(500):
        if engine.has_work:
            engine.step()
            engine.check()
    assert list(request.output) == write(Written(), whole).go_on(3)
    engine = make(pool_tokens=(peak - 1) * page_size, page_size=page_size, cache=cache)
    with pytest.raises(TooLong, match=r"raise engine\.pool_tokens"):
        engine.add(prompt.tokens, params, splices=prompt.splices)


def test_joined_kv_is_never_found_by_others() -> None:
    engine = make(pool_tokens=200)
    given = joined([ONE, TWO, THREE])
    (first,) = engine.add(**given, params=PARAMS)
    engine.run()
    assert list(first.output) == expected([ONE, TWO, THREE], 4)
    (same_text,) = engine.add(given["prompt"], PARAMS)
    engine.run()
    assert same_text.n_cached == len(BASE) + len(ONE), "what the first branch computed is ordinary"
    assert list(same_text.output) == plain(given["prompt"], 4) != list(first.output)
    (again,) = engine.add(**given, params=PARAMS)
    engine.run()
    assert list(again.output) == list(first.output)
    assert_the_cache_is_true(engine)


def test_only_what_no_branch_has_computed_is_computed() -> None:
    engine = make(pool_tokens=200)
    executor: Any = engine.executor
    outputs = []
    for own in (ONE, TWO, THREE):
        (branch,) = engine.add([*BASE, *own], PARAMS)
        engine.run()
        outputs.append([*own, *branch.output])
    before = executor.computed_tokens
    (request,) = engine.add(**joined(outputs), params=SamplingParams(max_tokens=1))
    engine.run()
    assert executor.computed_tokens - before == 3 + len(TAIL), "the last token of each output, and the tail"
    assert request.n_cached == request.prompt_tokens - 3 - len(TAIL)
    assert [(a, b) for _, kind, _, a, b, _ in engine.log.decisions() if kind == "splice"] == [(11, 9), (20, 6)]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_an_abort_at_any_stage_gives_all_back(steps: int, overlap: bool) -> None:
    engine = make(pool_tokens=64, overlap=overlap, max_batch_tokens=8)
    (request,) = engine.add(**joined([ONE, TWO, THREE]), params=PARAMS)
    (other,) = engine.add([*BASE, *TWO], PARAMS)
    for _ in range(steps):
        engine.step()
    engine.abort(request)
    engine.check()
    engine.run()
    engine.check()
    assert request.finish_reason is FinishReason.ABORT
    assert list(other.output) == plain([*BASE, *TWO], 4)
    assert engine.memory.cache.evictable_tokens == engine.memory.cache.cached_tokens


def test_a_row_that_fails_in_a_branch_fails_its_request_once() -> None:
    engine = make(pool_tokens=64)
    executor: Any = engine.executor
    collect = executor.collect

    def failing(pending: Any) -> StepResult:
        result = collect(pending)
        errors = tuple("bad logits" if row.request.owner is not None else None for row in pending[0].rows)
        return result._replace(errors=errors)

    executor.collect = failing
    (request,) = engine.add(**joined([ONE, TWO, THREE]), params=PARAMS)
    (other,) = engine.add(TWO, PARAMS)
    finished = engine.run()
    engine.check()
    assert finished.count(request) == 1
    assert request.error == "bad logits"
    assert other.error is None


def test_samples_of_one_prompt_each_take_their_own_copies() -> None:
    engine = make(pool_tokens=200)
    requests = engine.add(**joined([ONE, TWO]), params=SamplingParams(max_tokens=4, n=3))
    engine.run()
    assert [list(request.output) for request in requests] == [expected([ONE, TWO], 4)] * 3


def test_a_batch_has_no_more_rows_than_requests_may_run() -> None:
    engine = make(pool_tokens=200, max_running=2, max_batch_tokens=64)
    executor: Any = engine.executor
    launch, n_rows = executor.launch, list[int]()

    def counted(batch: Batch) -> Batch:
        n_rows.append(len(batch.rows))
        return launch(batch)

    executor.launch = counted
    for _ in range(3):
        engine.add(**joined([ONE, TWO, THREE, ONE, TWO]), params=PARAMS)
    engine.run()
    assert max(n_rows) == 2


def test_an_engine_with_a_tokenizer_takes_splices_with_token_ids() -> None:
    from engine.make import make_engine

    engine: Engine = make_engine(EngineConfig(model="tiny", pool_tokens=256, device="cpu"))
    encode = engine.tokenizer.encode  # type: ignore[union-attr]
    base = encode("Tips: ")
    own, tail = (encode(text, add_special_tokens=False) for text in ("one", "So"))
    tokens, splices = concatenated(base, [own, own], tail)
    (request,) = engine.add(tokens, SamplingParams(max_tokens=3, ignore_eos=True), splices=splices)
    engine.run()
    assert request.output_tokens == 3
