"""The page pool gives every page to one owner at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.cache.page_pool import PagePool, PagePoolError


class PoolAgainstModel(RuleBasedStateMachine):
    @initialize(n=st.integers(1, 40))
    def start(self, n: int) -> None:
        self.pool = PagePool(n)
        self.held: list[np.ndarray] = []

    @rule(n=st.integers(0, 12))
    def alloc(self, n: int) -> None:
        free = self.pool.n_pages - sum(len(pages) for pages in self.held)
        pages = self.pool.alloc(n)
        if n > free:
            assert pages is None
        else:
            assert pages is not None
            assert pages.dtype == np.int32
            assert len(pages) == n
            self.held.append(pages)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), cut=st.integers(0, 12))
    def free(self, data: st.DataObject, cut: int) -> None:
        pages = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.pool.free(pages[:cut])
        self.held.append(pages[cut:])

    @invariant()
    def conserved(self) -> None:
        self.pool.check(self.held)
        assert self.pool.n_used == sum(len(pages) for pages in self.held)


TestPoolAgainstModel = PoolAgainstModel.TestCase
TestPoolAgainstModel.settings = settings(max_examples=60, deadline=None)


def pages(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def test_a_page_freed_twice_is_refused_and_nothing_changes() -> None:
    pool = PagePool(4)
    held = pool.alloc(3)
    assert held is not None
    pool.free(held[:1])
    with pytest.raises(PagePoolError, match=r"pages \[0\] are free already"):
        pool.free(held)
    assert pool.n_free == 2
    pool.check([held[1:]])


def test_a_page_given_twice_in_one_call_is_refused_and_nothing_changes() -> None:
    pool = PagePool(8)
    held = pool.alloc(8)
    assert held is not None
    with pytest.raises(PagePoolError, match=r"pages \[5\] are given more than once"):
        pool.free(pages(2, 5, 3, 5))
    pool.check([held])


@pytest.mark.parametrize("bad", [-1, 4])
def test_a_page_of_no_pool_is_refused(bad: int) -> None:
    pool = PagePool(4)
    pool.alloc(4)
    with pytest.raises(PagePoolError, match=r"aren't in this pool of 4 pages"):
        pool.free(pages(0, bad))
    assert pool.n_free == 0


def test_a_fresh_pool_gives_pages_in_order() -> None:
    pool = PagePool(4)
    first = pool.alloc(3)
    assert first is not None
    assert first.tolist() == [0, 1, 2]


def test_check_finds_lost_and_shared_pages() -> None:
    pool = PagePool(4)
    pool.alloc(2)
    with pytest.raises(AssertionError, match=r"pages lost: \[1\]"):
        pool.check([pages(0)])
    with pytest.raises(AssertionError, match=r"two owners: \[0\]"):
        pool.check([pages(0), pages(0, 1)])


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 page"):
        PagePool(0)
    with pytest.raises(ValueError, match="can't be negative"):
        PagePool(1).alloc(-1)
