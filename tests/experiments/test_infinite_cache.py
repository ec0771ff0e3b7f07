"""The infinite cache: equal to an engine that never evicts, one request at a time, to the token."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lang
from engine.config import EngineConfig
from engine.make import make_engine
from engine.request import SamplingParams
from engine.splices import JoinedPrompt, concatenated
from experiments.infinite_cache import infinite_hit_rate, infinite_hits
from lang.backends.engine import EngineBackend

GREEDY = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def big():
    """An engine whose pool never fills here, with pages of a token."""
    return make_engine(EngineConfig(model="tiny", pool_tokens=60_000))


def drain(engine):
    while engine.has_work:
        engine.step()


def one_at_a_time(engine, prompts, params=GREEDY, **placed):
    engine.flush_cache()
    done = []
    for prompt in prompts:
        done += engine.add(prompt, params, **placed)
        drain(engine)
    return done


def rate(requests):
    return sum(r.n_cached for r in requests) / sum(r.prompt_tokens for r in requests)


def conversations(seed, n=40):
    """Prompts that share beginnings, come again, and go on behind an output."""
    rng = random.Random(seed)
    fresh = lambda n: [rng.randrange(3, 500) for _ in range(n)]  # noqa: E731
    heads = [fresh(rng.randrange(1, 30)) for _ in range(3)]
    return [rng.choice(heads)[: rng.randrange(1, 40)] + fresh(rng.randrange(0, 12)) + [7] for _ in range(n)]


@pytest.mark.parametrize("seed", range(3))
def test_an_engine_that_never_evicts_finds_exactly_as_much(big, seed):
    requests = one_at_a_time(big, conversations(seed))
    assert infinite_hits(requests) == [request.n_cached for request in requests]
    assert infinite_hit_rate(requests) == rate(requests) > 0.1


def test_what_goes_on_behind_an_output_finds_all_of_it_but_its_last_token(big):
    (first,) = one_at_a_time(big, [[5, 6, 7, 8]])
    whole = [5, 6, 7, 8, *first.output]
    both = [first, *big.add([*whole, 9, 9], GREEDY)]
    drain(big)
    assert infinite_hits(both) == [0, len(whole) - 1] == [request.n_cached for request in both]


def test_the_last_token_of_a_prompt_is_never_a_hit(big):
    requests = one_at_a_time(big, [[5, 6, 7, 8]] * 3)
    assert infinite_hits(requests) == [0, 3, 3] == [request.n_cached for request in requests]


def test_namespaces_share_nothing(big):
    prompts = [[5, 6, 7, 8]] * 2
    requests = one_at_a_time(big, prompts, namespace="a")
    for space in ("b", "a"):
        requests += big.add(prompts[0], GREEDY, namespace=space)
        drain(big)
    assert infinite_hits(requests) == [0, 3, 0, 3] == [request.n_cached for request in requests]


@pytest.mark.parametrize("seed", range(4))
def test_joined_branches_are_found_as_the_engine_finds_them(big, seed):
    rng = random.Random(seed)
    fresh = lambda n: [rng.randrange(3, 500) for _ in range(n)]  # noqa: E731
    bases, parts = [fresh(rng.randrange(1, 20)) for _ in range(2)], [fresh(rng.randrange(1, 15)) for _ in range(5)]
    big.flush_cache()
    requests = []
    for _ in range(25):
        base = rng.choice(bases)
        branches = [rng.choice(parts)[: rng.randrange(1, 15)] for _ in range(rng.randrange(1, 5))]
        tokens, splices = concatenated(base, branches, [7, 8])
        if rng.random() < 0.3:  # a second fork, behind what is joined already
            prompt = JoinedPrompt(tokens, splices)
            prompt.join([JoinedPrompt([*tokens, *rng.choice(parts)], splices) for _ in range(2)])
            prompt.append([9])
            tokens, splices = prompt.tokens, tuple(prompt.splices)
        if rng.random() < 0.3:  # as the language does it: branches are computed before
            requests += big.add([*base, *branches[-1]], SamplingParams(max_tokens=0))
            drain(big)
        requests += big.add(tokens, GREEDY, splices=splices)
        drain(big)
    found = infinite_hits(requests)
    assert found == [request.n_cached for request in requests]
    assert sum(found[i] for i, request in enumerate(requests) if request.splices) > 100


def test_scored_tokens_are_computed_by_any_cache(big):
    scoring = SamplingParams(max_tokens=0, prompt_logprobs=0, prompt_logprobs_start=4)
    requests = one_at_a_time(big, [[5, 6, 7, 8, 9, 10, 11]] * 2, scoring)
    assert infinite_hits(requests) == [0, 3] == [request.n_cached for request in requests]


def test_programs_of_several_calls_and_selects_come_out_exactly(big):
    @lang.function
    def program(s, topic):
        s += "All of them begin with this. Say something of " + topic + ":" + lang.gen("one", max_tokens=9)
        s += " And then" + lang.gen("two", max_tokens=4, n=2)
        s += " Good?" + lang.select("good", [" yes", " no", " not at all"])

    big.flush_cache()
    backend = EngineBackend(big)
    calls: list = []
    for topic in ("tea", "rain", "tea", "trains"):
        state = program.run(topic, backend=backend, temperature=0, ignore_eos=True)
        calls += state._run.calls
    requests = [request for call in calls for request in call.requests]
    found, cached = infinite_hits(requests), [request.n_cached for request in requests]
    assert sum(found) > 100
    assert infinite_hit_rate(requests) == sum(found) / sum(r.prompt_tokens for r in requests)
    alone = [i for i, request in enumerate(requests) if request.siblings == 1]
    assert [found[i] for i in alone] == [cached[i] for i in alone]


def test_requests_that_were_never_admitted_count_nowhere(big):
    served = one_at_a_time(big, [[5, 6, 7, 8]] * 2)
    (refused,) = one_at_a_time(big, [[5, 6, 7, 8]])
    refused.admitted_at = None
    assert infinite_hits([*served, refused]) == [0, 3, 0]
    assert infinite_hit_rate([*served, refused]) == 3 / 8
    assert infinite_hit_rate([refused]) == infinite_hit_rate([]) == 0


def test_order_is_that_of_arrival_not_of_the_list(big):
    first, second = one_at_a_time(big, [[5, 6, 7], [5, 6, 7, 8, 9, 10]])
    assert infinite_hits([second, first]) == [3, 0] == [second.n_cached, first.n_cached]


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(-2, 2), min_size=1, max_size=8), min_size=1, max_size=12))
def test_it_agrees_with_looking_at_every_pair(prompts):
    from engine.request import Request

    requests = []
    for i, prompt in enumerate(prompts):
        key = np.array(prompt, np.int64)
        request = Request(id=i, key=key, params=GREEDY, arrival=float(i), admitted_at=float(i))
        request.tokens, request.n_tokens, request.n_ever_computed = key, len(key), len(key)
        requests.append(request)

    def shared(one, other):
        n = 0
        while n < min(len(one) - 1, len(other)) and one[n] == other[n]:
            n += 1
        return n

    brute = [max((shared(one, other) for other in prompts[:i]), default=0) for i, one in enumerate(prompts)]
    assert infinite_hits(requests) == brute
