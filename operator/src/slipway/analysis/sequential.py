"""Bounds that hold at all looks together. A rollout looks at the same growing window once an interval; an ordinary 95 % interval, looked
at again and again, is sure to exclude the truth at some time, and the rollout would be rolled back for nothing.

All bounds here come from one idea: the likelihood, averaged over a prior and divided by the likelihood of the true value, is a martingale
with mean 1, so it ever reaches 1/alpha with a probability of at most alpha (J. Ville, 1939). The values it has not excluded are a
confidence sequence: H. Robbins, Statistical methods related to the law of the iterated logarithm, Ann. Math. Stat. 41 (1970);
S. R. Howard et al., Time-uniform, nonparametric, nonasymptotic confidence sequences, Ann. Stat. 49 (2021). The prior decides only where the
bounds are tightest, never whether they hold; it must not depend on the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from slipway.analysis.intervals import Interval, check_counts

PRIOR_COUNT = 0.5  # pseudo-count of events in the priors: small, so that a wrong guess costs little
STEPS = 60  # halvings: beyond the precision of a float


def rate_sequence(count: float, trials: float, alpha: float, *, guess: float = 0.01) -> Interval:
    """Return the confidence sequence of a rate: it holds the truth at all looks together with probability 1 - alpha.

    The beta-binomial mixture with the prior Beta(1/2, 1/2 * (1 - guess) / guess), whose mean is `guess`; exact for every sample size.

    Args:
        count: events so far.
        trials: trials so far.
        alpha: chance, over all looks, that the truth is ever outside; in (0, 1).
        guess: the rate around which the bounds shall be tightest, in (0, 1): the limit it is held against.

    Raises:
        ValueError: Not 0 <= count <= trials, or alpha or guess outside (0, 1).
    """
    check_counts(count, trials)
    if not (0 < alpha < 1 and 0 < guess < 1):
        raise ValueError(f"alpha {alpha} and guess {guess} must lie between 0 and 1")
    if trials == 0:
        return Interval(math.nan, 0.0, 1.0)
    rate, threshold = count / trials, _thresholds(trials, alpha, guess)(count)

    def plausible(p: float) -> bool:
        return _log_power(p, count) + _log_power(1 - p, trials - count) > threshold

    low = 0.0 if count == 0 else _edge(plausible, rate, 0.0)
    high = 1.0 if count == trials else _edge(plausible, rate, 1.0)
    return Interval(rate, low, high)


def intensity_sequence(events: float, seconds: float, alpha: float, *, guess: float) -> Interval:
    """Return the confidence sequence of a Poisson rate (events a second), by the gamma-Poisson mixture.

    The prior is Gamma with shape 1/2 and mean `guess`.

    Raises:
        ValueError: Negative events or seconds, alpha outside (0, 1), guess not positive.
    """
    if not (events >= 0 and seconds >= 0 and 0 < alpha < 1 and guess > 0):
        raise ValueError(f"{events} events in {seconds} s, alpha {alpha}, guess {guess}: none may be negative, alpha is below 1")
    if seconds == 0:
        return Interval(math.nan, 0.0, math.inf)
    a, b = PRIOR_COUNT, PRIOR_COUNT / guess
    rate = events / seconds
    evidence = a * math.log(b) - (a + events) * math.log(b + seconds) + math.lgamma(a + events) - math.lgamma(a)
    threshold = evidence - math.log(1 / alpha)

    def plausible(intensity: float) -> bool:
        return _log_power(intensity, events) - intensity * seconds > threshold

    beyond = max(rate, 1 / seconds)
    while plausible(beyond):
        beyond *= 2
    return Interval(rate, 0.0 if events == 0 else _edge(plausible, rate, 0.0), _edge(plausible, rate, beyond))


def difference_sequence(difference: float, variance: float, spread: float, alpha: float) -> Interval:
    """Return the confidence sequence of a difference of two means, by the normal mixture (mSPRT); asymptotic, for large samples.

    Source: R. Johari, P. Koomen, L. Pekelis, D. Walsh, Peeking at A/B tests, KDD 2017 (always valid p-values), equation of the mSPRT with
    a normal mixture of variance spread^2.

    Args:
        difference: of the two sample means.
        variance: of that difference, s1^2/n1 + s2^2/n2; positive.
        spread: standard deviation of the mixture: the size of the effects that shall be found soonest; positive.
        alpha: chance, over all looks, that the truth is ever outside.

    Raises:
        ValueError: variance or spread not positive, alpha outside (0, 1).
    """
    if not (variance > 0 and spread > 0 and 0 < alpha < 1):
        raise ValueError(f"variance {variance} and spread {spread} must be positive and alpha {alpha} between 0 and 1")
    mixture = spread * spread
    half = math.sqrt(variance * (variance + mixture) / mixture * (2 * math.log(1 / alpha) + math.log1p(mixture / variance)))
    return Interval(difference, difference - half, difference + half)


def rank_bounds(trials: float, share: float, alpha: float) -> tuple[float, float]:
    """Return how many of `trials` values may lie below the quantile `share`, at all looks together with probability 1 - alpha.

    The values below the true quantile are a Bernoulli(share) sequence, so a count is excluded when `rate_sequence` with that count excludes
    `share`. The bounds are the least and the largest count that is not excluded, as real numbers.
    """
    threshold = _thresholds(trials, alpha, share)

    def plausible(below: float) -> bool:
        return _log_power(share, below) + _log_power(1 - share, trials - below) > threshold(below)

    middle = share * trials
    low = 0.0 if plausible(0.0) else _edge(plausible, middle, 0.0)
    return low, trials if plausible(trials) else _edge(plausible, middle, trials)


def _thresholds(trials: float, alpha: float, guess: float) -> Callable[[float], float]:
    """The log-likelihood under which a rate is excluded, by the count of events: that of the mixture, divided by 1/alpha."""
    a, b = PRIOR_COUNT, PRIOR_COUNT * (1 - guess) / guess
    rest = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b) + math.lgamma(a + b + trials) + math.log(1 / alpha)
    return lambda count: math.lgamma(a + count) + math.lgamma(b + trials - count) - rest


def _log_power(base: float, exponent: float) -> float:
    if exponent == 0:
        return 0.0
    return exponent * math.log(base) if base > 0 else -math.inf


def _edge(plausible: Callable[[float], bool], inside: float, outside: float) -> float:
    """The place between a plausible and an implausible value where it changes, on the implausible side (the cautious one)."""
    for _ in range(STEPS):
        middle = (inside + outside) / 2
        if plausible(middle):
            inside = middle
        else:
            outside = middle
    return outside
