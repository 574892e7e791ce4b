"""A small cluster in memory for tests of decisions: it applies them, and plays the Job and Deployment controllers when told to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from slipway import names
from slipway.api.modelartifact import ModelArtifactStatus
from slipway.api.modeldeployment import ModelDeploymentStatus
from slipway.decide import decide
from slipway.snapshot import ArtifactSnapshot, Config, Decision, DeploymentSnapshot
from slipway.verdict import MetricVerdict, Replay

CONFIG = Config()
DIGEST = "sha256:" + "a" * 64
STATUS: dict[str, Any] = {"ModelArtifact": ModelArtifactStatus, "ModelDeployment": ModelDeploymentStatus}
T0 = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def model_deployment(name: str = "digits", *, uid: str = "u1", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": names.API_VERSION,
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": "default", "uid": uid, "generation": 1},
        "spec": {"model": {"uri": "oci://reg:5000/digits:v1"}, **spec},
    }


RUNTIME = {
    "apiVersion": names.API_VERSION,
    "kind": "ServingRuntime",
    "metadata": {"name": "slipway"},
    "spec": {"image": "slipway-runtime", "formats": [{"name": "ONNX"}], "args": ["serve", "--model-name", "{{modelName}}"]},
}


def as_sent(value: Mapping[str, Any]) -> dict[str, Any]:
    """A copy as the API server gets it."""
    return dict(json.loads(json.dumps(value)))


class World:
    def __init__(self, *resources: dict[str, Any]) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.now = T0
        self.config = CONFIG
        self.has_keda = False
        self.runtimes: tuple[dict[str, Any], ...] = (RUNTIME,)
        self.foreign: tuple[dict[str, Any], ...] = ()
        self.verdicts: tuple[MetricVerdict, ...] = ()
        self.replay: Replay | None = None
        self.events: list[Any] = []
        self.notices: dict[Any, Any] = {}
        self.writes = 0
        for resource in resources:
            self.put(resource)

    def put(self, manifest: dict[str, Any]) -> None:
        key = (manifest["kind"], manifest["metadata"]["name"])
        before = self.objects.get(key)
        merged = {**(before or {}), **as_sent(manifest)}
        if before is not None and manifest["kind"] == "Deployment" and "replicas" not in merged["spec"]:
            merged["spec"]["replicas"] = before["spec"]["replicas"]  # whoever applies without it leaves it to its holder
        metadata = merged["metadata"]
        metadata.setdefault("uid", f"uid-{key[1]}")
        changed = before is not None and before.get("spec") != merged.get("spec")
        metadata["generation"] = (before or merged)["metadata"].get("generation", 1) + (1 if changed else 0)
        metadata["resourceVersion"] = str(self.writes)
        metadata.setdefault("creationTimestamp", self.now.isoformat())
        self.objects[key] = merged

    def kind(self, kind: str) -> dict[str, dict[str, Any]]:
        return {name: o for (k, name), o in self.objects.items() if k == kind}

    def names(self, kind: str) -> set[str]:
        return set(self.kind(kind))

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def snapshot(self, kind: str, name: str) -> Any:
        resource = self.objects[(kind, name)]
        if kind == "ModelArtifact":
            jobs = {n: j for n, j in self.kind("Job").items() if j["metadata"]["labels"][names.ARTIFACT] == name}
            pods = [p for p in self.kind("Pod").values() if p["metadata"]["labels"].get("batch.kubernetes.io/job-name") in jobs]
            return ArtifactSnapshot(resource, tuple(jobs.values()), tuple(pods))
        mine = [o for o in self.objects.values() if (o["metadata"].get("labels") or {}).get(names.DEPLOYMENT) == name]
        of = lambda k: tuple(o for o in mine if o["kind"] == k)  # noqa: E731
        return DeploymentSnapshot(
            resource,
            self.kind("ModelArtifact"),
            tuple(d for d in of("Deployment") if d["metadata"]["labels"][names.COMPONENT] != names.COMPARATOR),
            of("Service"),
            of("Pod"),
            self.runtimes,
            self.foreign,
            (*of("HTTPRoute"), *of("GRPCRoute")),
            self.verdicts,
            self.replay,
            tuple(d for d in of("Deployment") if d["metadata"]["labels"][names.COMPONENT] == names.COMPARATOR),
            autoscalers=(*of("HorizontalPodAutoscaler"), *of("ScaledObject")),
            has_keda=self.has_keda,
            claim_templates=of("ResourceClaimTemplate"),
        )

    def step(self, kind: str, name: str) -> Decision:
        decision = decide(self.snapshot(kind, name), self.now, self.config)
        for manifest in decision.apply:
            self.writes += 1
            self.put(dict(manifest))
        for address in decision.delete:
            self.writes += 1
            self.objects.pop((address.kind, address.name), None)
        if decision.status is not None:
            STATUS[kind].model_validate(decision.status)  # what the CRD does not know would be lost
            self.writes += 1
            self.objects[(kind, name)]["status"] = as_sent(decision.status)
        self.tell(decision)
        return decision

    def tell(self, decision: Decision) -> None:
        """Take in what is told to people, once, as the worker does."""
        self.events += decision.events
        for notice in decision.notifications:
            self.notices.setdefault((notice.moment, notice.revision, notice.step), notice)

    def settle(self, rounds: int = 10) -> None:
        """Step every resource until nothing changes."""
        for _ in range(rounds):
            before = self.writes
            for kind, name in [key for key in self.objects if key[0] in ("ModelDeployment", "ModelArtifact")]:
                if (kind, name) in self.objects:
                    self.step(kind, name)
            if self.writes == before:
                return
        raise AssertionError("the decisions do not come to rest")

    # -- the other controllers --

    def finish_jobs(self, *, digest: str = DIGEST, reason: str = "Published", **more: Any) -> None:
        said = {"reason": reason, "artifactDigest": digest, "format": "ONNX", "precision": "Float32", "sourceDigest": DIGEST, **more}
        for name, job in self.kind("Job").items():
            job["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
            self.put(job_pod(name, container("publish", exit_code=0, message=json.dumps(said))))

    def fail_jobs(self, step: str, exit_code: int, reason: str, message: str, **data: Any) -> None:
        said = json.dumps({"reason": reason, "message": message, **data})
        for name, job in self.kind("Job").items():
            job["status"] = {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]}
            self.put(job_pod(name, container(step, exit_code=exit_code, message=said)))

    def run_pods(self, *only: str) -> None:
        """Let the Deployments named (default: all) reach their size."""
        for name, deployment in self.kind("Deployment").items():
            if only and name not in only:
                continue
            size = deployment["spec"]["replicas"]
            deployment["status"] = {
                "observedGeneration": deployment["metadata"]["generation"],
                "replicas": size,
                "readyReplicas": size,
                "availableReplicas": size,
            }


def container(name: str, *, exit_code: int | None = None, message: str = "", **state: Any) -> dict[str, Any]:
    if exit_code is not None:
        state["terminated"] = {"exitCode": exit_code, "message": message, **state.pop("terminated", {})}
    return {"name": name, "ready": False, "state": state}


def job_pod(job: str, *containers: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{job}-x",
            "namespace": "default",
            "labels": {"batch.kubernetes.io/job-name": job, names.COMPONENT: "converter"},
        },
        "status": {"containerStatuses": list(containers)},
    }


def ready_reason(world: World, kind: str, name: str) -> str:
    return str(next(c for c in world.objects[(kind, name)]["status"]["conditions"] if c["type"] == "Ready")["reason"])
