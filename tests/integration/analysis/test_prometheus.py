"""The same traffic, counted by two toy exporters, read twice: from their /metrics, and from a real Prometheus that scrapes them.

What is expected is what the exporters counted themselves. Prometheus extrapolates, so its numbers may be off by about one scrape.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import random
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from integration.ports import free_ports
from slipway.analysis.evaluate import Observations, evaluate
from slipway.analysis.histogram import quantile
from slipway.analysis.queries import QueryError, Target
from slipway.analysis.sources import Pod, PodSource, PrometheusSource, observe
from slipway.analysis.verdict import Evaluation, MetricSpec
from slipway.analysis.window import Sample

ROOT = Path(__file__).parents[3]
SCRAPE = 0.25  # seconds between two scrapes of Prometheus
LABELS = ("model", "revision")
SPECS = (
    MetricSpec("error-rate", maximum=0.02, increase=0.5),
    MetricSpec("latency-p99", maximum=0.25, increase=0.5),
    MetricSpec("nan-rate", maximum=0.01),
)


class Exporter:
    """A process that counts like a runtime; `restart` begins at 0, as a process does."""

    def __init__(self, revision: str) -> None:
        self.revision, self.is_down = revision, False
        self.restart()

    def restart(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("slipway_requests", "…", (*LABELS, "code"), registry=self.registry)
        self.nonfinite = Counter("slipway_nonfinite_outputs", "…", LABELS, registry=self.registry).labels("m", self.revision)
        self.seconds = Histogram(
            "slipway_request_duration_seconds", "…", LABELS, buckets=(0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1), registry=self.registry
        ).labels("m", self.revision)  # both bound at the start, as in the runtime: their series are there before the first request
        self.drift = Gauge("drift", "…", LABELS, registry=self.registry)
        Gauge("process_start_time_seconds", "…", registry=self.registry).set(time.time())

    def serve(self, seconds: float, *, is_error: bool = False, is_nan: bool = False) -> None:
        self.requests.labels("m", self.revision, "500" if is_error else "200").inc()
        self.seconds.observe(seconds)
        if is_nan:
            self.nonfinite.inc()

    async def answer(self, _: web.Request) -> web.Response:
        if self.is_down:
            return web.Response(status=503)
        return web.Response(body=generate_latest(self.registry), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


@dataclass
class World:
    """Two exporters on the module's ports; each test has revisions of its own, so that no test sees the series of another."""

    ports: tuple[int, int]
    number: int = field(default_factory=itertools.count(1).__next__)

    def __post_init__(self) -> None:
        self.stable, self.canary = Exporter(f"digits-{self.number}-stable"), Exporter(f"digits-{self.number}-canary")

    def pods(self, exporter: Exporter) -> list[Pod]:
        return [Pod(exporter.revision, f"http://127.0.0.1:{self.ports[exporter is self.canary]}/metrics")]


@pytest.fixture(scope="module")
def ports() -> tuple[int, int]:
    first, second = free_ports(2)
    return first, second


@pytest.fixture
async def world(ports: tuple[int, int]) -> AsyncIterator[World]:
    world = World(ports)
    runners = []
    for exporter, port in zip((world.stable, world.canary), ports, strict=True):
        app = web.Application()
        app.router.add_get("/metrics", exporter.answer)
        runners.append(web.AppRunner(app, shutdown_timeout=0.1))
        await runners[-1].setup()
        await web.TCPSite(runners[-1], "127.0.0.1", port).start()
    yield world
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@contextlib.contextmanager
def running(folder: Path, config: str) -> Iterator[str]:
    """A Prometheus of its own; its address."""
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    script, file = str(ROOT / "hack/prometheus.sh"), folder / "prometheus.yml"
    file.write_text(config)
    try:
        up = [script, "up", str(folder), str(file)]
        yield subprocess.run(up, check=True, env=environment, timeout=600, stdout=subprocess.PIPE, text=True).stdout.strip()
    finally:
        subprocess.run([script, "down", str(folder)], check=True, env=environment, timeout=60)


@pytest.fixture(scope="module")
def server(ports: tuple[int, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """It scrapes both exporters; their series get the namespace that a PodMonitor would give them."""
    milliseconds = f"{int(SCRAPE * 1000)}ms"
    config = f"""global: {{scrape_interval: {milliseconds}, scrape_timeout: {milliseconds}}}
scrape_configs:
  - job_name: pods
    static_configs: [{{targets: ["127.0.0.1:{ports[0]}", "127.0.0.1:{ports[1]}"], labels: {{namespace: default}}}}]
"""
    with running(tmp_path_factory.mktemp("prometheus"), config) as address:
        yield address


@pytest.fixture
async def prometheus(world: World, session: aiohttp.ClientSession, server: str) -> str:
    """Its address, after it has scraped this test's exporters. It looks for targets every five seconds."""
    source = PrometheusSource(session, server)
    for _ in range(600):
        seen = f'count(slipway_request_duration_seconds_count{{revision=~"{world.stable.revision}|{world.canary.revision}"}}) == 2'
        if await source.query(seen, time.time()):
            return server
        await asyncio.sleep(0.1)
    raise AssertionError("Prometheus does not scrape the exporters")


@dataclass
class Traffic:
    """A step's traffic: what was really sent, and since when."""

    since: float
    requests: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)


async def send(world: World, *, canary_errors: float, canary_slowness: float = 1.0, rounds: int = 30) -> Traffic:
    """Three seconds of traffic: each round 60 requests to stable and 20 to the canary; 0.2 % of stable's are errors."""
    generator = random.Random(3)
    names = (world.stable.revision, world.canary.revision)
    traffic = Traffic(time.time(), dict.fromkeys(names, 0), dict.fromkeys(names, 0))
    for _ in range(rounds):
        for exporter, count, errors, slowness in ((world.stable, 60, 0.002, 1.0), (world.canary, 20, canary_errors, canary_slowness)):
            for _ in range(count):
                is_error = generator.random() < errors
                exporter.serve(slowness * generator.lognormvariate(math.log(0.03), 0.4), is_error=is_error)
                traffic.requests[exporter.revision] += 1
                traffic.errors[exporter.revision] += is_error
        await asyncio.sleep(0.1)
    return traffic


def target(exporter: Exporter, since: float) -> Target:
    return Target("default", "digits", exporter.revision, since)


def judge(canary: Sample, stable: Sample, *specs: MetricSpec) -> Evaluation:
    return evaluate(Observations(canary, stable), specs or SPECS, minimum_requests=100, now=time.time(), stale_after=45)


async def both(world: World, source: PrometheusSource, since: float) -> tuple[Sample, Sample]:
    """Canary and stable from Prometheus, after it has scraped once more."""
    await asyncio.sleep(3 * SCRAPE)
    return await source.look(target(world.canary, since)), await source.look(target(world.stable, since))


@dataclass(frozen=True)
class Case:
    errors: float
    slowness: float
    want: str


@pytest.mark.parametrize(
    "case", [Case(0.002, 1.0, "Pass"), Case(0.12, 1.0, "Fail"), Case(0.002, 4.0, "Fail")], ids=["good", "errors", "slow"]
)
async def test_both_sources_give_the_same_verdict(world: World, session: aiohttp.ClientSession, prometheus: str, case: Case) -> None:
    pods, source = PodSource(session), PrometheusSource(session, prometheus)
    await asyncio.sleep(2 * SCRAPE)
    started = time.time()
    for exporter in (world.canary, world.stable):
        await pods.look(target(exporter, started), world.pods(exporter))
    traffic = await send(world, canary_errors=case.errors, canary_slowness=case.slowness)
    scraped = {
        exporter.revision: await pods.look(target(exporter, started), world.pods(exporter)) for exporter in (world.canary, world.stable)
    }
    for revision, sample in scraped.items():
        assert (sample.requests, sample.errors, sample.missing) == (traffic.requests[revision], traffic.errors[revision], None)
    canary, stable = await both(world, source, started)
    for exporter, sample in ((world.canary, canary), (world.stable, stable)):
        assert sample.missing is None
        assert sample.requests == pytest.approx(traffic.requests[exporter.revision], rel=0.15)
        assert sample.errors == pytest.approx(traffic.errors[exporter.revision], rel=0.15, abs=3)
        assert sample.duration is not None
        assert sample.duration.count == pytest.approx(traffic.requests[exporter.revision], rel=0.15)
        assert time.time() - sample.at < 5
    verdicts = [judge(scraped[world.canary.revision], scraped[world.stable.revision]), judge(canary, stable)]
    assert [evaluation.verdict for evaluation in verdicts] == [case.want, case.want], verdicts


async def test_our_quantile_is_that_of_prometheus(world: World, session: aiohttp.ClientSession, prometheus: str) -> None:
    await send(world, canary_errors=0.0, rounds=10)
    source = PrometheusSource(session, prometheus)
    _, stable = await both(world, source, time.time() - 60)
    assert stable.duration is not None
    for share in (0.5, 0.95, 0.99):
        buckets = f'slipway_request_duration_seconds_bucket{{revision="{world.stable.revision}"}}'
        query = f"histogram_quantile({share}, sum by (le) ({buckets}))"
        answer = await source.query(query, time.time())
        assert quantile(stable.duration, share) == pytest.approx(float(answer[0]["value"][1]), rel=1e-6)  # type: ignore[index]


async def test_a_restart_in_the_window_loses_nothing_scraped(world: World, session: aiohttp.ClientSession, prometheus: str) -> None:
    pods, source = PodSource(session), PrometheusSource(session, prometheus)
    started = time.time()
    await pods.look(target(world.canary, started), world.pods(world.canary))
    await send(world, canary_errors=0.0, rounds=10)
    await asyncio.sleep(2 * SCRAPE)
    await pods.look(target(world.canary, started), world.pods(world.canary))
    world.canary.restart()
    await send(world, canary_errors=0.0, rounds=5)
    sample = await pods.look(target(world.canary, started), world.pods(world.canary))
    assert sample.requests == 300
    canary, _ = await both(world, source, started)
    assert canary.requests == pytest.approx(300, rel=0.25)


async def test_no_traffic_is_too_little_traffic_and_not_missing_data(world: World, session: aiohttp.ClientSession, prometheus: str) -> None:
    await asyncio.sleep(2 * SCRAPE)
    since = time.time()
    canary, stable = await both(world, PrometheusSource(session, prometheus), since)
    assert (canary.requests, canary.missing) == (0.0, None)
    assert judge(canary, stable, MetricSpec("error-rate", maximum=0.01)).lacks_traffic_only


async def test_custom_queries(world: World, session: aiohttp.ClientSession, prometheus: str) -> None:
    source = PrometheusSource(session, prometheus)
    world.canary.drift.labels("m", world.canary.revision).set(0.4)
    world.stable.drift.labels("m", world.stable.revision).set(0.1)
    await asyncio.sleep(1)
    started = time.time()
    await send(world, canary_errors=0.0, rounds=15)
    query = 'avg(drift{revision="{{revision}}",namespace="{{namespace}}"})'
    specs = (
        MetricSpec("drift", maximum=0.2, query=query),
        MetricSpec("kept", maximum=0.5, query=query),
        MetricSpec("worse", increase=1.0, query=query),
        MetricSpec("empty", maximum=1, query='no_such_metric{revision="{{revision}}"}'),
        MetricSpec("two", maximum=1, query=f'drift{{revision=~"digits-{world.number}-.*"}}'),
        MetricSpec("broken", maximum=1, query="avg(("),
        MetricSpec("nan", maximum=1, query=query + " * NaN"),
    )
    samples = await both(world, source, started)
    targets = (target(world.canary, started), target(world.stable, started))
    observed = await observe(samples, source, specs, targets, 0.5)
    results = {result.name: result for result in evaluate(observed, specs, minimum_requests=100, now=time.time(), stale_after=45).results}
    assert {name: result.verdict for name, result in results.items()} == {
        "drift": "Fail",
        "kept": "Pass",
        "worse": "Fail",
        "empty": "Inconclusive",
        "two": "Inconclusive",
        "broken": "Inconclusive",
        "nan": "Inconclusive",
    }
    assert (results["worse"].value, results["worse"].baseline, results["worse"].samples) == (0.4, 0.1, 3)
    assert "2 series" in results["two"].message
    assert "parse error" in results["broken"].message
    assert "NaN" in results["nan"].message
    nothing = await observe(samples, None, specs, targets, 0.5)
    verdict = evaluate(nothing, specs, minimum_requests=100, now=time.time(), stale_after=45).verdict
    assert verdict == "Inconclusive"


async def test_prometheus_down_or_empty_is_inconclusive(world: World, session: aiohttp.ClientSession, tmp_path: Path) -> None:
    started = time.time() - 30
    with running(tmp_path, "global: {scrape_interval: 1s}\n") as address:
        for url, says in (("http://127.0.0.1:1", "Cannot connect"), (address, "does it scrape the pods?")):
            source = PrometheusSource(session, url)
            canary, stable = await source.look(target(world.canary, started)), await source.look(target(world.stable, started))
            assert says in (canary.missing or "")
            evaluation = judge(canary, stable)
            assert {result.verdict for result in evaluation.results} == {"Inconclusive"}
            assert not evaluation.lacks_traffic_only
    with pytest.raises(QueryError, match="Cannot connect"):
        await PrometheusSource(session, "http://127.0.0.1:1").query("1", time.time())


async def test_pods_that_do_not_answer_are_missing_data(world: World, session: aiohttp.ClientSession) -> None:
    pods, started = PodSource(session), time.time()
    await pods.look(target(world.canary, started), world.pods(world.canary))
    await send(world, canary_errors=0.5, rounds=10)
    world.canary.is_down = True
    sample = await pods.look(target(world.canary, started), world.pods(world.canary))
    assert "503" in (sample.missing or "")
    assert judge(sample, sample).verdict == "Inconclusive"
    gone = await pods.look(target(world.canary, started), [Pod(world.canary.revision, "http://127.0.0.1:1/metrics")])
    assert "127.0.0.1:1" in (gone.missing or "")
    world.canary.is_down = False
    sample = await pods.look(target(world.canary, started), world.pods(world.canary))
    assert (sample.requests, sample.missing) == (200, None)
    assert judge(sample, sample, MetricSpec("error-rate", maximum=0.02)).verdict == "Fail"
    pods.forget("default", keep=())
    again = await pods.look(target(world.canary, time.time()), world.pods(world.canary))
    assert again.requests == 0


async def test_the_window_begins_with_the_first_look_at_a_step(world: World, session: aiohttp.ClientSession) -> None:
    """An operator that was away does not hold the time that it missed against the throughput, nor what an older step did."""
    pods, began = PodSource(session), time.time() - 3600
    await send(world, canary_errors=0.0, rounds=3)
    assert (await pods.look(target(world.canary, began), world.pods(world.canary))).requests == 0
    await send(world, canary_errors=0.0, rounds=3)
    sample = await pods.look(target(world.canary, began), world.pods(world.canary))
    assert sample.requests == 60
    assert 0.2 < sample.seconds < 60
    next_step = await pods.look(target(world.canary, began + 60), world.pods(world.canary))
    assert (next_step.requests, next_step.missing) == (0, None)


async def test_an_answer_without_end_and_one_that_hangs_are_missing_data(
    world: World, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slipway.analysis.sources.TIMEOUT", aiohttp.ClientTimeout(total=0.5))

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b"slipway_other 1\n" * 4096)
                await asyncio.sleep(0)
        return response

    async def hanging(_: web.Request) -> web.Response:
        await asyncio.sleep(3600)
        return web.Response()

    app = web.Application()
    app.router.add_get("/endless", endless)
    app.router.add_get("/hanging", hanging)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        for path, says in (("/endless", "larger than|did not answer"), ("/hanging", "did not answer")):
            sample = await PodSource(session).look(target(world.canary, time.time()), [Pod("a", base + path)])
            assert any(word in (sample.missing or "") for word in says.split("|")), sample.missing
    finally:
        await runner.cleanup()
