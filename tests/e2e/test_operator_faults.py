"""The operator dies or is away, and users notice little of it."""

from __future__ import annotations

import time

import pytest

from e2e.kit import SYSTEM, Cluster, Namespace, mdep, model_folder, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
LEASE = "slipway-operator"


def lease(cluster: Cluster) -> dict[str, str]:
    return dict(cluster.get("-n", SYSTEM, "lease", LEASE)["spec"])


def leader_pod(cluster: Cluster) -> str:
    """The pod that holds the Lease: its identity begins with the pod's name."""
    holder = lease(cluster)["holderIdentity"]
    pods = [pod["metadata"]["name"] for pod in cluster.items("-n", SYSTEM, "pods")]
    return next(pod for pod in pods if holder.startswith(pod))


def operator_deployment(cluster: Cluster) -> str:
    pod = cluster.get("-n", SYSTEM, "pod", leader_pod(cluster))
    replica_set = pod["metadata"]["ownerReferences"][0]["name"]
    return str(cluster.get("-n", SYSTEM, "replicaset", replica_set)["metadata"]["ownerReferences"][0]["name"])


def test_leader_killed_takeover_under_20_seconds_and_the_create_completes(namespace: Namespace) -> None:
    cluster = namespace.cluster
    before = lease(cluster)["holderIdentity"]
    namespace.apply(model_folder("good"), mdep("tiny", "configmap://good"))
    killed = leader_pod(cluster)
    cluster.kubectl("-n", SYSTEM, "delete", "pod", killed, "--grace-period=0", "--force")
    begin = time.monotonic()
    until(lambda: lease(cluster).get("holderIdentity") not in (None, "", before), 20, lambda: str(lease(cluster)), every=0.5)
    print(f"takeover after {time.monotonic() - begin:.1f} s")
    namespace.wait_ready("tiny")
    assert len(namespace.jobs()) == 1, "the conversion ran more than once"


def test_delete_while_the_operator_is_away_leaves_nothing(namespace: Namespace) -> None:
    cluster = namespace.cluster
    namespace.apply(model_folder("good"), mdep("tiny", "configmap://good"))
    namespace.wait_ready("tiny")
    deployment = operator_deployment(cluster)
    replicas = cluster.get("-n", SYSTEM, "deployment", deployment)["spec"]["replicas"]
    try:
        cluster.kubectl("-n", SYSTEM, "scale", "deployment", deployment, "--replicas=0")
        until(lambda: not cluster.get("-n", SYSTEM, "deployment", deployment)["status"].get("replicas"), 90)
        namespace.kubectl("delete", "mdep", "tiny", "--timeout=20s")
        until(lambda: not namespace.owned(), 60, lambda: f"left: {namespace.owned()}")
    finally:
        cluster.kubectl("-n", SYSTEM, "scale", "deployment", deployment, f"--replicas={replicas}")
        cluster.kubectl("-n", SYSTEM, "rollout", "status", f"deployment/{deployment}", "--timeout=120s")
