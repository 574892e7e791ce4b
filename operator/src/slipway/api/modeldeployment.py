"""ModelDeployment: what a user writes, and what the operator tells about it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from slipway.api.accelerator import Accelerator
from slipway.api.analysis import AnalysisRecord, MetricStatus
from slipway.api.autoscaling import Autoscaling
from slipway.api.common import ATOMIC, INT64, Conditions, EnvVars, ObjectName, ResourceRequirements, ShortDuration, Toleration
from slipway.api.rollout import Rollout, Routing
from slipway.api.rules import ApiModel, Rule, StatusModel
from slipway.api.source import SOURCE_TARGETS, Conversion, ModelSource, Signature

ObservedFormat = Literal["ONNX", "TorchScript", "PyTorch", "ExportedProgram", "AOTInductor", "TorchTensorRT", "TorchServe"]


class Batching(ApiModel):
    """Requests that the server may run together."""

    max_batch_size: int = Field(
        ge=1, le=4096, description="Samples in one call of the model at most. Example: 32. Sizes that do not pay are not used."
    )
    max_delay: ShortDuration = Field(
        default="0ms",
        description="How long a request may wait for company while the server is free. Example: 2ms. Default: 0ms, only what waits anyway.",
    )


class Serving(ApiModel):
    """How the converted model is served."""

    runtime: ObjectName | None = Field(
        default=None,
        description="Name of the ServingRuntime. Example: slipway. Default: by priority for the format.",
    )
    replicas: int = Field(
        default=1, ge=0, le=1000, description="How many pods serve; also set by `kubectl scale`. 0 serves nothing. Example: 2. Default: 1."
    )
    resources: ResourceRequirements | None = Field(
        default=None,
        description="Resources of the server container. Default: none.",
    )
    batching: Batching | None = Field(default=None, description="Adaptive batching. Default: each request runs by itself.")
    labels: Annotated[tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=65536, json_schema_extra=ATOMIC)] | None = Field(
        default=None,
        description="Class names for /predict, in the order of the output's last dimension. Example: [zero, one]. "
        "Default: labels in model.yaml.",
    )
    env: EnvVars | None = Field(
        default=None,
        description='Environment variables of the server container. Example: [{name: OMP_NUM_THREADS, value: "4"}]. Default: none.',
    )
    node_selector: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=32)] | None = Field(
        default=None, description="Labels that a node must have. Example: {kubernetes.io/arch: amd64}. Default: any node."
    )
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32, json_schema_extra=ATOMIC)] | None = Field(
        default=None,
        description="Taints that the pods tolerate. Example: [{key: gpu, operator: Exists}]. Default: none.",
    )
    affinity: dict[str, Any] | None = Field(
        default=None,
        description="Affinity, as `kubectl explain pod.spec.affinity` has it. Default: pods are spread over nodes.",
    )
    runtime_class_name: ObjectName | None = Field(
        default=None, description="RuntimeClass of the pods, for example gvisor. Default: the cluster's."
    )
    service_account_name: ObjectName | None = Field(
        default=None, description="ServiceAccount of the pods; its token is not mounted. Default: the namespace's."
    )
    priority_class_name: ObjectName | None = Field(
        default=None, description="PriorityClass of the pods. Example: serving-high. Default: the cluster's."
    )


class ModelDeploymentSpec(ApiModel):
    """The wish. Only model.uri is required; what a model folder says in model.yaml need not be repeated."""

    rules = (SOURCE_TARGETS,)

    model: ModelSource = Field(description="Where the model comes from. What is absent is taken from model.yaml in the folder.")
    signature: Signature | None = Field(
        default=None, description="Inputs and outputs of the model. Default: signature in model.yaml, or that of the ONNX or .pt2 file."
    )
    conversion: Conversion | None = Field(
        default=None, description="What the model is converted to and how it is checked. Default: ONNX Float32, checked on 64 samples."
    )
    serving: Serving = Field(default=Serving(), description="How the model is served. Default: one replica.")
    rollout: Rollout | None = Field(
        default=None, description="How a new revision takes over. Default: all at once, as soon as all its pods are ready."
    )
    routing: Routing | None = Field(default=None, description="How requests from outside reach the model. Default: a Service only.")
    paused: bool = Field(default=False, description="Hold a rollout where it is; a bad revision is still rolled back. Default: false.")
    accelerator: Accelerator | None = Field(default=None, description="Devices that each serving pod gets. Default: none, the CPU.")
    autoscaling: Autoscaling | None = Field(default=None, description="How many pods follow from the load. Default: serving.replicas.")
    revision_history_limit: int = Field(
        default=5,
        ge=0,
        le=100,
        description="How many earlier revisions are kept to go back to. A count. Default: 5.",
    )


class RevisionStatus(StatusModel):
    """One revision that has pods."""

    revision: str = Field(description="Its name, and that of its Deployment and Service. Example: digits-5d41402a.")
    artifact: str | None = Field(default=None, description="Name of its ModelArtifact.")
    digest: str | None = Field(default=None, description="Digest of the artifact.")
    format: ObservedFormat | None = Field(default=None, description="Format that is served.")
    ready_replicas: int = Field(default=0, description="Pods that are ready.")
    weight: int = Field(default=0, description="Percent of the requests that it should get.")
    share: int | None = Field(default=None, description="Percent that it really gets, by the route or by the ready pods.")
    since: str | None = Field(default=None, json_schema_extra={"format": "date-time"}, description="When it took over.")


class CanaryStatus(RevisionStatus):
    """The revision that is coming up, or was given up."""

    phase: Literal["Preparing", "Shadowing", "Progressing", "Paused", "Promoting", "RolledBack"] | None = Field(
        default=None,
        description="Shadowing compares answers, Paused waits for a promotion, RolledBack was given up.",
    )
    step: int | None = Field(default=None, description="The step that it is in, from 1.")
    step_started_at: str | None = Field(
        default=None, json_schema_extra={"format": "date-time"}, description="When it got its weight, or lost it for good."
    )
    reason: str | None = Field(default=None, description="Why it was given up or stopped.")
    message: str | None = Field(default=None, description="The same, with measured values.")
    metrics: Annotated[tuple[MetricStatus, ...], Field(json_schema_extra=ATOMIC)] | None = Field(
        default=None, description="The last evaluation."
    )
    evaluations: Annotated[tuple[AnalysisRecord, ...], Field(json_schema_extra=ATOMIC)] | None = Field(
        default=None, description="The last ten, the newest first."
    )


class HistoryEntry(StatusModel):
    """How an earlier revision ended."""

    revision: str = Field(description="Its name.")
    digest: str | None = Field(default=None, description="Digest of its artifact.")
    outcome: Literal["Served", "Failed", "RolledBack", "Superseded"] = Field(
        description="Served (was stable), Failed (never ready), RolledBack (given up) or Superseded (a newer one came first)."
    )
    reason: str | None = Field(default=None, description="Why it ended.")
    finished_at: str | None = Field(default=None, json_schema_extra={"format": "date-time"}, description="When it ended.")


class DeploymentFailure(StatusModel):
    """The last thing that went wrong; kept after it is over."""

    reason: str = Field(description="Why, out of docs/reference/reasons.md. Example: ParityFailed.")
    message: str = Field(default="", description="Why, and what to do next.")
    exit_code: int | None = Field(default=None, description="Exit code of the container that failed, if one did.")
    revision: str | None = Field(default=None, description="The revision that failed.")


class ObservedModel(StatusModel):
    """What was read from the model folder."""

    source_digest: str | None = Field(default=None, description="Digest that the URI was resolved to.")
    format: str | None = Field(default=None, description="Format of the source. Example: PyTorch.")
    entrypoint: str | None = Field(default=None, description="Entrypoint that was called. Example: model:build.")
    weights: str | None = Field(default=None, description="File of the weights. Example: weights.safetensors.")
    signature: dict[str, Any] | None = Field(default=None, description="Inputs and outputs, as in spec.signature.")


class ModelDeploymentStatus(StatusModel):
    """What is. Written by the operator alone."""

    observed_generation: int | None = Field(
        default=None, json_schema_extra=INT64, description="The metadata.generation that this status is about."
    )
    conditions: Conditions = Field(
        default=(), description="Ready, ArtifactReady, Available, Progressing, Degraded; while they hold Reconciling or Stalled."
    )
    url: str | None = Field(default=None, description="Where the model answers inside the cluster. Example: http://digits.default.svc.")
    replicas: int | None = Field(default=None, description="Pods of the stable revision, ready or not. A count.")
    selector: str | None = Field(default=None, description="Label selector of these pods.")
    stable: RevisionStatus | None = Field(default=None, description="The revision that serves.")
    canary: CanaryStatus | None = Field(default=None, description="The revision that is coming up or was given up. Absent when none.")
    history: Annotated[tuple[HistoryEntry, ...], Field(json_schema_extra=ATOMIC)] = Field(
        default=(), description="Earlier revisions, the newest first; at most spec.revisionHistoryLimit."
    )
    last_failure: DeploymentFailure | None = Field(default=None, description="The last failure, kept after it is over.")
    model: ObservedModel | None = Field(
        default=None, description="What was read from the model folder and is used where the spec says nothing."
    )


class ModelDeployment(ApiModel):
    """A PyTorch or ONNX model, converted, checked against its source, and served by pods under one URL."""

    rules = (
        Rule(
            "self.metadata.name.matches(r'^[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?$')",
            "the name must be a DNS label, because a Service gets it: at most 63 lower-case letters, digits and '-', "
            "starting with a letter and not ending with '-'",
            lambda resource: _is_label(str(resource.metadata.get("name", ""))),
        ),
    )

    api_version: Literal["slipway.dev/v1alpha1"] = Field(default="slipway.dev/v1alpha1", description="slipway.dev/v1alpha1.")
    kind: Literal["ModelDeployment"] = Field(default="ModelDeployment", description="ModelDeployment.")
    metadata: dict[str, Any] = Field(
        description="Name, namespace, labels, annotations. The annotation slipway.dev/reconcile: disabled pauses the operator; "
        "slipway.dev/promote and slipway.dev/abort, with a revision as value, move a rollout by hand."
    )
    spec: ModelDeploymentSpec = Field(description="The wish. Only model.uri is required.")
    status: ModelDeploymentStatus | None = Field(default=None, description="What is. Written by the operator alone.")


def _is_label(name: str) -> bool:
    return 0 < len(name) <= 63 and name[0].isalpha() and name[-1] != "-" and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
