"""Load makes pods and takes them away, by a real KEDA that asks a real Prometheus and a real metrics-server.

The model pauses in each call, so that requests are in flight without a core for each; it is served as PyTorch, where the pause still is.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from e2e.kit import (
    MODEL,
    ODD_LOAD,
    PATIENCE,
    ROOT,
    WEIGHT,
    Cluster,
    Manifest,
    Namespace,
    install,
    mdep,
    model_folder,
    slipway_cli,
    until,
    weights,
)

pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.timeout(1500)]
POLL, COOLDOWN, PAUSE = 5, 20, 0.2
DOWN = 300  # the autoscaler's own patience before it takes pods away (HorizontalPodAutoscaler, stabilizationWindowSeconds)
# Asks the model until it is answered, and says meanwhile, to Prometheus, that somebody waits
CALLER = """
import http.client, http.server, json, sys, threading, time
name, waiting, lock = sys.argv[1], [0], threading.Lock()
body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]})

def ask():
    begin, tries = time.monotonic(), 0
    with lock:
        waiting[0] += 1
    while True:
        tries += 1
        try:
            connection = http.client.HTTPConnection(name, 80, timeout=5)
            connection.request("POST", f"/v2/models/{name}/infer", body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            data = reply.read()
            if reply.status == 200:
                break
        except OSError:
            pass
        time.sleep(0.5)
    with lock:
        waiting[0] -= 1
    found = {"revision": reply.getheader("x-slipway-revision"), "answer": json.loads(data)["outputs"][0]["data"]}
    return found | {"tries": tries, "seconds": round(time.monotonic() - begin, 1)}

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = json.dumps(ask()) if self.path == "/ask" else f"waiting_requests {waiting[0]}\\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def keda(slipway: Cluster) -> Iterator[Cluster]:
    """The cluster with KEDA, metrics-server and a Prometheus, which Slipway knows about, and looks of KEDA that a test can wait for."""
    script = str(ROOT / "hack/keda.sh")
    subprocess.run([script, "up"], check=True, timeout=7200, stdout=subprocess.DEVNULL)  # the first time it compiles KEDA
    address = subprocess.run([script, "url"], check=True, timeout=60, capture_output=True, text=True).stdout.strip()
    knobs = (f"autoscaling.pollingSeconds={POLL}", f"autoscaling.cooldownSeconds={COOLDOWN}", "operator.resyncSeconds=5")
    install(slipway, f"prometheus.address={address}", *knobs)
    yield slipway
    install(slipway)
    subprocess.run([script, "down"], check=True, timeout=600, stdout=subprocess.DEVNULL)


def code(line: str) -> str:
    """The tiny model with a line that every call runs."""
    head = MODEL.replace("from torch import nn", "import time\nfrom torch import nn")
    return head.replace("        return self.fc(x)", f"        {line}\n        return self.fc(x)")


def folder(name: str, factor: float = 1.0) -> Manifest:
    return model_folder(name, code=code(f"time.sleep({PAUSE})"), weights_safetensors=weights(WEIGHT * factor))


def wish(version: str, autoscaling: Manifest, **more: Any) -> Manifest:
    resources = {"requests": {"cpu": "20m", "memory": "300Mi"}, "limits": {"memory": "1Gi"}}
    conversion = {"candidates": [{"target": "None"}]}
    return mdep(
        "tiny", f"configmap://{version}", conversion=conversion, serving={"resources": resources}, more={"autoscaling": autoscaling, **more}
    )


def sizes(space: Namespace) -> dict[str, int]:
    """The size of each revision's Deployment."""
    found = space.items("deployments", "-l", "slipway.dev/deployment=tiny,app.kubernetes.io/component=server")
    return {item["metadata"]["name"]: int(item["spec"]["replicas"]) for item in found}


def row(space: Namespace, role: str) -> Manifest:
    return (space.get("mdep", "tiny").get("status") or {}).get(role) or {}


def ready(space: Namespace) -> tuple[str | None, str | None]:
    found = space.condition("tiny")
    return found.get("status"), found.get("reason")


@dataclass
class Watch:
    """What was seen, each time it was another than before, with the seconds since the beginning."""

    seen: list[tuple[float, Any]] = field(default_factory=list)

    @property
    def values(self) -> list[Any]:
        return [value for _, value in self.seen]


@contextmanager
def watched(look: Callable[[], Any]) -> Iterator[Watch]:
    """Look all the time while the block runs."""
    watch, over, begin = Watch(), threading.Event(), time.monotonic()

    def run() -> None:
        while not over.is_set():
            value = look()
            if not watch.seen or watch.seen[-1][1] != value:
                watch.seen.append((round(time.monotonic() - begin, 1), value))
            over.wait(0.3)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join()
        print(json.dumps(watch.seen))


def load(space: Namespace, pod: str, width: int, pause: float = 0.01) -> None:
    space.run_pod(pod, ODD_LOAD, "tiny", "10", str(width), str(pause))
    space.wait_running(pod)


def test_load_makes_pods_and_takes_them_away(keda: Cluster, namespace: Namespace) -> None:
    namespace.apply(folder("v1"), wish("v1", {"minReplicas": 1, "maxReplicas": 4, "metric": "Concurrency", "target": 2}))
    namespace.wait_ready("tiny")
    (revision,) = sizes(namespace)
    explain = lambda: namespace.explain("tiny") + namespace.cluster.run("-n", namespace.name, "describe", "scaledobject,hpa").stdout  # noqa: E731
    until(lambda: namespace.items("scaledobjects") and namespace.items("hpa"), 60, explain)
    assert [item["metadata"]["name"] for item in namespace.items("hpa")] == [f"keda-hpa-{revision}"]
    until(lambda: namespace.condition("tiny", "Autoscaling").get("status") == "True", 120, explain)
    with watched(lambda: sizes(namespace)[revision]) as watch:
        load(namespace, "light", 1, pause=0.2)
        load(namespace, "heavy", 10)
        until(lambda: sizes(namespace)[revision] == 4, PATIENCE, explain)
        until(lambda: ready(namespace) == ("True", "Ready"), PATIENCE, explain)
        heavy = namespace.end_load("heavy")
        until(lambda: sizes(namespace)[revision] == 1, DOWN + PATIENCE, explain, every=3)
        time.sleep(15)
    light = namespace.end_load("light")
    print(json.dumps({"heavy": heavy, "light": light}))
    assert watch.values[0] == watch.values[-1] == 1
    assert max(watch.values) == 4
    assert (heavy["failed"], light["failed"]) == (0, 0), (heavy, light)


def test_stable_and_canary_together_stay_within_the_bound(keda: Cluster, namespace: Namespace) -> None:
    autoscaling = {"minReplicas": 1, "maxReplicas": 4, "target": 2}
    rollout = {"rollout": {"steps": [{"weight": 20}]}}
    namespace.apply(folder("v1"), folder("v2", 2.0), wish("v1", autoscaling, **rollout))
    first = namespace.wait_ready("tiny")["status"]["stable"]["revision"]
    load(namespace, "some", 4)
    until(lambda: sizes(namespace)[first] == 2, PATIENCE, lambda: namespace.explain("tiny"))
    with watched(lambda: sizes(namespace)) as watch:
        namespace.apply(wish("v2", autoscaling, **rollout))
        until(lambda: row(namespace, "canary").get("weight") == 20, PATIENCE, lambda: namespace.explain("tiny"))
        load(namespace, "much", 12)  # asks for eight pods
        until(lambda: sizes(namespace)[first] == 3, PATIENCE, lambda: namespace.explain("tiny"))
        time.sleep(60)
    loads = [namespace.end_load(pod) for pod in ("some", "much")]
    print(json.dumps(loads))
    totals = [sum(value.values()) for value in watch.values]
    assert max(totals) == 4, totals
    assert watch.values[-1][first] == 3
    assert [found["failed"] for found in loads] == [0, 0], loads
    assert all(len(found["revisions"]) == 2 for found in loads), "both answered"


SLEEPY = {"minReplicas": 0, "maxReplicas": 2, "target": 4}


def sleepy(space: Namespace, version: str, **more: Any) -> Manifest:
    return wish(version, SLEEPY | {"activationQuery": f'sum(waiting_requests{{namespace="{space.name}"}})'}, **more)


def caller(space: Namespace) -> None:
    """A pod that asks on demand; Prometheus finds it by its annotation and the name of its port."""
    container = {
        "name": "main",
        "image": space.cluster.images["SLIPWAY_RUNTIME_IMAGE"],
        "command": ["python", "-u", "-c", CALLER, "tiny"],
        "ports": [{"name": "http", "containerPort": 8000}],
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True},
    }
    spec = {
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    metadata = {"name": "caller", "annotations": {"prometheus.io/scrape": "true"}}
    space.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    space.wait_running("caller")


def ask(space: Namespace) -> Manifest:
    """One request, tried again until it is answered."""
    with space.cluster.forward(space.name, "pod/caller", 8000) as url, urllib.request.urlopen(f"{url}/ask", timeout=PATIENCE) as answer:
        found = dict(json.loads(answer.read()))
    print(json.dumps(found))
    return found


def wait_asleep(space: Namespace) -> str:
    """The stable revision, once it has no pods and the status says so."""

    def explain() -> str:
        return space.explain("tiny") + space.cluster.run("-n", space.name, "describe", "scaledobject,hpa").stdout

    until(lambda: ready(space) == ("True", "ScaledToZero"), PATIENCE, explain)
    revision = str(row(space, "stable")["revision"])
    assert sizes(space)[revision] == 0
    return revision


def test_the_last_pod_goes_and_comes_back_for_a_request(keda: Cluster, namespace: Namespace) -> None:
    namespace.apply(folder("v1"), folder("v2", 2.0), sleepy(namespace, "v1"))
    caller(namespace)
    namespace.wait_ready("tiny")
    first = wait_asleep(namespace)
    until(lambda: not namespace.items("pods", "-l", "slipway.dev/deployment=tiny"), 120)
    with watched(lambda: (sizes(namespace)[first], ready(namespace)[0])) as watch:
        time.sleep(20)  # four resyncs
        restart = namespace.cluster.kubectl(
            "-n", "slipway-system", "delete", "pod", "-l", "app.kubernetes.io/name=slipway-operator", "--wait"
        )
        namespace.cluster.kubectl("-n", "slipway-system", "rollout", "status", "deployment/slipway-operator", "--timeout=180s", timeout=200)
        time.sleep(20)
    assert watch.values == [(0, "True")], restart
    namespace.kubectl("wait", "mdep/tiny", "--for=condition=Ready", "--timeout=5s")
    told = slipway_cli(namespace.cluster, "status", "tiny", "-n", namespace.name)
    assert told.returncode == 0, told.stdout
    assert "ScaledObject" in told.stdout, told.stdout
    found = ask(namespace)
    assert (found["revision"], found["tries"] > 1) == (first, True)
    until(lambda: ready(namespace) == ("True", "Ready"), 60, lambda: namespace.explain("tiny"))
    wait_asleep(namespace)
    # another model takes over while it sleeps, and the old one stays asleep
    with watched(lambda: sizes(namespace)[first]) as watch:
        namespace.apply(sleepy(namespace, "v2"))
        until(lambda: row(namespace, "stable").get("revision") != first, PATIENCE, lambda: namespace.explain("tiny"))
    assert watch.values == [0]
    second = wait_asleep(namespace)
    assert ask(namespace)["revision"] == second


def test_a_canary_wakes_the_revision_that_it_shares_with(keda: Cluster, namespace: Namespace) -> None:
    rollout = {"rollout": {"steps": [{"weight": 50, "duration": "10s"}]}}
    namespace.apply(folder("v1"), folder("v2", 2.0), sleepy(namespace, "v1", **rollout))
    caller(namespace)
    namespace.wait_ready("tiny")
    first = wait_asleep(namespace)

    def look() -> tuple[int, int]:
        status = namespace.get("mdep", "tiny").get("status") or {}
        ready_ones = status["stable"].get("readyReplicas", 0) if status["stable"]["revision"] == first else -1
        return ready_ones, (status.get("canary") or {}).get("weight", 0)

    with watched(look) as watch:
        namespace.apply(sleepy(namespace, "v2", **rollout))
        until(lambda: row(namespace, "stable").get("revision") != first, PATIENCE, lambda: namespace.explain("tiny"))
    shared = [ready_ones for ready_ones, weight in watch.values if weight > 0]
    assert shared, watch.values
    assert 0 not in shared, "the canary had a part of the traffic beside nobody"
    second = wait_asleep(namespace)
    assert second != first
    assert ask(namespace)["revision"] == second


def test_cpu_is_measured_by_metrics_server(keda: Cluster, namespace: Namespace) -> None:
    busy = code("end = time.thread_time() + 0.05\n        while time.thread_time() < end:\n            pass")
    namespace.apply(model_folder("v1", code=busy), wish("v1", {"maxReplicas": 2, "metric": "CPU", "target": 200}))
    namespace.wait_ready("tiny")
    (revision,) = sizes(namespace)
    load(namespace, "load", 2, pause=0.1)
    with watched(lambda: sizes(namespace)[revision]):
        until(
            lambda: sizes(namespace)[revision] == 2, PATIENCE, lambda: namespace.cluster.run("-n", namespace.name, "describe", "hpa").stdout
        )
    found = namespace.end_load("load")
    assert found["failed"] == 0, found
