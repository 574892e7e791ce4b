"""Histograms: by hand, and against the values that they were made of."""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np
import pytest

from slipway.analysis.histogram import (
    Histogram,
    at_rank,
    count_above,
    difference,
    from_cumulative,
    merge,
    moments,
    quantile,
    quantile_interval,
)

INF = math.inf
BOUNDS = (0.1, 0.2, 0.4, INF)


def of(values: list[float], bounds: tuple[float, ...] = BOUNDS) -> Histogram:
    counts = [0.0] * len(bounds)
    for value in values:
        counts[bisect_left(bounds, value)] += 1
    return Histogram(bounds, tuple(counts), math.fsum(values))


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ((10, 0, 0, 0), 0.5, 0.05),  # the first bucket begins at 0
        ((5, 5, 0, 0), 0.5, 0.1),  # on the edge
        ((5, 5, 0, 0), 0.75, 0.15),
        ((5, 0, 5, 0), 0.75, 0.3),  # over an empty bucket
        ((0, 0, 0, 10), 0.5, 0.4),  # all in +Inf: at least its lower bound
        ((9, 0, 0, 1), 0.99, 0.4),
        ((0, 0, 0, 0), 0.5, math.nan),
    ],
)
def test_quantile_is_that_of_prometheus(counts: tuple[float, ...], share: float, expected: float) -> None:
    assert quantile(Histogram(BOUNDS, counts), share) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(("limit", "expected"), [(0.0, 20), (0.1, 10), (0.15, 7.5), (0.2, 5), (0.3, 3.5), (0.4, 2), (5.0, 0)])
def test_count_above_is_exact_on_bounds_and_linear_between(limit: float, expected: float) -> None:
    assert count_above(Histogram(BOUNDS, (10, 5, 3, 2)), limit) == pytest.approx(expected)


def test_from_cumulative_levels_what_falls() -> None:
    assert from_cumulative({0.1: 5.0, INF: 9.0, 0.2: 4.5}).counts == (5.0, 0.0, 4.0)


@pytest.mark.parametrize("buckets", [{}, {0.1: 1.0}, {0.1: math.nan, INF: 2.0}, {0.1: -1.0, INF: 2.0}])
def test_broken_buckets_are_refused(buckets: dict[float, float]) -> None:
    with pytest.raises(ValueError, match="bucket"):
        from_cumulative(buckets)


def test_merge_adds_and_refuses_other_buckets() -> None:
    both = merge([of([0.05, 0.3]), of([0.05])])
    assert both is not None
    assert (both.counts, both.total) == ((2, 0, 1, 0), pytest.approx(0.4))
    assert merge([]) is None
    with pytest.raises(ValueError, match="different buckets"):
        merge([of([0.05]), Histogram((1.0, INF), (1, 1))])


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        (Histogram(BOUNDS, (5, 5, 0, 0), 2.0), Histogram(BOUNDS, (3, 1, 0, 0), 1.5), (2, 4, 0, 0)),
        (Histogram(BOUNDS, (1, 9, 0, 0), 2.0), Histogram(BOUNDS, (3, 1, 0, 0), 1.5), (1, 9, 0, 0)),  # one count fell: a reset
        (Histogram((1.0, INF), (4, 0), 2.0), Histogram(BOUNDS, (3, 1, 0, 0), 1.5), (4, 0)),  # other buckets: a new version
    ],
)
def test_difference_is_all_after_a_reset(now: Histogram, before: Histogram, expected: tuple[float, ...]) -> None:
    assert difference(now, before).counts == expected


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_the_interval_holds_the_true_quantile_of_a_skewed_distribution(share: float) -> None:
    bounds = (*(0.001 * 1.3**i for i in range(40)), INF)
    generator = np.random.default_rng(7)
    truth = math.exp(-4 + 0.8 * {0.5: 0.0, 0.95: 1.6449, 0.99: 2.3263}[share])
    held = []
    for _ in range(200):
        interval = quantile_interval(of(list(generator.lognormal(-4, 0.8, 500)), bounds), share, 0.05)
        held.append(interval.low <= truth <= interval.high and interval.low <= interval.value <= interval.high)
    assert sum(held) >= 195


def test_the_interval_is_open_when_the_largest_value_is_too_small_to_tell() -> None:
    assert quantile_interval(of([0.05] * 20), 0.99, 0.05).high == INF
    assert quantile_interval(of([0.05] * 2000), 0.99, 0.05).high <= 0.1
    assert quantile_interval(of([5.0] * 2000), 0.5, 0.05).high == INF
    assert quantile_interval(of([]), 0.5, 0.05).high == INF


def test_rank_within_a_bucket() -> None:
    assert at_rank(Histogram(BOUNDS, (10, 10, 0, 0)), 15) == pytest.approx(0.15)
    assert at_rank(Histogram(BOUNDS, (10, 10, 0, 0)), 99) == pytest.approx(0.4)


def test_moments() -> None:
    values = list(np.random.default_rng(1).gamma(9, 0.01, 20_000))
    bounds = (*(i / 200 for i in range(1, 80)), INF)
    mean, variance = moments(of(values, bounds))
    assert mean == pytest.approx(np.mean(values))
    assert variance == pytest.approx(np.var(values), rel=0.02)
    assert math.isnan(moments(of([]))[0])
    assert moments(Histogram((1.0, INF), (2, 0)))[0] == 0.5  # without a sum: from the middles
