"""KEDA's resources come and go while the operator runs: one autoscaler at any time, and a size that nobody resets.

KEDA itself does not run here; the tests do what it does to a ScaledObject and to the size of a Deployment.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from integration.conftest import ROOT, ApiServer
from integration.operator.conftest import PATIENCE, Manifest, Tenant, model_deployment, until
from integration.operator.test_autoscaling import managers, patch, size

CRD = ROOT / "build/crds/keda.sh_scaledobjects.yaml"
WISH = {"minReplicas": 1, "maxReplicas": 10, "target": 8}
SLEEPY = WISH | {"minReplicas": 0, "activationQuery": "sum(rate(asked_total[2m]))"}
SETTINGS = {"SLIPWAY_PROMETHEUS_ADDRESS": "http://prometheus.example:9090", "SLIPWAY_RESYNC_SECONDS": "1"}
FINALIZER = "finalizer.keda.sh"


@pytest.fixture
def keda(apiserver: ApiServer) -> Iterator[ApiServer]:
    """Has the definition to install; afterwards it is gone."""
    subprocess.run([str(ROOT / "hack/keda.sh"), "crds"], check=True, timeout=300)
    yield apiserver
    apiserver.kubectl("delete", "-f", str(CRD), "--ignore-not-found")


def install(server: ApiServer) -> None:
    server.kubectl("apply", "--server-side", "-f", str(CRD))
    server.kubectl("wait", "--for=condition=established", "-f", str(CRD), "--timeout=30s")


def autoscalers(tenant: Tenant) -> list[str]:
    """Those of the operator, by kind; the HorizontalPodAutoscaler that KEDA makes of one is KEDA's."""
    path = f"/apis/keda.sh/v1alpha1/namespaces/{tenant.name}/scaledobjects"
    done = tenant.server.run("get", "--raw", path)
    found = json.loads(done.stdout)["items"] if done.returncode == 0 else []
    ours = [h for h in tenant.get("hpa")["items"] if h["metadata"]["ownerReferences"][0]["kind"] == "ModelDeployment"]
    return ["ScaledObject"] * len(found) + ["HorizontalPodAutoscaler"] * len(ours)


def until_scaled_by(tenant: Tenant, kind: str, seconds: float = PATIENCE) -> None:
    """Wait for an autoscaler of that kind; there are never two."""

    def is_alone() -> bool:
        found = autoscalers(tenant)
        assert len(found) < 2, found
        return found == [kind]

    until(is_alone, seconds, lambda: tenant.operators[-1].log.read_text()[-3000:])


def run_pods(tenant: Tenant, revision: str) -> None:
    """Say that the Deployment has all its pods."""
    found = tenant.get("deployment", revision)
    counts = dict.fromkeys(("replicas", "readyReplicas", "availableReplicas", "updatedReplicas"), found["spec"]["replicas"])
    said = {"status": {**counts, "observedGeneration": found["metadata"]["generation"]}}
    tenant.server.kube.patch(tenant.name, "deployment", revision, said, subresource="status")


def scale(tenant: Tenant, revision: str, replicas: int) -> None:
    """As KEDA and the HorizontalPodAutoscaler controller do it."""
    tenant.server.kubectl("-n", tenant.name, "scale", "deployment", revision, f"--replicas={replicas}")
    run_pods(tenant, revision)


def condition(tenant: Tenant, kind: str) -> tuple[str, str]:
    conditions = (tenant.get("mdep", "digits").get("status") or {}).get("conditions", ())
    return next(((c["status"], c["reason"]) for c in conditions if c["type"] == kind), ("", ""))


def serve(tenant: Tenant, wish: Manifest) -> str:
    """A ModelDeployment whose pods are ready; return its revision."""
    tenant.prepare("digits")
    resource = model_deployment("digits")
    tenant.apply({**resource, "spec": {**resource["spec"], "autoscaling": wish}})
    tenant.wait_deployments(1)
    (revision,) = tenant.names("deployments")
    run_pods(tenant, revision)
    until(lambda: condition(tenant, "Ready")[0] == "True", PATIENCE, lambda: tenant.operators[-1].log.read_text()[-3000:])
    return revision


def test_keda_comes_and_goes_beside_a_running_operator(keda: ApiServer, tenant: Tenant) -> None:
    tenant.lead(**SETTINGS)
    revision = serve(tenant, WISH)
    until_scaled_by(tenant, "HorizontalPodAutoscaler")
    scale(tenant, revision, 7)
    install(keda)
    until_scaled_by(tenant, "ScaledObject")
    made = tenant.get("scaledobject", revision)
    assert made["spec"]["triggers"][0]["metadata"]["serverAddress"] == SETTINGS["SLIPWAY_PROMETHEUS_ADDRESS"]
    assert made["metadata"]["ownerReferences"][0]["kind"] == "ModelDeployment"
    # what KEDA makes of it carries our labels
    labels, owner = made["metadata"]["labels"], {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "name": revision}
    metadata = {
        "name": f"keda-hpa-{revision}",
        "labels": labels,
        "ownerReferences": [owner | {"uid": made["metadata"]["uid"], "controller": True}],
    }
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": revision}
    spec = {"scaleTargetRef": target, "maxReplicas": 10}
    tenant.apply({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": metadata, "spec": spec})
    tenant.settle()
    assert tenant.find("hpa", f"keda-hpa-{revision}") is not None
    assert (size(tenant, revision), autoscalers(tenant)) == (7, ["ScaledObject"])
    tenant.server.kubectl("-n", tenant.name, "delete", "hpa", f"keda-hpa-{revision}")
    keda.kubectl("delete", "-f", str(CRD))
    until_scaled_by(tenant, "HorizontalPodAutoscaler")
    tenant.settle()
    assert size(tenant, revision) == 7
    install(keda)
    until_scaled_by(tenant, "ScaledObject")
    assert size(tenant, revision) == 7


def test_another_provider_waits_until_keda_has_let_go(keda: ApiServer, tenant: Tenant) -> None:
    install(keda)
    operator = tenant.lead(**SETTINGS)
    revision = serve(tenant, WISH)
    until_scaled_by(tenant, "ScaledObject")
    tenant.server.kube.patch(tenant.name, "scaledobject", revision, {"metadata": {"finalizers": [FINALIZER]}})
    operator.end()
    tenant.lead(**SETTINGS, SLIPWAY_AUTOSCALING_PROVIDER="HPA")
    until(lambda: "deletionTimestamp" in tenant.get("scaledobject", revision)["metadata"], PATIENCE)
    tenant.settle()
    assert autoscalers(tenant) == ["ScaledObject"]
    tenant.server.kube.patch(tenant.name, "scaledobject", revision, {"metadata": {"finalizers": None}})
    until_scaled_by(tenant, "HorizontalPodAutoscaler")


def test_a_model_sleeps_through_repairs_a_kill_and_many_looks(keda: ApiServer, tenant: Tenant) -> None:
    install(keda)
    operator = tenant.lead(**SETTINGS)
    revision = serve(tenant, SLEEPY)
    until_scaled_by(tenant, "ScaledObject")
    assert tenant.get("scaledobject", revision)["spec"]["minReplicaCount"] == 0
    scale(tenant, revision, 0)
    until(lambda: condition(tenant, "Ready") == ("True", "ScaledToZero"), PATIENCE, operator.log.read_text)
    # somebody takes a label away: the operator applies again, without the size
    tenant.server.kubectl("-n", tenant.name, "label", "deployment", revision, "slipway.dev/role-")
    until(lambda: "slipway.dev/role" in tenant.get("deployment", revision)["metadata"]["labels"], PATIENCE, operator.log.read_text)
    tenant.settle()
    assert size(tenant, revision) == 0
    assert "slipway" not in managers(tenant, revision)
    operator.end(signal.SIGKILL)
    begin = tenant.audit.stat().st_size
    operator = tenant.start(**SETTINGS)
    until(operator.leads, PATIENCE, operator.log.read_text)  # the lease of the one that was killed runs out first
    time.sleep(5)  # some resyncs
    assert not tenant.writes(begin), tenant.writes(begin)
    assert (size(tenant, revision), autoscalers(tenant)) == (0, ["ScaledObject"])
    scale(tenant, revision, 1)
    until(lambda: condition(tenant, "Ready") == ("True", "Ready"), PATIENCE, operator.log.read_text)
    tenant.settle()
    assert size(tenant, revision) == 1
    patch(tenant, {"autoscaling": None})
    until(lambda: not autoscalers(tenant), PATIENCE, operator.log.read_text)
