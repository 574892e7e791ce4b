"""A rollout with the real operator on a real API server; nothing runs pods, so the test says of each Deployment that they are ready."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from integration.conftest import ApiServer
from integration.forks import operator as fork_operator
from integration.operator.conftest import PATIENCE
from integration.ports import operator_ports
from kube import NotFound
from slipway.plan.artifact import artifact_manifest, artifact_spec
from slipway.snapshot import Config

ROOT = Path(__file__).parents[3]
STEPS = [{"weight": 10, "duration": "3s"}, {"weight": 50}]
IMAGE = {"image": "slipway-runtime", "formats": [{"name": "ONNX"}], "args": ["serve"]}


def model(version: int) -> dict[str, Any]:
    return {"uri": f"oci://registry:5000/models/digits:v{version}", "digest": f"sha256:{version:064x}"}


class Scene:
    """A namespace with a ModelDeployment, and hands for what the cluster would do."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self.server, self.namespace = server, namespace
        server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        return self.server.kubectl("-n", self.namespace, *arguments, stdin=stdin)

    def get(self, *arguments: str) -> Any:
        return self.server.kube.get("-n", self.namespace, *arguments)

    def apply(self, version: int, **spec: Any) -> None:
        """Apply the ModelDeployment, with an artifact that is there already."""
        resource = {"apiVersion": "slipway.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "digits"}}
        resource = {**resource, "spec": {"model": model(version), "serving": {"replicas": 2}, **spec}}
        manifest = artifact_manifest(self.namespace, artifact_spec(resource["spec"], Config()), [], None)
        try:
            self.get("mart", manifest["metadata"]["name"])
        except NotFound:
            self.kubectl("create", "-f", "-", stdin=json.dumps(manifest))
        self.server.kube.patch(self.namespace, "mart", manifest["metadata"]["name"], ready(version), subresource="status")
        self.kubectl("apply", "-f", "-", stdin=json.dumps(resource))

    def run_pods(self) -> None:
        """Say that each Deployment has all its pods."""
        for deployment in self.get("deployments")["items"]:
            size = deployment["spec"]["replicas"]
            counts = dict.fromkeys(("replicas", "readyReplicas", "availableReplicas", "updatedReplicas"), size)
            said = {"status": {**counts, "observedGeneration": deployment["metadata"]["generation"]}}
            with suppress(NotFound):  # a comparator may be gone by now
                self.server.kube.patch(self.namespace, "deployment", deployment["metadata"]["name"], said, subresource="status")

    def until(self, question: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        """Wait for an answer, letting pods come up meanwhile."""
        end, answer = time.monotonic() + seconds, None
        while time.monotonic() < end:
            self.run_pods()
            try:
                answer = question()
            except (KeyError, AssertionError) as error:
                answer = None
                last: Any = error
            else:
                last = answer
            if answer:
                return answer
            time.sleep(0.3)
        raise AssertionError(f"not within {seconds} s: {last!r}; status: {self.get('mdep', 'digits').get('status')}")

    def status(self) -> Any:
        return self.get("mdep", "digits")["status"]

    def shares(self) -> dict[str, int]:
        rule = next(r for r in self.get("httproute", "digits")["spec"]["rules"] if "headers" not in r["matches"][0])
        return {ref["name"]: ref["weight"] for ref in rule["backendRefs"]}

    def slipway(self, *arguments: str) -> str:
        """Run the command line, as a user would."""
        path = f"{ROOT / 'build/bin'}:{os.environ['PATH']}"
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator/src"), "PATH": path}
        place = ["--kubeconfig", str(self.server.kubeconfig), "-n", self.namespace]
        command = [sys.executable, "-m", "slipway.cli", *place, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


def ready(version: int) -> dict[str, Any]:
    now = "2026-11-24T00:00:00Z"
    condition = {"type": "Ready", "status": "True", "reason": "Published", "message": "published", "lastTransitionTime": now}
    digest = f"sha256:{version:064x}"
    chosen = {"repository": "registry:5000/artifacts/default", "digest": digest, "sourceDigest": digest, "format": "ONNX"}
    return {"status": {"observedGeneration": 1, "conditions": [{**condition, "observedGeneration": 1}], **chosen}}


@pytest.fixture(scope="module")
def operator(apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The operator as a process, until the tests of this file end; yields its log."""
    apiserver.apply({"apiVersion": "slipway.dev/v1alpha1", "kind": "ServingRuntime", "metadata": {"name": "slipway"}, "spec": IMAGE})
    log = tmp_path_factory.mktemp("operator") / "log"
    ports = operator_ports()
    environment = {**os.environ, **ports, "KUBECONFIG": str(apiserver.kubeconfig), "PYTHONPATH": str(ROOT / "operator/src")}
    environment |= {"SLIPWAY_NAMESPACE": "default", "SLIPWAY_DRAIN_SECONDS": "2", "SLIPWAY_RESYNC_SECONDS": "5"}
    process = fork_operator(environment, log)
    try:
        yield log
    finally:
        process.terminate()
        process.wait(30)


def test_a_canary_by_replicas_promoted_undone_and_aborted_from_the_command_line(apiserver: ApiServer, operator: Path) -> None:
    scene = Scene(apiserver, "by-replicas")
    rollout = {"rollout": {"steps": STEPS}}
    scene.apply(1, **rollout)
    first = scene.until(lambda: scene.status()["stable"]["since"] and scene.status()["stable"]["revision"])
    scene.apply(2, **rollout)
    canary = scene.until(lambda: scene.status()["canary"]["phase"] == "Paused" and scene.status()["canary"])
    assert (canary["step"], canary["weight"], canary["share"]) == (2, 50, 50)
    service = scene.get("service", "digits")
    assert service["spec"]["selector"] == {"slipway.dev/deployment": "digits", "app.kubernetes.io/component": "server"}
    assert scene.slipway("promote", "digits") == f"digits: revision {canary['revision']} promoted past step 2\n"
    scene.until(lambda: scene.status()["stable"]["revision"] == canary["revision"])
    sizes = lambda: {d["metadata"]["name"]: d["spec"]["replicas"] for d in scene.get("deployments")["items"]}  # noqa: E731
    scene.until(lambda: sizes() == {first: 0, canary["revision"]: 2})
    jobs = len(scene.get("jobs")["items"])
    scene.slipway("undo", "digits")
    scene.until(lambda: scene.status()["stable"]["revision"] == first and scene.get("mdep", "digits")["spec"]["model"] == model(1))
    assert len(scene.get("jobs")["items"]) == jobs, "nothing was converted"
    scene.apply(3, **rollout)
    third = scene.until(lambda: scene.status()["canary"]["weight"] and scene.status()["canary"]["revision"])
    scene.slipway("abort", "digits")
    scene.until(lambda: scene.status()["canary"]["phase"] == "RolledBack" and sizes()[third] == 0)
    assert scene.get("service", "digits")["spec"]["selector"]["slipway.dev/revision"] == first
    assert [line.split()[1] for line in scene.slipway("history", "digits").splitlines()[1:3]] == ["RolledBack", "Stable"]
    before = scene.get("mdep", "digits")["metadata"]["resourceVersion"]
    time.sleep(3)
    assert scene.get("mdep", "digits")["metadata"]["resourceVersion"] == before, "quiet when nothing happens"


def test_a_gateway_that_comes_late_and_rules_that_users_add(apiserver: ApiServer, operator: Path) -> None:
    scene = Scene(apiserver, "by-gateway")
    spec = {"rollout": {"steps": STEPS}, "routing": {"gateway": {"name": "public"}, "hostnames": ["digits.example.com"]}}
    scene.apply(1, **spec)
    ready_of = lambda: next(c for c in scene.status()["conditions"] if c["type"] == "Ready")  # noqa: E731
    scene.until(lambda: ready_of()["reason"] == "RouteRejected")
    apiserver.kubectl("apply", "--server-side", "-f", str(ROOT / "build/crds/gateway.networking.k8s.io_httproutes.yaml"))
    first = scene.until(lambda: ready_of()["status"] == "True" and scene.status()["stable"]["revision"])
    assert scene.shares() == {first: 100}
    route = scene.get("httproute", "digits")
    assert (route["spec"]["parentRefs"][0]["name"], route["spec"]["hostnames"]) == ("public", ["digits.example.com"])
    pinned = {"matches": [{"headers": [{"name": "x-docs", "value": "yes"}]}], "backendRefs": [{"name": "docs", "port": 80}]}
    edits = [
        {"op": "add", "path": "/spec/rules/0", "value": pinned},
        {"op": "add", "path": "/spec/rules/1/timeouts", "value": {"request": "5s"}},
    ]
    scene.kubectl("patch", "httproute", "digits", "--type=json", "-p", json.dumps(edits))
    scene.apply(2, **spec)
    canary = scene.until(lambda: scene.status()["canary"]["weight"] == 50 and scene.status()["canary"]["revision"])
    assert scene.shares() == {first: 50, canary: 50}
    rules = scene.get("httproute", "digits")["spec"]["rules"]
    assert (rules[0]["backendRefs"][0]["name"], rules[1]["timeouts"]) == ("docs", {"request": "5s"})
    version = scene.get("httproute", "digits")["metadata"]["resourceVersion"]
    scene.kubectl("delete", "httproute", "digits")
    scene.until(lambda: scene.shares() == {first: 50, canary: 50})
    assert scene.get("httproute", "digits")["metadata"]["resourceVersion"] != version
    scene.apply(1, **spec)
    scene.until(lambda: scene.shares() == {first: 100} and ready_of()["status"] == "True")
    assert "Traceback" not in operator.read_text()


def test_copies_of_requests_and_pinned_users_by_gateway(apiserver: ApiServer, operator: Path) -> None:
    apiserver.kubectl("apply", "--server-side", "-f", str(ROOT / "build/crds/gateway.networking.k8s.io_httproutes.yaml"))
    scene = Scene(apiserver, "by-copies")
    beta = {"name": "beta", "headers": [{"name": "x-beta", "value": "true"}], "cookies": [{"name": "beta", "value": "1"}]}
    spec = {"routing": {"gateway": {"name": "public"}, "experiments": [beta]}}
    spec["rollout"] = {"steps": [{"weight": 50}], "shadow": {"duration": "8s"}}
    scene.apply(1, **spec)
    first = scene.until(lambda: scene.shares() and scene.status()["stable"]["since"] and scene.status()["stable"]["revision"])
    scene.apply(2, **spec)
    second = scene.until(lambda: scene.status()["canary"]["phase"] == "Shadowing" and scene.status()["canary"]["revision"])
    (rule,) = scene.get("httproute", "digits")["spec"]["rules"]
    (mirror,) = [f["requestMirror"]["backendRef"]["name"] for f in rule["filters"]]
    assert scene.get("service", mirror)["spec"]["selector"]["slipway.dev/compares"] == mirror
    assert scene.get("deployment", mirror)["spec"]["replicas"] == 1
    pinned = lambda: scene.get("httproute", "digits.experiments")["spec"]["rules"][0]["backendRefs"][0]["name"]  # noqa: E731
    assert (scene.shares(), pinned()) == ({first: 100}, first)
    scene.until(lambda: scene.status()["canary"]["weight"] == 50)
    assert (scene.shares(), pinned()) == ({first: 50, second: 50}, second)
    assert "filters" not in scene.get("httproute", "digits")["spec"]["rules"][0]
    before = scene.get("httproute", "digits.experiments")["metadata"]["resourceVersion"]
    found = {c["type"]: c["status"] for c in scene.status()["conditions"]}
    assert (found["Shadow"], found["Experiments"]) == ("True", "True")
    time.sleep(3)
    assert scene.get("httproute", "digits.experiments")["metadata"]["resourceVersion"] == before, "quiet when nothing happens"
    assert mirror not in {d["metadata"]["name"] for d in scene.get("deployments,services")["items"]}
    scene.apply(2, routing={"gateway": {"name": "public"}}, rollout=spec["rollout"])
    scene.until(lambda: [r["metadata"]["name"] for r in scene.get("httproutes")["items"]] == ["digits"])
    assert "Traceback" not in operator.read_text()


def test_the_crd_of_the_route_is_the_one_that_is_pinned() -> None:
    crd = yaml.safe_load((ROOT / "build/crds/gateway.networking.k8s.io_httproutes.yaml").read_text())
    rules = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["rules"]
    assert rules["x-kubernetes-list-type"] == "atomic", "when this is a map, server-side apply can merge rules by itself"
