"""The operator's rights are exactly these; a verb more or less fails here and has to be argued for."""

from __future__ import annotations

import pytest

from unit.chart.rendering import NAMESPACE, Manifest, granted, of_kind, render

READ = {"get", "list", "watch"}
WRITE = READ | {"create", "patch", "delete"}
MANAGED = {
    "modeldeployments.slipway.dev": READ,
    "modeldeployments/status.slipway.dev": {"update"},
    "modelartifacts.slipway.dev": WRITE,
    "modelartifacts/status.slipway.dev": {"update"},
    "deployments.apps": WRITE,
    "services": WRITE,
    "horizontalpodautoscalers.autoscaling": WRITE,
    "scaledobjects.keda.sh": WRITE,
    "jobs.batch": WRITE,
    "pods": READ,
    "httproutes.gateway.networking.k8s.io": WRITE,
    "grpcroutes.gateway.networking.k8s.io": WRITE,
    "events": {"get", "list", "create", "patch"},
    "resourceclaimtemplates.resource.k8s.io": {"get", "list", "create", "patch", "delete"},
}
NODES = {"nodes": {"list"}}  # who holds the accelerators; never watched
NEIGHBOURS = {"pods": {"list"}}  # on those nodes, where the operator does not watch the whole cluster
DISCOVERY = {"customresourcedefinitions.apiextensions.k8s.io": {"list", "watch"}}
NAMESPACES = {"namespaces": {"list", "watch"}}  # kopf, where it does not watch the whole cluster
SHIPPED = {
    "servingruntimes.slipway.dev": READ | {"create", "patch"},
    "clusterroles.rbac.authorization.k8s.io:slipway-operator": {"get"},
}
NOT_SHIPPED = {"servingruntimes.slipway.dev": READ}
LEASE = {"leases.coordination.k8s.io": {"create"}, "leases.coordination.k8s.io:slipway-operator": {"get", "update"}}
REGISTRY = {"deployments.apps:slipway-registry": {"get", "patch"}}  # where the operator has no right to all of them
SPACES = ["team-a", "team-b"]


def roles_of_the_operator(objects: list[Manifest]) -> dict[str, dict[str, set[str]]]:
    """What is bound to the service account: the rights by namespace, empty for the whole cluster."""
    account = {"kind": "ServiceAccount", "name": "slipway-operator", "namespace": NAMESPACE}
    found: dict[str, dict[str, set[str]]] = {}
    for binding in objects:
        if binding["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        assert binding["subjects"] == [account]
        space = binding["metadata"].get("namespace", "")
        role = next(
            o
            for o in objects
            if o["kind"] == binding["roleRef"]["kind"]
            and o["metadata"]["name"] == binding["roleRef"]["name"]
            and o["metadata"].get("namespace", "") == space
        )
        found.setdefault(space, {}).update(granted(role))
    return found


def test_cluster_wide() -> None:
    assert roles_of_the_operator(render()) == {"": MANAGED | DISCOVERY | SHIPPED | NODES, NAMESPACE: LEASE}


def test_in_named_namespaces_only() -> None:
    found = roles_of_the_operator(render({"operator": {"watchNamespaces": SPACES}}))
    system = {"": DISCOVERY | NAMESPACES | SHIPPED | NODES | NEIGHBOURS, NAMESPACE: LEASE | REGISTRY}
    assert found == system | dict.fromkeys(SPACES, MANAGED)


@pytest.mark.parametrize(
    "registry", [{"graceSeconds": 0}, {"embedded": {"enabled": False}, "url": "registry.example/x", "collectExternal": True}]
)
def test_a_registry_that_is_not_restarted_takes_no_right(registry: Manifest) -> None:
    found = roles_of_the_operator(render({"operator": {"watchNamespaces": SPACES}, "artifactRegistry": registry}))
    assert found[NAMESPACE] == LEASE


def test_the_release_s_own_namespace_may_be_watched() -> None:
    found = roles_of_the_operator(render({"operator": {"watchNamespaces": [NAMESPACE]}}))
    assert found == {"": DISCOVERY | NAMESPACES | SHIPPED | NODES | NEIGHBOURS, NAMESPACE: LEASE | REGISTRY | MANAGED}


def test_without_shipped_runtimes_the_operator_only_reads_them() -> None:
    found = roles_of_the_operator(render({"servingRuntimes": {"enabled": False}}))
    assert found[""] == MANAGED | DISCOVERY | NOT_SHIPPED | NODES


def test_without_keda_its_objects_are_only_taken_away() -> None:
    for values in ({}, {"operator": {"watchNamespaces": SPACES}}):
        found = roles_of_the_operator(render({"autoscaling": {"provider": "HPA"}, **values}))
        rights = [rights["scaledobjects.keda.sh"] for rights in found.values() if "scaledobjects.keda.sh" in rights]
        assert rights == [READ | {"delete"}] * len(values.get("operator", {}).get("watchNamespaces", [""]))


def test_without_accelerators_no_node_is_read() -> None:
    for values in ({}, {"operator": {"watchNamespaces": SPACES}}):
        for rights in roles_of_the_operator(render({"accelerators": {"enabled": False}, **values})).values():
            assert not rights.keys() & {"nodes", "resourceclaimtemplates.resource.k8s.io"}


@pytest.mark.parametrize("values", [{}, {"operator": {"watchNamespaces": SPACES}}], ids=["cluster", "namespaced"])
def test_nothing_is_granted_by_wildcard_and_no_secret_is_read(values: Manifest) -> None:
    for role in [o for o in render(values) if o["kind"] in ("Role", "ClusterRole")]:
        for rule in role["rules"]:
            words = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert "*" not in words
            assert "secrets" not in words


def test_users_get_their_rights_by_aggregation() -> None:
    roles = of_kind(render(), "ClusterRole")
    view, edit = roles["slipway-view"], roles["slipway-edit"]
    assert view["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    kinds = ("modeldeployments", "modelartifacts", "servingruntimes")
    parts = ("modeldeployments/status", "modeldeployments/scale", "modelartifacts/status")
    assert granted(view) == {f"{kind}.slipway.dev": READ for kind in kinds} | {f"{part}.slipway.dev": {"get"} for part in parts}
    assert granted(edit) == {
        "modeldeployments.slipway.dev": {"create", "update", "patch", "delete"},
        "modeldeployments/scale.slipway.dev": {"create", "update", "patch", "delete"},
        "modelartifacts.slipway.dev": {"delete"},
    }


@pytest.mark.parametrize("readers", [["system:authenticated"], ["finance", "ml"], []])
def test_the_prices_and_nothing_else_are_read_by_the_groups_named(readers: list[str]) -> None:
    objects = render({"cost": {"nodePrices": [{"instanceType": "m5.large", "pricePerHour": 1}], "readers": readers}})
    roles, bindings = of_kind(objects, "Role"), of_kind(objects, "RoleBinding")
    assert ("slipway-prices" in roles, "slipway-prices" in bindings) == (bool(readers), bool(readers))
    if readers:
        assert granted(roles["slipway-prices"]) == {"configmaps:slipway-prices": {"get"}}
        assert bindings["slipway-prices"]["roleRef"]["name"] == "slipway-prices"
        assert [(s["kind"], s["name"]) for s in bindings["slipway-prices"]["subjects"]] == [("Group", name) for name in readers]
