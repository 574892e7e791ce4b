"""The chart's life as a user sees it: models keep answering while the operator is upgraded, removed and installed again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from e2e.kit import (
    LOAD,
    MANAGED,
    PATIENCE,
    SYSTEM,
    Cluster,
    Namespace,
    drop_namespace,
    install,
    linear,
    make_namespace,
    mdep,
    onnx_folder,
    until,
)

pytestmark = [pytest.mark.last, pytest.mark.slow, pytest.mark.timeout(900)]
CRDS = {f"{plural}.slipway.dev" for plural in ("modeldeployments", "modelartifacts", "servingruntimes")}
OF_THE_CHART = "app.kubernetes.io/part-of=slipway"
CLUSTER_SCOPED = "clusterroles,clusterrolebindings"
NAMESPACED = "deployments,replicasets,pods,services,configmaps,secrets,serviceaccounts,roles,rolebindings,leases,pvc,pdb,networkpolicies"
ROWS = [[1.0, 2.0, 3.0, 4.0]]


@pytest.fixture
def space(slipway: Cluster) -> Iterator[Namespace]:
    """A namespace; afterwards Slipway is installed as the session found it, whatever the test left."""
    namespace = make_namespace(slipway)
    yield namespace
    if slipway.run("get", "crd", "modeldeployments.slipway.dev").returncode == 0:
        namespace.kubectl("delete", "mdep", "--all", "--wait=false")
    drop_namespace(namespace)
    install(slipway)


def operator_pods(cluster: Cluster) -> dict[str, Any]:
    """The operator's pods that are not on their way out, by name."""
    pods = cluster.items("-n", SYSTEM, "pods", "-l", "app.kubernetes.io/name=slipway-operator")
    return {pod["metadata"]["name"]: pod for pod in pods if not pod["metadata"].get("deletionTimestamp")}


def serving_pods(space: Namespace) -> dict[str, int]:
    """Uid of each serving pod that is ready, and how often its containers were restarted."""
    pods = [pod for pod in space.items("pods", "-l", f"{MANAGED},slipway.dev/revision") if not pod["metadata"].get("deletionTimestamp")]
    return {
        pod["metadata"]["uid"]: sum(container["restartCount"] for container in pod["status"].get("containerStatuses", ()))
        for pod in pods
        if any(condition["type"] == "Ready" and condition["status"] == "True" for condition in pod["status"].get("conditions", ()))
    }


def uids(space: Namespace) -> dict[str, str]:
    """Uid of everything that the model consists of, its pods aside."""
    kinds = "modeldeployments.slipway.dev,modelartifacts.slipway.dev,deployments,services,jobs"
    found = space.items(kinds)
    return {
        f"{item['kind']}/{item['metadata']['name']}": item["metadata"]["uid"] for item in found if item["metadata"]["name"] != "kubernetes"
    }


def left_of_the_chart(cluster: Cluster) -> set[str]:
    """What is still there of the release: all that carries its label, in the cluster and in its namespace, and what its pods made."""
    found = cluster.items("-A", NAMESPACED, "-l", OF_THE_CHART) + cluster.items(CLUSTER_SCOPED, "-l", OF_THE_CHART)
    found += cluster.items("-n", SYSTEM, NAMESPACED)
    found += [volume for volume in cluster.items("pv") if volume["spec"].get("claimRef", {}).get("namespace") == SYSTEM]
    names = {f"{item['kind']}/{item['metadata']['name']}" for item in found}
    return names - {"ConfigMap/kube-root-ca.crt", "ServiceAccount/default"}


def uninstall(cluster: Cluster) -> None:
    done = cluster.helm("uninstall", "slipway", "-n", SYSTEM, "--wait", "--timeout", "3m")
    assert done.returncode == 0, done.stderr
    until(lambda: not left_of_the_chart(cluster), 60, lambda: f"left: {left_of_the_chart(cluster)}")


def crds(cluster: Cluster) -> set[str]:
    return {item["metadata"]["name"] for item in cluster.items("crd")} & CRDS


def wait_scaled(space: Namespace, replicas: int) -> None:
    """Scale the model; that it happens shows that an operator has worked on it since."""
    space.kubectl("scale", "mdep/tiny", f"--replicas={replicas}")
    space.wait_ready("tiny")
    until(lambda: len(serving_pods(space)) == replicas, PATIENCE, lambda: space.explain("tiny"))


def test_models_answer_while_the_chart_is_upgraded_removed_and_installed_again(space: Namespace) -> None:
    cluster = space.cluster
    space.apply(onnx_folder("good"), mdep("tiny", "configmap://good"))
    stable = space.wait_ready("tiny")["status"]["stable"]
    objects, pods = uids(space), serving_pods(space)
    assert len(pods) == 1
    space.run_pod("load", LOAD, "tiny", "800")
    space.wait_running("load")

    # upgrade: another log format and one more replica
    before = operator_pods(cluster)
    install(cluster, "operator.logFormat=text", "operator.replicas=3", command=("upgrade",))
    until(lambda: not set(before) & set(operator_pods(cluster)), PATIENCE, lambda: f"{sorted(before)} → {sorted(operator_pods(cluster))}")
    assert len(operator_pods(cluster)) == 3
    # helm waits for as many pods as the budget of the Deployment asks for, not for each
    line = until(lambda: cluster.run("-n", SYSTEM, "logs", min(operator_pods(cluster)), "--tail=1").stdout, 180)
    with pytest.raises(json.JSONDecodeError):
        json.loads(line)
    wait_scaled(space, 2)
    both = serving_pods(space)
    assert pods.items() <= both.items(), "the upgrade restarted a serving pod"
    assert uids(space) == objects

    # uninstall: the operator goes, the CRDs and the users' resources stay and answer
    uninstall(cluster)
    until(lambda: "slipway" not in {item["metadata"]["name"] for item in cluster.items("servingruntimes")}, 180)
    assert crds(cluster) == CRDS
    assert uids(space) == objects
    assert serving_pods(space) == both
    with cluster.forward(space.name, "service/tiny", 80) as url:
        np.testing.assert_allclose(space.infer(url, "tiny", ROWS), linear(ROWS), atol=1e-5)

    # install: what is there is taken over, nothing is made again
    install(cluster, command=("install",))
    wait_scaled(space, 1)
    after = serving_pods(space)
    assert after.items() <= both.items(), "the new operator made another pod"
    assert uids(space) == objects
    assert space.get("mdep", "tiny")["status"]["stable"] == stable

    counts = space.end_load("load")
    print("load over upgrade, uninstall and install:", counts)
    assert counts["failed"] == 0, counts
    assert counts["sent"] > 100


def test_uninstall_without_kept_crds_leaves_nothing(space: Namespace) -> None:
    """The last test of the session (conftest.py), because it removes the models of every namespace."""
    cluster = space.cluster
    space.apply(onnx_folder("good"), mdep("tiny", "configmap://good"))
    space.wait_ready("tiny")
    install(cluster, "crds.keep=false")
    uninstall(cluster)
    until(lambda: not crds(cluster), 60, lambda: f"left: {crds(cluster)}")

    def models() -> list[str]:
        return [
            f"{item['kind']}/{item['metadata']['name']}" for item in cluster.items("-A", "deployments,services,jobs,pods", "-l", MANAGED)
        ]

    until(lambda: not models(), 90, lambda: f"left: {models()}")
    # the user's own ConfigMap is not Slipway's
    assert space.get("configmap", "good")["data"]
    install(cluster, command=("install",))
    assert crds(cluster) == CRDS
