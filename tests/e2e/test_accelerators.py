"""Pods get the accelerators asked for, rollouts end on full nodes, and who holds them is told.

The devices are fake (hack/tools/fake-accelerators tells the kubelet about them by its real API); the kubelet, the scheduler and what they
count are real. Node labels are written as GPU feature discovery writes them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e.kit import PATIENCE, WEIGHT, Cluster, Manifest, Namespace, mdep, onnx_folder, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
GPU, MIG = "nvidia.com/gpu", "nvidia.com/mig-1g.10gb"
SYSTEM = "slipway-fake-accelerators"
WORKERS = {"slipway-worker": ("NVIDIA-FAKE-A", [f"{GPU}=1"]), "slipway-worker2": ("NVIDIA-FAKE-B", [f"{GPU}=2", f"{MIG}=2"])}


def plugin(node: str, image: str, resources: list[str]) -> Manifest:
    folder = "/var/lib/kubelet/device-plugins"
    container = {
        "name": "fake-device-plugin",
        "image": image,
        "args": resources,
        "command": ["/usr/bin/fake-device-plugin"],
        "env": [{"name": "NODE_NAME", "value": node}],
        "volumeMounts": [{"name": "plugins", "mountPath": folder}],
    }
    spec = {"nodeName": node, "containers": [container], "volumes": [{"name": "plugins", "hostPath": {"path": folder}}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"fake-{node}", "namespace": SYSTEM}, "spec": spec}


@pytest.fixture(scope="module")
def gpus(slipway: Cluster) -> Iterator[Cluster]:
    """The cluster with one fake GPU on the first worker, two and two MIG slices on the second."""
    slipway.run("create", "namespace", SYSTEM)
    for node, (product, resources) in WORKERS.items():
        slipway.kubectl("label", "node", node, "--overwrite", f"nvidia.com/gpu.product={product}")
        slipway.apply(plugin(node, slipway.images["SLIPWAY_FAKE_ACCELERATORS_IMAGE"], resources))
    for node, (_, resources) in WORKERS.items():
        for resource, count in (wish.split("=") for wish in resources):
            until(lambda n=node, r=resource, c=count: offered(slipway, n, r) == c, 90, lambda: slipway.kubectl("get", "pods", "-n", SYSTEM))
    yield slipway
    slipway.run("delete", "namespace", SYSTEM, "--wait=true", timeout=120)
    for node in WORKERS:
        slipway.kubectl("label", "node", node, "nvidia.com/gpu.product-")


def offered(cluster: Cluster, node: str, resource: str) -> str:
    return str(cluster.get("node", node)["status"]["allocatable"].get(resource, "0"))


def pods_of(space: Namespace, name: str) -> list[Manifest]:
    return [p for p in space.items("pods", "-l", f"slipway.dev/deployment={name}") if not p["metadata"].get("deletionTimestamp")]


def devices_of(space: Namespace, pod: Manifest) -> list[str]:
    """What the server sees."""
    script = "import os; print(os.environ.get('NVIDIA_VISIBLE_DEVICES', ''))"
    seen = space.kubectl("exec", pod["metadata"]["name"], "-c", "server", "--", "python3", "-c", script).strip()
    return [device for device in seen.split(",") if device]


def holder(node: str, gpus: int) -> Manifest:
    """A pod of somebody else that asks for GPUs of one node. The scheduler places it: the pod of the test before may hold them a while."""
    security = {
        "allowPrivilegeEscalation": False,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {"name": "train", "image": "none", "resources": {"limits": {GPU: str(gpus)}}, "securityContext": security}
    place = {"kubernetes.io/hostname": node}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "train-0"}, "spec": {"nodeSelector": place, "containers": [container]}}


@pytest.mark.parametrize(
    ("resource", "product", "node", "device"),
    [
        (GPU, "NVIDIA-FAKE-A", "slipway-worker", "GPU-fake-slipway-worker-gpu-0"),
        pytest.param(GPU, "NVIDIA-FAKE-B", "slipway-worker2", "GPU-fake-slipway-worker2-gpu-", marks=pytest.mark.nightly),
        pytest.param(MIG, "NVIDIA-FAKE-B", "slipway-worker2", "MIG-fake-slipway-worker2-mig-1g-10gb-", marks=pytest.mark.nightly),
    ],
)
def test_a_pod_gets_the_device_asked_for(  # noqa: PLR0917
    gpus: Cluster, namespace: Namespace, resource: str, product: str, node: str, device: str
) -> None:
    wish = {"resourceName": resource, "count": 1, "product": product}
    namespace.apply(onnx_folder("v1"), mdep("tiny", "configmap://v1", more={"accelerator": wish}))
    namespace.wait_ready("tiny")
    (pod,) = pods_of(namespace, "tiny")
    assert pod["spec"]["nodeName"] == node
    (seen,) = devices_of(namespace, pod)
    assert seen.startswith(device)


def lowest_while_updating(space: Namespace, wish: Manifest) -> int:
    """Change the model; return the smallest number of ready endpoints behind the stable Service until the new one is Ready."""
    lowest = 99
    before = space.get("mdep", "tiny")["status"]["stable"]["revision"]
    space.apply(mdep("tiny", "configmap://v2", more={"accelerator": wish}))

    def is_over() -> bool:
        nonlocal lowest
        slices = space.items("endpointslices", "-l", "kubernetes.io/service-name=tiny")
        ready = [e for s in slices for e in s.get("endpoints") or () if (e.get("conditions") or {}).get("ready")]
        lowest = min(lowest, len(ready))
        status = space.get("mdep", "tiny")["status"]
        return bool(status["stable"]["revision"] != before and space.condition("tiny")["status"] == "True")

    until(is_over, PATIENCE, lambda: space.explain("tiny"), every=0.2)
    return lowest


@pytest.mark.nightly
@pytest.mark.parametrize(("product", "least"), [("NVIDIA-FAKE-A", 0), ("NVIDIA-FAKE-B", 1)], ids=["one GPU", "two GPUs"])
def test_a_rollout_ends_on_a_full_node(gpus: Cluster, namespace: Namespace, product: str, least: int) -> None:
    wish = {"resourceName": GPU, "count": 1, "product": product}
    namespace.apply(
        onnx_folder("v1"),
        onnx_folder("v2", WEIGHT * 2),
        mdep("tiny", "configmap://v1", more={"accelerator": wish}),
    )
    namespace.wait_ready("tiny")
    assert lowest_while_updating(namespace, wish) >= least


def test_who_holds_the_accelerators_is_told(gpus: Cluster, namespace: Namespace) -> None:
    namespace.apply(holder("slipway-worker", 1), onnx_folder("v1"))
    until(
        lambda: namespace.get("pod", "train-0")["spec"].get("nodeName"),
        90,
        lambda: namespace.kubectl("describe", "pod", "train-0"),
        every=0.2,
    )
    wish = {"resourceName": GPU, "count": 1, "product": "NVIDIA-FAKE-A"}
    namespace.apply(mdep("tiny", "configmap://v1", more={"accelerator": wish}))
    namespace.wait_reason("tiny", "InsufficientAccelerators")
    message = namespace.condition("tiny")["message"]
    assert "slipway-worker has 0 of 1 free" in message
    assert f"held by {namespace.name}/train-0 (1 on slipway-worker)" in message
    namespace.kubectl("delete", "pod", "train-0", "--force", "--grace-period=0")
    namespace.wait_ready("tiny")
