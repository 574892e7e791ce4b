"""The operator's I/O on a real API server: what it writes and when, and what it survives."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from integration.conftest import ApiServer
from integration.operator.conftest import PATIENCE, Operator, Tenant, model_deployment, until

pytestmark = [pytest.mark.slow]


def revision_of(tenant: Tenant) -> str:
    return next(iter(tenant.names("deployments")))


MANAGED = "app.kubernetes.io/managed-by=slipway"


def test_a_new_model_deployment_takes_five_writes_and_then_none(tenant: Tenant) -> None:
    models = [f"m{index}" for index in range(5)]
    tenant.prepare(*models)
    operator = tenant.lead(SLIPWAY_RESYNC_SECONDS="2")
    tenant.make(*models)
    tenant.wait_deployments(5)
    tenant.settle()
    each = {"patch modelartifacts/": 5, "create deployments/": 5, "create services/": 10, "update modeldeployments/status": 5}
    assert tenant.writes() == Counter(each)
    quiet = tenant.audit.stat().st_size
    time.sleep(6)  # three rounds of the resync
    assert not tenant.writes(quiet)
    operator.end()
    tenant.lead()
    time.sleep(3)
    assert not tenant.writes(quiet), "a restart is no reason to write"


def test_of_many_new_ones_the_deployments_come_before_the_rest(tenant: Tenant) -> None:
    models = [f"m{index}" for index in range(12)]
    tenant.prepare(*models)
    operator = tenant.lead(SLIPWAY_WORKERS="1")
    operator.send(signal.SIGSTOP)
    tenant.make(*models)
    operator.send(signal.SIGCONT)
    tenant.wait_deployments(12)
    tenant.settle()
    found = [kind for kind in tenant.creates() if kind in ("deployments", "services")]
    assert Counter(found) == {"deployments": 12, "services": 24}
    last = len(found) - 1 - found[::-1].index("deployments")
    assert found[:last].count("services") <= 4, found  # of the first one, and of the last


def test_a_namesake_of_a_deleted_one_waits_until_the_garbage_collector_was_there(tenant: Tenant) -> None:
    tenant.prepare("digits")
    tenant.lead()
    tenant.make("digits")
    tenant.wait_deployments(1)
    until(lambda: tenant.reason("digits") == "Progressing", 20, lambda: tenant.get("mdep", "digits"))
    before = {(item["kind"], item["metadata"]["uid"]) for item in tenant.get("deployments,services", "-l", MANAGED)["items"]}
    tenant.server.kubectl("-n", tenant.name, "delete", "mdep", "digits")  # nothing collects here
    tenant.make("digits")
    time.sleep(3)
    assert tenant.reason("digits") is None, tenant.get("mdep", "digits")
    tenant.server.kubectl("-n", tenant.name, "delete", "deployments,services", "-l", MANAGED)
    until(lambda: tenant.reason("digits") == "Progressing", 20, lambda: tenant.get("mdep", "digits"))
    after = {(item["kind"], item["metadata"]["uid"]) for item in tenant.get("deployments,services", "-l", MANAGED)["items"]}
    assert len(before) == len(after) == 3
    assert not before & after


def test_a_service_of_somebody_else_stays_as_it_is(tenant: Tenant) -> None:
    theirs = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "digits"}, "spec": {"ports": [{"port": 5432}]}}
    tenant.apply(theirs)
    before = tenant.get("service", "digits")
    tenant.prepare("digits")
    tenant.lead()
    tenant.make("digits")
    until(lambda: tenant.reason("digits") == "NameConflict", 20, lambda: tenant.get("mdep", "digits"))
    assert tenant.get("service", "digits") == before
    tenant.server.kubectl("-n", tenant.name, "delete", "service", "digits")
    until(lambda: "digits" in tenant.names("services"), 60, lambda: tenant.get("mdep", "digits"))


@pytest.mark.parametrize(
    ("kind", "patch"),
    [
        ("deployment", {"spec": {"template": {"spec": {"containers": [{"name": "server", "image": "evil"}]}}}}),
        ("deployment", {"spec": {"replicas": 7}}),
        ("service", {"spec": {"selector": {"slipway.dev/revision": "other"}}}),
        ("deployment", None),
        ("service", None),
    ],
    ids=["image", "replicas", "selector", "deployment deleted", "service deleted"],
)
def test_what_somebody_changes_or_deletes_comes_back(tenant: Tenant, kind: str, patch: dict[str, object] | None) -> None:
    tenant.prepare("digits")
    tenant.lead()
    tenant.make("digits")
    tenant.wait_deployments(1)
    tenant.settle()
    name = revision_of(tenant)
    want = tenant.get(kind, name)["spec"]
    if patch is None:
        tenant.server.kubectl("-n", tenant.name, "delete", kind, name)
    else:
        tenant.server.kubectl("-n", tenant.name, "patch", kind, name, "--type=strategic", "-p", json.dumps(patch))

    def is_back() -> bool:
        found = tenant.find(kind, name)
        spec = found and found["spec"]
        if spec and patch is None and kind == "service":  # a new one has an address of its own
            spec |= {key: want[key] for key in ("clusterIP", "clusterIPs")}
        return bool(spec == want)

    until(is_back, 10, lambda: (tenant.find(kind, name), want))


def test_a_killed_leader_is_followed_within_twenty_seconds(tenant: Tenant) -> None:
    tenant.prepare("digits")
    first = tenant.lead()
    second = tenant.start()
    until(lambda: "slipway_leader 0.0" in second.metrics() if second.log.exists() and _answers(second) else False, PATIENCE)
    first.end(signal.SIGKILL)
    begin = time.monotonic()
    until(second.leads, 20, lambda: second.log.read_text()[-2000:])
    print(f"takeover after {time.monotonic() - begin:.1f} s")
    tenant.make("digits")
    tenant.wait_deployments(1)


def test_a_leader_that_was_stopped_for_a_while_comes_back_as_a_follower(tenant: Tenant) -> None:
    tenant.prepare("digits")
    first = tenant.lead()
    second = tenant.start()
    until(lambda: _answers(second), PATIENCE, lambda: second.log.read_text()[-2000:])
    first.send(signal.SIGSTOP)
    until(second.leads, 25, lambda: second.log.read_text()[-2000:])
    tenant.make("digits")
    tenant.wait_deployments(1)
    tenant.settle()
    first.send(signal.SIGCONT)
    until(lambda: not first.leads(), 5)
    time.sleep(3)
    assert second.leads()
    assert not first.leads()


def models_told(operator: Operator) -> set[str]:
    return set(re.findall(r'slipway_condition\{name="([^"]+)"', operator.metrics()))


def test_only_the_leader_tells_about_models_and_its_queue(tenant: Tenant) -> None:
    tenant.prepare("digits")
    first = tenant.lead()
    tenant.make("digits")
    until(lambda: models_told(first) == {"digits"}, 20, first.metrics)
    second = tenant.start()
    until(lambda: _answers(second), PATIENCE, lambda: second.log.read_text()[-2000:])
    time.sleep(3)
    assert models_told(second) == set()
    assert "slipway_queue_oldest_seconds 0.0" in second.metrics(), "keys that wait for a follower's turn are no backlog"
    first.send(signal.SIGSTOP)
    until(second.leads, 25, lambda: second.log.read_text()[-2000:])
    until(lambda: models_told(second) == {"digits"}, 20, second.metrics)
    first.send(signal.SIGCONT)
    until(lambda: not first.leads(), 5)
    assert models_told(first) == set()


def _answers(operator: object) -> bool:
    try:
        operator.metrics()  # type: ignore[attr-defined]
    except OSError:
        return False
    return True


def test_an_api_server_that_stops_answering_is_waited_for(apiserver: ApiServer, tenant: Tenant) -> None:
    tenant.prepare("digits")
    operator = tenant.lead()
    pid = int(Path(apiserver.kubeconfig.parent / "apiserver.pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: not operator.leads(), 20)
    finally:
        os.kill(pid, signal.SIGCONT)
    until(operator.leads, 40, lambda: operator.log.read_text()[-2000:])
    tenant.make("digits")
    tenant.wait_deployments(1)
    assert operator.process.poll() is None


def test_fifty_quick_edits_end_at_the_last_one(tenant: Tenant) -> None:
    tenant.prepare("digits")
    tenant.lead()
    tenant.make("digits")
    tenant.wait_deployments(1)
    tenant.settle()
    before = tenant.audit.stat().st_size
    for replicas in range(2, 52):
        tenant.apply(model_deployment("digits", replicas=replicas % 9))
    last = 51 % 9
    until(lambda: tenant.get("deployment", revision_of(tenant))["spec"]["replicas"] == last, 10)
    tenant.settle()
    assert tenant.get("mdep", "digits")["status"]["observedGeneration"] == tenant.get("mdep", "digits")["metadata"]["generation"]
    # a write of the Deployment and one of the status for each edit at most: edits that come together are one pass
    assert sum(tenant.writes(before).values()) <= 100


def test_a_shipped_runtime_that_is_changed_or_deleted_comes_back_and_is_written_once(tenant: Tenant, tmp_path: Path) -> None:
    shipped = tmp_path / "runtimes.yaml"
    name = f"shipped-{tenant.name}"
    spec = {"image": "ours", "formats": [{"name": "ONNX"}], "args": ["serve"]}
    manifest = {"apiVersion": "slipway.dev/v1alpha1", "kind": "ServingRuntime", "metadata": {"name": name}, "spec": spec}
    shipped.write_text(json.dumps(manifest))
    settings = {"SLIPWAY_SERVING_RUNTIMES": str(shipped)}

    def image() -> str | None:
        found = tenant.find("srt", name)
        return found["spec"]["image"] if found else None

    operator = tenant.lead(**settings)
    until(lambda: image() == "ours", 10)
    version = tenant.get("srt", name)["metadata"]["resourceVersion"]
    operator.end()
    operator = tenant.lead(**settings)
    time.sleep(5)
    assert tenant.get("srt", name)["metadata"]["resourceVersion"] == version
    tenant.server.kubectl("patch", "srt", name, "--type=merge", "-p", '{"spec": {"image": "theirs"}}')
    until(lambda: image() == "ours", 10)
    tenant.server.kubectl("delete", "srt", name)
    until(lambda: image() == "ours", 10)
    operator.end()
    shipped.write_text(json.dumps(manifest | {"spec": {key: spec[key] for key in ("image", "formats")}}))
    tenant.lead(**settings)
    until(lambda: "args" not in tenant.get("srt", name)["spec"], 10)
    tenant.server.kubectl("delete", "srt", name)


def test_a_field_that_is_no_longer_wanted_goes_although_the_create_held_it(tenant: Tenant) -> None:
    tenant.prepare("digits")
    operator = tenant.lead()
    tenant.make("digits")
    tenant.wait_deployments(1)
    tenant.settle()
    operator.end()
    # as if an earlier version of the operator had created the Service with one port more
    service = tenant.get("service", "digits")
    tenant.server.kubectl("-n", tenant.name, "delete", "service", "digits")
    ports = [*service["spec"]["ports"], {"name": "old", "port": 81, "targetPort": 81, "protocol": "TCP"}]
    metadata = {key: service["metadata"][key] for key in ("name", "labels", "ownerReferences")}
    spec = {"selector": {"slipway.dev/revision": "other"}, "ports": ports}
    body = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}
    tenant.server.kubectl("-n", tenant.name, "create", "--field-manager=slipway", "-f", "-", stdin=json.dumps(body))
    tenant.lead()
    until(lambda: tenant.get("service", "digits")["spec"]["selector"] == service["spec"]["selector"], 10)

    def ports_now() -> list[str]:
        return [port["name"] for port in tenant.get("service", "digits")["spec"]["ports"]]

    wanted = [port["name"] for port in service["spec"]["ports"]]
    until(lambda: ports_now() == wanted, 10, ports_now)
