"""When canaries are looked at, and which evaluations reach a decision; the looks themselves are played here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import aiohttp
import pytest

from slipway.analysis.sources import PrometheusSource
from slipway.analysis.window import Sample
from slipway.analyst import Analyst
from slipway.snapshot import Config, DeploymentSnapshot, Key
from slipway.store import Store
from slipway.verdict import Replay
from unit.operator.world import RUNTIME, model_deployment

KEY = Key("ModelDeployment", "default", "digits")
STEPS = [{"weight": 10, "duration": "1m"}]


class Bench:
    """An Analyst whose sources answer what the test says, with time that runs a thousand times faster."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.now, self.leads, self.requests, self.looks = 1_000.0, True, 1000.0, list[str]()
        self.woken: list[Key] = []
        self.store = Store(Config())
        session = cast("aiohttp.ClientSession", None)
        self.analyst = Analyst(self.store, session, add=self.woken.append, is_leader=lambda: self.leads, clock=lambda: self.now, **options)
        real_sleep = asyncio.sleep

        async def sleep(seconds: float) -> None:
            self.now += seconds
            await real_sleep(seconds / 1000)

        monkeypatch.setattr("slipway.analyst.asyncio.sleep", sleep)
        self.analyst._pods.look = self.look  # type: ignore[method-assign]
        self.analyst._prober.send = self.send  # type: ignore[method-assign]
        self.analyst._prober.replay = self.replay  # type: ignore[method-assign]
        self.sent: list[tuple[str, ...]] = []
        self.answers = ["Pass"]

    async def look(self, target: Any, pods: Any = ()) -> Sample:
        self.looks.append(target.revision)
        if self.requests < 0:
            raise RuntimeError("broken")
        return Sample(self.now - target.since, self.now, self.requests, 0, 0)

    async def send(self, urls: Sequence[str], seconds: float) -> int:
        self.sent.append(tuple(urls))
        return len(urls)

    async def replay(self, url: str) -> Replay:
        self.sent.append((url,))
        return Replay(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0], url)  # type: ignore[arg-type]

    def run_pods(self, *revisions: str) -> None:
        """Let the store know the resource's Deployments, with one pod each whose server can replay."""
        runtime = {**RUNTIME, "spec": {**RUNTIME["spec"], "replay": True}}
        self.store.observe({**runtime, "metadata": {"name": "slipway", "uid": "r", "resourceVersion": "1"}})
        for number, name in enumerate(revisions, start=1):
            server = {"name": "server", "image": "slipway-runtime", "ports": [{"name": "http", "containerPort": 8080}]}
            labels = {"slipway.dev/deployment": "digits", "slipway.dev/revision": name}
            metadata = {"name": name, "namespace": "default", "uid": f"d-{name}", "resourceVersion": "1", "labels": labels}
            self.store.observe({"kind": "Deployment", "metadata": metadata, "spec": {"template": {"spec": {"containers": [server]}}}})
            status = {"podIP": f"10.0.0.{number}", "containerStatuses": [{"name": "server", "started": True}]}
            self.store.observe(
                {"kind": "Pod", "metadata": {**metadata, "uid": f"p-{name}"}, "spec": {"containers": [server]}, "status": status}
            )

    def resource(self, *, weight: int = 10, since: str = "1970-01-01T00:16:40Z", **rollout: Any) -> dict[str, Any]:
        resource = model_deployment(rollout={"steps": STEPS, "analysis": {"interval": "15s"}, **rollout})
        canary = {"revision": "b", "weight": weight, "stepStartedAt": since}
        return {**resource, "status": {"stable": {"revision": "a"}, "canary": canary}}

    def seen(self, resource: dict[str, Any]) -> list[str]:
        snapshot = self.analyst.add_to(DeploymentSnapshot(resource))
        assert isinstance(snapshot, DeploymentSnapshot)
        return [verdict.verdict for verdict in snapshot.verdicts]

    async def until(self, check: Callable[[], Any]) -> None:
        async with asyncio.timeout(5):
            while not check():
                await asyncio.get_running_loop().run_in_executor(None, lambda: None)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_the_first_look_is_no_evaluation_and_each_later_one_wakes_the_resource(bench: Bench) -> None:
    async def story() -> None:
        resource = bench.resource()
        bench.analyst.follow(resource)
        await bench.until(lambda: bench.looks)
        assert bench.seen(resource) == []
        await bench.until(lambda: len(bench.woken) >= 2)
        assert set(bench.woken) == {KEY}
        assert bench.looks[:4] == ["b", "a", "b", "a"]
        assert bench.seen(resource) == ["Pass"]
        await bench.analyst.close()

    asyncio.run(story())


def test_a_verdict_is_about_one_step_under_one_set_of_limits_for_a_while(bench: Bench) -> None:
    async def story() -> None:
        resource = bench.resource()
        bench.analyst.follow(resource)
        await bench.until(lambda: bench.woken)
        assert bench.seen(resource) == ["Pass"]
        assert bench.seen(bench.resource(since="1970-01-01T00:20:00Z")) == [], "of the step before"
        assert bench.seen(bench.resource(weight=0)) == []
        assert bench.seen(bench.resource(analysis={"metrics": [{"name": "error-rate", "maximum": "0.001"}]})) == []
        await bench.analyst.close()
        bench.now += 46
        assert bench.seen(resource) == [], "too old"

    asyncio.run(story())


@pytest.mark.parametrize("how", ["over", "gone", "lease lost", "broken"])
def test_looking_ends(bench: Bench, how: str) -> None:
    async def story() -> None:
        resource = bench.resource()
        bench.analyst.follow(resource)
        bench.analyst.follow(resource)
        await bench.until(lambda: bench.woken)
        if how == "over":
            bench.analyst.follow(bench.resource(weight=0))
        elif how == "gone":
            bench.analyst.forget(KEY)
        elif how == "lease lost":
            bench.leads = False
        else:
            bench.requests = -1.0
        tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith("analysis")]
        assert len(tasks) <= 1, "one for each canary, however often it is asked for"
        await bench.until(lambda: all(task.done() for task in tasks))
        assert bench.seen(bench.resource(weight=0)) == []
        bench.leads, bench.requests = True, 1000.0
        before = len(bench.woken)
        bench.analyst.follow(resource)
        await bench.until(lambda: len(bench.woken) > before)
        await bench.analyst.close()

    asyncio.run(story())


def test_prometheus_is_asked_for_the_built_in_metrics_only_when_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(*, asks_pods: bool) -> list[str]:
        prometheus = PrometheusSource(cast("aiohttp.ClientSession", None), "http://prometheus")
        bench = Bench(monkeypatch, prometheus=prometheus, asks_pods=asks_pods)
        asked: list[str] = []

        async def look(target: Any) -> Sample:
            asked.append(target.revision)
            return Sample(15, bench.now, 1000, 0, 0)

        prometheus.look = look  # type: ignore[method-assign]
        resource = bench.resource()
        bench.analyst.follow(resource)
        await bench.until(lambda: bench.woken)
        assert bench.seen(resource) == ["Pass"]
        await bench.analyst.close()
        return asked

    assert asyncio.run(story(asks_pods=True)) == []
    assert asyncio.run(story(asks_pods=False))[:4] == ["b", "a", "b", "a"]


@pytest.mark.parametrize("limit", [{"maximum": "0.01"}, {"maximumIncreasePercent": 20}])
@pytest.mark.parametrize("wanted", ["Wait", "Probe", "Promote"])
def test_probes_are_sent_while_nothing_but_requests_is_lacking(bench: Bench, wanted: str, limit: dict[str, Any]) -> None:
    async def story() -> None:
        bench.requests = 5.0
        analysis = {"interval": "15s", "onInsufficientTraffic": wanted, "metrics": [{"name": "error-rate", **limit}]}
        resource = bench.resource(analysis=analysis)
        bench.store.observe({**resource, "metadata": {**resource["metadata"], "resourceVersion": "1"}})
        bench.run_pods("a", "b")
        bench.analyst.follow(resource)
        await bench.until(lambda: len(bench.woken) >= 3)
        canary, stable = (f"http://10.0.0.{n}:8080/v2/models/digits/infer" for n in (2, 1))
        rounds = {(canary,)} if "maximum" in limit else {(canary,), (stable,)}
        assert set(bench.sent) == (rounds if wanted == "Probe" else set())
        bench.requests, bench.sent = 1000.0, []
        await bench.until(lambda: bench.seen(resource) == ["Pass"])
        bench.sent.clear()
        before = len(bench.woken)
        await bench.until(lambda: len(bench.woken) > before + 1)
        assert not bench.sent, "enough is enough"
        await bench.analyst.close()

    asyncio.run(story())


def test_a_replay_asks_each_pod_once_and_again_when_it_could_not_answer(bench: Bench) -> None:
    async def story() -> None:
        bench.answers = ["Inconclusive", "Pass"]
        resource = bench.resource(weight=0)
        bench.store.observe({**resource, "metadata": {**resource["metadata"], "resourceVersion": "1"}})
        bench.run_pods("a", "b")
        snapshot = lambda: bench.analyst.add_to(bench.store.gather(KEY))  # type: ignore[arg-type]  # noqa: E731
        assert snapshot().replay is None  # type: ignore[union-attr]
        for _ in range(3):
            bench.analyst.follow(resource)
        await bench.until(lambda: len(bench.woken) == 2)
        assert bench.sent == [("http://10.0.0.2:8080/v2/models/digits/infer",)] * 2
        assert snapshot().replay.verdict == "Pass"  # type: ignore[union-attr]
        bench.analyst.follow(resource)
        assert len(bench.sent) == 2, "known"
        pod = bench.store.get("Pod", "default", "b")
        assert pod is not None
        bench.store.observe({**pod, "metadata": {**pod["metadata"], "name": "b2", "uid": "another"}})
        assert snapshot().replay is None, "one more pod that was not asked"  # type: ignore[union-attr]
        bench.analyst.follow(resource)
        await bench.until(lambda: len(bench.woken) == 3)
        assert snapshot().replay.verdict == "Pass"  # type: ignore[union-attr]
        bench.analyst.follow(bench.resource(weight=10))
        assert snapshot().replay is None, "it has traffic"  # type: ignore[union-attr]
        bench.analyst.drop(KEY)
        await bench.analyst.close()

    asyncio.run(story())


def test_an_operator_that_asks_no_pods_replays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        bench = Bench(monkeypatch, prometheus=PrometheusSource(cast("aiohttp.ClientSession", None), "http://p"), asks_pods=False)
        resource = bench.resource(weight=0)
        bench.store.observe({**resource, "metadata": {**resource["metadata"], "resourceVersion": "1"}})
        bench.run_pods("a", "b")
        bench.analyst.follow(resource)
        snapshot = bench.analyst.add_to(bench.store.gather(KEY))  # type: ignore[arg-type]
        assert snapshot.replay.verdict == "Skipped"  # type: ignore[union-attr]
        assert bench.sent == []

    asyncio.run(story())
