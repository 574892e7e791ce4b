"""That the bounds hold at all looks together: computed exactly, path by path, not sampled."""

from __future__ import annotations

import math

import numpy as np
import pytest

from slipway.analysis.intervals import wilson
from slipway.analysis.sequential import difference_sequence, intensity_sequence, rank_bounds, rate_sequence


def ever_excluded(rate: float, looks: int, excludes: list[tuple[int, int]]) -> float:
    """The exact chance that the truth is excluded at any of the looks after 1, 2, … trials; `excludes` are the counts still plausible."""
    alive, lost = {0: 1.0}, 0.0
    for low, high in excludes[:looks]:
        after: dict[int, float] = {}
        for count, chance in alive.items():
            for step, part in ((0, 1 - rate), (1, rate)):
                after[count + step] = after.get(count + step, 0.0) + chance * part
        lost += sum(chance for count, chance in after.items() if not low <= count <= high)
        alive = {count: chance for count, chance in after.items() if low <= count <= high}
    return lost


def plausible_counts(rate: float, looks: int, alpha: float, guess: float) -> list[tuple[int, int]]:
    """For each number of trials the least and the largest count whose sequence holds the rate."""
    ranges = []
    for trials in range(1, looks + 1):
        kept = [count for count in range(trials + 1) if rate_sequence(count, trials, alpha, guess=guess).holds(rate)]
        ranges.append((kept[0], kept[-1]))
    return ranges


@pytest.mark.parametrize(("rate", "alpha", "guess"), [(0.01, 0.05, 0.01), (0.2, 0.05, 0.01), (0.2, 0.05, 0.2), (0.5, 0.2, 0.5)])
def test_a_rate_is_rarely_ever_excluded(rate: float, alpha: float, guess: float) -> None:
    looks = 60
    error = ever_excluded(rate, looks, plausible_counts(rate, looks, alpha, guess))
    assert error <= alpha


def test_an_interval_for_one_look_does_not_hold_for_many() -> None:
    """Why this module is there: Wilson's interval, looked at after each trial, errs far more often than it says."""
    rate, looks = 0.2, 120
    ranges = []
    for trials in range(1, looks + 1):
        kept = [count for count in range(trials + 1) if wilson(count, trials).holds(rate)]
        ranges.append((kept[0], kept[-1]))
    assert ever_excluded(rate, looks, ranges) > 0.2


@pytest.mark.parametrize(("count", "trials"), [(0, 10), (3, 10), (10, 10), (50, 5000), (1, 1)])
def test_the_bounds_are_where_the_martingale_reaches_its_limit(count: int, trials: int) -> None:
    """Against the definition: the integral of the likelihood over the prior, done numerically, divided by the likelihood."""
    alpha, guess = 0.05, 0.1
    a, b = 0.5, 0.5 * (1 - guess) / guess
    interval = rate_sequence(count, trials, alpha, guess=guess)
    # Substituting p = sin^2 removes the poles of the prior at 0.
    grid = (np.arange(400_000) + 0.5) / 400_000 * math.pi / 2
    p, weight = np.sin(grid) ** 2, 2 * np.sin(grid) * np.cos(grid)
    log_prior = (a - 1) * np.log(p) + (b - 1) * np.log1p(-p) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    for bound in {interval.low, interval.high} - {0.0, 1.0}:
        ratio = np.exp(count * np.log(p / bound) + (trials - count) * (np.log1p(-p) - math.log1p(-bound)) + log_prior)
        assert float(np.sum(ratio * weight)) * math.pi / 2 / 400_000 == pytest.approx(1 / alpha, rel=2e-3)
    assert interval.low <= count / trials <= interval.high


def test_more_data_narrow_the_bounds_and_more_confidence_widens_them() -> None:
    widths = [(interval.high - interval.low) for n in (100, 1000, 10_000) if (interval := rate_sequence(n // 50, n, 0.05))]
    assert widths == sorted(widths, reverse=True)
    assert widths[2] < widths[0] / 5
    assert rate_sequence(2, 100, 0.01).high > rate_sequence(2, 100, 0.05).high
    assert rate_sequence(0, 0, 0.05).high == 1.0


def test_how_many_requests_without_an_error_rule_out_two_percent() -> None:
    """The figure in the design note: what a limit of 1 % costs."""
    worse = 2 * 0.01 / (0.99 + 2 * 0.01)
    needed = next(n for n in range(1, 1000) if rate_sequence(0, n, 0.05, guess=0.01).high < worse)
    assert needed == 190


def test_an_intensity_is_rarely_ever_excluded() -> None:
    """Exact: the Poisson counts of 30 seconds, looked at each second."""
    intensity, alpha, most = 3.0, 0.05, 200
    step = [math.exp(-intensity + k * math.log(intensity) - math.lgamma(k + 1)) for k in range(40)]
    alive, lost = np.zeros(most), 0.0
    alive[0] = 1.0
    for second in range(1, 31):
        alive = np.convolve(alive, step)[:most]
        holds = [intensity_sequence(k, second, alpha, guess=3.0).holds(intensity) for k in range(most)]
        lost += float(alive[~np.array(holds)].sum())
        alive = np.where(holds, alive, 0.0)
    assert lost <= alpha
    assert alive.sum() + lost == pytest.approx(1, abs=1e-6)


def test_intensity_bounds_hold_the_estimate() -> None:
    interval = intensity_sequence(600, 60, 0.01, guess=5)
    assert 8 < interval.low < interval.value == 10 < interval.high < 12
    assert intensity_sequence(0, 60, 0.01, guess=5).low == 0
    assert intensity_sequence(0, 0, 0.01, guess=5).high == math.inf


def test_difference_bounds_are_where_the_mixture_reaches_its_limit() -> None:
    """The mSPRT statistic, by numerical integration over the mixture, is 1/alpha at the bound."""
    variance, spread, alpha = 0.04, 0.3, 0.05
    half = difference_sequence(0.0, variance, spread, alpha).high
    effects = np.linspace(-8 * spread, 8 * spread, 200_001)
    prior = np.exp(-((effects / spread) ** 2) / 2) / (spread * math.sqrt(2 * math.pi))
    ratio = np.exp((half * effects - effects**2 / 2) / variance)
    assert float(np.sum(ratio * prior) * (effects[1] - effects[0])) == pytest.approx(1 / alpha, rel=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_ranks_of_a_quantile_are_wider_than_for_one_look(share: float) -> None:
    low, high = rank_bounds(2000, share, 0.05)
    once = 1.96 * math.sqrt(2000 * share * (1 - share))
    assert low < 2000 * share - once
    assert 2000 * share + once < high <= 2000
    assert rate_sequence(math.ceil(low), 2000, 0.05, guess=share).holds(share)
    assert not rate_sequence(math.floor(low) - 1, 2000, 0.05, guess=share).holds(share)


def test_few_values_say_nothing_about_the_tail() -> None:
    low, high = rank_bounds(20, 0.99, 0.05)
    assert high == 20
    assert low < 19.8


@pytest.mark.parametrize("call", [
    lambda: rate_sequence(1, 2, 0.0),
    lambda: rate_sequence(1, 2, 0.05, guess=1.0),
    lambda: intensity_sequence(-1, 2, 0.05, guess=1.0),
    lambda: difference_sequence(0, 0, 1, 0.05),
])  # fmt: skip
def test_senseless_arguments_are_refused(call: object) -> None:
    with pytest.raises(ValueError, match=r"must|none may"):
        call()  # type: ignore[operator]
