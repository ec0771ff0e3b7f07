"""What a grammar forces comes out the same whether it is appended at once or decoded, in any traffic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.constraints import Grammar, GrammarError, Kind, regex
from engine.constraints.session import Constraints
from engine.engine import Engine
from engine.replay import first_difference, replay
from engine.request import FinishReason, RequestError, SamplingParams

VOCAB, EOS = 7, 6


def number(grammar: str, output: Sequence[int], kind: str) -> int:
    """A number below 1000 that looks random and is always the same."""
    value = 17
    for char in f"{grammar}/{kind}/{list(output)}":
        value = (value * 31 + ord(char)) % 1_000_003
    return value // 7 % 1000


class HashGrammar:
    """What may come, must come or ends is a hash of the output so far. Three texts name grammars that fail."""

    name = "hash"

    def compile(self, grammar: Grammar) -> HashGrammar:
        if grammar.text == "broken":
            raise GrammarError("this grammar can't be compiled")
        self.text = grammar.text
        compiled = HashGrammar()
        compiled.text = grammar.text
        return compiled

    def matcher(self) -> HashMatcher:
        return HashMatcher(self.text)


class HashMatcher:
    def __init__(self, text: str) -> None:
        self.text = text
        self.output: list[int] = []

    @property
    def complete(self) -> bool:
        return len(self.output) > 0 and number(self.text, self.output, "complete") < 60

    def accept(self, tokens: Sequence[int]) -> None:
        if self.text == "breaks" and len(self.output) > 4:
            raise GrammarError("the grammar has taken more states than it may")
        self.output += tokens

    def forced(self) -> list[int]:
        if self.complete or number(self.text, self.output, "forced") < 600:
            return []
        n = number(self.text, self.output, "length") % 5
        return [number(self.text, self.output, f"token{i}") % EOS for i in range(n)]

    def allowed(self) -> list[int]:
        tokens = [t for t in range(EOS) if number(self.text, self.output, f"may{t}") < 500] or [0]
        return tokens + [EOS] * (number(self.text, self.output, "end") < 200)

    def fill(self, mask: np.ndarray) -> None:
        if self.text == "stuck" and len(self.output) > 3:
            raise GrammarError("a mask took more than its fuel")
        mask[:] = sum(1 << t for t in self.allowed())


class NoText:
    """A tokenizer that is only asked for its end."""

    eos_token_ids = (EOS,)


def constrain(engine: Engine, *, jump_forward: bool) -> Constraints:
    engine.eos = (EOS,)
    engine.log.config["eos"] = [EOS]
    tokenizer: Any = NoText()
    engine.constraints = Constraints(
        tokenizer, vocab_size=VOCAB, eos=(EOS,), backend=HashGrammar, jump_forward=jump_forward
    )
    return engine.constraints


def expected(executor: Any, request: Any) -> tuple[list[int], FinishReason]:
    """The output by the law alone: what is forced comes, the rest is chosen, and it ends as soon as it may."""
    params = request.params
    matcher = HashMatcher(params.grammar.text)
    output: list[int] = []

    def ended(complete: bool) -> FinishReason | None:
        if output and output[-1] in (*params.stop_token_ids, EOS):
            return FinishReason.STOP
        if complete:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(output) == params.max_tokens else None

    while True:
        while more := matcher.forced():
            matcher.accept(more)
        new = matcher.output[len(output) :]
        for i, token in enumerate(new):
            output.append(token)
            if reason := ended(complete=matcher.complete and i == len(new) - 1):
                return output, reason
        token = executor.allowed_token(np.array([*request.key, *output]), matcher.allowed())
        if token == EOS:
            return [*output, EOS], FinishReason.STOP
        matcher.accept([token])
        if not matcher.forced():
            output.append(token)
            if reason := ended(matcher.complete):
                return output, reason


actions = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"),
            st.lists(st.integers(0, 2), min_size=1, max_size=12),
            st.integers(1, 14),
            st.integers(1, 2),
            st.sampled_from([None, "a", "b", "c", "d", "breaks", "stuck"]),
            st.sampled_from([None, 0]),
            st.sampled_from([(), (0, 4)]),
        ),
        st.tuples(st.just("step"), st.integers(1, 4)),
        st.tuples(st.just("abort"), st.integers(0, 50)),
        st.tuples(st.just("fail")),
        st.tuples(st.just("lose")),
    ),
    min_size=1,
    max_size=25,
)
configs = st.fixed_dictionaries(
    {
        "pool_tokens": st.sampled_from([32, 40, 96]),
        "page_size": st.sampled_from([1, 2, 4]),
        "cache": st.sampled_from(["radix", "radix", "flat", "none"]),
        "max_batch_tokens": st.sampled_from([3, 8, 64]),
        "max_running": st.sampled_from([1, 3]),
        "overlap": st.booleans(),
    }
)


def drive(engine: Engine, script: list[Any]) -> list[Any]:
    executor: Any = engine.executor
    requests: list[Any] = []
    for action in script:
        match action:
            case ("add", prompt, max_tokens, n, grammar, logprobs, stop):
                params = SamplingParams(
                    max_tokens=max_tokens,
                    n=n,
                    logprobs=logprobs,
                    stop_token_ids=stop,
                    prompt_logprobs=logprobs if len(prompt) > 1 else None,
                    grammar=regex(grammar) if grammar else None,
                )
                requests += engine.add(prompt, params)
            case ("step", n):
                for _ in range(n):
                    if engine.has_work:
                        engine.step()
                        engine.check()
            case ("abort", i) if requests:
                engine.abort(requests[i % len(requests)])
                engine.check()
            case ("fail",):
                executor.fail_at.add(engine._n_steps)
            case ("lose",):
                executor.lose_at.add(engine._n_steps)
    for _ in range(2000):
        if not engine.has_work:
            return requests
        engine.step()
        engine.check()
    raise AssertionError("requests are left after 2000 steps")


@given(config=configs, script=actions, jump_forward=st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_forced_tokens_come_out_as_the_grammar_says_in_any_traffic(
    hash_engine: Callable[..., Engine], config: dict[str, Any], script: list[Any], jump_forward: bool
) -> None:
    engine = hash_engine(**config)
    constrain(engine, jump_forward=jump_forward)
    requests = drive(engine, script)
    for request in requests:
        assert request.finished
        if request.finish_reason is FinishReason.ERROR:
            assert "hiccuped" in request.error or request.params.grammar.text in ("breaks", "stuck")
            continue
        if request.params.grammar is None or request.params.grammar.text in ("breaks", "stuck"):
            continue
        output, reason = expected(engine.executor, request)
        if request.finish_reason is FinishReason.ABORT:
            assert request.output == output[: request.output_tokens]
            continue
        assert (request.output, request.finish_reason) == (output, reason)
        assert len(request.token_times) == request.output_tokens
        if request.params.logprobs is not None:
            at = [(lp.token, -lp.logprob) for lp in request.logprobs]
            assert at == [(t, float(i)) for i, t in enumerate(output, request.prompt_tokens)]
    replayed = replay(engine.log)
    assert first_difference(engine.log, replayed) is None


@pytest.mark.parametrize("overlap", [False, True])
def test_forced_tokens_take_one_pass_together(hash_engine: Callable[..., Engine], overlap: bool) -> None:
    passes = {}
    for jump_forward in (True, False):
        engine = hash_engine(pool_tokens=400, max_batch_tokens=64, overlap=overlap)
        constraints = constrain(engine, jump_forward=jump_forward)
        for name in "abcdefghijklmnopqrstuvwxyz":
            engine.add([1, 2], SamplingParams(max_tokens=30, grammar=regex(name)))
            engine.run()
        passes[jump_forward] = sum(len(batch.rows) for batch in engine.executor.batches)  # type: ignore[attr-defined]
        saved, forced = constraints.counts.passes_saved, constraints.counts.forced_tokens
        assert forced > 20
        assert (saved > 0) == jump_forward
        if jump_forward:
            claimed = saved
    assert passes[False] - passes[True] == claimed


def test_a_grammar_that_fails_ends_its_own_request_alone(hash_engine: Callable[..., Engine]) -> None:
    engine = hash_engine(pool_tokens=400, max_batch_tokens=64)
    constrain(engine, jump_forward=True)
    plain = engine.add([1, 2], SamplingParams(max_tokens=20, ignore_eos=True))
    late = engine.add([1, 2], SamplingParams(max_tokens=20, grammar=regex("breaks")))
    stuck = engine.add([1, 2], SamplingParams(max_tokens=20, grammar=regex("stuck")))
    with pytest.raises(RequestError, match="can't be compiled"):
        engine.add([1, 2], SamplingParams(max_tokens=20, grammar=regex("broken")))
    engine.run()
    assert plain[0].finish_reason is FinishReason.LENGTH
    assert late[0].finish_reason is FinishReason.ERROR
    assert "more states" in (late[0].error or "")
    assert stuck[0].finish_reason is FinishReason.ERROR
    assert "fuel" in (stuck[0].error or "")
    assert engine.memory.cache.evictable_tokens == engine.memory.cache.cached_tokens


def test_a_grammar_is_refused_where_it_can_not_be_served(hash_engine: Callable[..., Engine]) -> None:
    with pytest.raises(RequestError, match="needs a tokenizer"):
        hash_engine().add([1], SamplingParams(max_tokens=3, grammar=regex("a")))
    with pytest.raises(RequestError, match="max_tokens=0"):
        hash_engine().add([1], SamplingParams(max_tokens=0, grammar=regex("a")))
    with pytest.raises(RequestError, match="ignore_eos=True can't go with a grammar"):
        SamplingParams(ignore_eos=True, grammar=regex("a"))
    assert Grammar.from_data(regex("ab").as_data()) == Grammar(Kind.REGEX, "ab")
