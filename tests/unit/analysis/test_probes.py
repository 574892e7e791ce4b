"""Golden inputs are replayed by request: what a server's answers mean, and that probes are few and counted apart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from slipway.analysis import probes, queries
from slipway.analysis.exposition import parse
from slipway.analysis.probes import Prober, together
from slipway.analysis.window import Sample, with_probes
from slipway.verdict import Replay


def asked(answers: list[int], use: Callable[[Prober, str], Any]) -> tuple[Any, list[str]]:
    """Run `use` against a server that gives these answers, the last one for ever; returns its result and the headers that came."""
    seen: list[str] = []

    async def infer(request: web.Request) -> web.Response:
        seen.append(request.headers["x-slipway-probe"])
        return web.Response(status=answers[min(len(seen), len(answers)) - 1], text="said")

    async def story() -> Any:
        app = web.Application()
        app.add_routes([web.post("/v2/models/digits/infer", infer)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        async with aiohttp.ClientSession() as session:
            try:
                return await use(Prober(session), f"http://127.0.0.1:{port}/v2/models/digits/infer")
            finally:
                await runner.cleanup()

    return asyncio.run(story()), seen


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    real = asyncio.sleep
    monkeypatch.setattr("slipway.analysis.probes.asyncio.sleep", lambda seconds: real(seconds / 100))


@pytest.mark.parametrize(
    ("answers", "verdict", "requests"),
    [
        ([200], "Pass", 3),
        ([200, 200, 500], "Fail", 3),
        ([500], "Fail", 1),
        ([404], "Fail", 1),
        ([501], "Skipped", 1),
        ([503, 429, 200], "Pass", 5),
        ([503], "Inconclusive", 3),
    ],
)
def test_what_answers_to_a_replay_mean(answers: list[int], verdict: str, requests: int) -> None:
    replay, seen = asked(answers, lambda prober, url: prober.replay(url))
    assert (replay.verdict, seen) == (verdict, ["golden"] * requests)
    assert verdict == "Skipped" or "/v2/models/digits/infer" in replay.message


def test_a_pod_that_is_not_reached_is_no_failure() -> None:
    replay, _ = asked([200], lambda prober, url: prober.replay("http://127.0.0.1:1/v2/models/digits/infer"))
    assert replay.verdict == "Inconclusive"


def test_probes_are_at_most_so_many_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    count, seen = asked([200], lambda prober, url: prober.send([url, url], 2.0))
    assert count == len(seen) == 20
    monkeypatch.setattr(probes, "MAX_BURST", 7)
    assert asked([200], lambda prober, url: prober.send([url], 3600.0))[0] == 7
    assert asked([200], lambda prober, url: prober.send([], 2.0))[0] == 0


@pytest.mark.parametrize(
    ("verdicts", "verdict"),
    [
        ("Pass Fail Inconclusive", "Fail"),
        ("Pass Inconclusive", "Inconclusive"),
        ("Pass Skipped", "Pass"),
        ("Skipped", "Skipped"),
        ("", "Inconclusive"),
    ],
)
def test_pods_together(verdicts: str, verdict: str) -> None:
    assert together([Replay(v) for v in verdicts.split()]).verdict == verdict  # type: ignore[arg-type]


PAGE = """# TYPE slipway_requests_total counter
slipway_requests_total{revision="b",code="200"} 5
slipway_probe_requests_total{revision="b",code="200"} 90
slipway_probe_requests_total{revision="b",code="500"} 2
slipway_nonfinite_outputs_total{revision="b"} 1
slipway_probe_nonfinite_outputs_total{revision="b"} 3
slipway_request_duration_seconds_bucket{revision="b",le="0.1"} 4
slipway_request_duration_seconds_bucket{revision="b",le="+Inf"} 5
slipway_request_duration_seconds_sum{revision="b"} 0.5
slipway_probe_request_duration_seconds_bucket{revision="b",le="0.1"} 92
slipway_probe_request_duration_seconds_bucket{revision="b",le="+Inf"} 92
slipway_probe_request_duration_seconds_sum{revision="b"} 1.5
"""


def test_probes_count_only_when_they_are_asked_for() -> None:
    users = parse(PAGE, "b", 1.0).counts
    assert (users.codes, users.nonfinite, users.probes, users.duration and users.duration.count) == ({"200": 5}, 1, 0, 5)
    both = parse(PAGE, "b", 1.0, with_probes=True).counts
    assert (both.codes, both.nonfinite, both.probes) == ({"200": 95, "500": 2}, 4, 92)
    assert both.duration is not None
    assert (both.duration.counts, both.duration.total) == ((96, 1), 2.0)


def test_probes_of_prometheus() -> None:
    target = queries.Target("ns", "digits", "b", 0.0, with_probes=True)
    asked_for = queries.built_in(target, 60.0, prefix="slipway_probe_")
    assert all("slipway_probe_request" in q or "slipway_probe_nonfinite" in q for q in asked_for.values())
    users, sent = Sample(60, 60, 5, 1, 0), Sample(60, 60, 90, 2, 1)
    found = with_probes(users, sent)
    assert (found.requests, found.errors, found.nonfinite, found.probes) == (95, 3, 1, 90)
    assert with_probes(users, Sample(60, 60, 0, 0, missing="no series")) == users
