"""`rollout.analysis`: what a canary is measured by and held against, and what `status` tells about it."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from slipway.api.common import ATOMIC, LIST_MAP_BY_NAME, Duration, unique_names
from slipway.api.rules import ApiModel, Rule, StatusModel, matches

Verdict = Literal["Pass", "Fail", "Inconclusive"]

BUILT_IN = ("error-rate", "latency-p50", "latency-p95", "latency-p99", "throughput", "nan-rate")
MAX_ANALYSIS_HISTORY = 10

_DECIMAL = r"[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,2})?"
_LATENCY = r"[0-9]+(?:\.[0-9]+)?(?:us|ms|s)"
_SECONDS = {"us": Decimal("1e-6"), "ms": Decimal("1e-3"), "s": Decimal(1)}
_IS_LATENCY = "['latency-p50', 'latency-p95', 'latency-p99'].exists(n, n == self.name)"


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
        rf"(?:{_DECIMAL}|{_LATENCY})",
        'a limit is a decimal number as a string, not negative, or for a latency a number with us, ms or s; for example "0.01", 250ms',
    ),
]


def _is_known(metric: AnalysisMetric) -> bool:
    return (metric.name in BUILT_IN) != (metric.query is not None)


def _limits_fit(metric: AnalysisMetric) -> bool:
    if metric.name == "throughput":
        return metric.minimum is not None and metric.maximum is None and metric.maximum_increase_percent is None
    return metric.query is not None or metric.minimum is None


def _units_fit(metric: AnalysisMetric) -> bool:
    pattern = _LATENCY if metric.name.startswith("latency-p") and metric.name in BUILT_IN else _DECIMAL
    return all(re.fullmatch(pattern, limit) for limit in (metric.maximum, metric.minimum) if limit is not None)


def _is_share(metric: AnalysisMetric) -> bool:
    return metric.name not in {"error-rate", "nan-rate"} or metric.maximum is None or parse_limit(metric.maximum) < 1


class AnalysisMetric(ApiModel):
    """One metric and its limits."""

    rules = (
        Rule(
            f"[{', '.join(repr(name) for name in BUILT_IN)}].exists(n, n == self.name) != has(self.query)",
            f"a built-in metric ({', '.join(BUILT_IN)}) takes no query, and every other name needs one; add or remove query",
            _is_known,
        ),
        Rule(
            "has(self.maximum) || has(self.minimum) || has(self.maximumIncreasePercent)",
            "a metric without a limit decides nothing; set maximum, minimum or maximumIncreasePercent",
            lambda metric: (metric.maximum, metric.minimum, metric.maximum_increase_percent) != (None, None, None),
        ),
        Rule(
            "self.name == 'throughput' ? has(self.minimum) && !has(self.maximum) && !has(self.maximumIncreasePercent) : "
            "has(self.query) || !has(self.minimum)",
            "throughput takes a minimum alone, the other built-in metrics maximum and maximumIncreasePercent",
            _limits_fit,
        ),
        Rule(
            f"[has(self.maximum) ? self.maximum : '', has(self.minimum) ? self.minimum : ''].all(x, x == '' || "
            f"({_IS_LATENCY} ? x.matches(r'^(?:{_LATENCY})$') : x.matches(r'^(?:{_DECIMAL})$')))",
            "the limit of a latency has a unit (us, ms or s; for example 250ms), every other limit has none",
            _units_fit,
        ),
        Rule(
            "!['error-rate', 'nan-rate'].exists(n, n == self.name) || !has(self.maximum) || "
            f"!self.maximum.matches(r'^(?:{_DECIMAL})$') || double(self.maximum) < 1.0",
            'a rate is a share from 0 to below 1, not percent; for example "0.01" for 1 %',
            _is_share,
        ),
    )

    name: Annotated[
        str,
        Field(min_length=1, max_length=63),
        matches(r"[a-z](?:[-a-z0-9]*[a-z0-9])?", "the name of a metric has lower-case letters, digits and '-'; for example drift"),
    ] = Field(
        description="error-rate, latency-p50, latency-p95, latency-p99, throughput (answers a second), nan-rate (share of answers with "
        "NaN or infinite outputs), or a name of yours with a query. Example: error-rate."
    )
    maximum: Limit | None = Field(
        default=None, description='The largest good value; a latency with its unit. Example: "0.01". Default: none.'
    )
    minimum: Limit | None = Field(
        default=None, description='The least good value; for throughput and queries. Example: "5". Default: none.'
    )
    maximum_increase_percent: Annotated[int, Field(ge=0, le=10000)] | None = Field(
        default=None, description="How much larger than the stable revision's value in the same window it may be. Percent. Default: any."
    )
    query: Annotated[str, Field(min_length=1, max_length=2048)] | None = Field(
        default=None,
        description="PromQL that gives one number; {{revision}}, {{namespace}}, {{name}} and {{window}} are replaced. "
        'Example: avg(drift{revision="{{revision}}"}). Default: none.',
    )


class Analysis(ApiModel):
    """How a canary is judged, and how often."""

    interval: Duration = Field(default="15s", description="How often it is judged. Example: 30s. Default: 15s.")
    minimum_requests: int = Field(
        default=100, ge=1, le=1_000_000, description="Fewer requests than this in a step are neither Pass nor Fail. Default: 100."
    )
    on_insufficient_traffic: Literal["Wait", "Probe", "Promote"] = Field(
        default="Wait",
        description="When a step is over and only traffic is lacking: Wait, Probe (replay golden inputs) or Promote. Default: Wait.",
    )
    metrics: Annotated[
        tuple[AnalysisMetric, ...], Field(min_length=1, max_length=16, json_schema_extra=LIST_MAP_BY_NAME), AfterValidator(unique_names)
    ] = Field(
        default=(AnalysisMetric(name="error-rate", maximum="0.01"),),
        description='What it is judged by; all must pass. Default: error-rate of at most "0.01".',
    )


class MetricStatus(StatusModel):
    """One metric at the last evaluation. Numbers are strings; latencies carry their unit."""

    name: str = Field(description="Name of the metric. Example: error-rate.")
    verdict: Verdict = Field(description="Pass, Fail or Inconclusive.")
    value: str | None = Field(default=None, description='Of the canary. Example: "0.004". Absent when not measured.')
    baseline: str | None = Field(default=None, description="Of the stable revision over the same window.")
    low: str | None = Field(default=None, description="Lower bound of the value; how sure it is stands in docs/design/0008-analysis.md.")
    high: str | None = Field(default=None, description="Upper bound of the value.")
    samples: int = Field(default=0, description="How many requests (or points of a query) it rests on. A count.")
    message: str = Field(default="", description="Why, in words.")


class AnalysisRecord(StatusModel):
    """One evaluation, in short."""

    at: str = Field(json_schema_extra={"format": "date-time"}, description="When, UTC.")
    verdict: Verdict = Field(description="Pass, Fail or Inconclusive.")
    message: str = Field(default="", description="The metrics that did not pass, in words.")


class AnalysisStatus(StatusModel):
    """What the analysis found."""

    verdict: Verdict = Field(description="Of the last evaluation: Fail if a metric fails, Pass if all pass, else Inconclusive.")
    evaluated_at: str | None = Field(default=None, json_schema_extra={"format": "date-time"}, description="When that was, UTC.")
    metrics: Annotated[tuple[MetricStatus, ...], Field(json_schema_extra=ATOMIC)] = Field(default=(), description="Each metric.")
    history: Annotated[tuple[AnalysisRecord, ...], Field(json_schema_extra=ATOMIC)] = Field(
        default=(), description="The last evaluations, the newest first; at most 10."
    )
