"""What pods answer, and what is read out of it."""

from __future__ import annotations

import math

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from slipway.analysis.exposition import ScrapeError, is_error, parse
from slipway_runtime.serve.metrics import Metrics

TEXT = """\
# HELP slipway_requests_total Answered requests.
# TYPE slipway_requests_total counter
slipway_requests_total{model="m",revision="r1",code="200"} 90.0
slipway_requests_total{model="m",revision="r1",code="503"} 10.0
slipway_requests_total{model="m",revision="other",code="500"} 7.0
# TYPE slipway_request_duration_seconds histogram
slipway_request_duration_seconds_bucket{model="m",revision="r1",le="0.1"} 60.0 # {trace_id="abc def"} 0.05 1700000000.0
slipway_request_duration_seconds_bucket{model="m",revision="r1",le="+Inf"} 100.0
slipway_request_duration_seconds_sum{model="m",revision="r1"} 12.5
slipway_request_duration_seconds_count{model="m",revision="r1"} 100.0
slipway_requests_total_of_something_else 5
process_start_time_seconds 1700000000.5
python_gc_weird{x="\\"} not a number
"""


def test_reads_what_is_wanted_and_nothing_else() -> None:
    scrape = parse(TEXT, "r1", 5.0)
    assert (scrape.at, scrape.started) == (5.0, 1700000000.5)
    assert scrape.counts.codes == {"200": 90.0, "503": 10.0}
    assert scrape.counts.nonfinite is None
    assert scrape.counts.duration is not None
    assert (scrape.counts.duration.bounds, scrape.counts.duration.counts) == ((0.1, math.inf), (60.0, 40.0))
    assert scrape.counts.duration.total == 12.5


@pytest.mark.parametrize("render", [generate_latest, generate_openmetrics])
def test_reads_what_the_client_library_writes(render: object) -> None:
    registry = CollectorRegistry()
    requests = Counter("slipway_requests", "…", ["model", "revision", "code"], registry=registry)
    seconds = Histogram("slipway_request_duration_seconds", "…", ["model", "revision"], buckets=(0.1, 1), registry=registry)
    Counter("slipway_nonfinite_outputs", "…", ["model", "revision"], registry=registry)
    empty = parse(render(registry).decode(), "r", 0.0)  # type: ignore[operator]
    assert (dict(empty.counts.codes), empty.counts.nonfinite, empty.counts.duration) == ({}, 0.0, None)
    requests.labels("m", "r", "200").inc(3)
    seconds.labels("m", "r").observe(0.5, {"trace_id": "x"})
    scrape = parse(render(registry).decode(), "r", 0.0)  # type: ignore[operator]
    assert scrape.counts.codes == {"200": 3.0}
    assert scrape.counts.duration is not None
    assert scrape.counts.duration.counts == (0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no metric slipway_requests_total"),
        ("<html>404</html>", "no metric slipway_requests_total"),
        ('slipway_requests_total{code="200"} NaN\n', "is nan"),
        ('slipway_requests_total{code="200"} -1\n', "is -1"),
        ('slipway_requests_total{code="200" 12\n', "cannot be read"),
        ('slipway_requests_total{code="200"} twelve\n', "cannot be read"),
        ('slipway_request_duration_seconds_bucket{le="0.1"} 3\n', "le=.\\+Inf"),
    ],
)
def test_a_broken_answer_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ScrapeError, match=message):
        parse(text, "r1", 0.0)


@pytest.mark.parametrize(
    ("code", "want"),
    [
        *((code, False) for code in ("", "200", "400", "404", "499", "5000", "OK", "INVALID_ARGUMENT")),
        *((code, True) for code in ("429", "500", "503", "599", "INTERNAL", "UNAVAILABLE")),
    ],
)
def test_which_codes_are_errors(code: str, want: bool) -> None:
    assert is_error(code) is want


def test_reads_what_our_runtime_exports() -> None:
    """The names of both projects are the same, and durations are there before the first request."""
    metrics = Metrics("digits", "digits-a", lambda: 0)
    before = parse(metrics.render().decode(), "digits-a", 0.0)
    assert (dict(before.counts.codes), before.started is not None) == ({}, True)
    assert before.counts.duration is not None
    assert before.counts.duration.count == 0
    assert before.counts.nonfinite == 0.0
    metrics.nonfinite(2)
    for status, seconds in ((200, 0.003), (200, 0.004), (503, 40.0)):
        metrics.count(status)
        metrics.seconds(seconds)
    after = parse(metrics.render().decode(), "digits-a", 0.0)
    assert after.counts.codes == {"200": 2.0, "503": 1.0}
    assert after.counts.duration is not None
    assert (after.counts.duration.count, after.counts.duration.counts[-1]) == (3.0, 1.0)
    assert after.counts.nonfinite == 2.0
