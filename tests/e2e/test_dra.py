"""Accelerators by Dynamic Resource Allocation: the real scheduler allocates a fake device to the claim of a pod.

The driver (hack/tools/fake-dra-driver) and its devices are fake; ResourceSlices, claims, the allocation and the kubelet's calls are real.
The device is not seen inside the container here: Debian's containerd 1.6 knows no CDI.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from e2e.kit import PATIENCE, WEIGHT, Cluster, Manifest, Namespace, built, mdep, model_folder, until, weights

pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.timeout(900)]
SYSTEM, DRIVER, CLASS = "slipway-fake-dra", "gpu.fake.slipway.dev", "gpu.fake.slipway.dev"
WORKERS = {"slipway-worker": "FAKE-A=1", "slipway-worker2": "FAKE-B=2"}
RULES = [
    {"apiGroups": ["resource.k8s.io"], "resources": ["resourceclaims"], "verbs": ["get"]},
    {"apiGroups": ["resource.k8s.io"], "resources": ["resourceslices"], "verbs": ["get", "list", "watch", "create", "update", "delete"]},
    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]},
]


def driver_pod(node: str, image: str, devices: str) -> Manifest:
    folders = {"plugins": "/var/lib/kubelet/plugins", "registry": "/var/lib/kubelet/plugins_registry", "cdi": "/var/run/cdi"}
    container = {
        "name": "driver",
        "image": image,
        "command": ["/usr/bin/fake-dra-driver", devices],
        "env": [{"name": "NODE_NAME", "value": node}],
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in folders.items()],
    }
    volumes = [{"name": name, "hostPath": {"path": path, "type": "DirectoryOrCreate"}} for name, path in folders.items()]
    spec = {"nodeName": node, "serviceAccountName": "driver", "containers": [container], "volumes": volumes}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"dra-{node}", "namespace": SYSTEM}, "spec": spec}


@pytest.fixture(scope="module")
def devices(slipway: Cluster) -> Iterator[Cluster]:
    """The cluster with one fake device on the first worker and two of another product on the second."""
    image = built("slipway-fake-dra-driver")
    rbac, meta = "rbac.authorization.k8s.io", {"name": SYSTEM}
    account = {"kind": "ServiceAccount", "name": "driver", "namespace": SYSTEM}
    role = {"apiGroup": rbac, "kind": "ClusterRole", "name": SYSTEM}
    selector = {"cel": {"expression": f"device.driver == '{DRIVER}'"}}
    cluster_wide: list[Manifest] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": meta},
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": meta, "rules": RULES},
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRoleBinding", "metadata": meta, "roleRef": role, "subjects": [account]},
        {"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": CLASS}, "spec": {"selectors": [selector]}},
    ]
    pods = [driver_pod(node, image, wish) for node, wish in WORKERS.items()]
    done = slipway.apply(
        *cluster_wide, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "driver", "namespace": SYSTEM}}, *pods
    )
    assert done.returncode == 0, done.stderr
    until(lambda: published(slipway) == {"slipway-worker": 1, "slipway-worker2": 2}, PATIENCE, lambda: logs(slipway))
    yield slipway
    # the kubelet asks the driver to let go of each claim, and a pod ends only then
    until(lambda: not any(allocations(slipway)), PATIENCE, lambda: logs(slipway))
    for kind, name in (("deviceclass", CLASS), ("clusterrolebinding", SYSTEM), ("clusterrole", SYSTEM)):
        slipway.run("delete", kind, name)
    slipway.run("delete", "namespace", SYSTEM, "--wait=true", timeout=120)


def published(cluster: Cluster) -> dict[str, int]:
    """How many devices each node offers."""
    slices = [item["spec"] for item in cluster.items("resourceslices")]
    return {spec["nodeName"]: len(spec.get("devices") or ()) for spec in slices if spec["driver"] == DRIVER}


def allocations(cluster: Cluster) -> list[Manifest]:
    """The claims that hold devices, of all namespaces."""
    return [claim for claim in cluster.items("-A", "resourceclaims") if (claim.get("status") or {}).get("allocation")]


def logs(cluster: Cluster) -> str:
    told = (cluster.run("-n", SYSTEM, "logs", f"dra-{node}").stdout for node in WORKERS)
    return "\n".join([cluster.run("-n", SYSTEM, "get", "pods", "-o", "wide").stdout, *told])


def wish(uri: str, product: str, count: int = 1) -> Manifest:
    accelerator: dict[str, Any] = {"deviceClassName": CLASS, "count": count}
    accelerator["selectors"] = [f"device.attributes['{DRIVER}'].productName == '{product}'"]
    return mdep("tiny", uri, more={"accelerator": accelerator})


def allocated(space: Namespace) -> dict[str, list[str]]:
    """The devices of each claim in use, as node/device."""
    claims = {claim["metadata"]["name"]: (claim.get("status") or {}).get("allocation") or {} for claim in space.items("resourceclaims")}
    return {name: [f"{r['pool']}/{r['device']}" for r in got["devices"]["results"]] for name, got in claims.items() if got}


def test_a_pod_gets_the_devices_that_its_claim_asks_for(devices: Cluster, namespace: Namespace) -> None:
    namespace.apply(model_folder("v1"), wish("configmap://v1", "FAKE-B", 2))
    namespace.wait_ready("tiny")
    (pod,) = [p for p in namespace.items("pods", "-l", "slipway.dev/deployment=tiny") if not p["metadata"].get("deletionTimestamp")]
    assert pod["spec"]["nodeName"] == "slipway-worker2"
    (claim,) = [status["resourceClaimName"] for status in pod["status"]["resourceClaimStatuses"]]
    assert sorted(allocated(namespace)[claim]) == ["slipway-worker2/gpu-0", "slipway-worker2/gpu-1"]
    told = devices.kubectl("-n", SYSTEM, "logs", "dra-slipway-worker2")
    assert f"claim {namespace.name}/{claim} gets" in told, "the kubelet asked for it"


def test_a_rollout_ends_when_all_devices_are_claimed(devices: Cluster, namespace: Namespace) -> None:
    second = model_folder("v2", weights_safetensors=weights(WEIGHT * 2))
    namespace.apply(model_folder("v1"), second, wish("configmap://v1", "FAKE-A"))
    first = namespace.wait_ready("tiny")["status"]["stable"]["revision"]
    namespace.apply(wish("configmap://v2", "FAKE-A"))
    until(lambda: namespace.get("mdep", "tiny")["status"]["stable"]["revision"] != first, PATIENCE, lambda: namespace.explain("tiny"))
    namespace.wait_ready("tiny")
    assert [devices for devices in allocated(namespace).values() if devices] == [["slipway-worker/gpu-0"]]
