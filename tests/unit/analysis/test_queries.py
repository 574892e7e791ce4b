"""PromQL out of targets, and samples out of answers."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from slipway.analysis.queries import QueryError, Target, built_in, custom, number, points_of, result_of, sample_of

TARGET = Target("default", "digits", "digits-a", since=1000.0)


def row(value: str, **labels: str) -> dict[str, Any]:
    return {"metric": labels, "value": [1060.0, value]}


def answers(**change: Any) -> dict[str, Any]:
    return {
        "requests": [row("200.4")],
        "errors": [],
        "nonfinite": [row("0")],
        "duration": [row("150", le="0.1"), row("200", le="+Inf")],
        "total": [row("9.5")],
        "newest": [row("1055")],
    } | change


def test_the_window_is_the_step_and_the_revision_is_that_of_its_namespace() -> None:
    queries = built_in(TARGET, 1060.25, 'cluster="a"')
    for what in ("requests", "errors", "duration"):
        assert 'revision="digits-a",namespace="default",cluster="a"' in queries[what]
        assert "[60250ms]" in queries[what]
    assert 'code=~"5..|429|' in queries["errors"]
    assert "[1000ms]" in built_in(TARGET, 1000.1)["requests"]


def test_placeholders_are_replaced_and_escaped() -> None:
    query = custom('x{r="{{revision}}",n="{{namespace}}/{{name}}"}[{{window}}]', TARGET, 1060.0)
    assert query == 'x{r="digits-a",n="default/digits"}[60000ms]'
    assert custom('"{{revision}}"', Target("d", "n", 'a"b\\', 0), 60.0) == r'"a\"b\\"'


def test_sample() -> None:
    sample = sample_of(answers(), TARGET, 1060.0)
    assert (sample.seconds, sample.at, sample.requests, sample.errors, sample.nonfinite, sample.missing) == (60, 1055, 200.4, 0, 0, None)
    assert sample.duration is not None
    assert (sample.duration.counts, sample.duration.total) == ((150, 50), 9.5)


@pytest.mark.parametrize(
    ("change", "requests", "missing"),
    [
        ({"requests": [], "duration": []}, 0, True),
        ({"requests": []}, 0, False),  # durations are exported: no request yet
        ({"duration": [], "total": []}, 200.4, False),
    ],
)
def test_what_is_missing(change: dict[str, Any], requests: float, missing: bool) -> None:
    sample = sample_of(answers(**change), TARGET, 1060.0)
    assert (sample.requests, sample.missing is not None) == (requests, missing)


def test_without_a_newest_sample_the_data_are_old() -> None:
    assert sample_of(answers(newest=[]), TARGET, 1060.0).at == 1000.0


@pytest.mark.parametrize(
    "change",
    [
        {"requests": [row("NaN")]},
        {"errors": [row("+Inf")]},
        {"requests": [row("1"), row("2")]},
        {"duration": [row("150", le="0.1")]},
        {"duration": [row("NaN", le="+Inf")]},
    ],
)
def test_nonsense_is_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(QueryError):
        sample_of(answers(**change), TARGET, 1060.0)


def test_a_scalar_is_a_number() -> None:
    assert number([1060.0, "3"]) == 3.0
    assert number([]) is None


def test_points() -> None:
    assert points_of([{"metric": {}, "values": [[1, "0.1"], [2, "NaN"]]}]).values[0] == 0.1
    assert math.isnan(points_of([{"metric": {}, "values": [[1, "0.1"], [2, "NaN"]]}]).values[1])
    assert points_of([]).missing == "Prometheus has no data for it"
    assert "2 series" in (points_of([{"values": []}, {"values": []}]).missing or "")


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, {"status": "error", "errorType": "bad_data", "error": "parse error at 1"}, "bad_data: parse error at 1"),
        (200, [], "no answer of Prometheus"),
        (200, {"status": "success"}, "no answer of Prometheus"),
        (502, None, "HTTP 502"),
    ],
)
def test_what_is_no_answer(status: int, body: Any, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        result_of(status, b"<html>" if body is None else json.dumps(body).encode())
