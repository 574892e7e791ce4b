"""rollout.analysis: what is accepted, and with which words the rest is refused; and that it stays small."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from slipway.api.analysis import Analysis, MetricStatus, parse_limit


def metric(name: str, **fields: Any) -> dict[str, Any]:
    return {"metrics": [{"name": name, **fields}]}


ACCEPTED: list[dict[str, Any]] = [
    {},
    {"metrics": []},
    {"interval": "15s", "minimumRequests": 100, "onInsufficientTraffic": "Promote"},
    metric("error-rate", maximum="0.01"),
    metric("error-rate", maximum="0", maximumIncreasePercent=0),
    metric("latency-p99", maximum="250ms", maximumIncreasePercent=20),
    metric("latency-p50", maximum="1.5s"),
    metric("nan-rate", maximum="1e-3"),
    metric("throughput", minimum="5"),
    metric("drift", query='drift{revision="{{revision}}"}', maximum="0.2", minimum="0"),
]


@pytest.mark.parametrize("section", ACCEPTED)
def test_accepted(section: dict[str, Any]) -> None:
    analysis = Analysis.model_validate(section)
    assert Analysis.model_validate(analysis.model_dump(by_alias=True)) == analysis


# The third column: what the API server says, where pydantic has words of its own.
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    (metric("error-rate"), "set a limit", "set a limit"),
    (metric("error-rate", maximum="1"), "not percent", "not percent"),
    (metric("error-rate", maximum="0.01", query="x"), "takes no query", "takes no query"),
    (metric("drift", maximum="0.2"), "every other name needs one", "every other name needs one"),
    (metric("error-rate", minimum="0.1"), "set a limit: minimum for throughput", "set a limit: minimum for throughput"),
    (metric("throughput", maximum="5"), "set a limit: minimum for throughput", "set a limit: minimum for throughput"),
    (metric("latency-p99", maximum="0.25"), "has a unit", "has a unit"),
    (metric("error-rate", maximum="10ms"), "every other limit has none", "every other limit has none"),
    (metric("error-rate", maximum="-1"), "not negative", "not negative"),
    (metric("Error", query="x", maximum="1"), "lower-case", "lower-case"),
    (metric("error-rate", maximum=0.01), "valid string", "must be of type string"),
    ({"metrics": [{"name": "nan-rate", "maximum": "0"}] * 2}, "there twice", "Duplicate value"),
    ({"minimumRequests": 0}, "greater than or equal to 1", "greater than or equal to 1"),
    ({"onInsufficientTraffic": "Hope"}, "Wait", "Unsupported value"),
    ({"interval": "0s"}, "from 1s to 24h", "from 1s to 24h"),
    ({"every": "1s"}, "Extra inputs", "unknown field"),
]


@pytest.mark.parametrize(("section", "message"), [row[:2] for row in REFUSED])
def test_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Analysis.model_validate(section)


@pytest.mark.parametrize(("text", "want"), [("250ms", 0.25), ("1.5s", 1.5), ("800us", 0.0008), ("0.01", 0.01), ("1e-3", 0.001)])
def test_limits_are_numbers(text: str, want: float) -> None:
    assert parse_limit(text) == pytest.approx(want)


def test_a_status_of_a_newer_operator_can_be_read() -> None:
    assert MetricStatus.model_validate({"name": "x", "verdict": "Pass", "mood": "good"}).samples == 0
