"""The registry of the converted models fails or lies: the reason says so, and what serves keeps serving."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from e2e.kit import SYSTEM, Cluster, Manifest, Namespace, mdep, onnx_folder, until

pytestmark = [pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(900)]
# spoils one byte of the artifact's model; blobs are shared by content, so the test has weights of its own
SPOIL = """
import json, pathlib, sys
blobs = pathlib.Path("/registry/docker/registry/v2/blobs/sha256")
blob = lambda digest: blobs / digest[7:9] / digest[7:] / "data"
layers = json.loads(blob(sys.argv[1]).read_bytes())["layers"]
titles = {layer["annotations"]["org.opencontainers.image.title"]: layer["digest"] for layer in layers}
path = blob(titles["model.onnx"])
data = bytearray(path.read_bytes())
data[len(data) // 2] ^= 1
path.write_bytes(data)
"""


def registry_pod(cluster: Cluster) -> Manifest:
    pods = cluster.items("-n", SYSTEM, "pods")
    image = cluster.images["SLIPWAY_REGISTRY_IMAGE"]
    return next(pod for pod in pods if pod["spec"]["containers"][0]["image"] == image)


def registry_owner(cluster: Cluster) -> str:
    """The workload of the registry, as TYPE/NAME."""
    owner = registry_pod(cluster)["metadata"]["ownerReferences"][0]
    if owner["kind"] == "ReplicaSet":
        owner = cluster.get("-n", SYSTEM, "replicaset", owner["name"])["metadata"]["ownerReferences"][0]
    return f"{owner['kind'].lower()}/{owner['name']}"


def test_registry_down(namespace: Namespace) -> None:
    cluster = namespace.cluster
    owner = registry_owner(cluster)
    try:
        cluster.kubectl("-n", SYSTEM, "scale", owner, "--replicas=0")
        namespace.apply(onnx_folder("good"), mdep("tiny", "configmap://good"))
        assert "Next:" in namespace.wait_reason("tiny", "RegistryUnavailable")["message"]
        namespace.wait_event("tiny", "RegistryUnavailable")
    finally:
        cluster.kubectl("-n", SYSTEM, "scale", owner, "--replicas=1")
        cluster.kubectl("-n", SYSTEM, "rollout", "status", owner, "--timeout=120s")
    namespace.wait_ready("tiny")


def test_corrupt_artifact_never_serves_and_stable_keeps_serving(namespace: Namespace) -> None:
    cluster = namespace.cluster
    own = np.full((3, 4), time.time() % 1000, np.float32)
    namespace.apply(onnx_folder("good", own), mdep("tiny", "configmap://good"))
    stable = namespace.wait_ready("tiny")["status"]["stable"]
    _spoil(cluster, namespace.name, stable["digest"])
    namespace.apply(mdep("tiny", "configmap://good", serving={"env": [{"name": "ANOTHER", "value": "revision"}]}))
    assert "Next:" in namespace.wait_reason("tiny", "ArtifactCorrupt")["message"]
    namespace.wait_event("tiny", "ArtifactCorrupt")
    assert namespace.get("mdep", "tiny")["status"]["stable"]["revision"] == stable["revision"]
    with cluster.forward(namespace.name, "service/tiny", 80) as url:
        assert namespace.infer(url, "tiny", [[1.0, 2.0, 3.0, 4.0]]).shape == (1, 3)


def _spoil(cluster: Cluster, name: str, digest: str) -> None:
    volumes = [v for v in registry_pod(cluster)["spec"]["volumes"] if "persistentVolumeClaim" in v]
    pod: Manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"spoil-{name}", "namespace": SYSTEM},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "registry", "persistentVolumeClaim": volumes[0]["persistentVolumeClaim"]}],
            "containers": [
                {
                    "name": "main",
                    "image": cluster.images["SLIPWAY_RUNTIME_IMAGE"],
                    "command": ["python", "-c", SPOIL, digest],
                    "volumeMounts": [{"name": "registry", "mountPath": "/registry"}],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        },
    }
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(pod))
    try:
        phase = until(lambda: _ended(cluster, f"spoil-{name}"), 180)
        assert phase == "Succeeded", cluster.run("-n", SYSTEM, "logs", f"spoil-{name}").stdout
    finally:
        cluster.run("-n", SYSTEM, "delete", "pod", f"spoil-{name}", "--wait=false")


def _ended(cluster: Cluster, pod: str) -> str:
    phase = str(cluster.get("-n", SYSTEM, "pod", pod)["status"].get("phase"))
    return phase if phase in ("Succeeded", "Failed") else ""
