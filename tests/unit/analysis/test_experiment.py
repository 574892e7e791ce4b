"""A/B verdicts: by value, and under repeated looks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from slipway.analysis.experiment import ALPHA, compare, compare_means, compare_rates
from slipway.analysis.histogram import Histogram
from slipway.analysis.window import Sample
from unit.analysis.test_simulation import at_most


@pytest.mark.parametrize(
    ("first", "second", "margin", "want"),
    [
        ((10, 1000), (60, 1000), None, "Better"),
        ((60, 1000), (10, 1000), None, "Worse"),
        ((11, 1000), (10, 1000), None, "Inconclusive"),
        ((11, 1000), (10, 1000), 0.05, "NoDifference"),
        ((11, 1000), (10, 1000), 0.001, "Inconclusive"),
        ((0, 1000), (0, 1000), None, "Inconclusive"),
        ((0, 1000), (0, 1000), 0.01, "NoDifference"),
        ((0, 99), (99, 99), None, "Inconclusive"),  # too few for an asymptotic method
        ((0, 0), (5, 1000), None, "Inconclusive"),
        ((0, 200), (200, 200), None, "Better"),
    ],
)
def test_rates(first: tuple[float, float], second: tuple[float, float], margin: float | None, want: str) -> None:
    found = compare_rates("error-rate", first, second, margin)
    assert found.verdict == want, found
    assert found.message


@pytest.mark.parametrize(
    ("first", "second", "want"),
    [((0.02, 1e-4, 2000), (0.03, 1e-4, 2000), "Better"), ((0.03, 1e-4, 2000), (0.02, 1e-4, 2000), "Worse"),
     ((0.0201, 1e-4, 2000), (0.02, 1e-4, 2000), "Inconclusive"), ((math.nan, math.nan, 0), (0.02, 1e-4, 2000), "Inconclusive"),
     ((0.02, 0.0, 500), (0.03, 0.0, 500), "Inconclusive")],
)  # fmt: skip
def test_means(first: tuple[float, float, float], second: tuple[float, float, float], want: str) -> None:
    assert compare_means("latency-mean", first, second).verdict == want


def test_what_is_shown_for_one_look_is_narrower_than_what_holds_for_all() -> None:
    found = compare_rates("error-rate", (10, 1000), (60, 1000))
    assert (found.first.value, found.second.value, found.difference.value) == (0.01, 0.06, pytest.approx(-0.05))
    assert found.always.low < found.difference.low < found.difference.high < found.always.high < 0


def test_compare_takes_what_both_sides_export() -> None:
    durations = Histogram((0.1, 0.2, math.inf), (500.0, 500.0, 0.0), 100.0)
    slower = Histogram((0.1, 0.2, math.inf), (0.0, 1000.0, 0.0), 150.0)
    first = Sample(60, 0, 1000, 1, 2.0, durations)
    second = Sample(60, 0, 1000, 90, 1.0, slower)
    assert [(found.name, found.verdict) for found in compare(first, second, {"nan-rate": 0.05})] == [
        ("error-rate", "Better"),
        ("nan-rate", "NoDifference"),
        ("latency-mean", "Better"),
    ]
    assert [found.name for found in compare(Sample(60, 0, 1000, 1), second)] == ["error-rate"]


@pytest.mark.parametrize("rate", [0.02, 0.3])
def test_peeking_does_not_find_what_is_not_there(rate: float) -> None:
    """Identical sides, looked at every 200 requests up to 20,000: a difference is claimed in at most 5 % of the runs."""
    generator, runs, claimed = np.random.default_rng(11), 400, 0
    for _ in range(runs):
        first = np.cumsum(generator.binomial(100, rate, 100))
        second = np.cumsum(generator.binomial(100, rate, 100))
        looks = ((float(a), float(b), 100.0 * (number + 1)) for number, (a, b) in enumerate(zip(first, second, strict=True)))
        claimed += any(compare_rates("x", (a, n), (b, n)).verdict != "Inconclusive" for a, b, n in looks)
    assert claimed <= at_most(runs, ALPHA)


def test_a_real_difference_is_found() -> None:
    """5 % against 8 %: nine of ten runs by 10,000 requests of each side."""
    generator, runs = np.random.default_rng(12), 100
    found = 0
    for _ in range(runs):
        first, second = np.cumsum(generator.binomial(500, 0.05, 20)), np.cumsum(generator.binomial(500, 0.08, 20))
        found += any(
            compare_rates("x", (float(a), 500.0 * (n + 1)), (float(b), 500.0 * (n + 1))).verdict == "Better"
            for n, (a, b) in enumerate(zip(first, second, strict=True))
        )
    assert found >= 0.9 * runs
