"""A new version takes over without a lost request, and going back needs no conversion."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from e2e.kit import LOAD, PATIENCE, WEIGHT, Namespace, linear, mdep, model_folder, onnx_folder, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_update_under_load_then_revert_without_a_conversion(namespace: Namespace) -> None:
    namespace.apply(onnx_folder("v1"), onnx_folder("v2", WEIGHT * 2), mdep("tiny", "configmap://v1"))
    first = namespace.wait_ready("tiny")["status"]["stable"]["revision"]

    _under_load(namespace, "load-update", "configmap://v2")
    second = namespace.wait_ready("tiny")["status"]["stable"]["revision"]
    assert second != first
    with namespace.cluster.forward(namespace.name, "service/tiny", 80) as url:
        rows = [[1.0, 2.0, 3.0, 4.0]]
        np.testing.assert_allclose(namespace.infer(url, "tiny", rows), linear(rows, WEIGHT * 2), atol=1e-5)

    jobs = namespace.jobs()
    _under_load(namespace, "load-revert", "configmap://v1")
    assert namespace.wait_ready("tiny")["status"]["stable"]["revision"] == first
    assert namespace.jobs() == jobs, "going back converted the model again"


def _under_load(space: Namespace, pod: str, uri: str) -> None:
    """Change the model while 16 connections ask; not one request may fail, and both versions must have answered."""
    space.run_pod(pod, LOAD, "tiny", "300")
    space.wait_running(pod)
    space.apply(mdep("tiny", uri))
    until(lambda: space.phase(pod) in ("Succeeded", "Failed"), PATIENCE, lambda: space.explain("tiny"))
    result = json.loads(space.kubectl("logs", pod).splitlines()[-1])
    print(pod, result)
    assert result["failed"] == 0, result
    assert len(result["answers"]) == 2, result


@pytest.mark.nightly
def test_pods_deleted_one_by_one_under_load_lose_no_request(namespace: Namespace) -> None:
    namespace.apply(model_folder("v1"), mdep("tiny", "configmap://v1", serving={"replicas": 2}))
    revision = namespace.wait_ready("tiny")["status"]["stable"]["revision"]
    namespace.run_pod("load", LOAD, "tiny", "300")
    namespace.wait_running("load")
    begin, deleted = time.monotonic(), 0

    def is_whole() -> bool:
        return bool(namespace.get("deployment", revision)["status"].get("readyReplicas") == 2)

    while time.monotonic() - begin < 60:
        there = [pod["metadata"] for pod in namespace.items("pods", "-l", f"slipway.dev/revision={revision}")]
        oldest = min((pod for pod in there if "deletionTimestamp" not in pod), key=lambda pod: pod["creationTimestamp"])
        namespace.kubectl("delete", "pod", oldest["name"], "--wait=false")
        deleted += 1
        time.sleep(2)
        until(is_whole, PATIENCE, lambda: namespace.explain("tiny"))
    result = namespace.end_load("load")
    print(deleted, result)
    assert deleted >= 3
    assert result["failed"] == 0, result
