"""The operator learns from the API server which accelerators are free; nodes and strangers' pods are written by the test."""

from __future__ import annotations

import json
from typing import Any

import pytest

from integration.operator.conftest import PATIENCE, Tenant, model_deployment, until

GPU = "nvidia.com/gpu"


def put_node(tenant: Tenant, name: str, gpus: int) -> None:
    labels = {"nvidia.com/gpu.product": "NVIDIA-H200", "slipway-test": tenant.name}
    tenant.server.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
    status = {"status": {"allocatable": {GPU: str(gpus)}, "conditions": [{"type": "Ready", "status": "True"}]}}
    # admission taints a new node as not ready; no node controller runs here that would take the taint away
    tenant.server.kubectl("patch", "node", name, "--type=merge", "-p", '{"spec": {"taints": []}}')
    tenant.server.kubectl("patch", "node", name, "--subresource=status", "--type=merge", "-p", json.dumps(status))


def put_pod(tenant: Tenant, name: str, node: str, gpus: int) -> None:
    container = {"name": "train", "image": "none", "resources": {"limits": {GPU: str(gpus)}}}
    spec = {"nodeName": node, "containers": [container], "tolerations": [{"operator": "Exists"}]}
    tenant.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})


def message(tenant: Tenant, name: str) -> str:
    status = tenant.get("mdep", name).get("status") or {}
    return next((str(c["message"]) for c in status.get("conditions", ()) if c["type"] == "Ready"), "")


@pytest.fixture
def node(tenant: Tenant) -> Any:
    name = f"gpu-{tenant.name}"
    put_node(tenant, name, 2)
    yield name
    tenant.server.kubectl("delete", "node", name, "--wait=false")


def with_accelerator(tenant: Tenant, model: str, **wish: Any) -> None:
    tenant.prepare(model)
    resource = model_deployment(model)
    tenant.apply({**resource, "spec": {**resource["spec"], "accelerator": wish}})


def test_the_holder_of_the_accelerators_is_named(tenant: Tenant, node: str) -> None:
    put_pod(tenant, "train-0", node, 2)
    tenant.lead()
    with_accelerator(tenant, "digits", resourceName=GPU, product="NVIDIA-H200", count=1)
    until(lambda: tenant.reason("digits") == "InsufficientAccelerators", PATIENCE, lambda: message(tenant, "digits"))
    assert f"{node} has 0 of 2 free" in message(tenant, "digits")
    assert f"held by {tenant.name}/train-0 (2 on {node})" in message(tenant, "digits")
    tenant.server.kubectl("cordon", node)
    until(lambda: f"state of {node} exclude the pods" in message(tenant, "digits"), PATIENCE, lambda: message(tenant, "digits"))
    tenant.server.kubectl("uncordon", node)
    tenant.server.kubectl("-n", tenant.name, "delete", "pod", "train-0", "--force", "--grace-period=0")
    # the stranger's pod wakes nobody: the operator looks again by itself
    until(lambda: tenant.reason("digits") == "Progressing", PATIENCE, lambda: message(tenant, "digits"))


def test_a_claim_template_is_valid_written_once_and_comes_back(tenant: Tenant) -> None:
    operator = tenant.lead()
    with_accelerator(tenant, "digits", deviceClassName="gpu.nvidia.com", count=1, selectors=["device.driver == 'gpu.nvidia.com'"])
    found = until(lambda: tenant.names("resourceclaimtemplates"), PATIENCE, operator.log.read_text)
    tenant.settle()
    assert found == {
        d for d in tenant.names("deployments") if tenant.get("deployment", d)["spec"]["template"]["spec"].get("resourceClaims")
    }
    (name,) = found
    made = tenant.get("resourceclaimtemplate", name)
    assert made["metadata"]["ownerReferences"][0]["kind"] == "ModelDeployment"
    written = f"object=ResourceClaimTemplate/{name}"
    assert operator.log.read_text().count(written) == 1
    operator.end()
    restarted = tenant.lead()
    tenant.settle()
    assert written not in restarted.log.read_text()
    restarted.end()
    tenant.server.kubectl("-n", tenant.name, "delete", "resourceclaimtemplate", name)
    tenant.lead()
    until(lambda: tenant.names("resourceclaimtemplates") == {name}, PATIENCE)
