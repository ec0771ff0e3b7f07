"""A grammar is compiled once, however many ask; what is kept is bounded; a failure is remembered as one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.constraints import GrammarError, choices, regex
from engine.constraints.cache import BYTES_A_TEXT_BYTE, FAILURE_BYTES, GRAMMAR_BYTES, GrammarCache


class CountingBackend:
    """Compiles to a fresh object; grammars whose text begins with "bad" fail."""

    name = "counting"

    def __init__(self):
        self.compiled = []
        self.go_on = threading.Event()
        self.go_on.set()

    def compile(self, grammar):
        self.compiled.append(grammar.text)
        assert self.go_on.wait(10)
        if grammar.text.startswith("bad"):
            raise GrammarError(f"{grammar.text} can't be served")
        if grammar.text.startswith("broken"):
            raise RuntimeError("out of order")
        return object()


@pytest.fixture
def backend():
    return CountingBackend()


def test_the_same_content_is_compiled_once(backend):
    cache = GrammarCache(backend, max_bytes=10 << 20)
    first, seconds = cache.get(regex("a+"))
    again, none = cache.get(regex("a+"))
    assert again is first
    assert seconds > 0
    assert none == 0.0
    assert cache.get(choices(["a+"]))[0] is not first
    assert len(backend.compiled) == 2


def test_of_many_that_ask_at_once_one_compiles(backend):
    cache = GrammarCache(backend, max_bytes=10 << 20)
    backend.go_on.clear()
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(cache.get, regex("a+")) for _ in range(8)]
        others = [threads.submit(cache.get, regex("bad")) for _ in range(4)]
        backend.go_on.set()
        results = [each.result() for each in asked]
        failures = [each.exception() for each in others]
    assert sorted(backend.compiled) == ["a+", "bad"]
    assert len({id(compiled) for compiled, _ in results}) == 1
    assert sum(seconds > 0 for _, seconds in results) == 1
    assert {str(failure) for failure in failures} == {"bad can't be served"}
    assert all(isinstance(failure, GrammarError) for failure in failures)


def test_a_failure_is_remembered(backend):
    cache = GrammarCache(backend, max_bytes=10 << 20)
    for _ in range(3):
        with pytest.raises(GrammarError, match="bad can't be served"):
            cache.get(regex("bad"))
    assert backend.compiled == ["bad"]
    assert cache.n_bytes == FAILURE_BYTES


def test_a_backend_that_is_out_of_order_says_nothing_about_the_grammar(backend):
    cache = GrammarCache(backend, max_bytes=10 << 20)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of order"):
            cache.get(regex("broken"))
    assert backend.compiled == ["broken", "broken"]
    assert len(cache) == 0


def test_the_least_recently_used_go_when_it_is_full(backend):
    size = GRAMMAR_BYTES + BYTES_A_TEXT_BYTE
    cache = GrammarCache(backend, max_bytes=3 * size)
    for text in "abc":
        cache.get(regex(text))
    cache.get(regex("a"))
    cache.get(regex("d"))
    assert len(cache) == 3
    assert cache.n_bytes == 3 * size
    backend.compiled.clear()
    for text in "acd":
        cache.get(regex(text))
    assert backend.compiled == []
    cache.get(regex("b"))
    assert backend.compiled == ["b"]


def test_failures_count_towards_the_bound(backend):
    cache = GrammarCache(backend, max_bytes=10 * FAILURE_BYTES)
    for i in range(50):
        with pytest.raises(GrammarError):
            cache.get(regex(f"bad {i}"))
    assert len(cache) == 10
    assert cache.n_bytes <= cache.max_bytes


def test_what_is_larger_than_the_bound_is_served_and_not_kept(backend):
    cache = GrammarCache(backend, max_bytes=GRAMMAR_BYTES)
    cache.get(regex("a"))
    cache.get(regex("a"))
    assert backend.compiled == ["a", "a"]
    assert cache.n_bytes == 0
