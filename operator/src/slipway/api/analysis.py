"""`rollout.analysis`: what a canary is measured by and held against, and what `status` tells about it."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from slipway.api.common import LIST_MAP_BY_NAME, Duration, unique_names
from slipway.api.rules import ApiModel, Rule, StatusModel, matches

Verdict = Literal["Pass", "Fail", "Inconclusive"]

BUILT_IN = ("error-rate", "latency-p50", "latency-p95", "latency-p99", "throughput", "nan-rate")
MAX_ANALYSIS_HISTORY = 10

_DECIMAL = r"[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,2})?"
_SECONDS = {"us": Decimal("1e-6"), "ms": Decimal("1e-3"), "s": Decimal(1)}
_BUILT_IN = "error-rate|latency-p(?:50|95|99)|throughput|nan-rate"


def parse_limit(text: str) -> float:
    """The number that a limit stands for: seconds for `250ms`, else the decimal itself.

    Raises:
        ValueError: It is neither.
    """
    match = re.fullmatch(rf"({_DECIMAL})(us|ms|s)?", text)
    if match is None:
        raise ValueError(f"{text!r} is neither a decimal number nor a latency such as 250ms")
    return float(Decimal(match[1]) * _SECONDS.get(match[2] or "s", Decimal(1)))


Limit = Annotated[
    str,
    Field(min_length=1, max_length=32),
    matches(
        r"[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,2}|[um]?s)?",
        'a limit is a decimal number in quotes, not negative, or a latency; for example "0.01", 250ms',
    ),
]


def _limits_fit(metric: AnalysisMetric) -> bool:
    if metric.name == "throughput":
        return metric.minimum is not None and metric.maximum is None and metric.maximum_increase_percent is None
    has_limit = (metric.maximum, metric.minimum, metric.maximum_increase_percent) != (None, None, None)
    return has_limit and (metric.query is not None or metric.minimum is None)


def _units_fit(metric: AnalysisMetric) -> bool:
    is_latency = metric.name.startswith("latency-p") and metric.query is None
    return all(limit.endswith("s") == is_latency for limit in (metric.maximum, metric.minimum) if limit is not None)


def _is_share(metric: AnalysisMetric) -> bool:
    is_rate = metric.name in {"error-rate", "nan-rate"} and metric.maximum is not None
    return not is_rate or str(metric.maximum).endswith("s") or parse_limit(str(metric.maximum)) < 1


class AnalysisMetric(ApiModel):
    """One metric and its limits."""

    rules = (
        Rule(
            f"self.name.matches('^(?:{_BUILT_IN})$') != has(self.query)",
            "a built-in metric takes no query, every other name needs one; add or remove query",
            lambda metric: (metric.name in BUILT_IN) != (metric.query is not None),
        ),
        Rule(
            "self.name == 'throughput' ? has(self.minimum) && !has(self.maximum) && !has(self.maximumIncreasePercent) : "
            "(has(self.query) || !has(self.minimum)) && (has(self.minimum) || has(self.maximum) || has(self.maximumIncreasePercent))",
            "set a limit: minimum for throughput, maximum or maximumIncreasePercent for other built-in metrics, any for a query",
            _limits_fit,
        ),
        Rule(
            "[has(self.maximum) ? self.maximum : '', has(self.minimum) ? self.minimum : ''].all(x, x == '' || "
            "(self.name.startsWith('latency-p') && !has(self.query)) == x.endsWith('s'))",
            "the limit of a latency has a unit (us, ms or s; for example 250ms), every other limit has none",
            _units_fit,
        ),
        Rule(
            "!self.name.matches('^(?:error|nan)-rate$') || !has(self.maximum) || self.maximum.endsWith('s') || double(self.maximum) < 1.0",
            'a rate is a share from 0 to below 1, not percent; for example "0.01" for 1 %',
            _is_share,
        ),
    )

    name: Annotated[
        str,
        Field(min_length=1, max_length=63),
        matches(r"[a-z](?:[-a-z0-9]*[a-z0-9])?", "the name of a metric has lower-case letters, digits and '-'; for example drift"),
    ] = Field(description="error-rate, latency-p50, latency-p95, latency-p99, throughput, nan-rate, or your own with a query.")
    maximum: Limit | None = Field(
        default=None, description='The largest good value; a latency with its unit. Example: "0.01". Default: none.'
    )
    minimum: Limit | None = Field(
        default=None, description='The least good value; for throughput and queries. Example: "5". Default: none.'
    )
    maximum_increase_percent: Annotated[int, Field(ge=0, le=10000)] | None = Field(
        default=None, description="How much larger than stable's value in the same window it may be. Default: any."
    )
    query: Annotated[str, Field(min_length=1, max_length=2048)] | None = Field(
        default=None,
        description="PromQL for one number; {{revision}}, {{namespace}}, {{name}} and {{window}} are replaced. Default: none.",
    )


DEFAULT_METRICS = (AnalysisMetric(name="error-rate", maximum="0.01"),)


class Analysis(ApiModel):
    """How a canary is judged, and how often."""

    interval: Duration = Field(default="15s", description="How often it is judged. Example: 30s. Default: 15s.")
    minimum_requests: int = Field(default=100, ge=1, le=1_000_000, description="With fewer in a step there is no verdict. Default: 100.")
    on_insufficient_traffic: Literal["Wait", "Probe", "Promote"] = Field(
        default="Wait", description="While nothing but traffic is lacking: Wait, Probe (replay golden inputs), or Promote. Default: Wait."
    )
    metrics: Annotated[
        tuple[AnalysisMetric, ...], Field(max_length=16, json_schema_extra=LIST_MAP_BY_NAME), AfterValidator(unique_names)
    ] = Field(default=(), description='What it is judged by; all must pass. Default: error-rate of at most "0.01".')


class MetricStatus(StatusModel):
    """One metric at the last evaluation. Numbers are strings; latencies carry their unit."""

    name: str = Field(description="Name of the metric.")
    verdict: Verdict = Field(description="The verdict.")
    value: str | None = Field(default=None, description="Of the canary.")
    baseline: str | None = Field(default=None, description="Of stable, over the same window.")
    low: str | None = Field(default=None, description="Lower bound of the value.")
    high: str | None = Field(default=None, description="Upper bound of the value.")
    samples: int = Field(default=0, description="Requests, or points of a query.")
    message: str = Field(default="", description="Why.")


class AnalysisRecord(StatusModel):
    """One evaluation, in short."""

    at: str = Field(json_schema_extra={"format": "date-time"}, description="When, UTC.")
    verdict: Verdict = Field(description="Fail if one failed, Pass if all passed.")
    message: str = Field(default="", description="What did not pass, and why.")
