"""Wilson and Newcombe against the tables in Newcombe's papers of 1998 (Statistics in Medicine 17: 857-872 and 873-890)."""

from __future__ import annotations

import math

import pytest

from slipway.analysis.intervals import newcombe, wilson


@pytest.mark.parametrize(
    ("count", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_the_table(count: int, trials: int, low: float, high: float) -> None:
    interval = wilson(count, trials)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(trials - count, trials)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((interval.low, interval.high), abs=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((0, 10), (0, 10), -0.2775, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_newcombe_is_the_table(first: tuple[int, int], second: tuple[int, int], low: float, high: float) -> None:
    interval = newcombe(*first, *second)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_nothing_known_without_trials() -> None:
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)
    assert math.isnan(wilson(0, 0).value)
    assert (newcombe(1, 2, 0, 0).low, newcombe(1, 2, 0, 0).high) == (-1.0, 1.0)


@pytest.mark.parametrize(("count", "trials"), [(2, 1), (-1, 3), (math.nan, 3), (1, math.inf)])
def test_impossible_counts_are_refused(count: float, trials: float) -> None:
    with pytest.raises(ValueError, match="is no count"):
        wilson(count, trials)
