"""A cluster in which everything succeeds, for `slipway plan`: it applies what `decide` returns and plays the other controllers. Pure.

It holds no rule of its own about what Slipway does; whatever it lists came out of `decide`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from slipway import names
from slipway.decide import decide
from slipway.plan.objects import label, name_of
from slipway.snapshot import ArtifactSnapshot, Config, DeploymentSnapshot, Manifest

MAX_ROUNDS = 20
UNKNOWN_DIGEST = "sha256:" + "0" * 64  # known only after the conversion
# As the chart ships it.
SHIPPED_RUNTIME: Manifest = {
    "apiVersion": names.API_VERSION,
    "kind": "ServingRuntime",
    "metadata": {"name": "slipway"},
    "spec": {
        "image": "slipway-runtime",
        "formats": [
            {"name": "ONNX", "acceleratorImage": "slipway-runtime-torch"},
            {"name": "TorchScript", "image": "slipway-runtime-torch"},
            {"name": "ExportedProgram", "image": "slipway-runtime-torch"},
            {"name": "AOTInductor", "image": "slipway-runtime-torch"},
            {"name": "PyTorch", "image": "slipway-runtime-torch"},
            {"name": "TorchServe", "image": "slipway-runtime-torch"},
        ],
        "command": ["slipway-runtime"],
        "args": [
            "serve",
            "--model-dir={{modelDir}}",
            "--artifact-digest={{artifactDigest}}",
            "--model-name={{modelName}}",
            "--revision={{revision}}",
            "--port={{port}}",
        ],
    },
}


@dataclass(frozen=True, slots=True)
class Step:
    """One object that would be written, when, and why."""

    stage: str
    verb: str
    manifest: Manifest
    why: str


@dataclass(slots=True)
class World:
    """The objects there are, and what was done so far."""

    now: datetime
    config: Config
    runtimes: tuple[Manifest, ...] = (SHIPPED_RUNTIME,)
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def put(self, manifest: Manifest) -> None:
        """Add or replace an object as the API server would store it."""
        key = (str(manifest["kind"]), name_of(manifest))
        stored = {**self.objects.get(key, {}), **copy.deepcopy(dict(manifest))}
        stored["metadata"] = {"uid": f"uid-of-{key[1]}", "generation": 1, **stored["metadata"]}
        self.objects[key] = stored

    def kind(self, kind: str) -> list[dict[str, Any]]:
        """Return all objects of a kind."""
        return [value for (found, _), value in self.objects.items() if found == kind]


STAGES = ("applied", "artifact made", "converted", "pods ready")


def simulate(resource: Manifest, world: World) -> list[Step]:
    """Return what would be written for a ModelDeployment, stage by stage, until it is ready and at rest."""
    world.put(resource)
    for stage, event in zip(STAGES, (_nothing, _nothing, _finish_jobs, _run_pods), strict=True):
        event(world)
        _settle(world, stage, only_resource=stage == STAGES[0])
    return world.steps


def _settle(world: World, stage: str, *, only_resource: bool) -> None:
    for _ in range(MAX_ROUNDS):
        before = len(world.steps)
        kinds = ("ModelDeployment",) if only_resource else ("ModelDeployment", "ModelArtifact")
        is_changed = any([_decide(world, item, stage) for kind in kinds for item in world.kind(kind)])
        if len(world.steps) == before and not is_changed:
            return


def _decide(world: World, resource: dict[str, Any], stage: str) -> bool:
    """Apply one decision; says whether it changed anything."""
    decision = decide(_snapshot(world, resource), world.now, world.config)
    for manifest in decision.apply:
        is_known = (manifest["kind"], name_of(manifest)) in world.objects
        world.steps.append(Step(stage, "change" if is_known else "create", manifest, _why(manifest, is_known=is_known)))
        world.put(manifest)
    for address in decision.delete:
        gone = world.objects.pop((address.kind, address.name), None)
        if gone is not None:
            world.steps.append(Step(stage, "delete", gone, "no longer wanted"))
    if decision.status is not None:
        resource["status"] = copy.deepcopy(dict(decision.status))
    return bool(decision.apply or decision.delete or decision.status is not None)


def _snapshot(world: World, resource: Mapping[str, Any]) -> DeploymentSnapshot | ArtifactSnapshot:
    if resource["kind"] == "ModelArtifact":
        mine = [job for job in world.kind("Job") if label(job, names.ARTIFACT) == name_of(resource)]
        return ArtifactSnapshot(resource, tuple(mine), tuple(world.kind("Pod")))
    return DeploymentSnapshot(
        resource=resource,
        artifacts={name_of(item): item for item in world.kind("ModelArtifact")},
        deployments=tuple(world.kind("Deployment")),
        services=tuple(world.kind("Service")),
        routes=(*world.kind("HTTPRoute"), *world.kind("GRPCRoute")),
        runtimes=world.runtimes,
    )


_WHY = {
    "ModelArtifact": "the converted model; revisions with an equal model and conversion share it",
    "Job": "fetch, convert, validate and publish the model; nothing is converted that is in the registry already",
    "Deployment": "the pods of this revision",
    **dict.fromkeys(("HTTPRoute", "GRPCRoute"), "the gateway's share of the traffic for each revision"),
}


def _why(manifest: Manifest, *, is_known: bool) -> str:
    if is_known:
        return "this revision is ready"
    if manifest["kind"] == "Service":
        has_revision = label(manifest, names.REVISION) is not None
        return "reaches this revision alone" if has_revision else "the address that users call; leads to the stable revision"
    return _WHY.get(str(manifest["kind"]), "")


def _nothing(_: World) -> None:
    return


def _finish_jobs(world: World) -> None:
    """Let every Job succeed with the first candidate."""
    for job in world.kind("Job"):
        artifact = world.objects["ModelArtifact", str(label(job, names.ARTIFACT))]
        said = {"reason": "Published", "artifactDigest": UNKNOWN_DIGEST, **_first_candidate(artifact["spec"])}
        job["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
        ended = {"name": names.PUBLISH, "state": {"terminated": {"exitCode": 0, "message": json.dumps(said)}}}
        labels = {"batch.kubernetes.io/job-name": name_of(job), names.COMPONENT: "converter"}
        pod = {"kind": "Pod", "metadata": {"name": f"{name_of(job)}-pod", "labels": labels}, "status": {"containerStatuses": [ended]}}
        world.put(pod)


def _first_candidate(spec: Mapping[str, Any]) -> dict[str, str]:
    named = spec["model"].get("format")
    source = "PyTorch" if named in (None, "TorchServe") else named  # most archives of TorchServe are read as PyTorch models
    candidates = (spec.get("conversion") or {}).get("candidates") or [{"target": "ONNX" if source == "PyTorch" else "None"}]
    target = candidates[0]["target"]
    return {"format": source if target == "None" else target, "precision": candidates[0].get("precision", "Float32")}


def _run_pods(world: World) -> None:
    """Let every Deployment reach its size."""
    for deployment in world.kind("Deployment"):
        size = deployment["spec"].get("replicas", 1)
        counts = dict.fromkeys(("replicas", "readyReplicas", "availableReplicas"), size)
        deployment["status"] = {"observedGeneration": deployment["metadata"].get("generation", 1), **counts}


def summary(steps: list[Step]) -> Iterator[tuple[str, str, str, str]]:
    """Return rows (stage, verb, object, why) for a table."""
    return ((step.stage, step.verb, f"{step.manifest['kind']}/{name_of(step.manifest)}", step.why) for step in steps)
