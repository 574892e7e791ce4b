"""`slipway experiment`: both sides of an A/B test, from the pages that the real runtime's metrics make."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from slipway.cli.errors import CliError
from slipway.cli.kubectl import Cluster
from slipway.cli.main import main
from slipway_runtime.serve.metrics import Metrics
from unit.operator.test_experiments import BETA, CONTROL, served
from unit.operator.test_gating import pod
from unit.operator.test_rollout import KEY, V2, roll_out, stable


class Bench:
    """A deployment with a canary, one pod a side; the pages are the runtime's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, experiments: list[dict[str, Any]], **options: Any) -> None:
        self.world = served(experiments, **options)
        self.first, self.second = stable(self.world), roll_out(self.world, V2)
        self.pages = {name: Metrics("digits", name, lambda: 0) for name in (self.first, self.second)}
        self.pods = [pod(f"{name}-x", f"10.0.0.{n}", uid=name) for n, name in enumerate(self.pages)]
        for row, name in zip(self.pods, self.pages, strict=True):
            row["metadata"]["labels"]["slipway.dev/revision"] = name
        monkeypatch.setattr(Cluster, "find", lambda _, _kind, name: self.world.objects.get(("ModelDeployment", name)))
        monkeypatch.setattr(Cluster, "items", lambda _, kind, *_more: self.pods if kind == "pods" else list(self.world.runtimes))
        monkeypatch.setattr(Cluster, "raw", self.raw)
        monkeypatch.setattr("slipway.cli.experiment.time.sleep", lambda seconds: seconds and self.later())
        self.later = lambda: None

    def raw(self, path: str) -> str:
        revision = next(name for name in self.pages if f"/pods/{name}-x:8080/proxy/metrics" in path)
        return self.pages[revision].render().decode()

    def serve(self, revision: str, experiment: str | None, good: int, bad: int = 0, seconds: float = 0.004) -> None:
        metrics = self.pages[revision]
        for number in range(good + bad):
            code = 200 if number < good else 500
            metrics.count(code)
            metrics.seconds(seconds)
            if experiment:
                metrics.experiment(experiment, code, seconds)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["experiment", *arguments])


def test_the_experiment_is_held_against_its_control(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, [BETA, CONTROL])
    bench.serve(bench.second, "beta", 1800, 200)
    bench.serve(bench.second, None, 10_000)
    bench.serve(bench.first, "control", 2000)
    bench.serve(bench.first, None, 0, 5000)
    found = json.loads(run("digits", "-o", "json").output)
    assert found["sides"] == [
        {"experiment": "beta", "revision": bench.second, "requests": 2000, "missing": None},
        {"experiment": "control", "revision": bench.first, "requests": 2000, "missing": None},
    ]
    errors = found["metrics"][0]
    assert (errors["name"], errors["verdict"], errors["sides"][0]["value"], errors["sides"][1]["value"]) == (
        "error-rate",
        "Worse",
        0.1,
        0.0,
    )
    assert errors["difference"]["low"] <= 0.1 <= errors["difference"]["high"]
    text = run("digits").output
    assert f"beta at {bench.second}: 2000 requests" in text
    assert "10 % [8.76, 11.4]" in text
    assert "Worse" in text


def test_without_a_control_all_other_users_are(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, [BETA])
    for share in (1, 2):
        bench.serve(bench.second, "beta", 1500, seconds=0.002 * share)
        bench.serve(bench.first, None, 1500, seconds=0.02 * share)
    rows = {row["name"]: row for row in json.loads(run("digits", "-o", "json").output)["metrics"]}
    assert rows["latency-mean"]["verdict"] == "Better"
    assert rows["error-rate"]["verdict"] == "Inconclusive"
    rows = {row["name"]: row for row in json.loads(run("digits", "-o", "json", "--margin", "error-rate=0.05").output)["metrics"]}
    assert rows["error-rate"]["verdict"] == "NoDifference"


def test_a_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, [BETA, CONTROL])
    for revision, name in ((bench.second, "beta"), (bench.first, "control")):
        bench.serve(revision, name, 500, 500)
    bench.later = lambda: bench.serve(bench.second, "beta", 7)  # type: ignore[assignment]
    found = json.loads(run("digits", "--for", "5", "-o", "json").output)
    assert [side["requests"] for side in found["sides"]] == [7, 0]
    assert found["metrics"][0]["verdict"] == "Inconclusive"


def test_a_pod_that_is_not_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, [BETA])

    def refuse(*_: Any) -> str:
        raise CliError("forbidden", "ask for pods/proxy")

    monkeypatch.setattr(Cluster, "raw", refuse)
    assert "incomplete: pod" in run("digits").output
    assert json.loads(run("digits", "-o", "json").output)["sides"][0]["missing"]
    assert bench.first


@pytest.mark.parametrize(
    ("options", "arguments", "words"),
    [
        ({}, ["--experiment", "gamma"], "has no experiment gamma"),
        ({"has_gateway": False}, [], "is not in force: GatewayRequired"),
        ({}, ["--margin", "error-rate"], "is not METRIC=VALUE"),
    ],
)
def test_what_cannot_be_compared(monkeypatch: pytest.MonkeyPatch, options: Any, arguments: list[str], words: str) -> None:
    Bench(monkeypatch, [BETA], **options)
    done = run("digits", *arguments)
    assert done.exit_code != 0
    assert words in done.output


def test_a_canary_without_a_weight_has_no_users(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, [BETA])
    bench.world.objects[KEY]["status"]["canary"]["weight"] = 0
    assert "has one side only" in run("digits").output
