"""Twenty ready ModelDeployments and no change: the operator writes nothing but its Lease.

The five minutes pass while the tests of other files run, which also kill the operator: a restart is no reason to write either.
"""

from __future__ import annotations

import time
from collections import Counter

import pytest

from e2e.kit import MANAGED, Cluster, Namespace, mdep, onnx_folder, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
COUNT = 20
SECONDS = 300.0
WRITES = {"create", "update", "patch", "delete", "deletecollection"}
KINDS = "modeldeployments.slipway.dev,modelartifacts.slipway.dev,services,jobs"


@pytest.fixture(scope="session")
def ready_at() -> dict[str, float]:
    """When the twenty were ready: seconds of the clock that the audit log uses."""
    return {}


def versions(space: Namespace) -> dict[str, str]:
    """The versions of what only the operator writes, and the generations of the Deployments, whose status is written by others."""
    found = {f"{item['kind']}/{item['metadata']['name']}": item["metadata"]["resourceVersion"] for item in space.items(KINDS)}
    return found | {
        f"Deployment/{d['metadata']['name']}": str(d["metadata"]["generation"]) for d in space.items("deployments", "-l", MANAGED)
    }


def test_twenty_become_ready(quiet: Namespace, ready_at: dict[str, float]) -> None:
    quiet.apply(onnx_folder("good"), *(mdep(f"quiet-{index}", "configmap://good") for index in range(COUNT)))
    for index in range(COUNT):
        quiet.wait_ready(f"quiet-{index}")
    assert len(quiet.jobs()) == 1, "equal models share one conversion"
    ready_at["time"] = time.time()


@pytest.mark.unhurried
def test_nothing_is_written_in_five_minutes(slipway: Cluster, quiet: Namespace, ready_at: dict[str, float]) -> None:
    assert ready_at, "test_twenty_become_ready runs before this one"
    # what follows from having become ready may still be under way in the first seconds
    begin = ready_at["time"] + 20
    before = versions(quiet)
    until(lambda: time.time() > begin + SECONDS, SECONDS + 30)
    assert versions(quiet) == before
    events = slipway.audit(begin)
    assert any(event["userAgent"].startswith("slipway-operator") for event in events), "the audit log does not know the operator"
    writes = Counter(
        f"{event['verb']} {reference.get('resource')}/{reference.get('name')}"
        for event in events
        if (reference := event.get("objectRef") or {}).get("namespace") == quiet.name
        and event["userAgent"].startswith("slipway-operator")
        and event["verb"] in WRITES
    )
    print(f"{len(events)} requests of all clients in {time.time() - begin:.0f} s, {sum(writes.values())} writes by the operator")
    assert not writes
