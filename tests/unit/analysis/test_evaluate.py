"""Rows: what both revisions did, the limit, and the verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from slipway.analysis.evaluate import Observations, evaluate
from slipway.analysis.histogram import Histogram
from slipway.analysis.verdict import Cause, Evaluation, MetricResult, MetricSpec, Points, metric_specs, overall, show
from slipway.analysis.window import Sample
from slipway.api.analysis import MAX_ANALYSIS_HISTORY, Analysis
from slipway.api.modeldeployment import CanaryStatus
from slipway.verdict import history

NOW = 10_000.0
BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, math.inf)


def did(requests: float, errors: float = 0, **other: Any) -> Sample:
    """What a revision did in the last minute, by default fast and finite."""
    values: dict[str, Any] = {"nonfinite": 0.0, "duration": durations(requests)} | other
    return Sample(60.0, NOW - 1, requests, errors, **values)


def durations(*counts: float) -> Histogram:
    """Requests in each bucket."""
    return Histogram(BOUNDS, (*counts, *(0.0 for _ in range(len(BOUNDS) - len(counts)))))


ERRORS = MetricSpec("error-rate", maximum=0.01)
WORSE = MetricSpec("error-rate", increase=0.2)
SLOW = MetricSpec("latency-p99", maximum=0.25)
SLOWER = MetricSpec("latency-p99", increase=0.2)
FLOW = MetricSpec("throughput", minimum=5)
NAN = MetricSpec("nan-rate", maximum=0)
DRIFT = MetricSpec("drift", maximum=0.2, query="drift")


@dataclass(frozen=True)
class Row:
    spec: MetricSpec
    canary: Sample
    verdict: str
    cause: Cause = Cause.NONE
    stable: Sample | None = field(default_factory=lambda: did(9000))
    says: str = ""
    custom: dict[str, Points] | None = None
    custom_baseline: dict[str, Points] | None = None


ROWS = {
    # traffic
    "no traffic": Row(ERRORS, did(0), "Inconclusive", Cause.TRAFFIC, says="0 of 100 requests"),
    "one request too few, all of them errors": Row(ERRORS, did(99, 99), "Inconclusive", Cause.TRAFFIC, says="99 of 100"),
    "just enough, all of them errors": Row(ERRORS, did(100, 100), "Fail"),
    "just enough by number, too few to tell 1 % from 2 %": Row(ERRORS, did(100), "Inconclusive", Cause.TRAFFIC, says="too few to tell"),
    "189 good ones are too few": Row(ERRORS, did(189), "Inconclusive", Cause.TRAFFIC),
    "190 are enough": Row(ERRORS, did(190), "Pass", says="at most 0.01"),
    # absolute
    "at the limit, much traffic": Row(ERRORS, did(10_000, 100), "Pass"),
    "a little over it may be chance": Row(ERRORS, did(1000, 12), "Inconclusive", Cause.OPEN, says="may be chance"),
    "twice the limit, some traffic": Row(ERRORS, did(500, 10), "Inconclusive", Cause.OPEN),
    "twice the limit, more traffic": Row(ERRORS, did(3000, 60), "Fail", says="[0.01"),
    "a tenth are errors": Row(ERRORS, did(150, 15), "Fail", says="0.1 [0.0"),
    "limit 0, clean": Row(NAN, did(100), "Pass"),
    "limit 0, one NaN": Row(NAN, did(100, nonfinite=1.0), "Fail"),
    "more NaN than requests is no error": Row(NAN, did(100, nonfinite=101.0), "Fail"),
    "the runtime counts no NaN": Row(NAN, did(500, nonfinite=None), "Inconclusive", Cause.DATA, says="slipway_nonfinite_outputs_total"),
    # latency
    "all faster than the limit": Row(SLOW, did(400, duration=durations(0, 0, 400)), "Pass"),
    "few requests do not show the tail": Row(SLOW, did(120), "Inconclusive", Cause.TRAFFIC),
    "3 % slower than the limit": Row(SLOW, did(2000, duration=durations(0, 1940, 0, 60)), "Fail", says="250ms"),
    "1.2 % slower may be chance": Row(SLOW, did(1000, duration=durations(0, 988, 0, 12)), "Inconclusive", Cause.OPEN),
    "slower than the last bucket is not proven to keep a limit there": Row(
        MetricSpec("latency-p99", maximum=30), did(1000, duration=durations(0, 900, 0, 0, 0, 100)), "Inconclusive", Cause.OPEN
    ),
    "nor to break it": Row(
        MetricSpec("latency-p50", maximum=30), did(1000, duration=durations(0, 0, 0, 0, 0, 1000)), "Inconclusive", Cause.OPEN
    ),
    "the last bucket breaks a limit below it": Row(SLOW, did(1000, duration=durations(0, 900, 0, 0, 0, 100)), "Fail"),
    "no histogram": Row(SLOW, did(1000, duration=None), "Inconclusive", Cause.DATA, says="slipway_request_duration_seconds"),
    # relative
    "as good as stable": Row(WORSE, did(1000, 10), "Pass", stable=did(9000, 90)),
    "both without errors": Row(WORSE, did(1000), "Pass"),
    "one error where stable has none": Row(WORSE, did(1000, 1), "Inconclusive", Cause.OPEN),
    "twenty where stable has none": Row(WORSE, did(1000, 20), "Fail", says="above stable"),
    "twice stable's errors": Row(WORSE, did(5000, 100), "Fail", stable=did(45_000, 450)),
    "better than a stable that went bad": Row(WORSE, did(1000, 10), "Pass", stable=did(9000, 4500)),
    "three times as slow": Row(SLOWER, did(600, duration=durations(0, 0, 600)), "Fail", stable=did(5400, duration=durations(5000, 400))),
    "as slow as stable": Row(SLOWER, did(1000, duration=durations(950, 50)), "Pass", stable=did(9000, duration=durations(8550, 450))),
    "no stable revision": Row(WORSE, did(1000), "Inconclusive", Cause.DATA, stable=None, says="no stable revision"),
    "too little of stable": Row(WORSE, did(1000), "Inconclusive", Cause.TRAFFIC, stable=did(99), says="to the stable revision"),
    "stable could not be scraped": Row(WORSE, did(1000, 900), "Inconclusive", Cause.DATA, stable=did(9000, missing="timed out")),
    "stable does not matter for an absolute limit": Row(ERRORS, did(1000, 500), "Fail", stable=did(0, missing="timed out")),
    # missing data
    "a pod could not be scraped": Row(ERRORS, did(1000, 900, missing="pod a: refused"), "Inconclusive", Cause.DATA, says="refused"),
    "data of long ago": Row(ERRORS, replace(did(1000, 900), at=NOW - 46), "Inconclusive", Cause.DATA, says="46 s old"),
    "data of just now": Row(ERRORS, replace(did(1000), at=NOW - 45), "Pass"),
    # throughput
    "enough": Row(FLOW, did(600), "Pass", says="at least 5 a second"),
    "far too little": Row(FLOW, did(150), "Fail"),
    "a little too little": Row(FLOW, did(280), "Inconclusive", Cause.OPEN),
    "errors are no throughput": Row(FLOW, did(600, 450), "Fail"),
    # custom queries
    "all points good": Row(DRIFT, did(100), "Pass", custom={"drift": Points((0.1, 0.2, 0.15))}),
    "all points bad": Row(DRIFT, did(100), "Fail", custom={"drift": Points((0.3, 0.21, 0.25))}),
    "one of them bad": Row(DRIFT, did(100), "Inconclusive", Cause.OPEN, custom={"drift": Points((0.1, 0.1, 0.25))}),
    "NaN": Row(DRIFT, did(100), "Inconclusive", Cause.DATA, custom={"drift": Points((0.1, math.nan))}, says="NaN"),
    "one point": Row(DRIFT, did(100), "Inconclusive", Cause.DATA, custom={"drift": Points((9.0,))}, says="two are needed"),
    "no answer": Row(DRIFT, did(100), "Inconclusive", Cause.DATA, custom={"drift": Points(missing="empty")}, says="empty"),
    "not asked": Row(DRIFT, did(100), "Inconclusive", Cause.DATA, says="prometheus.address"),
    "too little traffic": Row(DRIFT, did(99), "Inconclusive", Cause.TRAFFIC, custom={"drift": Points((9.0, 9.0))}),
    "relative, bad": Row(
        MetricSpec("drift", increase=0.5, query="drift"),
        did(100),
        "Fail",
        custom={"drift": Points((0.4, 0.5))},
        custom_baseline={"drift": Points((0.9, 0.2, 0.2))},
    ),
    "relative, no baseline": Row(
        MetricSpec("drift", increase=0.5, query="drift"), did(100), "Inconclusive", Cause.DATA, custom={"drift": Points((0.4, 0.5))}
    ),
    "a minimum": Row(MetricSpec("score", minimum=0.9, query="score"), did(100), "Pass", custom={"score": Points((0.9, 0.95))}),
}


def judge(canary: Sample, stable: Sample | None, *specs: MetricSpec, **custom: Any) -> Evaluation:
    return evaluate(Observations(canary, stable, **custom), specs, minimum_requests=100, now=NOW, stale_after=45)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_verdict(row: Row) -> None:
    evaluation = judge(row.canary, row.stable, row.spec, custom=row.custom, custom_baseline=row.custom_baseline)
    (result,) = evaluation.results
    assert (result.verdict, result.cause) == (row.verdict, row.cause), result
    assert row.says in result.message
    assert evaluation.verdict == row.verdict
    assert evaluation.lacks_traffic_only is (row.cause is Cause.TRAFFIC)


def test_a_result_carries_what_it_rests_on() -> None:
    result = judge(did(5000, 100), did(45_000, 450), MetricSpec("error-rate", maximum=0.05, increase=0.2)).results[0]
    assert (result.verdict, result.value, result.baseline, result.samples) == ("Fail", 0.02, 0.01, 5000)
    assert result.low is not None
    assert result.high is not None
    assert 0.012 < result.low < 0.02 < result.high < 0.03
    row = Evaluation(NOW, "Fail", (result,)).verdicts()[0].as_status()
    assert (row["value"], row["baseline"], row["verdict"]) == ("0.02", "0.01", "Fail")
    assert float(row["low"]) == pytest.approx(result.low, rel=1e-3)
    assert len(row["message"]) <= 256


def test_latencies_are_shown_in_milliseconds_and_an_open_bound_not_at_all() -> None:
    row = judge(did(120), did(9000), MetricSpec("latency-p99", maximum=0.25)).verdicts()[0].as_status()
    assert row["value"] == "49.5ms"
    assert "high" not in row
    assert show("error-rate", math.nan) is None


def test_more_metrics_ask_for_more_proof() -> None:
    """The chance of a false Fail is that of all metrics together."""
    canary = next(did(400, errors) for errors in range(4, 40) if judge(did(400, errors), None, ERRORS).verdict == "Fail")
    others = [MetricSpec(f"latency-p{p}", maximum=9.0) for p in (50, 95, 99)] * 5
    assert judge(canary, None, ERRORS, *others).results[0].verdict == "Inconclusive"


@pytest.mark.parametrize(
    ("verdicts", "want"),
    [
        (["Pass", "Pass"], "Pass"),
        (["Pass", "Inconclusive"], "Inconclusive"),
        (["Pass", "Inconclusive", "Fail"], "Fail"),
        ([], "Inconclusive"),
    ],
)
def test_overall(verdicts: Any, want: str) -> None:
    assert overall(verdicts) == want


def test_traffic_is_not_all_that_lacks_when_data_are_missing() -> None:
    evaluation = judge(did(120, nonfinite=None), None, ERRORS, NAN)
    assert evaluation.verdict == "Inconclusive"
    assert not evaluation.lacks_traffic_only


def test_the_history_is_bounded_and_one_evaluation_is_recorded_once() -> None:
    entries: list[dict[str, Any]] = []
    for number in range(30):
        verdicts = Evaluation(NOW + 15 * number, "Fail", (MetricResult("error-rate", "Fail", "x" * 400, value=0.25),)).verdicts()
        entries = history(verdicts, history(verdicts, entries))
    times = [entry["at"] for entry in entries]
    assert len(times) == len(set(times)) == MAX_ANALYSIS_HISTORY
    assert times == sorted(times, reverse=True)
    row = {"metrics": [verdicts[0].as_status()], "evaluations": entries}
    assert CanaryStatus.model_validate({"revision": "r", **row}).model_dump(
        by_alias=True, include={"metrics", "evaluations"}, exclude_none=True
    ) == {
        "metrics": ({"name": "error-rate", "verdict": "Fail", "value": "0.25", "samples": 0, "message": "x" * 256},),
        "evaluations": tuple(entries),
    }
    assert all(len(entry["message"]) <= 256 for entry in entries)


def test_specs_are_the_api_in_numbers() -> None:
    analysis = Analysis.model_validate(
        {
            "metrics": [
                {"name": "latency-p99", "maximum": "250ms", "maximumIncreasePercent": 20},
                {"name": "d", "query": "q", "minimum": "1e-3"},
            ]
        }
    )
    assert metric_specs(analysis) == (MetricSpec("latency-p99", 0.25, None, 0.2), MetricSpec("d", None, 0.001, None, "q"))
    assert metric_specs(Analysis()) == (MetricSpec("error-rate", 0.01),)
