"""Autoscaling by KEDA: one autoscaler at any time, a model without pods that is no failure, and rollouts while it has none."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from typing import Any

import pytest

from slipway import names
from slipway.plan.autoscaler import autoscaler, load_query
from slipway.plan.autoscaling import HPA, SCALED_OBJECT, Scaled, kind_for
from slipway.plan.scarcity import wanted_resource
from slipway.snapshot import Config, Decision, DeploymentSnapshot
from unit.operator.world import CONFIG, World, model_deployment, ready_reason

PROMETHEUS = "http://prometheus.monitoring:9090"
KEDA = replace(CONFIG, prometheus_address=PROMETHEUS)
WISH = {"minReplicas": 2, "maxReplicas": 10, "metric": "Concurrency", "target": 8}
SLEEPY = {"minReplicas": 0, "maxReplicas": 10, "target": 8, "activationQuery": "sum(rate(asked_total[2m]))"}
V2 = {"uri": "oci://reg:5000/digits:v2"}
CANARY = {"strategy": "Canary", "steps": [{"weight": 20, "duration": "1m"}, {"weight": 50, "duration": "1m"}]}
GATEWAY = {"gateway": {"name": "public"}}
RECREATE = {"strategy": "Recreate"}
NAME = "digits"


def served(wish: dict[str, Any] = SLEEPY, *, has_keda: bool = True, **spec: Any) -> World:
    world = World(model_deployment(autoscaling=wish, **spec))
    world.config, world.has_keda = KEDA, has_keda
    convert(world)
    return world


def convert(world: World, times: int = 2) -> None:
    """Convert what waits, and bring its pods up."""
    for _ in range(times):
        world.settle()
        world.finish_jobs()
        world.settle()
        world.run_pods()
    world.settle()


def stable(world: World) -> str:
    return str(world.objects["ModelDeployment", NAME]["status"]["stable"]["revision"])


def size(world: World, revision: str) -> int:
    return int(world.objects["Deployment", revision]["spec"]["replicas"])


def scale(world: World, revision: str, replicas: int) -> None:
    """What KEDA and its HorizontalPodAutoscaler do; the pods follow."""
    world.objects["Deployment", revision]["spec"]["replicas"] = replicas
    world.run_pods(revision)


def asleep(wish: dict[str, Any] = SLEEPY, **spec: Any) -> World:
    world = served(wish, **spec)
    scale(world, stable(world), 0)
    world.settle()
    return world


def change(world: World, **spec: Any) -> None:
    resource = world.objects["ModelDeployment", NAME]
    world.put({**resource, "spec": {key: value for key, value in {**resource["spec"], **spec}.items() if value is not None}})


def condition(world: World, kind: str) -> tuple[str, str]:
    found = next(c for c in world.objects["ModelDeployment", NAME]["status"]["conditions"] if c["type"] == kind)
    return found["status"], found["reason"]


def bounds(world: World) -> tuple[int, int]:
    """Of the only autoscaler."""
    ((_, found),) = [(key, o) for key, o in world.objects.items() if key[0] in (HPA, SCALED_OBJECT)]
    spec = found["spec"]
    return tuple(spec[key] for key in (("minReplicas", "maxReplicas") if found["kind"] == HPA else ("minReplicaCount", "maxReplicaCount")))


def coming(world: World) -> str:
    (found,) = [name for name in world.names("Deployment") if name != stable(world)]
    return found


def weight(world: World) -> int:
    status = world.objects["ModelDeployment", NAME].get("status") or {}
    return int((status.get("canary") or {}).get("weight", 0))


# -- which autoscaler, and what it asks for --


@pytest.mark.parametrize(
    ("provider", "address", "has_keda", "kind"),
    [
        ("Auto", PROMETHEUS, True, SCALED_OBJECT),
        ("Auto", "", True, HPA),
        ("Auto", PROMETHEUS, False, HPA),
        ("KEDA", PROMETHEUS, True, SCALED_OBJECT),
        ("KEDA", PROMETHEUS, False, HPA),
        ("HPA", PROMETHEUS, True, HPA),
    ],
)
def test_the_provider(provider: Any, address: str, has_keda: bool, kind: str) -> None:
    snapshot = DeploymentSnapshot(model_deployment(autoscaling=WISH), has_keda=has_keda)
    assert kind_for(snapshot, Config(autoscaling_provider=provider, prometheus_address=address)) == kind


PODS = 'namespace="default",pod=~"digits-0a1b2c3d-[a-z0-9]+-[a-z0-9]+"'


@pytest.mark.parametrize(
    ("metric", "query"),
    [
        ("Concurrency", f"sum(slipway_inflight_requests{{{PODS}}})"),
        (
            "RequestsPerSecond",
            'sum(rate(slipway_requests_total{namespace="default",revision="digits-0a1b2c3d"}[1m])) or '
            f"0 * sum(slipway_inflight_requests{{{PODS}}})",
        ),
        ("GPUUtilization", f"sum(max by (pod) (100 * slipway_gpu_utilization_ratio{{{PODS}}} or DCGM_FI_DEV_GPU_UTIL{{{PODS}}}))"),
    ],
)
def test_the_load_of_a_revision(metric: str, query: str) -> None:
    assert load_query(metric, "default", "digits-0a1b2c3d") == query


@pytest.mark.parametrize(
    ("length", "pattern"),
    [(46, "{}-[a-z0-9]+-[a-z0-9]+"), (47, "{}.+"), (63, "{}.+")],
)
def test_pods_of_long_names_are_found_by_what_the_api_server_leaves_of_them(length: int, pattern: str) -> None:
    revision = "r" * length
    assert f'pod=~"{pattern.format(revision[:58])}"' in load_query("Concurrency", "default", revision)


def test_a_scaled_object_holds_the_average_of_the_pods() -> None:
    made = autoscaler(model_deployment(autoscaling=WISH), Scaled("digits-0a1b2c3d", 2, 9), SCALED_OBJECT, KEDA)
    assert (made["apiVersion"], made["metadata"]["name"]) == ("keda.sh/v1alpha1", "digits-0a1b2c3d")
    assert made["metadata"]["ownerReferences"][0]["controller"]
    metadata = {"serverAddress": PROMETHEUS, "query": load_query("Concurrency", "default", "digits-0a1b2c3d"), "threshold": "8"}
    assert made["spec"] == {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "digits-0a1b2c3d"},
        "pollingInterval": 15,
        "cooldownPeriod": 300,
        "initialCooldownPeriod": 300,
        "minReplicaCount": 2,
        "maxReplicaCount": 9,
        "triggers": [
            {
                "type": "prometheus",
                "name": "load",
                "metricType": "AverageValue",
                # pods that Prometheus knows nothing about are not pods without a load
                "metadata": metadata | {"activationThreshold": "0", "ignoreNullValues": "false"},
            }
        ],
    }


def test_a_model_that_sleeps_is_woken_by_its_query_and_by_that_to_one_pod_only() -> None:
    load, activation = autoscaler(model_deployment(autoscaling=SLEEPY), Scaled("r", 0, 10), SCALED_OBJECT, KEDA)["spec"]["triggers"]
    assert "ignoreNullValues" not in load["metadata"]
    assert activation["metadata"]["query"] == "max((\nsum(rate(asked_total[2m]))\n) > bool 0)"
    assert (activation["metadata"]["threshold"], activation["metadata"]["activationThreshold"]) == ("1", "0")


def test_cpu_needs_no_prometheus() -> None:
    made = autoscaler(model_deployment(autoscaling=WISH | {"metric": "CPU", "target": 80}), Scaled("r", 1, 3), SCALED_OBJECT, KEDA)
    assert made["spec"]["triggers"] == [{"type": "cpu", "name": "load", "metricType": "Utilization", "metadata": {"value": "80"}}]


# -- one autoscaler --


def test_when_keda_comes_the_other_autoscaler_goes_first() -> None:
    world = served(WISH, has_keda=False)
    revision = stable(world)
    assert world.names(HPA) == {revision}
    scale(world, revision, 7)
    world.settle()
    world.has_keda = True
    first = world.step("ModelDeployment", NAME)
    assert ([o.kind for o in first.delete], [o["kind"] for o in first.apply]) == ([HPA], [])
    world.settle()
    assert (world.names(HPA), world.names(SCALED_OBJECT)) == (set(), {revision})
    assert (size(world, revision), bounds(world)) == (7, (2, 10))


def derived(world: World, revision: str) -> None:
    """What KEDA makes of a ScaledObject: it hands our labels on."""
    made = world.objects[SCALED_OBJECT, revision]
    metadata = {**copy.deepcopy(made["metadata"]), "name": f"keda-hpa-{revision}", "uid": "keda"}
    metadata["ownerReferences"] = [{"kind": SCALED_OBJECT, "name": revision, "uid": made["metadata"]["uid"], "controller": True}]
    world.put({"apiVersion": "autoscaling/v2", "kind": HPA, "metadata": metadata, "spec": {"scaleTargetRef": {"name": revision}}})


def test_the_autoscaler_that_keda_makes_of_ours_is_left_alone() -> None:
    world = served(WISH)
    derived(world, stable(world))
    before = world.writes
    world.settle()
    assert world.writes == before
    assert world.names(HPA) == {f"keda-hpa-{stable(world)}"}
    change(world, autoscaling=WISH | {"maxReplicas": 4})
    world.settle()
    assert world.objects[SCALED_OBJECT, stable(world)]["spec"]["maxReplicaCount"] == 4


def test_when_keda_goes_the_other_autoscaler_waits_for_what_keda_cleans_up() -> None:
    world = served(WISH)
    revision = stable(world)
    derived(world, revision)
    kept = copy.deepcopy(world.objects[SCALED_OBJECT, revision])
    world.config = replace(KEDA, autoscaling_provider="HPA")
    world.step("ModelDeployment", NAME)
    kept["metadata"]["deletionTimestamp"] = "2026-11-24T12:00:00Z"  # KEDA's finalizer
    world.objects[SCALED_OBJECT, revision] = kept
    before = world.writes
    world.settle()
    assert world.writes == before, "deleted again, or two autoscalers"
    del world.objects[SCALED_OBJECT, revision]
    world.settle()
    assert world.names(HPA) == {f"keda-hpa-{revision}"}
    del world.objects[HPA, f"keda-hpa-{revision}"]
    world.settle()
    assert world.names(HPA) == {revision}
    assert ready_reason(world, "ModelDeployment", NAME) == "Ready"


def test_minimum_zero_without_keda_is_one_and_says_so() -> None:
    world = served(has_keda=False)
    assert bounds(world) == (1, 10)
    assert condition(world, "Ready") == ("True", "Ready")
    assert condition(world, "Autoscaling") == ("False", "KedaRequired")


def test_keda_that_is_asked_for_and_absent_is_told_and_stood_in_for() -> None:
    world = served(WISH, has_keda=False)
    world.config = replace(KEDA, autoscaling_provider="KEDA")
    world.settle()
    assert bounds(world) == (2, 10)
    assert condition(world, "Autoscaling") == ("False", "KedaRequired")


@pytest.mark.parametrize(
    ("has_keda", "said", "expected"),
    [
        (True, {"type": "Ready", "status": "True", "reason": "ScaledObjectReady"}, ("True", "UpToDate")),
        (True, {"type": "Ready", "status": "False", "reason": "TriggerError", "message": "no such host"}, ("False", "AutoscalerFailed")),
        (True, {"type": "Active", "status": "False", "reason": "ScalerNotActive"}, ("True", "UpToDate")),
        (False, {"type": "ScalingActive", "status": "False", "reason": "FailedGetPodsMetric"}, ("False", "AutoscalerFailed")),
        (False, {"type": "ScalingActive", "status": "False", "reason": "ScalingDisabled"}, ("True", "UpToDate")),
        (False, {"type": "ScalingLimited", "status": "True", "reason": "TooManyReplicas"}, ("True", "UpToDate")),
    ],
)
def test_an_autoscaler_that_cannot_measure_is_told(has_keda: bool, said: dict[str, str], expected: tuple[str, str]) -> None:
    world = served(WISH, has_keda=has_keda)
    world.objects[SCALED_OBJECT if has_keda else HPA, stable(world)]["status"] = {"conditions": [said]}
    world.settle()
    assert condition(world, "Autoscaling") == expected
    assert condition(world, "Ready") == ("True", "Ready")


def test_without_autoscaling_nothing_is_said_about_it() -> None:
    world = served(WISH)
    change(world, autoscaling=None)
    world.settle()
    assert "Autoscaling" not in {c["type"] for c in world.objects["ModelDeployment", NAME]["status"]["conditions"]}


# -- no pods --


def test_a_model_is_proven_before_it_may_sleep() -> None:
    world = World(model_deployment(autoscaling=SLEEPY))
    world.config, world.has_keda = KEDA, True
    world.settle()
    world.finish_jobs()
    world.settle()
    (revision,) = world.names("Deployment")
    assert size(world, revision) == 1
    assert world.names(SCALED_OBJECT) == set(), "KEDA would take the pod while it loads the model"
    world.run_pods()
    world.step("ModelDeployment", NAME)  # at once: nothing would wake the operator for another look
    assert bounds(world) == (0, 10)


def test_a_model_that_sleeps_is_ready_and_nothing_is_written() -> None:
    world = asleep()
    assert condition(world, "Ready") == ("True", "ScaledToZero")
    assert (world.events[-1].type, world.events[-1].reason) == ("Normal", "ScaledToZero")
    assert condition(world, "Available") == ("True", "ScaledToZero")
    assert condition(world, "Degraded")[0] == condition(world, "Progressing")[0] == "False"
    assert not {"Reconciling", "Stalled"} & {c["type"] for c in world.objects["ModelDeployment", NAME]["status"]["conditions"]}
    before, events = world.writes, list(world.events)
    for _ in range(3):
        world.advance(600)
        world.settle()
    assert (world.writes, size(world, stable(world))) == (before, 0)
    assert world.events == events
    assert world.notices == {}


def test_a_changed_label_is_repaired_without_a_size() -> None:
    world = asleep()
    revision = stable(world)
    del world.objects["Deployment", revision]["metadata"]["labels"][names.ROLE]
    (applied,) = [m for m in world.step("ModelDeployment", NAME).apply if m["kind"] == "Deployment"]
    assert "replicas" not in applied["spec"]


def test_waking_is_told_and_not_interfered_with() -> None:
    world = asleep()
    revision = stable(world)
    world.objects["Deployment", revision]["spec"]["replicas"] = 1
    world.settle()
    assert condition(world, "Ready") == ("False", "Progressing")
    assert condition(world, "Available")[0] == condition(world, "Degraded")[0] == "False"
    assert (size(world, revision), bounds(world)) == (1, (0, 10))
    world.run_pods()
    world.settle()
    assert condition(world, "Ready") == ("True", "Ready")
    scale(world, revision, 4)
    world.settle()
    assert (size(world, revision), condition(world, "Ready")) == (4, ("True", "Ready"))


@pytest.mark.parametrize("what", ["keda", "minimum", "autoscaling", "scaled object"])
def test_who_can_wake_it_no_longer_leaves_it_with_pods(what: str) -> None:
    world = asleep(serving={"replicas": 3})
    revision = stable(world)
    if what == "keda":
        world.has_keda = False
    elif what == "minimum":
        change(world, autoscaling=WISH)
    elif what == "autoscaling":
        change(world, autoscaling=None)
    else:
        del world.objects[SCALED_OBJECT, revision]
    world.settle()
    assert size(world, revision) == {"keda": 1, "minimum": 2, "autoscaling": 3, "scaled object": 1}[what]
    world.run_pods()
    world.settle()
    assert condition(world, "Ready") == ("True", "Ready")


def test_the_last_pod_taken_by_a_person_is_given_back() -> None:
    world = served(WISH, has_keda=False)
    scale(world, stable(world), 0)
    world.settle()
    assert size(world, stable(world)) == 2


# -- rollouts while it sleeps --


def asleep_before_a_canary() -> tuple[World, str]:
    """Return a world whose stable revision sleeps while the next one is converted, and stable's name."""
    world = asleep(rollout=CANARY, routing=GATEWAY)
    change(world, model=V2)
    convert(world, 1)
    return world, stable(world)


def test_a_takeover_does_not_wake_the_old_revision() -> None:
    world = asleep()
    first = stable(world)
    change(world, model=V2)
    world.settle()
    world.finish_jobs()
    world.settle()
    second = coming(world)
    assert (size(world, first), size(world, second)) == (0, 1)
    assert condition(world, "Available") == ("True", "ScaledToZero")
    assert (world.names(SCALED_OBJECT), bounds(world)) == ({first}, (0, 10)), "who asks meanwhile is answered by the old one"
    assert world.objects["Service", NAME]["metadata"]["annotations"][names.STABLE] == first
    world.run_pods(second)
    world.step("ModelDeployment", NAME)
    assert (stable(world), world.names(SCALED_OBJECT)) == (second, {second})
    world.settle()
    assert condition(world, "Ready") == ("True", "Ready")


def test_a_new_revision_that_never_answers_does_not_take_over_from_one_that_sleeps() -> None:
    world = asleep()
    first = stable(world)
    change(world, model=V2)
    world.settle()
    world.finish_jobs()
    world.settle()
    for _ in range(3):
        world.advance(300)
        world.settle()
    assert stable(world) == first
    assert (size(world, coming(world)), size(world, first)) == (1, 0)


@pytest.mark.parametrize("routing", [None, GATEWAY], ids=["pods", "gateway"])
def test_a_canary_wakes_stable_and_gets_no_weight_before(routing: Any) -> None:
    world = asleep(rollout=CANARY, **({"routing": routing} if routing else {}))
    first = stable(world)
    change(world, model=V2)
    world.settle()
    world.finish_jobs()
    world.settle()
    second = coming(world)
    world.run_pods(second)
    world.settle()
    assert (weight(world), size(world, first)) == (0, 0)
    assert bounds(world) == (1, 10), "KEDA brings stable up, not the operator"
    message = next(c for c in world.objects["ModelDeployment", NAME]["status"]["conditions"] if c["type"] == "Ready")["message"]
    assert f"waits for a pod of {first}" in message
    world.objects["Deployment", first]["spec"]["replicas"] = 1  # KEDA; its pod does not answer yet
    world.settle()
    assert weight(world) == 0
    world.run_pods(first)
    world.settle()
    assert weight(world) == 20
    assert bounds(world)[0] == 1, "stable must not fall asleep while it has its part of the traffic"
    for _ in range(3):
        world.advance(61)
        world.settle()
        world.run_pods()
        world.settle()
    assert (stable(world), world.names(SCALED_OBJECT), bounds(world)) == (second, {second}, (0, 10))
    scale(world, second, 0)
    world.settle()
    assert condition(world, "Ready") == ("True", "ScaledToZero")


def test_after_a_rollback_stable_may_sleep_again() -> None:
    world, first = asleep_before_a_canary()
    second = coming(world)
    scale(world, first, 1)
    world.settle()
    assert weight(world) == 20
    resource = world.objects["ModelDeployment", NAME]
    resource["metadata"]["annotations"] = {names.ABORT: second}
    world.settle()
    assert bounds(world) == (0, 10)
    scale(world, first, 0)
    world.advance(60)
    world.settle()
    before = world.writes
    world.settle()
    assert (world.writes, size(world, first), size(world, second)) == (before, 0, 0)
    assert condition(world, "Ready") == ("False", "RolloutAborted")
    assert condition(world, "Available") == ("True", "ScaledToZero")


def test_nobody_waits_for_a_stable_revision_that_cannot_wake() -> None:
    world, first = asleep_before_a_canary()
    deployment = world.objects["Deployment", first]
    deployment["spec"]["replicas"] = 1
    deployment["status"] = {"replicas": 1, "conditions": [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]}
    world.settle()
    assert weight(world) == 20
    assert size(world, coming(world)) == 1


def test_all_at_once_does_not_wait_for_one_that_sleeps_and_then_keeps_it_awake_to_go_back_to() -> None:
    world = asleep(rollout={"strategy": "BlueGreen", "steps": [{"weight": 100, "duration": "1m"}]}, routing=GATEWAY)
    first = stable(world)
    change(world, model=V2)
    world.settle()
    world.finish_jobs()
    world.settle()
    second = coming(world)
    assert (weight(world), bounds(world)) == (0, (0, 10))
    world.run_pods(second)
    world.settle()
    assert (stable(world), weight(world), bounds(world)) == (first, 100, (1, 9))
    world.advance(61)
    world.settle()
    assert (stable(world), bounds(world)) == (second, (0, 10))


def test_answers_are_compared_with_those_of_a_revision_that_is_awake() -> None:
    shadow = {"percent": 100, "duration": "1m"}
    world = asleep(rollout={"strategy": "BlueGreen", "steps": [{"weight": 100, "duration": "1m"}], "shadow": shadow}, routing=GATEWAY)
    change(world, model=V2)
    convert(world, 1)
    assert world.objects["ModelDeployment", NAME]["status"]["canary"]["phase"] == "Preparing"
    assert bounds(world) == (1, 10)
    scale(world, stable(world), 1)
    world.run_pods()
    world.settle()
    assert world.objects["ModelDeployment", NAME]["status"]["canary"]["phase"] == "Shadowing"


def test_a_recreate_takes_the_place_of_one_that_sleeps() -> None:
    world = asleep(rollout=RECREATE)
    first = stable(world)
    change(world, model=V2)
    world.settle()
    world.finish_jobs()
    world.settle()
    second = coming(world)
    assert world.names(SCALED_OBJECT) == set(), "KEDA could wake the old one beside the new one"
    assert (size(world, first), size(world, second)) == (0, 1)
    world.run_pods()
    world.settle()
    assert (stable(world), world.names(SCALED_OBJECT)) == (second, {second})


@pytest.mark.parametrize("replicas", [0, 1, 4])
def test_the_nodes_are_not_looked_at_while_the_autoscaler_has_its_size(replicas: int) -> None:
    world = served(accelerator={"resourceName": "nvidia.com/gpu", "count": 1})
    scale(world, stable(world), replicas)
    world.settle()
    assert wanted_resource(world.snapshot("ModelDeployment", NAME)) is None
    world.objects["Deployment", stable(world)]["spec"]["replicas"] = replicas + 1
    assert wanted_resource(world.snapshot("ModelDeployment", NAME)) == "nvidia.com/gpu"


def test_accelerators_do_not_wake_a_model_and_a_new_revision_finds_those_it_gave_back() -> None:
    world = asleep(accelerator={"resourceName": "nvidia.com/gpu", "count": 1})
    first = stable(world)
    change(world, model=V2)
    world.settle()
    world.finish_jobs()
    world.settle()
    assert (size(world, first), size(world, coming(world))) == (0, 1)


# -- random stories --


class Checked(World):
    """What must hold after every decision, whatever users, pods and KEDA do."""

    def step(self, kind: str, name: str) -> Decision:
        before = {revision: size(self, revision) for revision in self.names(SCALED_OBJECT)}
        was_shared = weight(self) > 0
        decision = super().step(kind, name)
        scaled = [name for kind in (HPA, SCALED_OBJECT) for name in self.names(kind)]
        assert len(scaled) < 2, "two autoscalers"
        for revision in before.keys() & self.names(SCALED_OBJECT):
            assert size(self, revision) == before[revision], "a size of KEDA's was changed"
        if not was_shared and 0 < weight(self) < 100 and self.objects["ModelDeployment", NAME]["spec"].get("autoscaling") == SLEEPY:
            assert not self.has_keda or self.objects["Deployment", stable(self)]["status"]["readyReplicas"] > 0, "shared with nobody"
        return decision


WISHES = [SLEEPY, SLEEPY, WISH, None]
ROLLOUTS = [None, CANARY, RECREATE, {"strategy": "BlueGreen", "steps": [{"weight": 100, "duration": "1m"}]}]


def keda_acts(world: World, choose: Any) -> None:
    """KEDA and its HorizontalPodAutoscaler give each Deployment a size that its ScaledObject allows."""
    for revision, made in world.kind(SCALED_OBJECT).items():
        least, most = made["spec"]["minReplicaCount"], made["spec"]["maxReplicaCount"]
        world.objects["Deployment", revision]["spec"]["replicas"] = choose(least, most)


def happen(world: World, dice: random.Random) -> None:
    deed = dice.randrange(8)
    if deed == 0:
        change(world, autoscaling=dice.choice(WISHES), rollout=dice.choice(ROLLOUTS))
    elif deed == 1:
        change(world, model=dice.choice([V2, {"uri": "oci://reg:5000/digits:v1"}]))
    elif deed == 2:
        world.finish_jobs()
    elif deed == 3:
        names_of = sorted(world.names("Deployment"))
        world.run_pods(*dice.sample(names_of, k=min(len(names_of), 1)))
    elif deed == 4:
        world.advance(dice.choice([1, 11, 61, 3600]))
    elif deed == 5:
        keda_acts(world, dice.randint)
    elif deed == 6 and dice.random() < 0.3:
        world.has_keda = not world.has_keda
        for revision in world.names(SCALED_OBJECT):
            del world.objects[SCALED_OBJECT, revision]  # with the resource definition
    else:
        world.settle(20)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_one_autoscaler_has_the_size_and_the_last_wish_is_served(seed: int) -> None:
    dice = random.Random(seed)
    world = Checked(model_deployment(autoscaling=SLEEPY, rollout=dice.choice([CANARY, RECREATE])))
    world.config, world.has_keda = KEDA, True
    for _ in range(dice.randrange(5, 40)):
        happen(world, dice)
    world.has_keda = True
    change(world, autoscaling=SLEEPY, model={"uri": "oci://reg:5000/digits:last"})
    for _ in range(8):
        world.settle(20)
        world.finish_jobs()
        keda_acts(world, min)
        world.settle(20)
        world.run_pods()
        world.settle(20)
        world.advance(62)
    world.settle(20)
    assert bounds(world) == (0, 10)
    assert condition(world, "Ready") == ("True", "ScaledToZero")
