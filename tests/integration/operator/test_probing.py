"""Golden inputs, replayed by the real operator on real servers behind the pods of a real API server: before a canary has any traffic, and
instead of the requests that nobody sends.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from integration.conftest import ApiServer
from integration.forks import operator as fork_operator
from integration.operator.test_gating import Stage
from integration.operator.test_rollout import IMAGE, ROOT
from integration.ports import free_port, operator_ports
from unit.runtime.serve.artifacts import Draft, mlp_draft, write

PROGRAM = "; ".join(
    [
        "import argparse, sys",
        "from slipway_runtime.serve.main import add_arguments, run",
        "parser = argparse.ArgumentParser()",
        "add_arguments(parser)",
        "sys.exit(run(parser.parse_args()))",
    ]
)
ANALYSIS = {"interval": "1s", "minimumRequests": 20, "metrics": [{"name": "error-rate", "maximum": "0.2"}]}
STEPS = [{"weight": 50, "duration": "1s"}]


@pytest.fixture(scope="module")
def port(apiserver: ApiServer) -> Iterator[int]:
    number = free_port()
    spec = {**IMAGE, "port": number, "replay": True}
    apiserver.apply({"apiVersion": "slipway.dev/v1alpha1", "kind": "ServingRuntime", "metadata": {"name": "slipway"}, "spec": spec})
    yield number
    apiserver.apply(
        {
            "apiVersion": "slipway.dev/v1alpha1",
            "kind": "ServingRuntime",
            "metadata": {"name": "slipway"},
            "spec": {**IMAGE, "replay": False},
        }
    )


@pytest.fixture(scope="module")
def operator(apiserver: ApiServer, port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    log = tmp_path_factory.mktemp("operator") / "log"
    environment = {**os.environ, "KUBECONFIG": str(apiserver.kubeconfig), "PYTHONPATH": str(ROOT / "operator/src")}
    environment |= {**operator_ports(), "SLIPWAY_NAMESPACE": "default"}
    process = fork_operator(environment | {"SLIPWAY_DRAIN_SECONDS": "2"}, log)
    try:
        yield log
    finally:
        process.terminate()
        process.wait(30)


def is_ready(base: str) -> bool:
    try:
        urllib.request.urlopen(f"{base}/v2/health/ready", timeout=2)
    except OSError:
        return False
    return True


class Theatre(Stage):
    """A stage whose pods are real servers of a small model."""

    folder: Path
    bases: dict[str, str]
    draft: Draft
    model_name = "digits"

    def run_server(self, address: str, revision: str) -> Any:
        folder = self.folder / revision
        digest = write(folder, self.draft)
        arguments = ["--model-dir", str(folder), "--artifact-digest", digest, "--model-name", self.model_name, "--revision", revision]
        arguments += ["--host", address, "--port", str(self.port), "--drain-seconds", "0"]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "runtime-image/src"), "OMP_NUM_THREADS": "1"}
        with (self.folder / f"{revision}.log").open("wb") as log:
            process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], env=environment, stderr=log)
        self.bases[revision] = f"http://{address}:{self.port}"
        end = time.monotonic() + 60
        while not is_ready(self.bases[revision]):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.1)
        return process

    def metrics(self, revision: str) -> dict[str, float]:
        """Requests by kind and code."""
        with urllib.request.urlopen(f"{self.bases[revision]}/metrics", timeout=5) as answer:
            found = re.findall(r'^slipway_(\w*requests_total)\{.*code="(\d+)".*\} (\S+)$', answer.read().decode(), re.M)
        return {f"{name} {code}": float(value) for name, code, value in found}

    def end(self) -> None:
        for process in self.servers.values():
            process.terminate()
            process.wait(20)


@pytest.fixture
def theatre(apiserver: ApiServer, operator: Path, port: int, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Theatre]:
    name = re.sub("[^a-z0-9]+", "-", request.node.name.removeprefix("test_"))
    scene = Theatre(apiserver, f"probe-{name[:56].strip('-')}", port)
    scene.folder, scene.bases = tmp_path, {}
    scene.draft = mlp_draft()
    yield scene
    scene.end()
    assert "Traceback" not in operator.read_text()


def test_without_a_user_probes_finish_the_rollout(theatre: Theatre) -> None:
    first = theatre.serve(1)
    theatre.until(lambda: theatre.status()["stable"]["revision"] == first and theatre.status()["stable"].get("since"))
    second = theatre.serve(2, steps=STEPS, analysis={**ANALYSIS, "onInsufficientTraffic": "Probe"})
    theatre.until(lambda: theatre.status()["stable"]["revision"] == second)
    found = theatre.metrics(second)
    assert set(found) == {"probe_requests_total 200"}, "no request of a user was made up"
    assert 20 <= found["probe_requests_total 200"] <= 3 + 10 * 20
    assert theatre.metrics(first) == {}, "nothing is compared with it"


def test_a_canary_that_users_would_not_reach_gets_none(theatre: Theatre) -> None:
    first = theatre.serve(1)
    theatre.until(lambda: theatre.status()["stable"]["revision"] == first and theatre.status()["stable"].get("since"))
    theatre.model_name = "other"
    theatre.serve(2, steps=STEPS)
    row = theatre.until(lambda: theatre.status()["canary"]["phase"] == "RolledBack" and theatre.status()["canary"])
    assert (row["reason"], row["weight"]) == ("GoldenMismatch", 0)
    assert "/v2/models/digits/infer answers 404" in row["message"]
    assert theatre.get("service", "digits")["spec"]["selector"]["slipway.dev/revision"] == first


def test_waiting_for_requests_is_what_it_was(theatre: Theatre) -> None:
    first = theatre.serve(1)
    theatre.until(lambda: theatre.status()["stable"]["revision"] == first and theatre.status()["stable"].get("since"))
    second = theatre.serve(2, steps=STEPS, analysis=ANALYSIS)
    theatre.until(lambda: len(theatre.status()["canary"].get("evaluations", ())) >= 4)
    assert (theatre.status()["stable"]["revision"], theatre.metrics(second)) == (first, {"probe_requests_total 200": 3})
    assert json.dumps(theatre.status()["canary"]["metrics"]).count("0 of 20 requests") == 1


def compare(theatre: Theatre, first: str, second: str) -> str:
    """Be the kubelet of the comparator and the gateway that copies requests to it; returns the comparator's name."""
    made = theatre.until_there(lambda: [d for d in theatre.get("deployments")["items"] if "-shadow-" in d["metadata"]["name"]])
    name, template = made[0]["metadata"]["name"], made[0]["spec"]["template"]
    address = f"127.0.0.{next(theatre.addresses)}"
    theatre.bases[name] = f"http://{address}:{theatre.port}"
    options = dict(part.split("=", 1) for part in template["spec"]["containers"][0]["command"] if part.startswith("--"))
    assert (options["--stable-revision"], options["--canary-revision"]) == (first, second)
    options |= {"--stable": theatre.bases[first], "--canary": theatre.bases[second], "--host": address, "--port": str(theatre.port)}
    arguments = [f"{key}={value}" for key, value in options.items() if key not in ("--repository", "--digest")]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "runtime-image/src"), "OMP_NUM_THREADS": "1"}
    with (theatre.folder / "shadow.log").open("wb") as log:
        command = [sys.executable, "-m", "slipway_runtime.shadow", *arguments]
        theatre.servers[name] = subprocess.Popen(command, env=environment, stderr=log)
    end = time.monotonic() + 60
    while not is_ready(theatre.bases[name]):
        assert time.monotonic() < end
        time.sleep(0.1)
    ports = [{"name": "http", "containerPort": theatre.port}]
    container = {"name": "comparator", "image": "slipway-runtime", "ports": ports}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"{name}-x", "labels": template["metadata"]["labels"]}}
    pod["spec"] = {"containers": [container], "automountServiceAccountToken": False}
    theatre.kubectl("create", "-f", "-", stdin=json.dumps(pod))
    said = {"name": "comparator", "ready": True, "started": True, "restartCount": 0, "image": "i", "imageID": "i"}
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "containerStatuses": [said]}
    theatre.server.kube.patch(theatre.namespace, "pod", f"{name}-x", {"status": status}, subresource="status")
    return str(name)


def copy_requests(base: str, count: int) -> None:
    """Send what a gateway would: copies of users' requests."""
    random = np.random.default_rng(3)
    for _ in range(count):
        item = {"name": "x", "shape": [1, 64], "datatype": "FP32", "data": random.standard_normal(64).round(4).tolist()}
        request = urllib.request.Request(f"{base}/v2/models/digits/infer", json.dumps({"inputs": [item]}).encode())
        assert json.load(urllib.request.urlopen(request, timeout=5)) == {"taken": True}
        time.sleep(0.01)


@pytest.mark.parametrize("is_good", [False, True], ids=["another model", "the same model"])
def test_answers_are_compared_at_weight_0(theatre: Theatre, is_good: bool) -> None:
    first = theatre.serve(1)
    theatre.until(lambda: theatre.status()["stable"]["revision"] == first and theatre.status()["stable"].get("since"))
    theatre.draft = mlp_draft(turned=not is_good)
    analysis = {**ANALYSIS, "minimumRequests": 20}
    steps = [{"weight": 50}]
    second = theatre.serve(2, steps=steps, shadow={"duration": "2s", "minTop1AgreementPercent": 90}, analysis=analysis)
    name = compare(theatre, first, second)
    theatre.until(lambda: theatre.status()["canary"]["phase"] == "Shadowing")
    time.sleep(1.5)  # the operator's first look at the comparator: what was compared before it does not count
    copy_requests(theatre.bases[name], 60)
    row = theatre.until(lambda: theatre.status()["canary"]["phase"] != "Shadowing" and theatre.status()["canary"])
    if is_good:
        assert (row["phase"], row["weight"]) == ("Paused", 50)
    else:
        assert (row["phase"], row["reason"], row["weight"]) == ("RolledBack", "AnalysisFailed", 0)
        assert row["message"].startswith("at 0 % of the traffic: shadow-disagreement: 1 [")
    assert theatre.metrics(second).keys() == theatre.metrics(first).keys() | {"probe_requests_total 200"} == {"probe_requests_total 200"}
    theatre.until(lambda: not [d for d in theatre.get("deployments,services")["items"] if d["metadata"]["name"] == name])
