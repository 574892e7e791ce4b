"""`slipway report` against a real API server: the pods' metrics through its proxy, the chart's prices, and a user who may read little.

Nothing runs pods there: the pod is an object, and at its address a server of this test answers with the runtime's own metrics.
"""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from integration.conftest import ROOT
from integration.operator.conftest import Manifest, Tenant, model_deployment, ready_status
from slipway import names
from slipway.plan.artifact import artifact_manifest, artifact_spec
from slipway.snapshot import Config
from slipway_runtime.serve.metrics import Metrics
from unit.chart.rendering import NAMESPACE, of_kind, render

REVISION = "digits-1"
ROWS = [
    {
        **{"target": "ONNX", "precision": "Float32", "verdict": "Passed", "maxAbsoluteError": "9.53674e-06", "latencyP50": "0.0208ms"},
        **{"latencyP99": "0.278ms", "throughput": "57321", "batchSize": 32, "peakMemory": "84Mi", "sizeBytes": 26064, "chosen": True},
    },
    {"target": "ONNX", "precision": "Int8Static", "verdict": "Failed", "reason": "ParityFailed", "message": "off by 0.179"},
]


def own_address() -> str:
    """An address of this machine; the API server refuses to be a proxy for loopback."""
    found = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()
    addresses = [address for address in found if ":" not in address]
    if not addresses:
        pytest.skip("this machine has no address but loopback, which the API server's proxy refuses")
    return addresses[0]


@pytest.fixture
def endpoint() -> Iterator[tuple[str, int]]:
    """Where a pod's server would answer: what the runtime exports after 2 requests with 4,000 samples."""
    metrics = Metrics("digits", REVISION, lambda: 0)
    for rows in (1000, 3000):
        metrics.count(200)
        metrics.batch(rows)
        metrics.seconds(0.01)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = metrics.render() if self.path == "/metrics" else b""
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    address = own_address()
    server = http.server.ThreadingHTTPServer((address, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield address, server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture
def serving(tenant: Tenant, endpoint: tuple[str, int]) -> Iterator[Tenant]:
    """A model that serves, with a conversion behind it, on a node whose price the chart knows."""
    resource = model_deployment("digits")
    resource["spec"]["conversion"] = {"objective": "Latency"}
    artifact = artifact_manifest(tenant.name, artifact_spec(resource["spec"], Config()), [], None)
    tenant.apply(resource, artifact)
    mart, node = artifact["metadata"]["name"], f"node-{tenant.name}"
    choice = {"candidates": ROWS, "choice": "ONNX is the best by Latency: 0.0208 ms", "sizeBytes": 27000}
    state(tenant, "mart", mart, {**ready_status("digits"), **choice})
    state(tenant, "mdep", "digits", {"stable": {"revision": REVISION, "artifact": mart, "format": "ONNX", "weight": 100}})
    labels = {"node.kubernetes.io/instance-type": "m5.large"}
    tenant.server.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": labels}})
    offered = {"cpu": "2", "memory": "8Gi", "pods": "10"}
    state(tenant, "node", node, {"capacity": offered, "allocatable": offered})
    tenant.apply(pod(node, endpoint[1]))
    started = {"name": "server", "ready": True, "started": True, "restartCount": 0, "image": "i", "imageID": "i", "state": {"running": {}}}
    state(tenant, "pod", "digits-1-x", {"phase": "Running", "podIP": endpoint[0], "containerStatuses": [started]})
    yield tenant
    tenant.server.kubectl("delete", "node", node)


def pod(node: str, port: int) -> Manifest:
    labels = {names.DEPLOYMENT: "digits", names.REVISION: REVISION, names.COMPONENT: names.SERVER}
    server = {"name": "server", "image": "slipway-runtime", "ports": [{"name": "http", "containerPort": port}]}
    server["resources"] = {"requests": {"cpu": "500m"}}
    return {
        **{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "digits-1-x", "labels": labels}},
        "spec": {"nodeName": node, "containers": [server]},
    }


def state(tenant: Tenant, kind: str, name: str, status: Manifest) -> None:
    tenant.server.kube.patch(tenant.name, kind, name, {"status": status}, subresource="status")


@pytest.fixture
def priced(serving: Tenant) -> Iterator[list[Manifest]]:
    """The chart's objects about prices, applied; yields all objects of the chart."""
    rows = [{"instanceType": "m5.large", "pricePerHour": 0.096}]
    objects = render({"cost": {"currency": "EUR", "nodePrices": rows}})
    mine = [o for o in objects if o["metadata"]["name"] == "slipway-prices"]
    assert {o["kind"] for o in mine} == {"ConfigMap", "Role", "RoleBinding"}
    serving.server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}, *mine)
    yield objects
    serving.server.kubectl("-n", NAMESPACE, "delete", *(f"{o['kind']}/slipway-prices" for o in mine))


def slipway(tenant: Tenant, *arguments: str, kubeconfig: Path | None = None) -> str:
    """Run the command line, as a user would."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator/src"), "PATH": f"{ROOT / 'build/bin'}:{os.environ['PATH']}"}
    place = ["--kubeconfig", str(kubeconfig or tenant.server.kubeconfig), "-n", tenant.name]
    command = [sys.executable, "-m", "slipway.cli", *place, "report", "digits", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.usefixtures("priced")
def test_the_auction_and_what_a_million_predictions_cost(serving: Tenant, tmp_path: Path) -> None:
    text = slipway(serving)
    print(text)
    assert "* ONNX Float32" in text
    assert "- ONNX Int8Static: ParityFailed: off by 0.179" in text
    assert "1 pod at 0.024 EUR an hour; 4,000 predictions in " in text
    (revision,) = json.loads(slipway(serving, "-o", "json"))["revisions"]
    cost = revision["cost"]
    # a quarter of a node of 0.096, for as long as this process runs
    assert (cost["perHour"], cost["predictions"], cost["notes"]) == ("0.024", 4000, [])
    per_hour = 0.024 / 4000 * 1e6
    assert float(cost["perMillionPredictions"]) == pytest.approx(per_hour * cost["hours"], abs=per_hour * 1e-4), "hours has four digits"
    assert [row["chosen"] for row in revision["candidates"]] == [True, False]
    slipway(serving, "--html", str(tmp_path / "report.html"))
    assert "per million predictions" in (tmp_path / "report.html").read_text()


def test_without_prices_it_says_what_to_set(serving: Tenant) -> None:
    assert "cost: no node prices: set cost.nodePrices in the chart's values" in slipway(serving)


def test_the_columns_of_an_artifact(serving: Tenant) -> None:
    head, row = serving.server.kubectl("-n", serving.name, "get", "mart", "-o", "wide").splitlines()
    print(head, row, sep="\n")
    values = dict(zip(head.split(), row.split(), strict=True))
    wanted = {"FORMAT": "ONNX", "PRECISION": "Float32", "P50": "0.0208ms", "ERROR": "9.53674e-06", "SIZE": "27000", "READY": "True"}
    assert {key: values[key] for key in wanted} == wanted


def user(tenant: Tenant, folder: Path, name: str) -> Path:
    """A kubeconfig that acts as somebody else."""
    config: dict[str, Any] = yaml.safe_load(tenant.server.kubeconfig.read_text())
    config["users"][0]["user"] |= {"as": name, "as-groups": ["system:authenticated"]}
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    return folder / "kubeconfig"


def test_a_user_who_may_read_little_is_told_what_is_missing(serving: Tenant, priced: list[Manifest], tmp_path: Path) -> None:
    someone = f"user-{serving.name}"
    kubeconfig = user(serving, tmp_path, someone)
    view = of_kind(priced, "ClusterRole")["slipway-view"]
    role = f"see-{serving.name}"
    rules = [*view["rules"], {"apiGroups": ["", "apps"], "resources": ["pods", "deployments"], "verbs": ["get", "list"]}]
    rbac = "rbac.authorization.k8s.io"
    subject = {"apiGroup": rbac, "kind": "User", "name": someone}

    def grant(name: str, more: list[Manifest]) -> None:
        serving.server.apply(
            {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": more},
            {
                **{"apiVersion": f"{rbac}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name}, "subjects": [subject]},
                "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
            },
        )

    grant(role, rules)
    text = slipway(serving, kubeconfig=kubeconfig)
    assert "* ONNX Float32" in text
    assert f"cost: no right to read node node-{serving.name}, or it is gone" in text
    grant(role, [*rules, {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}])
    text = slipway(serving, kubeconfig=kubeconfig)
    assert "cost: pod digits-1-x: " in text
    assert 'cannot get resource "pods/proxy"' in text
    grant(role, [*rules, {"apiGroups": [""], "resources": ["nodes", "pods/proxy"], "verbs": ["get"]}])
    assert "EUR per million predictions" in slipway(serving, kubeconfig=kubeconfig)
    serving.server.kubectl("delete", "clusterrole,clusterrolebinding", role)
