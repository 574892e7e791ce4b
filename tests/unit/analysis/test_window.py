"""Rows: rounds of scrapes, and what the revision did in the window."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from slipway.analysis.exposition import Counts, Scrape
from slipway.analysis.histogram import Histogram
from slipway.analysis.window import Track, follow, sample

START = 1000.0


def pod(at: float, ok: float, bad: float = 0, *, started: float | None = 500.0, nan: float | None = 0.0, histogram: bool = True) -> Scrape:
    """One scrape; all requests took less than 0.1 s."""
    duration = Histogram((0.1, math.inf), (ok + bad, 0.0), 0.05 * (ok + bad)) if histogram else None
    return Scrape(at, started, Counts({"200": ok, "500": bad}, nan, duration))


@dataclass(frozen=True)
class Row:
    rounds: list[dict[str, Scrape | str]]
    requests: float
    errors: float = 0
    missing: str | None = None


ROWS = {
    "growth since the first scrape": Row([{"a": pod(1001, 100)}, {"a": pod(1015, 140, 2)}], 42, 2),
    "one scrape of an old process is no growth": Row([{"a": pod(1001, 100, 9)}], 0),
    "one scrape of a young process is all growth": Row([{"a": pod(1015, 30, 1, started=1002)}], 31, 1),
    "a process without a start time counts as old": Row([{"a": pod(1001, 30, started=None)}, {"a": pod(1015, 40, started=None)}], 10),
    "two pods add up": Row([{"a": pod(1001, 100), "b": pod(1001, 5)}, {"a": pod(1015, 110), "b": pod(1015, 25, 3)}], 33, 3),
    "restart seen by the start time": Row([{"a": pod(1001, 10)}, {"a": pod(1015, 30)}, {"a": pod(1030, 40, started=1020)}], 60),
    "restart seen by a count that fell": Row([{"a": pod(1001, 10, started=None)}, {"a": pod(1015, 4, started=None)}], 4),
    "a pod that is replaced keeps its share": Row(
        [{"a": pod(1001, 10)}, {"a": pod(1015, 30)}, {"b": pod(1030, 7, 1, started=1016)}, {"b": pod(1045, 8, 1, started=1016)}], 29, 1
    ),
    "a pod that could not be scraped is missing, and what it counted stays": Row(
        [{"a": pod(1001, 10)}, {"a": pod(1015, 30)}, {"a": "timed out"}], 20, missing="pod a: timed out"
    ),
    "and is complete again when it answers": Row([{"a": pod(1001, 10)}, {"a": "timed out"}, {"a": pod(1030, 50)}], 40),
    "a pod that never answered": Row([{"a": pod(1001, 10), "b": "refused"}], 0, missing="pod b: refused"),
    "no pods": Row([{}], 0, missing="the revision has no pods"),
    "no round yet": Row([], 0, missing="nothing was scraped yet"),
    "an answer that came twice counts once": Row([{"a": pod(1001, 10)}, {"a": pod(1015, 30)}, {"a": pod(1015, 30)}], 20),
    "pods with other buckets cannot be added": Row(
        [
            {
                "a": pod(1001, 1, started=1000.5),
                "b": Scrape(1001, 1000.5, Counts({"200": 1.0}, 0.0, Histogram((9.0, math.inf), (1.0, 0.0)))),
            }
        ],
        0,
        missing="the pods' histograms have different buckets and cannot be added; do all run the same runtime version?",
    ),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_window(row: Row) -> None:
    track = Track(START)
    for scrapes in row.rounds:
        track = follow(track, scrapes)
    found = sample(track, 1060.0)
    assert (found.requests, found.errors, found.missing, found.seconds) == (row.requests, row.errors, row.missing, 60.0)
    if not found.missing and row.requests:
        assert found.duration is not None
        assert found.duration.count == row.requests
        assert found.duration.total == pytest.approx(0.05 * row.requests)


def test_what_one_busy_pod_does_not_export_is_unknown() -> None:
    track = follow(Track(START), {"a": pod(1015, 5, started=1001), "b": pod(1015, 5, started=1001, nan=None, histogram=False)})
    found = sample(track, 1060.0)
    assert (found.requests, found.nonfinite, found.duration) == (10, None, None)


def test_nonfinite_outputs_add_up_and_survive_a_restart() -> None:
    track = Track(START)
    for scrape in (pod(1001, 10, nan=4.0), pod(1015, 20, nan=6.0), pod(1030, 5, nan=1.0, started=1016)):
        track = follow(track, {"a": scrape})
    assert sample(track, 1060.0).nonfinite == 3.0


def test_the_age_is_that_of_the_oldest_pod() -> None:
    track = follow(Track(START), {"a": pod(1015, 1), "b": pod(1040, 1)})
    assert sample(track, 1060.0).at == 1015


def test_memory_is_bounded_by_the_pods_that_are_there() -> None:
    track = Track(START)
    for number in range(200):
        track = follow(track, {f"pod-{number}": pod(1001 + number, 3, started=1000.5 + number)})
    assert len(track.pods) == 1
    assert sample(track, 1300.0).requests == 600
