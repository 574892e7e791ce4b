"""Prometheus histograms as values: merge, difference, quantiles and how far they can be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from slipway.analysis.intervals import Interval
from slipway.analysis.sequential import rank_bounds


@dataclass(frozen=True, slots=True)
class Histogram:
    """Observations by bucket.

    `bounds` are the upper bounds (`le`), ascending, the last one infinite; `counts` are the observations in each bucket alone, not
    cumulative; `total` is the sum of all observed values, NaN when unknown.
    """

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    total: float = math.nan

    @property
    def count(self) -> float:
        """How many observations there are."""
        return math.fsum(self.counts)


def from_cumulative(buckets: Mapping[float, float], total: float = math.nan) -> Histogram:
    """Return the histogram of cumulative buckets, as Prometheus writes them.

    Counts that fall are levelled: `increase()` extrapolates each bucket alone, so that they need not be monotone (Prometheus does the same
    in histogram_quantile since 2.49).

    Raises:
        ValueError: No bucket `+Inf`, or a count that is not a number or negative.
    """
    bounds = tuple(sorted(buckets))
    if not bounds or bounds[-1] != math.inf:
        raise ValueError('a histogram needs a bucket le="+Inf"; the exporter\'s answer is cut or not a histogram')
    counts, below = [], 0.0
    for bound in bounds:
        reached = buckets[bound]
        if not (math.isfinite(reached) and reached >= 0):
            raise ValueError(f"bucket le={bound} counts {reached}; a count is a finite number, not negative")
        counts.append(max(0.0, reached - below))
        below = max(below, reached)
    return Histogram(bounds, tuple(counts), total)


def merge(histograms: Iterable[Histogram]) -> Histogram | None:
    """Return the histogram of all observations together, or None without any.

    Raises:
        ValueError: The bounds differ; adding them up would invent observations.
    """
    parts = list(histograms)
    if not parts:
        return None
    if any(part.bounds != parts[0].bounds for part in parts):
        raise ValueError("the pods' histograms have different buckets and cannot be added; do all run the same runtime version?")
    return Histogram(
        parts[0].bounds, tuple(map(math.fsum, zip(*(part.counts for part in parts), strict=True))), math.fsum(p.total for p in parts)
    )


def is_reset(now: Histogram, before: Histogram) -> bool:
    """Say whether the process that counts was restarted in between: other buckets, or a count that fell."""
    return now.bounds != before.bounds or any(n < b for n, b in zip(now.counts, before.counts, strict=True))


def difference(now: Histogram, before: Histogram) -> Histogram:
    """Return what was observed in between; all of `now` after a reset."""
    if is_reset(now, before):
        return now
    return Histogram(now.bounds, tuple(n - b for n, b in zip(now.counts, before.counts, strict=True)), now.total - before.total)


def at_rank(histogram: Histogram, rank: float) -> float:
    """Return the value that `rank` observations are at most, linear within its bucket as Prometheus' histogram_quantile.

    In the last bucket, which has no upper bound, it is the bound before it: the value is then at least this. NaN when it is empty.
    """
    if histogram.count == 0:
        return math.nan
    reached = 0.0
    for index, count in enumerate(histogram.counts):
        if count > 0 and rank <= reached + count:
            lower = histogram.bounds[index - 1] if index else min(0.0, histogram.bounds[0])
            if histogram.bounds[index] == math.inf:
                return lower
            return lower + (histogram.bounds[index] - lower) * max(0.0, rank - reached) / count
        reached += count
    return histogram.bounds[-2] if len(histogram.bounds) > 1 else math.nan


def quantile(histogram: Histogram, share: float) -> float:
    """Return the quantile `share` in (0, 1), as Prometheus computes it; NaN when the histogram is empty."""
    return at_rank(histogram, share * histogram.count)


def quantile_interval(histogram: Histogram, share: float, alpha: float) -> Interval:
    """Return the quantile with bounds that hold at all looks together with probability 1 - alpha.

    The bounds are order statistics: which ranks the true quantile may have follows from the binomial distribution alone, whatever the
    values are distributed like (S. R. Howard, A. Ramdas, Sequential estimation of quantiles with applications to A/B testing, Bernoulli 28,
    2022; for one look: W. J. Conover, Practical nonparametric statistics, 3.2). Their place within a bucket is interpolated: true to one
    bucket. The upper bound is infinite when the largest observation does not exclude it.
    """
    count = histogram.count
    if count == 0:
        return Interval(math.nan, 0.0, math.inf)
    low, high = rank_bounds(count, share, alpha)
    open_ended = high >= count or count_above(histogram, histogram.bounds[-2] if len(histogram.bounds) > 1 else 0.0) > count - high
    return Interval(quantile(histogram, share), at_rank(histogram, low), math.inf if open_ended else at_rank(histogram, high))


def count_above(histogram: Histogram, limit: float) -> float:
    """Return how many observations are larger than the limit: exact on a bucket's bound, linear between two.

    Observations in the bucket without an upper bound are larger than every limit within it only as far as known: they count as larger when
    the limit is at most the bucket's lower bound, and as not larger otherwise.
    """
    above, lower = 0.0, min(0.0, histogram.bounds[0])
    for bound, count in zip(histogram.bounds, histogram.counts, strict=True):
        if lower >= limit:
            above += count
        elif bound > limit and bound != math.inf:
            above += count * (bound - limit) / (bound - lower)
        lower = bound
    return above


def moments(histogram: Histogram) -> tuple[float, float]:
    """Return mean and variance: the mean from the exact sum, the variance from the middles of the buckets around their own mean.

    Sheppard's correction is left out: the buckets are uneven. NaN when the histogram is empty; observations in the last bucket count as its
    lower bound.
    """
    count = histogram.count
    if count == 0:
        return math.nan, math.nan
    lower, middles = min(0.0, histogram.bounds[0]), []
    for bound in histogram.bounds:
        middles.append(lower if bound == math.inf else (lower + bound) / 2)
        lower = bound
    center = math.fsum(m * c for m, c in zip(middles, histogram.counts, strict=True)) / count
    variance = math.fsum(c * (m - center) ** 2 for m, c in zip(middles, histogram.counts, strict=True)) / count
    return (histogram.total / count if math.isfinite(histogram.total) else center), variance
