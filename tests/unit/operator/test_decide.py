"""Stories of decisions: what exists and what the status says, step by step, in a cluster in memory."""

from __future__ import annotations

import pytest

from unit.operator.world import CONFIG, World, model_deployment, ready_reason

V2 = {"uri": "oci://reg:5000/digits:v2"}


def served(**spec: object) -> World:
    """A world in which the first revision serves."""
    world = World(model_deployment(**spec))
    world.settle()
    world.finish_jobs()
    world.settle()
    world.run_pods()
    world.settle()
    return world


def update(world: World, **model: object) -> None:
    resource = world.objects[("ModelDeployment", "digits")]
    world.put({**resource, "spec": {**resource["spec"], "model": model}})


def stable(world: World) -> str:
    return world.objects[("Service", "digits")]["spec"]["selector"]["slipway.dev/revision"]


def take_over(world: World) -> None:
    world.settle()
    world.finish_jobs()
    world.settle()
    world.run_pods()
    world.settle()


def test_create_ends_ready_and_then_writes_nothing() -> None:
    world = served(serving={"replicas": 2})
    assert ready_reason(world, "ModelDeployment", "digits") == "Ready"
    (revision,) = world.names("Deployment")
    assert world.names("Service") == {"digits", revision}
    assert world.objects[("Deployment", revision)]["spec"]["replicas"] == 2
    before = world.writes
    world.advance(3600)
    world.settle()
    assert world.writes == before


def test_create_with_a_ready_artifact_takes_five_writes() -> None:
    world = served()
    del world.objects[("ModelDeployment", "digits")]
    for kind in ("Deployment", "Service"):
        for name in world.names(kind):
            del world.objects[(kind, name)]
    world.put(model_deployment(uid="u2"))
    before = world.writes
    world.step("ModelDeployment", "digits")
    assert world.writes - before == 5
    assert world.names("Deployment")


def test_a_new_revision_takes_over_only_at_full_size_and_the_old_one_drains() -> None:
    world = served(serving={"replicas": 2})
    first = stable(world)
    update(world, **V2)
    world.settle()
    world.finish_jobs()
    world.settle()
    (second,) = world.names("Deployment") - {first}
    world.objects[("Deployment", second)]["status"] = {"observedGeneration": 1, "replicas": 2, "readyReplicas": 1, "availableReplicas": 1}
    world.settle()
    assert stable(world) == first
    assert world.objects[("Deployment", first)]["spec"]["replicas"] == 2
    world.run_pods()
    world.settle()
    assert stable(world) == second
    assert world.objects[("Deployment", first)]["spec"]["replicas"] == 2, "still draining"
    assert ready_reason(world, "ModelDeployment", "digits") == "Ready"
    world.advance(CONFIG.drain_seconds)
    world.settle()
    assert world.objects[("Deployment", first)]["spec"]["replicas"] == 0


def test_going_back_reuses_the_revision_and_converts_nothing() -> None:
    world = served()
    first = stable(world)
    update(world, **V2)
    take_over(world)
    jobs = world.names("Job")
    world.advance(60)
    world.settle()
    update(world, uri="oci://reg:5000/digits:v1")
    world.settle()
    assert world.names("Job") == jobs
    assert world.objects[("Deployment", first)]["spec"]["replicas"] == 1
    world.run_pods()
    world.settle()
    assert stable(world) == first


def test_a_failed_conversion_leaves_the_stable_revision_serving() -> None:
    world = served()
    first = stable(world)
    update(world, **V2)
    world.settle()
    world.fail_jobs("convert", 21, "EntrypointFailed", "model.py:3: ZeroDivisionError: division by zero")
    world.settle()
    status = world.objects[("ModelDeployment", "digits")]["status"]
    assert stable(world) == first
    assert ready_reason(world, "ModelDeployment", "digits") == "EntrypointFailed"
    kinds = {c["type"]: c for c in status["conditions"]}
    assert kinds["Available"]["status"] == "True"
    assert kinds["Stalled"]["status"] == "True"
    assert "ZeroDivisionError" in kinds["Ready"]["message"]
    assert "Next: " in kinds["Ready"]["message"]
    assert status["lastFailure"]["exitCode"] == 21
    assert [e.message.count("Next: ") for e in world.events if e.reason == "EntrypointFailed"] == [1, 1]
    assert [e.reason for e in world.events].count("EntrypointFailed") == 2  # one for the artifact, one for the deployment


def test_candidates_that_were_all_refused_are_in_the_status_of_the_artifact() -> None:
    row = {"target": "ONNX", "precision": "Int8Static", "verdict": "Failed", "reason": "ParityFailed", "message": "off by 3"}
    world = World(model_deployment())
    world.settle()
    world.fail_jobs("validate", 40, "ParityFailed", "off by 3", candidates=[row])
    world.settle()
    (artifact,) = world.kind("ModelArtifact").values()
    assert artifact["status"]["candidates"] == [row]
    assert artifact["status"]["lastFailure"]["reason"] == "ParityFailed"


def test_a_failure_that_may_pass_is_retried_with_backoff() -> None:
    world = World(model_deployment())
    world.settle()
    (job,) = world.names("Job")
    world.fail_jobs("fetch", 11, "SourceUnreachable", "connection refused")
    world.settle()
    assert world.names("Job") == {job}, "kept for its log"
    world.advance(13)
    world.settle()
    assert world.names("Job") == {job[:-1] + "2"}
    world.finish_jobs()
    world.settle()
    assert ready_reason(world, "ModelArtifact", job.rpartition("-")[0]) == "Published"


def test_a_spec_changed_before_anything_served_needs_no_drain() -> None:
    world = World(model_deployment())
    world.settle()
    world.finish_jobs()
    world.settle()
    first = stable(world)
    update(world, **V2)
    world.settle()
    world.finish_jobs()
    world.settle()
    assert stable(world) != first
    assert world.objects[("Deployment", first)]["spec"]["replicas"] == 0


def test_a_stable_revision_that_loses_its_pods_is_not_replaced_by_an_unready_one() -> None:
    world = served()
    first = stable(world)
    update(world, **V2)
    world.settle()
    world.finish_jobs()
    world.settle()
    world.objects[("Deployment", first)]["status"]["readyReplicas"] = 0
    world.settle()
    assert stable(world) == first


def test_history_is_bounded_and_artifacts_go_with_their_last_revision() -> None:
    world = served(revisionHistoryLimit=1)
    for version in range(2, 6):
        update(world, uri=f"oci://reg:5000/digits:v{version}")
        take_over(world)
        world.advance(60)
        world.settle()
    assert len(world.names("Deployment")) == 2
    assert len(world.names("ModelArtifact")) == 2


def test_two_deployments_share_an_artifact_and_the_first_to_leave_does_not_take_it_along() -> None:
    world = World(model_deployment("a", uid="ua"), model_deployment("b", uid="ub"))
    world.settle()
    (artifact,) = world.kind("ModelArtifact").values()
    assert {o["name"] for o in artifact["metadata"]["ownerReferences"]} == {"a", "b"}
    resource = world.objects[("ModelDeployment", "a")]
    world.put({**resource, "spec": {"model": V2}})
    world.settle()
    assert [o["name"] for o in world.objects[("ModelArtifact", artifact["metadata"]["name"])]["metadata"]["ownerReferences"]] == ["b"]


@pytest.mark.parametrize("field", ["labels", "replicas"])
def test_a_foreign_change_of_an_owned_object_is_undone(field: str) -> None:
    world = served()
    deployment = world.objects[("Deployment", stable(world))]
    if field == "labels":
        deployment["metadata"]["labels"]["slipway.dev/role"] = "mine"
    else:
        deployment["spec"]["replicas"] = 7
    world.settle()
    after = world.objects[("Deployment", stable(world))]
    assert after["metadata"]["labels"]["slipway.dev/role"] == "stable"
    assert after["spec"]["replicas"] == 1


def test_a_missing_serving_runtime_is_the_reason() -> None:
    world = World(model_deployment())
    world.runtimes = ()
    world.settle()
    world.finish_jobs()
    world.settle()
    assert ready_reason(world, "ModelDeployment", "digits") == "ServingRuntimeMissing"


def test_an_object_of_somebody_else_is_left_alone() -> None:
    world = World(model_deployment())
    world.foreign = ({"kind": "Service", "metadata": {"name": "digits"}},)
    world.settle()
    world.finish_jobs()
    world.settle()
    assert ready_reason(world, "ModelDeployment", "digits") == "NameConflict"
    assert not world.names("Service")


def test_a_disabled_resource_is_left_alone() -> None:
    resource = model_deployment()
    resource["metadata"]["annotations"] = {"slipway.dev/reconcile": "disabled"}
    world = World(resource)
    world.settle()
    assert world.writes == 0


def test_replicas_scale_in_place() -> None:
    world = served()
    first = stable(world)
    resource = world.objects[("ModelDeployment", "digits")]
    world.put({**resource, "spec": {**resource["spec"], "serving": {"replicas": 3}}})
    world.settle()
    world.run_pods()
    world.settle()
    assert world.names("Deployment") == {first}
    assert world.objects[("Deployment", first)]["spec"]["replicas"] == 3
    assert ready_reason(world, "ModelDeployment", "digits") == "Ready"
