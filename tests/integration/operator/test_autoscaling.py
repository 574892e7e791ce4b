"""Who holds a size on a real API server: the operator lets go of it without a moment in which it is another one."""

from __future__ import annotations

import json

from integration.operator.conftest import PATIENCE, Manifest, Tenant, model_deployment, until

WISH = {"minReplicas": 1, "maxReplicas": 10, "metric": "CPU", "target": 80}


def size(tenant: Tenant, revision: str) -> int:
    return int(tenant.get("deployment", revision)["spec"]["replicas"])


def managers(tenant: Tenant, revision: str) -> set[str]:
    """Who holds spec.replicas."""
    done = tenant.server.run("-n", tenant.name, "get", "deployment", revision, "-o", "json", "--show-managed-fields")
    entries = json.loads(done.stdout)["metadata"]["managedFields"]
    return {e["manager"] for e in entries if "f:replicas" in (e.get("fieldsV1") or {}).get("f:spec", {})}


def patch(tenant: Tenant, spec: Manifest) -> None:
    tenant.server.kubectl("-n", tenant.name, "patch", "mdep", "digits", "--type=merge", "-p", json.dumps({"spec": spec}))


def test_the_autoscaler_gets_the_size_and_keeps_it(tenant: Tenant) -> None:
    tenant.prepare("digits")
    tenant.apply(model_deployment("digits", replicas=3))
    operator = tenant.lead()
    tenant.wait_deployments(1)
    (revision,) = tenant.names("deployments")
    tenant.settle()
    patch(tenant, {"serving": {"replicas": 5}})  # an apply of ours now holds it
    until(lambda: size(tenant, revision) == 5, PATIENCE, operator.log.read_text)
    assert "slipway" in managers(tenant, revision)

    patch(tenant, {"autoscaling": WISH})
    until(lambda: tenant.names("hpa") == {revision}, PATIENCE, operator.log.read_text)
    tenant.settle()
    assert size(tenant, revision) == 5
    # as the HorizontalPodAutoscaler controller does it
    tenant.server.kubectl("-n", tenant.name, "scale", "deployment", revision, "--replicas=7")
    tenant.settle()
    assert size(tenant, revision) == 7
    # somebody takes a label away: the operator applies again, without the size
    tenant.server.kubectl("-n", tenant.name, "label", "deployment", revision, "slipway.dev/role-", "slipway.dev/artifact-")
    until(lambda: "slipway.dev/role" in tenant.get("deployment", revision)["metadata"]["labels"], PATIENCE, operator.log.read_text)
    tenant.settle()
    assert size(tenant, revision) == 7
    assert "slipway" not in managers(tenant, revision)

    tenant.server.kubectl(
        "-n", tenant.name, "patch", "mdep", "digits", "--type=json", "-p", '[{"op": "remove", "path": "/spec/autoscaling"}]'
    )
    until(lambda: size(tenant, revision) == 5 and not tenant.names("hpa"), PATIENCE, operator.log.read_text)


def test_a_size_that_an_apply_holds_survives_being_let_go(tenant: Tenant) -> None:
    tenant.prepare("digits")
    tenant.apply(model_deployment("digits", replicas=3))
    operator = tenant.lead()
    tenant.wait_deployments(1)
    (revision,) = tenant.names("deployments")
    patch(tenant, {"serving": {"replicas": 5}})
    until(lambda: size(tenant, revision) == 5, PATIENCE, operator.log.read_text)
    patch(tenant, {"autoscaling": WISH})
    until(lambda: tenant.names("hpa") == {revision}, PATIENCE, operator.log.read_text)
    tenant.server.kubectl("-n", tenant.name, "label", "deployment", revision, "slipway.dev/role-")
    until(lambda: "slipway.dev/role" in tenant.get("deployment", revision)["metadata"]["labels"], PATIENCE, operator.log.read_text)
    tenant.settle()
    assert size(tenant, revision) == 5
    assert managers(tenant, revision) == {"slipway-autoscaling"}
