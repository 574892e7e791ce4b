"""What pods with accelerators look like, which nodes could run them, and what a rollout does when there are too few."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from slipway import names
from slipway.api.modelartifact import ModelArtifactSpec
from slipway.api.reasons import Reason
from slipway.decide import decide
from slipway.plan import accelerator, workload
from slipway.plan.artifact import artifact_spec, conversion_job
from slipway.plan.diagnose import Problem
from slipway.plan.nodes import Holder, Node, Room, admits, demand, room
from slipway.plan.room import Scarcity, Share, Team, Wish, share
from slipway.snapshot import Config, Decision, DeploymentSnapshot
from unit.operator.world import CONFIG, World, model_deployment, ready_reason

GPU = {"resourceName": "nvidia.com/gpu", "count": 1, "product": "NVIDIA-H200"}
CLAIMED = {"deviceClassName": "gpu.nvidia.com", "count": 2, "selectors": ["device.driver == 'gpu.nvidia.com'"]}
BATCHES = {"maxBatchSize": 64}
TENSORRT = {"candidates": [{"target": "TorchTensorRT", "precision": "Float16"}]}


def served(**spec: Any) -> World:
    world = World(model_deployment(**spec))
    world.settle()
    world.finish_jobs()
    world.settle()
    return world


def template(world: World) -> dict[str, Any]:
    (found,) = world.kind("Deployment").values()
    return dict(found["spec"]["template"])


def container(pod: dict[str, Any], name: str) -> dict[str, Any]:
    return next(c for c in (*pod["initContainers"], *pod["containers"]) if c["name"] == name)


def test_only_the_server_gets_the_devices() -> None:
    pod = template(served(accelerator={"resourceName": "nvidia.com/mig-1g.10gb", "count": 2}))["spec"]
    resources = container(pod, "server")["resources"]
    assert resources["limits"]["nvidia.com/mig-1g.10gb"] == resources["requests"]["nvidia.com/mig-1g.10gb"] == "2"
    assert "nvidia.com/mig-1g.10gb" not in str(container(pod, "pull"))
    assert demand(pod, "nvidia.com/mig-1g.10gb") == 2
    assert {t["key"] for t in pod["tolerations"]} == {"nvidia.com/mig-1g.10gb", "nvidia.com/gpu", "sku"}
    assert [c["topologyKey"] for c in pod["topologySpreadConstraints"]] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]


@pytest.mark.parametrize(
    ("resource", "product", "label"),
    [
        ("nvidia.com/gpu", "NVIDIA-H200", "nvidia.com/gpu.product"),
        ("nvidia.com/mig-1g.10gb", "NVIDIA-H200", "nvidia.com/gpu.product"),
        ("amd.com/gpu", "AMD_Instinct_MI300X_OAM", "amd.com/gpu.product-name"),
        ("gpu.intel.com/i915", "Max_1100", "gpu.intel.com/product"),
    ],
)
def test_the_product_is_demanded_of_the_node(resource: str, product: str, label: str) -> None:
    pod = template(served(accelerator={"resourceName": resource, "product": product}))["spec"]
    assert admits({"metadata": {"name": "a", "labels": {label: product}}}, pod)
    assert not admits({"metadata": {"name": "a", "labels": {label: "other"}}}, pod)


def test_the_users_affinity_and_tolerations_stay() -> None:
    terms = [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {"matchExpressions": [{"key": "b", "operator": "Exists"}]}]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}, "podAffinity": {}}
    mine = {"key": "dedicated", "operator": "Exists"}
    pod = template(served(accelerator=GPU, serving={"affinity": affinity, "tolerations": [mine]}))["spec"]
    assert pod["tolerations"][0] == mine
    assert "podAffinity" in pod["affinity"]
    product = {"nvidia.com/gpu.product": "NVIDIA-H200"}
    for labels, is_admitted in ((product, False), ({"a": ""}, False), ({"a": "", **product}, True), ({"b": "", **product}, True)):
        assert admits({"metadata": {"name": "n", "labels": labels}}, pod) == is_admitted


def test_a_claim_template_comes_with_the_revision_and_goes_with_it() -> None:
    world = served(accelerator=CLAIMED, revisionHistoryLimit=0)
    pod = template(world)["spec"]
    (name,) = world.names("Deployment")
    assert pod["resourceClaims"] == [{"name": "accelerator", "resourceClaimTemplateName": name}]
    assert container(pod, "server")["resources"]["claims"] == [{"name": "accelerator"}]
    made = world.kind("ResourceClaimTemplate")[name]
    (request,) = made["spec"]["spec"]["devices"]["requests"]
    assert request["exactly"]["deviceClassName"] == "gpu.nvidia.com"
    assert request["exactly"]["count"] == 2
    assert request["exactly"]["selectors"] == [{"cel": {"expression": "device.driver == 'gpu.nvidia.com'"}}]
    assert made["metadata"]["ownerReferences"][0]["kind"] == "ModelDeployment"
    world.run_pods()
    world.settle()
    resource = world.objects[("ModelDeployment", "digits")]
    world.put({**resource, "spec": {**resource["spec"], "accelerator": CLAIMED | {"count": 1}}})
    world.settle()
    world.run_pods()
    world.settle()
    world.advance(3600)
    world.settle()
    assert name not in world.names("ResourceClaimTemplate")
    assert world.names("ResourceClaimTemplate") == world.names("Deployment")


def test_a_claim_template_that_was_deleted_comes_back() -> None:
    world = served(accelerator=CLAIMED)
    (name,) = world.names("ResourceClaimTemplate")
    del world.objects[("ResourceClaimTemplate", name)]
    world.settle()
    assert world.names("ResourceClaimTemplate") == {name}


@pytest.mark.parametrize("change", [{"count": 2}, {"product": "NVIDIA-H100"}, {"resourceName": "nvidia.com/mig-1g.10gb"}])
def test_another_accelerator_is_another_revision(change: dict[str, Any]) -> None:
    spec = model_deployment(accelerator=GPU)["spec"]
    assert workload.revision_shape(spec) != workload.revision_shape({**spec, "accelerator": GPU | change})


@pytest.mark.parametrize(
    ("conversion", "is_needed"),
    [
        (TENSORRT, True),
        ({"candidates": [{"target": "ONNX"}, {"target": "AOTInductor"}]}, True),
        ({"candidates": [{"target": "ONNX"}]}, False),
        ({}, False),
    ],
)
def test_a_conversion_gets_the_devices_only_when_it_builds_for_them(conversion: dict[str, Any], is_needed: bool) -> None:
    spec = artifact_spec({"model": {"uri": "oci://h/m"}, "accelerator": GPU, "conversion": conversion}, Config())
    assert ("accelerator" in spec) == is_needed
    job = conversion_job({"kind": "ModelArtifact", "metadata": {"name": "mart-1", "namespace": "default"}, "spec": spec}, 1, Config())
    pod = job["spec"]["template"]["spec"]
    having = {c["name"] for c in (*pod["initContainers"], *pod["containers"]) if "nvidia.com/gpu" in str(c["resources"])}
    assert having == ({"convert", "validate"} if is_needed else set())
    assert demand(pod, "nvidia.com/gpu") == int(is_needed)
    assert ("tolerations" in pod) == is_needed


@pytest.mark.parametrize(
    ("objective", "batching", "size"),
    [("Throughput", BATCHES, 64), ("Throughput", None, None), ("Latency", BATCHES, None), (None, BATCHES, None)],
)
def test_the_batch_size_is_part_of_the_artifact_only_where_the_choice_depends_on_it(
    objective: str | None, batching: dict[str, Any] | None, size: int | None
) -> None:
    spec = {"model": {"uri": "oci://h/m"}, "conversion": {"objective": objective}, "serving": {"batching": batching}}
    found = artifact_spec(spec, Config())
    assert found.get("maxBatchSize") == size
    assert ModelArtifactSpec.model_validate(found).max_batch_size == size


def test_a_conversion_with_dra_has_a_claim_template_of_its_own() -> None:
    world = World(model_deployment(accelerator=CLAIMED, conversion=TENSORRT))
    world.settle()
    (name,) = world.names("ModelArtifact")
    assert world.names("ResourceClaimTemplate") == {name}
    assert world.objects[("ResourceClaimTemplate", name)]["metadata"]["ownerReferences"][0]["kind"] == "ModelArtifact"


def test_without_an_accelerator_a_pod_is_as_before() -> None:
    pod = {"containers": [{"name": "server"}], "tolerations": []}
    assert accelerator.equipped(pod, {"server"}, None, "x") == pod


def expression(operator: str, *values: str) -> dict[str, Any]:
    terms = [{"matchExpressions": [{"key": "k", "operator": operator, "values": list(values)}]}]
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}


def node(labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "a", "labels": labels or {}}, "spec": spec}


TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
ADMISSION: list[tuple[str, dict[str, Any], dict[str, Any], bool]] = [
    ("any", node(), {}, True),
    ("cordoned", node(unschedulable=True), {}, False),
    ("not ready", node() | {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}, {}, False),
    ("ready", node() | {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}, {}, True),
    ("selector holds", node({"k": "v"}), {"nodeSelector": {"k": "v"}}, True),
    ("selector does not", node({"k": "w"}), {"nodeSelector": {"k": "v"}}, False),
    ("In", node({"k": "v"}), expression("In", "u", "v"), True),
    ("NotIn", node({"k": "v"}), expression("NotIn", "v"), False),
    ("NotIn without the label", node(), expression("NotIn", "v"), True),
    ("Exists", node(), expression("Exists"), False),
    ("DoesNotExist", node(), expression("DoesNotExist"), True),
    ("Gt", node({"k": "80"}), expression("Gt", "40"), True),
    ("Lt", node({"k": "80"}), expression("Lt", "40"), False),
    ("Gt of a word", node({"k": "x"}), expression("Gt", "40"), False),
    ("taint", node(taints=[TAINT]), {}, False),
    ("tolerated by Exists", node(taints=[TAINT]), {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}, True),
    ("tolerated by value", node(taints=[TAINT]), {"tolerations": [{"key": "nvidia.com/gpu", "value": "present"}]}, True),
    ("another value", node(taints=[TAINT]), {"tolerations": [{"key": "nvidia.com/gpu", "value": "x"}]}, False),
    (
        "another effect",
        node(taints=[TAINT]),
        {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute"}]},
        False,
    ),
    ("everything tolerated", node(taints=[TAINT]), {"tolerations": [{"operator": "Exists"}]}, True),
    ("preferred only", node(taints=[TAINT | {"effect": "PreferNoSchedule"}]), {}, True),
]


@pytest.mark.parametrize(("where", "pod", "is_admitted"), [row[1:] for row in ADMISSION], ids=[row[0] for row in ADMISSION])
def test_admission(where: dict[str, Any], pod: dict[str, Any], is_admitted: bool) -> None:
    assert admits(where, pod) == is_admitted


def gpu_node(name: str, count: int, **labels: str) -> dict[str, Any]:
    found = {"nvidia.com/gpu.product": "NVIDIA-H200", **labels}
    return {"metadata": {"name": name, "labels": found}, "status": {"allocatable": {"nvidia.com/gpu": str(count)}}}


def gpu_pod(name: str, where: str | None, count: int = 1, phase: str = "Running", revision: str | None = None) -> dict[str, Any]:
    labels = {names.REVISION: revision} if revision else {}
    spec = {"nodeName": where, "containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": count}}}]}
    return {"metadata": {"name": name, "namespace": "team-b", "labels": labels}, "spec": spec, "status": {"phase": phase}}


def test_room_counts_pods_that_have_a_node_and_have_not_ended() -> None:
    pod = {"containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]}
    pods = [gpu_pod("a", "n1"), gpu_pod("b", None), gpu_pod("c", "n1", phase="Succeeded"), gpu_pod("d", "gone", 4)]
    found = room(pod, "nvidia.com/gpu", [gpu_node("n1", 2), {"metadata": {"name": "cpu"}}], pods)
    assert found == Room("nvidia.com/gpu", 1, (Node("n1", 2, (Holder("team-b/a", 1),)),))
    assert found.fits() == 1


def test_init_containers_share_and_containers_add_up() -> None:
    ask = lambda count: {"name": "c", "resources": {"limits": {"x/y": count}}}  # noqa: E731
    assert demand({"initContainers": [ask(1), ask(3)], "containers": [ask(1), ask(1)]}, "x/y") == 3
    assert demand({"initContainers": [ask(1)], "containers": [ask(1), ask(1)]}, "x/y") == 2
    assert demand({"containers": [{"name": "c"}]}, "x/y") == 0


def rooms(*nodes: tuple[int, int, int, int], per_pod: int = 1) -> Room:
    """Nodes as (offered, pods of stable, pods of the target, accelerators of a stranger)."""
    found = []
    for index, (offered, stable, target, strangers) in enumerate(nodes):
        own = [Holder("o", per_pod, "o")] * stable + [Holder("n", per_pod, "n")] * target
        found.append(Node(f"n{index}", offered, (*own, *([Holder("team-b/train-0", strangers)] if strangers else []))))
    return Room("nvidia.com/gpu", per_pod, tuple(found))


CRASH = Problem(Reason.PODS_CRASHING, "it crashes")
SHARES: list[tuple[str, Room, int, Team, Team, Problem | None, tuple[int, int], Reason | None]] = [
    ("room for all: surge", rooms((4, 2, 0, 0)), 2, Team("o", 2, 2, 2, 2), Team("n"), None, (2, 2), None),
    ("room for one: it comes first", rooms((3, 2, 0, 0)), 2, Team("o", 2, 2, 2, 2), Team("n"), None, (2, 1), None),
    ("it comes up: wait", rooms((3, 2, 1, 0)), 2, Team("o", 2, 2, 2, 2), Team("n", 1, 1, 1, 0), None, (2, 1), None),
    ("it is ready: stable gives one", rooms((3, 2, 1, 0)), 2, Team("o", 2, 2, 2, 2), Team("n", 1, 1, 1, 1), None, (1, 1), None),
    ("that one ends: wait", rooms((3, 2, 1, 0)), 2, Team("o", 1, 2, 2, 2), Team("n", 1, 1, 1, 1), None, (1, 1), None),
    ("it is gone: the second comes", rooms((3, 1, 1, 0)), 2, Team("o", 1, 1, 1, 1), Team("n", 1, 1, 1, 1), None, (1, 2), None),
    ("one GPU, one pod: replace", rooms((1, 1, 0, 0)), 1, Team("o", 1, 1, 1, 1), Team("n"), None, (0, 0), None),
    ("and then the new one", rooms((1, 0, 0, 0)), 1, Team("o"), Team("n"), None, (0, 1), None),
    ("strangers hold it: wait", rooms((2, 1, 0, 1)), 2, Team("o", 1, 1, 1, 1), Team("n"), None, (2, 0), Reason.INSUFFICIENT_ACCELERATORS),
    ("no such node: wait", Room("nvidia.com/gpu", 1), 1, Team("o", 1, 1, 1, 1), Team("n"), None, (1, 0), Reason.INSUFFICIENT_ACCELERATORS),
    ("taken in the middle", rooms((2, 1, 0, 1)), 1, Team("o", 0, 1, 1, 1), Team("n"), None, (0, 0), None),
    ("a bad one gives back", rooms((1, 0, 1, 0)), 1, Team("o"), Team("n", 1, 1, 1, 0), CRASH, (1, 0), Reason.PODS_CRASHING),
    ("and does not come again", rooms((1, 1, 0, 0)), 1, Team("o", 1, 1, 1, 1), Team("n"), CRASH, (1, 0), Reason.PODS_CRASHING),
    ("unless there is room", rooms((2, 1, 0, 0)), 1, Team("o", 1, 1, 1, 1), Team("n"), CRASH, (1, 1), None),
]


@pytest.mark.parametrize(
    ("found", "wish", "stable", "target", "fault", "sizes", "reason"), [r[1:] for r in SHARES], ids=[r[0] for r in SHARES]
)
def test_share(  # noqa: PLR0917
    found: Room, wish: int, stable: Team, target: Team, fault: Problem | None, sizes: tuple[int, int], reason: Reason | None
) -> None:
    result = share(Wish(wish, wish), stable, target, Scarcity(found, found, fault=fault))
    assert (result.stable, result.target) == sizes
    assert (result.shortage.reason if result.shortage else None) == reason


def test_the_shortage_says_how_many_where_and_who() -> None:
    result = share(Wish(1, 1), Team("o", 1, 1, 1, 1), Team("n"), Scarcity(rooms((2, 0, 0, 2), (1, 0, 0, 1), per_pod=2)))
    assert result == Share(1, 0, result.shortage)
    assert result.shortage is not None
    assert result.shortage.message == (
        "1 pod of revision n needs 2 nvidia.com/gpu each on one node; n0 has 0 of 2 free, n1 has 0 of 1 free; "
        "held by team-b/train-0 (2 on n0), team-b/train-0 (1 on n1)"
    )


class GpuWorld(World):
    """With one node that offers GPUs; pods run as soon as they find one."""

    def __init__(self, gpus: int, *strangers: dict[str, Any], **spec: Any) -> None:
        super().__init__(model_deployment(accelerator=GPU, **spec))
        self.gpus, self.strangers = gpus, list(strangers)
        self.lowest = 10
        self.bad: set[str] = set()

    def snapshot(self, kind: str, name: str) -> Any:
        found = super().snapshot(kind, name)
        if not isinstance(found, DeploymentSnapshot):
            return found
        pods: list[dict[str, Any]] = [
            gpu_pod(f"{n}-{i}", "n1", revision=n) for n, d in self.kind("Deployment").items() for i in range(self.running(d))
        ]
        for pod in pods:
            if pod["metadata"]["labels"][names.REVISION] in self.bad:
                ended = {"name": "server", "ready": False, "state": {"terminated": {"exitCode": 9}}}
                pod["status"] = {"phase": "Running", "containerStatuses": [ended]}
        return replace(found, pods=tuple(pods), nodes=(gpu_node("n1", self.gpus),), neighbours=(*pods, *self.strangers))

    @staticmethod
    def running(deployment: dict[str, Any]) -> int:
        return int((deployment.get("status") or {}).get("replicas", 0))

    def play(self) -> None:
        """Decide and run pods until nothing changes."""
        for _ in range(30):
            before = (self.writes, str(self.kind("Deployment")))
            for kind, name in [k for k in self.objects if k[0] in ("ModelDeployment", "ModelArtifact")]:
                self.step(kind, name)
            self.finish_jobs()
            deployments = self.kind("Deployment")
            for deployment in sorted(deployments.values(), key=lambda d: d["spec"]["replicas"] - self.running(d)):
                others = sum(self.running(d) for d in deployments.values() if d is not deployment) + len(self.strangers)
                self.run(deployment, min(deployment["spec"]["replicas"], self.gpus - others))
            if any(map(self.running, deployments.values())):
                self.lowest = min(self.lowest, sum(map(self.running, deployments.values())))
            if (self.writes, str(self.kind("Deployment"))) == before:
                return
        raise AssertionError("no rest")

    def run(self, deployment: dict[str, Any], size: int) -> None:
        ready = 0 if deployment["metadata"]["name"] in self.bad else size
        counts = {"replicas": size, "readyReplicas": ready, "availableReplicas": ready}
        deployment["status"] = {"observedGeneration": deployment["metadata"]["generation"], **counts}

    def change(self, **spec: Any) -> None:
        resource = self.objects[("ModelDeployment", "digits")]
        self.put({**resource, "spec": {**resource["spec"], **spec}})

    def message(self) -> str:
        conditions = self.objects[("ModelDeployment", "digits")]["status"]["conditions"]
        return str(next(c["message"] for c in conditions if c["type"] == "Ready"))


V2 = {"uri": "oci://reg:5000/digits:v2"}


@pytest.mark.parametrize(("gpus", "replicas", "lowest"), [(1, 1, 0), (2, 1, 1), (2, 2, 1), (3, 2, 2), (3, 3, 2), (6, 3, 3)])
def test_a_rollout_on_few_gpus_ends(gpus: int, replicas: int, lowest: int) -> None:
    world = GpuWorld(gpus, serving={"replicas": replicas})
    world.play()
    assert ready_reason(world, "ModelDeployment", "digits") == "Ready"
    (first,) = world.names("Deployment")
    world.lowest = 10
    world.change(model=V2)
    world.play()
    assert ready_reason(world, "ModelDeployment", "digits") == "Ready"
    assert world.objects[("Service", "digits")]["spec"]["selector"][names.REVISION] != first
    assert min(world.lowest, 10) >= lowest


def test_a_rollout_waits_for_a_stranger_and_ends_when_it_leaves() -> None:
    world = GpuWorld(2, gpu_pod("train-0", "n1"), serving={"replicas": 1})
    world.play()
    world.change(accelerator=GPU | {"count": 2})
    world.play()
    assert ready_reason(world, "ModelDeployment", "digits") == "InsufficientAccelerators"
    assert "team-b/train-0 (1 on n1)" in world.message()
    assert sum(d["spec"]["replicas"] for d in world.kind("Deployment").values()) == 1


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_bad_revision_gives_the_accelerators_back_for_good(replicas: int) -> None:
    world = GpuWorld(replicas, serving={"replicas": replicas})
    world.play()
    (first,) = world.names("Deployment")
    world.change(model=V2)
    world.step("ModelDeployment", "digits")
    bad = names.revision_name("digits", workload.revision_shape(world.objects[("ModelDeployment", "digits")]["spec"]))
    world.bad = {bad}
    world.play()
    assert world.objects[("Deployment", bad)]["spec"]["replicas"] == 0
    assert world.objects[("Deployment", first)]["status"]["readyReplicas"] == replicas
    assert world.objects[("Service", "digits")]["spec"]["selector"][names.REVISION] == first
    assert ready_reason(world, "ModelDeployment", "digits") == "PodsCrashing"
    before = world.writes
    world.advance(3600)
    world.play()
    assert world.writes == before
    world.change(model={"uri": "oci://reg:5000/digits:v3"})
    world.play()
    assert ready_reason(world, "ModelDeployment", "digits") == "Ready"


def test_a_first_revision_without_room_names_the_holder() -> None:
    world = GpuWorld(1, gpu_pod("train-0", "n1"))
    world.play()
    assert ready_reason(world, "ModelDeployment", "digits") == "InsufficientAccelerators"
    assert "held by team-b/train-0 (1 on n1)" in world.message()
    world.strangers.clear()
    world.play()
    assert ready_reason(world, "ModelDeployment", "digits") == "Ready"


def test_a_decision_is_the_same_twice() -> None:
    world = GpuWorld(1)
    world.play()
    assert decide(world.snapshot("ModelDeployment", "digits"), world.now, CONFIG) == Decision()
