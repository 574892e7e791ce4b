"""A canary is measured by the real operator, on a real API server: the pods are objects whose addresses are HTTP servers of this test,
which answer /metrics with the runtime's own metrics and count requests that nobody sent.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import ApiServer
from integration.forks import operator as fork_operator
from integration.operator.test_rollout import IMAGE, ROOT, Scene
from integration.ports import free_port, operator_ports
from slipway.analysis.notification import key_of, verify
from slipway_runtime.serve.metrics import Metrics

SECRET = "whsec_" + "c2xpcHdheS1pbnRlZ3JhdGlvbi10ZXN0cw=="
ANALYSIS = {"interval": "1s", "metrics": [{"name": "error-rate", "maximum": "0.05"}, {"name": "nan-rate", "maximum": "0.05"}]}
STEPS = [{"weight": 10, "duration": "3s"}, {"weight": 50, "duration": "3s"}]


class Toy(ThreadingHTTPServer):
    """One pod: counts `rate` requests a second, of which shares are errors or not finite; `is_down`: does not tell."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], revision: str) -> None:
        super().__init__(address, Answer)
        self.metrics = Metrics("digits", revision, lambda: 0)
        self.rate, self.errors, self.nonfinite, self.is_down = 300.0, 0.0, 0.0, False
        self.at, self.served, self.lock = time.monotonic(), 0, threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def page(self) -> bytes:
        with self.lock:
            now = time.monotonic()
            for _ in range(int((now - self.at) * self.rate)):
                self.served += 1
                self.metrics.count(500 if self._is_one_of(self.errors) else 200)
                self.metrics.seconds(0.004)
                self.metrics.nonfinite(self._is_one_of(self.nonfinite))
            self.at = now
            return self.metrics.render()

    def _is_one_of(self, share: float) -> bool:
        return int(self.served * share) > int((self.served - 1) * share)


class Answer(BaseHTTPRequestHandler):
    server: Toy

    def do_GET(self) -> None:
        body = b"" if self.server.is_down else self.server.page()
        self.send_response(503 if self.server.is_down else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


class Receiver(ThreadingHTTPServer):
    """Takes notifications, and keeps those that are signed."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hook)
        self.got: list[dict[str, Any]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def of(self, namespace: str) -> list[tuple[str, str, int | None]]:
        mine = [m for m in self.got if m["data"]["namespace"] == namespace]
        return [(m["type"], m["data"]["revision"], m["data"].get("weight")) for m in mine]


class Hook(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        if verify(headers, body, key_of(SECRET), time.time()):
            self.server.got.append(json.loads(body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def port(apiserver: ApiServer) -> Iterator[int]:
    """The port of the model servers; pods differ by address only, so that one ServingRuntime fits all."""
    number = free_port()
    spec = {**IMAGE, "port": number}
    apiserver.apply({"apiVersion": "slipway.dev/v1alpha1", "kind": "ServingRuntime", "metadata": {"name": "slipway"}, "spec": spec})
    yield number
    apiserver.apply({"apiVersion": "slipway.dev/v1alpha1", "kind": "ServingRuntime", "metadata": {"name": "slipway"}, "spec": IMAGE})


class Prometheus:
    """A real one without targets, which comes and goes at one address."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, str(free_port())
        (folder / "prometheus.yml").write_text("scrape_configs: []\n")

    def _run(self, *command: str) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        subprocess.run([str(ROOT / "hack/prometheus.sh"), *command], check=True, env=environment, timeout=600, stdout=subprocess.DEVNULL)

    def up(self) -> None:
        self._run("up", str(self.folder / "data"), str(self.folder / "prometheus.yml"), self.port)

    def down(self) -> None:
        self._run("down", str(self.folder / "data"))


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    server = Prometheus(tmp_path_factory.mktemp("prometheus"))
    server.up()
    yield server
    server.down()


@pytest.fixture(scope="module")
def operator(
    apiserver: ApiServer, port: int, receiver: Receiver, prometheus: Prometheus, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The operator as a process, until the tests of this file end; yields its log."""
    log = tmp_path_factory.mktemp("operator") / "log"
    environment = {**os.environ, "KUBECONFIG": str(apiserver.kubeconfig), "PYTHONPATH": str(ROOT / "operator/src")}
    environment |= {**operator_ports(), "SLIPWAY_NAMESPACE": "default"}
    environment |= {"SLIPWAY_DRAIN_SECONDS": "2", "SLIPWAY_WEBHOOK_URL": f"http://127.0.0.1:{receiver.server_address[1]}/hook"}
    environment |= {"SLIPWAY_WEBHOOK_SECRET": SECRET, "SLIPWAY_PROMETHEUS_ADDRESS": f"http://127.0.0.1:{prometheus.port}"}
    process = fork_operator(environment, log)
    try:
        yield log
    finally:
        process.terminate()
        process.wait(30)


class Stage(Scene):
    """A scene whose revisions have a pod each, at an address of its own."""

    addresses = iter(range(2, 250))

    def __init__(self, server: ApiServer, namespace: str, port: int) -> None:
        super().__init__(server, namespace)
        self.port = port
        self.toys: dict[str, Toy] = {}
        self.servers: dict[str, Any] = {}

    def pod(self, revision: str) -> Any:
        """Start the pod of a revision: the object, and the server behind its address."""
        address = f"127.0.0.{next(self.addresses)}"
        server = self.run_server(address, revision)
        template = self.get("deployment", revision)["spec"]["template"]
        containers = [{key: c[key] for key in ("name", "image", "ports")} for c in template["spec"]["containers"]]
        metadata = {"name": f"{revision}-x", "labels": template["metadata"]["labels"]}
        spec = {"containers": containers, "automountServiceAccountToken": False}
        self.kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))
        said = {"name": "server", "ready": True, "started": True, "restartCount": 0, "image": "i", "imageID": "i"}
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "containerStatuses": [said]}
        self.server.kube.patch(self.namespace, "pod", metadata["name"], {"status": status}, subresource="status")
        self.servers[revision] = server
        return server

    def run_server(self, address: str, revision: str) -> Any:
        """Start what answers behind the address."""
        self.toys[revision] = Toy((address, self.port), revision)
        return self.toys[revision]

    def serve(self, version: int, **rollout: Any) -> str:
        """Apply a version, and wait until its Deployment is there and has its pod; returns the revision."""
        before = set(self.servers)
        self.apply(version, rollout={"steps": STEPS, **rollout})
        made = lambda: {d["metadata"]["name"] for d in self.get("deployments")["items"]}  # noqa: E731
        names = lambda: {name for name in made() - before if "-shadow-" not in name}  # noqa: E731
        revision = str(next(iter(self.until_there(names))))
        self.pod(revision)
        return revision

    def until_there(self, question: Any) -> Any:
        """Wait without letting pods come up: they are ready only after they have an address."""
        end = time.monotonic() + 30
        while not (answer := question()):
            assert time.monotonic() < end
            time.sleep(0.1)
        return answer

    def end(self) -> None:
        for toy in self.toys.values():
            toy.shutdown()
            toy.server_close()


@pytest.fixture
def stage(apiserver: ApiServer, operator: Path, port: int, request: pytest.FixtureRequest) -> Iterator[Stage]:
    scene = Stage(apiserver, f"gate-{re.sub('[^a-z0-9]+', '-', request.node.name.removeprefix('test_'))[:40].strip('-')}", port)
    yield scene
    scene.end()
    assert "Traceback" not in operator.read_text()


def test_a_good_canary_is_promoted(stage: Stage, receiver: Receiver) -> None:
    first = stage.serve(1)
    stage.until(lambda: stage.status()["stable"]["revision"] == first and stage.status()["stable"].get("since"))
    second = stage.serve(2, analysis=ANALYSIS)
    row = stage.until(lambda: stage.status()["canary"]["step"] == 2 and stage.status()["canary"])
    assert row["evaluations"][0]["verdict"] == "Pass"
    stage.until(lambda: stage.status()["stable"]["revision"] == second)
    told = stage.until(lambda: [m for m in receiver.of(stage.namespace) if m[0] == "rollout.Promoted" and m[1] == second])
    assert told == [("rollout.Promoted", second, 100)]
    assert [m[0] for m in receiver.of(stage.namespace) if m[1] == second] == ["rollout.Started", "rollout.Step", "rollout.Promoted"]


def test_answers_that_are_not_finite_roll_back(stage: Stage, receiver: Receiver) -> None:
    first = stage.serve(1)
    stage.until(lambda: stage.status()["stable"]["revision"] == first and stage.status()["stable"].get("since"))
    second = stage.serve(2, analysis=ANALYSIS)
    stage.toys[second].nonfinite = 0.2
    row = stage.until(lambda: stage.status()["canary"]["phase"] == "RolledBack" and stage.status()["canary"])
    assert (row["reason"], row["weight"], len(row["evaluations"]) <= 3) == ("AnalysisFailed", 0, True)
    assert "at 10 % of the traffic: nan-rate: 0." in row["message"]
    measured = next(m for m in row["metrics"] if m["name"] == "nan-rate")
    assert measured["verdict"] == "Fail"
    assert abs(float(measured["value"]) - 0.2) < 0.05
    assert stage.get("service", "digits")["spec"]["selector"]["slipway.dev/revision"] == first
    events = [e["message"] for e in stage.get("events")["items"] if e["reason"] == "AnalysisFailed"]
    assert any(measured["value"] in message for message in events), events
    stage.until(lambda: [m[0] for m in receiver.of(stage.namespace) if m[1] == second] == ["rollout.Started", "rollout.RolledBack"])
    bad = next(m["data"] for m in receiver.got if m["type"] == "rollout.RolledBack" and m["data"]["revision"] == second)
    assert (bad["reason"], bad["stable"]) == ("AnalysisFailed", first)
    assert measured in bad["metrics"]


def test_a_pod_that_does_not_tell_is_waited_for(stage: Stage) -> None:
    first = stage.serve(1)
    stage.until(lambda: stage.status()["stable"]["revision"] == first and stage.status()["stable"].get("since"))
    second = stage.serve(2, analysis={**ANALYSIS, "onInsufficientTraffic": "Promote"})
    stage.toys[second].is_down = True
    row = stage.until(lambda: len(stage.status()["canary"].get("evaluations", ())) >= 5 and stage.status()["canary"])
    assert (row["step"], {m["verdict"] for m in row["metrics"]}) == (1, {"Inconclusive"})
    assert "answers 503" in row["evaluations"][0]["message"]
    stage.toys[second].is_down = False
    stage.until(lambda: stage.status()["stable"]["revision"] == second)


# what Prometheus does -> (query, words of the verdict)
ABSENT = {
    "empty": ("no_such_metric", "has no data for it"),
    "nan": ("vector(0) / vector(0)", "NaN"),
    "down": ("vector(0)", "127.0.0.1"),
}


@pytest.mark.parametrize("what", ABSENT)
def test_prometheus_is(stage: Stage, prometheus: Prometheus, what: str) -> None:
    """Nothing is promoted while it does not say a number, and what it did not say is Inconclusive."""
    query, words = ABSENT[what]
    first = stage.serve(1)
    stage.until(lambda: stage.status()["stable"]["revision"] == first and stage.status()["stable"].get("since"))
    if what == "down":
        prometheus.down()
    try:
        metric = {"name": "custom", "query": query, "maximum": "0.05"}
        second = stage.serve(2, analysis={"interval": "1s", "metrics": [metric], "onInsufficientTraffic": "Promote"})
        row = stage.until(lambda: len(stage.status()["canary"].get("evaluations", ())) >= 5 and stage.status()["canary"])
        assert (row["step"], {m["verdict"] for m in row["metrics"]}) == (1, {"Inconclusive"})
        assert {record["verdict"] for record in row["evaluations"]} == {"Inconclusive"}
        assert words in row["evaluations"][0]["message"], row["evaluations"]
        assert stage.status()["stable"]["revision"] == first
    finally:
        if what == "down":
            prometheus.up()
    if what == "down":
        stage.until(lambda: stage.status()["stable"]["revision"] == second)
