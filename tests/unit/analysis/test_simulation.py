"""Seeded rollouts, judged at every interval: how often identical revisions are rolled back, and how soon bad ones are.

The bounds are those of docs/design/0008-analysis.md. A simulated count may be above its expectation by chance, so it is held against the
99.9 % quantile of the binomial distribution that the bound allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from slipway.analysis.evaluate import FAIL_ALPHA, PASS_ALPHA, Observations, evaluate
from slipway.analysis.histogram import Histogram
from slipway.analysis.verdict import MetricSpec
from slipway.analysis.window import Sample

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.4, 0.6, 1.0, 2.5, 5.0, math.inf)
LOOKS, INTERVAL = 40, 15.0  # ten minutes
BOTH = (MetricSpec("error-rate", maximum=0.01, increase=0.2), MetricSpec("latency-p99", increase=0.2))


@dataclass(frozen=True)
class Revision:
    """A simulated revision: requests each interval, share of errors, median and spread of log-normal latencies in seconds."""

    requests: int
    errors: float = 0.002
    median: float = 0.02
    spread: float = 0.5


def at_most(runs: int, chance: float) -> int:
    """The 99.9 % quantile of the binomial distribution."""
    reached, count = (1 - chance) ** runs, 0
    while reached < 0.999:
        count += 1
        reached += math.exp(
            math.lgamma(runs + 1) - math.lgamma(count + 1) - math.lgamma(runs - count + 1) + count * math.log(chance)
            + (runs - count) * math.log1p(-chance)
        )  # fmt: skip
    return count


def growth(revision: Revision, generator: np.random.Generator) -> Callable[[float], Sample]:
    """A revision that gets a Poisson number of requests each interval; the function adds an interval and returns the window."""
    counts, errors = np.zeros(len(BOUNDS)), 0

    def look(now: float) -> Sample:
        nonlocal counts, errors
        arrived = int(generator.poisson(revision.requests))
        errors += int(generator.binomial(arrived, revision.errors))
        values = generator.lognormal(math.log(revision.median), revision.spread, arrived)
        counts = counts + np.bincount(np.searchsorted(BOUNDS, values), minlength=len(BOUNDS))
        return Sample(now, now, float(counts.sum()), errors, 0.0, Histogram(BOUNDS, tuple(map(float, counts))))

    return look


def rollout(canary: Revision, stable: Revision, specs: tuple[MetricSpec, ...], seed: int) -> list[str]:
    """The verdict at each look, up to the first Fail."""
    generator = np.random.default_rng(seed)
    canary_at, stable_at = growth(canary, generator), growth(stable, generator)
    verdicts = []
    for look in range(1, LOOKS + 1):
        now = look * INTERVAL
        seen = Observations(canary_at(now), stable_at(now))
        verdicts.append(evaluate(seen, specs, minimum_requests=100, now=now, stale_after=45).verdict)
        if verdicts[-1] == "Fail":
            break
    return verdicts


def failed(runs: int, canary: Revision, stable: Revision, specs: tuple[MetricSpec, ...]) -> list[int]:
    """At which look each failing run failed."""
    results = (rollout(canary, stable, specs, seed) for seed in range(runs))
    return [len(verdicts) for verdicts in results if verdicts[-1] == "Fail"]


@pytest.mark.parametrize("errors", [*(pytest.param(errors, marks=pytest.mark.nightly) for errors in (0.0, 0.002)), 0.01])
def test_identical_revisions_are_rarely_rolled_back(errors: float) -> None:
    """1 % errors are exactly the limit: the worst case that must not fail."""
    runs = 80
    false = failed(runs, Revision(60, errors), Revision(540, errors), BOTH)
    assert len(false) <= at_most(runs, FAIL_ALPHA)


def test_identical_revisions_at_equal_weight_are_rarely_rolled_back() -> None:
    """The relative limit alone, with no increase allowed: its null hypothesis holds with equality."""
    runs = 100
    false = failed(runs, Revision(300, 0.03), Revision(300, 0.03), (MetricSpec("error-rate", increase=0.0),))
    assert len(false) <= at_most(runs, FAIL_ALPHA)


def test_an_identical_revision_passes_soon() -> None:
    """Of 4 requests a second for the canary: nine of ten pass all metrics within five minutes."""
    runs = [rollout(Revision(60, 0.001), Revision(540, 0.001), (MetricSpec("error-rate", maximum=0.01),), seed) for seed in range(50)]
    soon = [verdicts for verdicts in runs if "Pass" in verdicts[:20]]
    assert len(soon) >= 45


@pytest.mark.parametrize(
    ("canary", "specs", "looks"),
    [
        (Revision(120, 0.02), (MetricSpec("error-rate", maximum=0.01),), 40),  # twice the limit: 4,800 requests
        (Revision(60, 0.05), (MetricSpec("error-rate", maximum=0.01),), 12),  # five times the limit: 720 requests
        (Revision(60, 0.10), (MetricSpec("error-rate", maximum=0.01),), 4),  # ten times the limit: 240 requests
        (Revision(600, 0.02), (MetricSpec("error-rate", increase=0.2),), 10),  # ten times stable's, without an absolute limit
        (Revision(60, median=0.06), (MetricSpec("latency-p99", increase=0.2),), 4),  # three times as slow: 240 requests
        (Revision(60, median=0.03), (MetricSpec("latency-p50", increase=0.2),), 10),  # half as slow again: 600 requests
    ],
)
def test_a_bad_canary_is_failed_in_time(canary: Revision, specs: tuple[MetricSpec, ...], looks: int) -> None:
    """Nine of ten within the looks that the design note promises."""
    runs = 40
    found = failed(runs, canary, Revision(9 * canary.requests), specs)
    assert sum(look <= looks for look in found) >= 0.9 * runs


def test_a_canary_twice_as_bad_rarely_passes() -> None:
    """At any look at all, although it is looked at forty times."""
    runs = 100
    twice = 2 * 0.01 / (0.99 + 2 * 0.01)
    passed = [
        seed
        for seed in range(runs)
        if "Pass" in rollout(Revision(20, twice), Revision(180), (MetricSpec("error-rate", maximum=0.01),), seed)
    ]
    assert len(passed) <= at_most(runs, PASS_ALPHA)
