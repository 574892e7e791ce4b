"""Autoscaling: one autoscaler for the revision that serves, its size never touched, the bound kept beside a canary."""

from __future__ import annotations

from typing import Any

import pytest

from slipway import names
from slipway.plan.autoscaler import autoscaler
from slipway.plan.autoscaling import HPA, Scaled, handover, holds_replicas, replicas
from unit.operator.world import CONFIG, World, model_deployment, ready_reason

WISH = {"minReplicas": 2, "maxReplicas": 10, "metric": "Concurrency", "target": 8}
V2 = {"uri": "oci://reg:5000/digits:v2"}
CANARY = {"strategy": "Canary", "steps": [{"weight": 20, "duration": "1m"}, {"weight": 50, "duration": "1m"}]}
GATEWAY = {"gateway": {"name": "public"}}


def served(**spec: Any) -> World:
    world = World(model_deployment(autoscaling=WISH, **spec))
    for _ in range(2):
        world.settle()
        world.finish_jobs()
        world.settle()
        world.run_pods()
    world.settle()
    return world


def scale(world: World, revision: str, size: int) -> None:
    """What the autoscaler does."""
    world.objects[("Deployment", revision)]["spec"]["replicas"] = size
    world.run_pods()


def change(world: World, **spec: Any) -> None:
    resource = world.objects[("ModelDeployment", "digits")]
    world.put({**resource, "spec": {**resource["spec"], **spec}})


def stable(world: World) -> str:
    return str(world.objects[("ModelDeployment", "digits")]["status"]["stable"]["revision"])


def test_the_first_revision_begins_with_the_fewest_pods_and_gets_an_autoscaler() -> None:
    world = served()
    (revision,) = world.names("Deployment")
    assert world.objects[("Deployment", revision)]["spec"]["replicas"] == 2
    made = world.objects[("HorizontalPodAutoscaler", revision)]
    assert made["spec"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": revision}
    assert (made["spec"]["minReplicas"], made["spec"]["maxReplicas"]) == (2, 10)


@pytest.mark.parametrize("size", [1, 2, 7, 10])
def test_the_size_is_the_autoscalers(size: int) -> None:
    world = served()
    scale(world, stable(world), size)
    world.settle()
    before = world.writes
    world.settle()
    assert world.writes == before
    assert world.objects[("Deployment", stable(world))]["spec"]["replicas"] == size


def test_what_is_applied_does_not_name_the_size() -> None:
    world = served()
    revision = stable(world)
    del world.objects[("Deployment", revision)]["metadata"]["labels"][names.ROLE]
    applied = [m for m in world.step("ModelDeployment", "digits").apply if m["kind"] == "Deployment"]
    assert len(applied) == 1
    assert "replicas" not in applied[0]["spec"]


def test_a_new_revision_comes_up_at_the_size_that_the_load_needs() -> None:
    world = served()
    first = stable(world)
    scale(world, first, 6)
    change(world, model=V2)
    for _ in range(3):
        world.settle()
        world.finish_jobs()
        world.settle()
        world.run_pods()
    world.settle()
    assert stable(world) != first
    assert world.objects[("Deployment", stable(world))]["spec"]["replicas"] == 6
    assert world.names("HorizontalPodAutoscaler") == {stable(world)}
    assert ready_reason(world, "ModelDeployment", "digits") == "Ready"


def test_beside_a_canary_the_bound_holds_for_both_together() -> None:
    world = served(rollout=CANARY, routing=GATEWAY)
    first = stable(world)
    scale(world, first, 8)
    change(world, model=V2)
    for _ in range(2):
        world.settle()
        world.finish_jobs()
        world.settle()
        world.run_pods()
    world.settle()
    (canary,) = world.names("Deployment") - {first}
    size = world.objects[("Deployment", canary)]["spec"]["replicas"]
    assert size == 2
    assert world.names("HorizontalPodAutoscaler") == {first}
    assert world.objects[("HorizontalPodAutoscaler", first)]["spec"]["maxReplicas"] == 10 - size


def test_without_autoscaling_kubectl_scale_is_followed_again() -> None:
    world = served()
    scale(world, stable(world), 6)
    resource = world.objects[("ModelDeployment", "digits")]
    spec = {key: value for key, value in resource["spec"].items() if key != "autoscaling"}
    world.put({**resource, "spec": {**spec, "serving": {"replicas": 3}}})
    world.settle()
    assert world.names("HorizontalPodAutoscaler") == set()
    assert world.objects[("Deployment", stable(world))]["spec"]["replicas"] == 3


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("CPU", {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 8}}}),
        ("Concurrency", "slipway_inflight_requests"),
        ("RequestsPerSecond", "slipway_requests_per_second"),
        ("GPUUtilization", "DCGM_FI_DEV_GPU_UTIL"),
    ],
)
def test_metrics(metric: str, expected: Any) -> None:
    if isinstance(expected, str):
        expected = {"type": "Pods", "pods": {"metric": {"name": expected}, "target": {"type": "AverageValue", "averageValue": "8"}}}
    made = autoscaler(model_deployment(autoscaling=WISH | {"metric": metric}), Scaled("r", 2, 10), HPA, CONFIG)
    assert made["spec"]["metrics"] == [expected]


@pytest.mark.parametrize(("size", "weight", "whole"), [(4, 0, 4), (4, 50, 8), (9, 50, 10), (1, 0, 2), (0, 0, 2), (8, 20, 10)])
def test_stable_beside_a_canary_is_sized_for_its_part(size: int, weight: int, whole: int) -> None:
    resource = model_deployment(autoscaling=WISH) | {"status": {"canary": {"weight": weight}}}
    assert replicas(resource, {"spec": {"replicas": size}}) == whole


@pytest.mark.parametrize(
    ("manager", "operation", "subresource", "is_ours"),
    [
        ("slipway", "Apply", None, True),
        ("slipway", "Update", None, False),
        ("kube-controller-manager", "Update", "scale", False),
        ("slipway-autoscaling", "Apply", None, False),
    ],
)
def test_who_holds_the_size(manager: str, operation: str, subresource: str | None, is_ours: bool) -> None:
    entry = {"manager": manager, "operation": operation, "subresource": subresource, "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    deployment = {"metadata": {"name": "d", "namespace": "n", "managedFields": [entry]}, "spec": {"replicas": 5, "template": {}}}
    assert holds_replicas(deployment) == is_ours
    assert handover(deployment)["spec"] == {"replicas": 5}
