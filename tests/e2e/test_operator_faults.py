"""The operator dies or is away, and users notice little of it."""

from __future__ import annotations

import difflib
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from e2e.kit import MANAGED, PATIENCE, SYSTEM, WEIGHT, Cluster, Namespace, mdep, onnx_folder, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LEASE = "slipway-operator"
POINTS = 10
INTERVAL = 2.5  # seconds between kills, so that ten of them fall into one create and one update


def lease(cluster: Cluster) -> dict[str, str]:
    return dict(cluster.get("-n", SYSTEM, "lease", LEASE)["spec"])


def leader_pod(cluster: Cluster) -> str:
    """The pod that holds the Lease: its identity begins with the pod's name."""
    holder = lease(cluster)["holderIdentity"]
    pods = [pod["metadata"]["name"] for pod in cluster.items("-n", SYSTEM, "pods")]
    # right after a kill the Lease still names a pod that is gone: any operator will do then
    return next((pod for pod in pods if holder.startswith(pod)), None) or next(pod for pod in pods if "operator" in pod)


def operator_deployment(cluster: Cluster) -> str:
    pod = cluster.get("-n", SYSTEM, "pod", leader_pod(cluster))
    replica_set = pod["metadata"]["ownerReferences"][0]["name"]
    return str(cluster.get("-n", SYSTEM, "replicaset", replica_set)["metadata"]["ownerReferences"][0]["name"])


@pytest.fixture(scope="module")
def calm() -> dict[str, Any]:
    """The end state of a create and an update that nothing disturbs, once its test has run: it needs no time alone."""
    return {}


def test_an_undisturbed_create_and_update(namespace: Namespace, calm: dict[str, Any]) -> None:
    calm |= run_to_the_end(namespace)
    assert calm["status"]["stable"]["revision"]


@pytest.mark.alone
def test_leader_killed_takeover_under_20_seconds_and_the_create_completes(namespace: Namespace) -> None:
    cluster = namespace.cluster
    before = lease(cluster)["holderIdentity"]
    namespace.apply(onnx_folder("good"), mdep("tiny", "configmap://good"))
    killed = leader_pod(cluster)
    cluster.kubectl("-n", SYSTEM, "delete", "pod", killed, "--grace-period=0", "--force")
    begin = time.monotonic()
    until(lambda: lease(cluster).get("holderIdentity") not in (None, "", before), 20, lambda: str(lease(cluster)), every=0.5)
    print(f"takeover after {time.monotonic() - begin:.1f} s")
    namespace.wait_ready("tiny")
    assert len(namespace.jobs()) == 1, "the conversion ran more than once"


@pytest.mark.alone
def test_delete_while_the_operator_is_away_leaves_nothing(namespace: Namespace) -> None:
    cluster = namespace.cluster
    namespace.apply(onnx_folder("good"), mdep("tiny", "configmap://good"))
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


def end_state(space: Namespace, name: str) -> dict[str, Any]:
    """The owned objects and the status, without what differs from run to run: uids, times, names with random parts."""
    resource = space.get("mdep", name)
    # each namespace converts for itself, and a report that tells its seconds has a digest of its own
    text = json.dumps(resource["status"]).replace(resource["status"]["stable"]["digest"], "DIGEST")
    status = json.loads(re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text.replace(space.name, "NAMESPACE")))
    status.pop("history", None)
    kinds = "modelartifacts.slipway.dev,deployments,services,jobs"
    owned = sorted(
        (item["kind"], item["metadata"]["name"], (item.get("spec") or {}).get("replicas"), sorted((item["metadata"]["labels"]).items()))
        for item in space.items(kinds, "-l", MANAGED)
    )
    return {"status": status, "owned": owned}


def difference(want: dict[str, Any], got: dict[str, Any]) -> str:
    """Return the lines in which two end states differ; empty when they do not."""
    lines = [json.dumps(state, indent=1, sort_keys=True).splitlines() for state in (want, got)]
    return "\n".join(line for line in difflib.unified_diff(*lines, "calm", "killed", lineterm="", n=2))


def create_and_update(space: Namespace) -> Iterator[None]:
    """A create and then an update, as steps between which somebody may kill the operator."""
    space.apply(onnx_folder("v1"), onnx_folder("v2", WEIGHT * 2), mdep("tiny", "configmap://v1"))
    while space.condition("tiny").get("status") != "True":
        yield
    space.apply(mdep("tiny", "configmap://v2"))
    while space.condition("tiny").get("status") != "True":
        yield


def run_to_the_end(space: Namespace, kill: Callable[[], None] | None = None) -> dict[str, Any]:
    kills, last, end = 0, 0.0, time.monotonic() + 500
    for _ in create_and_update(space):
        assert time.monotonic() < end, space.explain("tiny")
        if kill is not None and kills < POINTS and time.monotonic() - last > INTERVAL:
            kill()
            kills, last = kills + 1, time.monotonic()
        time.sleep(0.5)
    assert kill is None or kills == POINTS, f"over after {kills} kills: shorten INTERVAL"
    # old revisions stop after the drain
    until(
        lambda: sum(d["spec"]["replicas"] for d in space.items("deployments", "-l", MANAGED)) == 1, PATIENCE, lambda: space.explain("tiny")
    )
    return end_state(space, "tiny")


@pytest.mark.alone
def test_operator_killed_at_ten_points_ends_in_the_same_state(namespace: Namespace, calm: dict[str, Any]) -> None:
    assert calm, "test_an_undisturbed_create_and_update runs before this one"

    def kill() -> None:
        namespace.cluster.run("-n", SYSTEM, "delete", "pod", leader_pod(namespace.cluster), "--grace-period=0", "--force")

    assert not difference(calm, run_to_the_end(namespace, kill))
