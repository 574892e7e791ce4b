"""The real operator as a process, against the real API server; nothing runs pods there, so artifacts are made Ready by the tests."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import ApiServer
from integration.forks import Forked
from integration.forks import operator as fork_operator
from integration.ports import operator_ports
from kube import NotFound
from slipway.plan.artifact import artifact_manifest, artifact_spec
from slipway.snapshot import Config

WRITES = {"create", "update", "patch", "delete"}
PATIENCE = 120.0  # seconds for what is promised without a time, such as that an operator has begun: the machine may be busy
Manifest = dict[str, Any]


def until(check: Callable[[], Any], seconds: float, explain: Callable[[], object] = lambda: "") -> Any:
    """Return the first true answer of `check`."""
    end = time.monotonic() + seconds
    while True:
        answer = check()
        if answer:
            return answer
        assert time.monotonic() < end, f"not within {seconds:g} s: {explain()}"
        time.sleep(0.2)


@dataclass
class Operator:
    """One replica."""

    process: Forked
    metrics_port: int
    log: Path

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def leads(self) -> bool:
        try:
            return "slipway_leader 1.0" in self.metrics()
        except OSError:
            return False

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(number)
        self.process.wait(20)


@dataclass
class Tenant:
    """A namespace of its own, and the operators that watch it."""

    server: ApiServer
    name: str
    folder: Path
    operators: list[Operator] = field(default_factory=list)
    begin: int = 0  # the byte of the audit log at which it was made

    def start(self, **settings: str) -> Operator:
        """Start a replica, without waiting for anything."""
        ports, log = operator_ports(), self.folder / f"operator-{len(self.operators)}.log"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SLIPWAY_")}
        environment |= {"KUBECONFIG": str(self.server.kubeconfig), "SLIPWAY_NAMESPACE": self.name, "SLIPWAY_WATCH_NAMESPACES": self.name}
        environment |= {**ports, **settings}
        self.operators.append(Operator(fork_operator(environment, log), int(ports["SLIPWAY_METRICS_PORT"]), log))
        return self.operators[-1]

    def lead(self, **settings: str) -> Operator:
        """Start a replica and wait until it leads."""
        operator = self.start(**settings)
        until(lambda: operator.leads() or operator.process.poll() is not None, PATIENCE, lambda: operator.log.read_text()[-3000:])
        assert operator.process.poll() is None, operator.log.read_text()[-3000:]
        return operator

    def apply(self, *documents: Manifest) -> None:
        self.server.apply(*({**d, "metadata": {**d["metadata"], "namespace": self.name}} for d in documents))

    def get(self, *arguments: str) -> Any:
        return self.server.get("-n", self.name, *arguments)

    def find(self, *arguments: str) -> Manifest | None:
        try:
            return self.server.kube.get("-n", self.name, *arguments)
        except NotFound:
            return None

    def names(self, kind: str) -> set[str]:
        return {str(item["metadata"]["name"]) for item in self.get(kind, "-l", "app.kubernetes.io/managed-by=slipway")["items"]}

    def reason(self, name: str) -> str | None:
        status = self.get("mdep", name).get("status") or {}
        return next((str(c["reason"]) for c in status.get("conditions", ()) if c["type"] == "Ready"), None)

    def prepare(self, *models: str) -> None:
        """Create the artifacts of models, Ready; an operator that sees one before it is Ready makes a Job for it."""
        for name in models:
            resource = model_deployment(name)
            artifact = artifact_manifest(self.name, artifact_spec(resource["spec"], Config()), [], None)
            self.apply(artifact)
            self.server.kube.patch(self.name, "mart", artifact["metadata"]["name"], {"status": ready_status(name)}, subresource="status")

    def make(self, *models: str) -> None:
        """Create ModelDeployments."""
        self.apply(*map(model_deployment, models))

    def wait_deployments(self, count: int) -> None:
        until(lambda: len(self.names("deployments")) == count, PATIENCE, lambda: self.operators[-1].log.read_text()[-3000:])

    def settle(self) -> None:
        """Wait until the operator has written nothing for two seconds."""
        seen = -1
        while (now := sum(self.writes().values())) != seen:
            seen = now
            time.sleep(2)

    def writes(self, since: int | None = None) -> Counter[str]:
        """Count the operator's writes in this namespace, the Lease and Events aside, from a byte of the audit log on."""
        return Counter(f"{verb} {resource}" for verb, resource in self._written(since))

    def creates(self) -> list[str]:
        """Return the resources that the operator created in this namespace, in their order."""
        return [resource.rstrip("/") for verb, resource in self._written(None) if verb == "create"]

    def _written(self, since: int | None) -> Iterator[tuple[str, str]]:
        with self.audit.open("rb") as lines:
            lines.seek(self.begin if since is None else since)
            for line in lines:
                if self.name.encode() not in line:
                    continue
                event = json.loads(line)
                reference = event.get("objectRef") or {}
                if reference.get("namespace") != self.name or not event["userAgent"].startswith("slipway-operator"):
                    continue
                if event["verb"] in WRITES and reference["resource"] not in ("leases", "events"):
                    yield event["verb"], f"{reference['resource']}/{reference.get('subresource', '')}"

    @property
    def audit(self) -> Path:
        return self.server.kubeconfig.parent / "audit.log"


def model_deployment(name: str, **serving: Any) -> Manifest:
    spec: Manifest = {"model": {"uri": f"oci://registry:5000/models/{name}:v1"}} | ({"serving": serving} if serving else {})
    return {"apiVersion": "slipway.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": name}, "spec": spec}


def ready_status(name: str) -> Manifest:
    """What a conversion would have left in the artifact."""
    now, digest = "2026-01-01T00:00:00Z", f"sha256:{uuid.uuid5(uuid.NAMESPACE_URL, name).hex * 2}"
    condition = {"type": "Ready", "status": "True", "reason": "Published", "message": "published", "lastTransitionTime": now}
    chosen = {"repository": "registry:5000/artifacts/x", "digest": digest, "sourceDigest": digest, "format": "ONNX", "precision": "Float32"}
    return {"observedGeneration": 1, "conditions": [condition | {"observedGeneration": 1}], **chosen}


@pytest.fixture
def tenant(apiserver: ApiServer, tmp_path: Path) -> Iterator[Tenant]:
    name = f"t-{uuid.uuid4().hex[:8]}"
    apiserver.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    runtime = {"image": "slipway-runtime", "formats": [{"name": "ONNX"}], "args": ["serve"]}
    apiserver.apply({"apiVersion": "slipway.dev/v1alpha1", "kind": "ServingRuntime", "metadata": {"name": "slipway"}, "spec": runtime})
    space = Tenant(apiserver, name, tmp_path)
    space.begin = space.audit.stat().st_size
    yield space
    for operator in space.operators:
        if operator.process.poll() is None:
            operator.end(signal.SIGKILL)
