"""The statistics, against scipy and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from experiments import statistics as st

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 5, 9, 30, 101])
@pytest.mark.parametrize("p", [0.6, 0.9, 0.975, 0.995])
def test_t_quantile_is_scipys(dof: int, p: float) -> None:
    assert st.t_quantile(p, dof) == pytest.approx(stats.t.ppf(p, dof), rel=1e-9)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_mean_interval_is_scipys_t_interval(n: int) -> None:
    values = np.random.default_rng(n).normal(3, 2, n)
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    got = st.mean_interval(values)
    assert (got.value, got.low, got.high) == pytest.approx((values.mean(), low, high))


def test_one_repeat_gives_no_bounds() -> None:
    assert st.mean_interval([4.0]) == (4.0, None, None, 1, "t over repeats")
    assert st.mean_interval([]).value is None


@pytest.mark.parametrize(("q", "n"), [(0.5, 6), (0.9, 36), (0.99, 368)])
def test_needed_samples_is_the_first_n_whose_range_covers_the_quantile(q: float, n: int) -> None:
    def misses(m: int) -> float:
        return max(q**m, (1 - q) ** m)

    assert st.needed_samples(q) == n
    assert misses(n) <= 0.025 < misses(n - 1)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_a_percentile_with_too_few_samples_is_none(q: float) -> None:
    n = st.needed_samples(q)
    assert st.percentile(range(n - 1), q) is None
    assert st.percentile_interval(range(n - 1), q)[:3] == (None, None, None)
    assert st.percentile([*range(n), float("nan")], q) == pytest.approx(np.percentile(range(n), q * 100))


@pytest.mark.parametrize(("n", "q"), [(6, 0.5), (20, 0.5), (36, 0.9), (100, 0.9), (500, 0.99)])
def test_order_statistic_interval_is_the_narrowest_with_equal_tails(n: int, q: float) -> None:
    got = st.percentile_interval(np.arange(1, n + 1), q)  # value i is order statistic i
    assert got.low is not None
    assert got.high is not None
    low, high = int(got.low), int(got.high)
    cdf = stats.binom(n, q).cdf
    assert cdf(low - 1) <= 0.025
    assert cdf(low) > 0.025
    assert 1 - cdf(high - 1) <= 0.025 + 1e-12
    assert 1 - cdf(high - 2) > 0.025 or high == low


def test_bootstrap_of_the_mean_matches_every_possible_resample() -> None:
    values, clusters = np.array([1.0, 2.0, 4.0, 9.0]), ["a", "a", "b", "c"]
    groups = [[1.0, 2.0], [4.0], [9.0]]
    exact = [np.mean(list(itertools.chain(*draw))) for draw in itertools.product(groups, repeat=3)]
    got = st.bootstrap_interval(values, clusters, resamples=20_000)
    assert got.value == 4.0
    assert got.n == 3
    assert (got.low, got.high) == pytest.approx(
        tuple(np.quantile(exact, [0.025, 0.975], method="inverted_cdf")), abs=0.05
    )


def test_bootstrap_of_a_quantile_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).exponential(1, 300)
    theirs = stats.bootstrap(
        (values,), lambda x, axis: np.quantile(x, 0.9, axis=axis), method="percentile", n_resamples=4000, rng=1
    ).confidence_interval
    got = st.bootstrap_interval(values, np.arange(300), 0.9, resamples=4000)
    assert (got.low, got.high) == pytest.approx((theirs.low, theirs.high), rel=0.05)


def test_bootstrap_resamples_programs_not_calls() -> None:
    values = np.repeat([0.0, 1.0, 5.0, 6.0], 50)
    wide = st.bootstrap_interval(values, np.repeat(range(4), 50))
    narrow = st.bootstrap_interval(values, np.arange(200))
    assert wide.high is not None
    assert wide.low is not None
    assert narrow.high is not None
    assert narrow.low is not None
    assert wide.high - wide.low > 4 * (narrow.high - narrow.low)


def test_one_program_gives_no_bounds() -> None:
    assert st.bootstrap_interval([1.0, 2.0], ["a", "a"])[:3] == (1.5, None, None)


def test_paired_ratio_of_proportional_runs_is_exact() -> None:
    base = np.random.default_rng(2).exponential(1, 50)
    got = st.paired_ratio(base, 0.5 * base)
    assert (got.value, got.low, got.high) == pytest.approx((0.5, 0.5, 0.5))


def test_paired_ratio_agrees_with_scipys_paired_bootstrap() -> None:
    rng = np.random.default_rng(3)
    a = rng.exponential(1, 80)
    b = 1.3 * a + rng.normal(0, 0.1, 80)
    theirs = stats.bootstrap(
        (a, b),
        lambda x, y, axis: y.mean(axis) / x.mean(axis),
        paired=True,
        method="percentile",
        n_resamples=4000,
        rng=1,
    ).confidence_interval
    got = st.paired_ratio(a, b, resamples=4000)
    assert (got.low, got.high) == pytest.approx((theirs.low, theirs.high), rel=0.01)


def test_pairs_of_different_length_are_refused() -> None:
    for ratio in (st.paired_ratio, st.repeat_ratio):
        with pytest.raises(ValueError, match="2 and 1"):
            ratio([1.0, 2.0], [1.0])


def test_repeat_ratio_is_the_t_interval_of_log_ratios() -> None:
    a, b = np.array([10.0, 11.0, 9.0]), np.array([20.0, 23.0, 17.0])
    logs = np.log(b / a)
    low, high = stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs))
    got = st.repeat_ratio(a, b)
    assert (got.value, got.low, got.high) == pytest.approx((np.exp(logs.mean()), np.exp(low), np.exp(high)))
    assert st.repeat_ratio([1.0], [2.0])[:3] == (2.0, None, None)
