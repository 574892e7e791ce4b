"""Confidence intervals for one look at the data: what a report shows. A decision that is taken at every look uses `sequential`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the bounds that it lies in with the asked confidence; the unit is that of the value."""

    value: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Say whether the interval contains the value."""
        return self.low <= value <= self.high


def check_counts(count: float, trials: float) -> None:
    """Refuse counts that no experiment can have.

    Raises:
        ValueError: Not 0 <= count <= trials, or not finite.
    """
    if not (math.isfinite(trials) and 0 <= count <= trials):
        raise ValueError(f"{count} of {trials} is no count: 0 <= count <= trials must hold; look for a counter that was reset")


def wilson(count: float, trials: float, confidence: float = 0.95) -> Interval:
    """Return the score interval of a rate; without trials it is [0, 1] and the value is NaN.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927) 209-212;
    recommended for small samples by Brown, Cai, DasGupta, Interval estimation for a binomial proportion, Stat. Sci. 16 (2001).

    Args:
        count: trials that had the property.
        trials: all trials.
        confidence: two-sided, in (0, 1).

    Raises:
        ValueError: Not 0 <= count <= trials.
    """
    check_counts(count, trials)
    if trials == 0:
        return Interval(math.nan, 0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, square = count / trials, z * z / trials
    center = (rate + square / 2) / (1 + square)
    half = math.sqrt(rate * (1 - rate) * square + square * square / 4) / (1 + square)
    # At the ends the bound is the end itself; subtraction would leave a rounding error there.
    return Interval(rate, 0.0 if count == 0 else max(0.0, center - half), 1.0 if count == trials else min(1.0, center + half))


def newcombe(count: float, trials: float, other_count: float, other_trials: float, confidence: float = 0.95) -> Interval:
    """Return the interval of the difference of two independent rates, first minus second, from their Wilson intervals.

    Source: R. G. Newcombe, Interval estimation for the difference between independent proportions, Statistics in Medicine 17
    (1998) 873-890, method 10 (hybrid score, no continuity correction).

    Raises:
        ValueError: As in `wilson`.
    """
    a, b = wilson(count, trials, confidence), wilson(other_count, other_trials, confidence)
    if math.isnan(a.value) or math.isnan(b.value):
        return Interval(math.nan, -1.0, 1.0)
    difference = a.value - b.value
    below = math.hypot(a.value - a.low, b.high - b.value)
    above = math.hypot(a.high - a.value, b.value - b.low)
    return Interval(difference, difference - below, difference + above)
