"""What an evaluation says, and how it is written down: in the status, as text, and in a bounded history. Nothing is judged here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from slipway.api.analysis import DEFAULT_METRICS, Analysis, Verdict, parse_limit
from slipway.verdict import MAX_MESSAGE, MetricVerdict

QUANTILES = {"latency-p50": 0.5, "latency-p95": 0.95, "latency-p99": 0.99}


class Cause(StrEnum):
    """Why a result is Inconclusive; only the first can be helped by more traffic alone."""

    NONE = ""
    TRAFFIC = "TooFewRequests"
    DATA = "NoData"
    OPEN = "NotProven"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric with its limits as numbers; latencies in seconds, `increase` a share (0.2 for 20 %)."""

    name: str
    maximum: float | None = None
    minimum: float | None = None
    increase: float | None = None
    query: str | None = None


@dataclass(frozen=True, slots=True)
class Points:
    """What a custom query said: its values, the oldest first, at steps of one interval up to now; `missing` says why there are none."""

    values: tuple[float, ...] = ()
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class MetricResult:
    """The verdict on one metric, and what it rests on: value of the canary, baseline of stable, samples, bounds of the value."""

    name: str
    verdict: Verdict
    message: str
    cause: Cause = Cause.NONE
    value: float | None = None
    baseline: float | None = None
    samples: int = 0
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All metrics at one moment (`at`, Unix seconds)."""

    at: float
    verdict: Verdict
    results: tuple[MetricResult, ...]

    @property
    def lacks_traffic_only(self) -> bool:
        """Whether it is Inconclusive for no other reason than too few requests: the case of `onInsufficientTraffic`."""
        causes = {result.cause for result in self.results if result.verdict != "Pass"}
        return self.verdict == "Inconclusive" and causes == {Cause.TRAFFIC}

    def verdicts(self) -> tuple[MetricVerdict, ...]:
        """Return the rows for the state machine and the status; numbers as strings, absent when unknown."""
        at = datetime.fromtimestamp(self.at, UTC)
        return tuple(_row(result, at) for result in self.results)


def _row(result: MetricResult, at: datetime) -> MetricVerdict:
    value, baseline, low, high = (show(result.name, number) for number in (result.value, result.baseline, result.low, result.high))
    message, needs_traffic = result.message[:MAX_MESSAGE], result.cause is Cause.TRAFFIC
    return MetricVerdict(result.name, result.verdict, at, value, baseline, result.samples, message, low, high, needs_traffic)


def metric_specs(analysis: Analysis) -> tuple[MetricSpec, ...]:
    """Return the metrics of the API section, with numbers."""

    def number(text: str | None) -> float | None:
        return None if text is None else parse_limit(text)

    return tuple(
        MetricSpec(
            metric.name,
            number(metric.maximum),
            number(metric.minimum),
            None if metric.maximum_increase_percent is None else metric.maximum_increase_percent / 100,
            metric.query,
        )
        for metric in analysis.metrics or DEFAULT_METRICS
    )


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """Return Fail when one fails, Pass when there is one and all pass, else Inconclusive."""
    if "Fail" in verdicts:
        return "Fail"
    return "Pass" if verdicts and set(verdicts) == {"Pass"} else "Inconclusive"


def show(name: str, value: float | None) -> str | None:
    """Return a number as the status shows it: four digits, latencies in ms, None for what is no finite number."""
    if value is None or not math.isfinite(value):
        return None
    return f"{value * 1000:.4g}ms" if name in QUANTILES else f"{value:.4g}"
