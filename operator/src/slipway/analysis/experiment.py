"""A/B: which of two revisions is better, for people who look whenever they like.

What is shown is the usual: Wilson's interval of each side and Newcombe's of the difference, right for one look. The verdict rests on a
sequence that holds at all looks, so that nobody has to fix a sample size beforehand or may not peek.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from slipway.analysis.histogram import moments
from slipway.analysis.intervals import Interval, newcombe, wilson
from slipway.analysis.sequential import difference_sequence
from slipway.analysis.window import Sample

ALPHA = 0.05
EFFECT = 0.1  # standard deviations: the size of the differences that are found soonest
MIN_SAMPLES = 100  # of each side: the sequence is asymptotic

Outcome = Literal["Better", "Worse", "NoDifference", "Inconclusive"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of an experiment.

    `verdict` is about the first side: Better, Worse, NoDifference (as close as `margin`), or Inconclusive. `difference` is first minus
    second with the bounds that hold at this look, `always` with those that hold at all looks. Rates are shares, durations seconds.
    """

    name: str
    verdict: Outcome
    first: Interval
    second: Interval
    difference: Interval
    always: Interval
    samples: tuple[int, int]
    message: str


def compare(first: Sample, second: Sample, margins: Mapping[str, float] | None = None) -> tuple[Comparison, ...]:
    """Compare error rate, rate of non-finite outputs and mean latency, as far as both sides export them.

    Args:
        first: of the revision that the experiment is about.
        second: of the other one, over the same time.
        margins: for each metric the difference that does not matter, in its unit; without one, NoDifference is never said.
    """
    margins = margins or {}
    found = [compare_rates("error-rate", (first.errors, first.requests), (second.errors, second.requests), margins.get("error-rate"))]
    if first.nonfinite is not None and second.nonfinite is not None:
        counts = (min(first.nonfinite, first.requests), first.requests), (min(second.nonfinite, second.requests), second.requests)
        found.append(compare_rates("nan-rate", *counts, margins.get("nan-rate")))
    if first.duration is not None and second.duration is not None:
        means = (*moments(first.duration), first.duration.count), (*moments(second.duration), second.duration.count)
        found.append(compare_means("latency-mean", *means, margins.get("latency-mean")))
    return tuple(found)


def compare_rates(name: str, first: tuple[float, float], second: tuple[float, float], margin: float | None = None) -> Comparison:
    """Compare two rates, of which the lower one is better; each side is (count, trials).

    The variance of each side is that of its rate with one event and one miss added (A. Agresti, B. Caffo, The American Statistician 54,
    2000): without, a side without events would have none.
    """
    samples = int(first[1]), int(second[1])
    sides = wilson(*first), wilson(*second)
    variances = [_rate_variance(count, trials) for count, trials in (first, second)]
    return _compared(name, sides, newcombe(*first, *second), variances, samples, margin)


def compare_means(
    name: str, first: tuple[float, float, float], second: tuple[float, float, float], margin: float | None = None
) -> Comparison:
    """Compare two means, of which the lower one is better; each side is (mean, variance, samples)."""
    samples = int(first[2]), int(second[2])
    z = NormalDist().inv_cdf(1 - ALPHA / 2)
    errors = [math.sqrt(variance / count) if count else math.nan for _, variance, count in (first, second)]
    sides = tuple(Interval(mean, mean - z * error, mean + z * error) for (mean, _, _), error in zip((first, second), errors, strict=True))
    gap, half = first[0] - second[0], z * math.hypot(*errors)
    return _compared(name, (sides[0], sides[1]), Interval(gap, gap - half, gap + half), [first[1], second[1]], samples, margin)


def _compared(  # noqa: PLR0913, PLR0917 - the parts of a comparison
    name: str,
    sides: tuple[Interval, Interval],
    difference: Interval,
    variances: list[float],
    samples: tuple[int, int],
    margin: float | None,
) -> Comparison:
    always = Interval(difference.value, -math.inf, math.inf)
    if min(samples) < MIN_SAMPLES:
        message = f"{samples[0]} and {samples[1]} requests; at least {MIN_SAMPLES} of each are needed"
        return Comparison(name, "Inconclusive", *sides, difference, always, samples, message)
    variance = variances[0] / samples[0] + variances[1] / samples[1]
    if variance > 0:
        spread = EFFECT * math.sqrt((variances[0] + variances[1]) / 2)
        always = difference_sequence(difference.value, variance, spread, ALPHA)
    verdict, message = _outcome(always, margin)
    return Comparison(name, verdict, *sides, difference, always, samples, message)


def _outcome(always: Interval, margin: float | None) -> tuple[Outcome, str]:
    if margin is not None and -margin <= always.low and always.high <= margin:
        return "NoDifference", f"the difference is at most {margin:g}, whichever way"
    if always.high < 0:
        return "Better", f"lower by {-always.high:.3g} at least"
    if always.low > 0:
        return "Worse", f"higher by {always.low:.3g} at least"
    return "Inconclusive", "no difference is proven yet; more requests may show one"


def _rate_variance(count: float, trials: float) -> float:
    rate = (count + 1) / (trials + 2)
    return rate * (1 - rate)
