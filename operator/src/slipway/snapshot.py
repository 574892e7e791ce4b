"""What a decision rests on and what it results in: read-only values, no I/O.

A `Snapshot` is everything the operator knows about one resource at one moment, gathered from its indexes; a `Decision` is everything
that should be done about it. Both are plain data, so that every situation can be written down as a row of a test table.
Manifests are the dictionaries of the Kubernetes API.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from slipway.analysis.notification import Notification
from slipway.verdict import MetricVerdict, Replay

Manifest = Mapping[str, Any]
Kind = Literal["ModelDeployment", "ModelArtifact"]


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """One unit of work of the queue."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Config:
    """The part of the operator's settings that shapes objects."""

    converter_image: str = "slipway-runtime-torch"
    runtime_image: str = "slipway-runtime"
    registry: str = "slipway-registry.slipway-system:5000/artifacts"
    plain_http: tuple[str, ...] = ("slipway-registry.slipway-system:5000",)
    registry_secret: str | None = None
    signing_secret: str | None = None
    image_pull_secrets: tuple[str, ...] = ()
    max_source_bytes: int = 16 * 1024**3
    drain_seconds: int = 10
    prometheus_address: str = ""
    autoscaling_provider: Literal["Auto", "HPA", "KEDA"] = "Auto"
    polling_seconds: int = 15
    cooldown_seconds: int = 300
    scrape_annotations: bool = False


@dataclass(frozen=True, slots=True)
class DeploymentSnapshot:
    """A ModelDeployment and what belongs to it.

    `artifacts` are the ModelArtifacts of its namespace that it owns or needs, by name; `deployments`, `services` and `pods` carry its
    label, whoever owns them, as do `routes`; `runtimes` are all ServingRuntimes. `foreign` are objects that have a name we need but not our
    label. `autoscalers` are ours and those that KEDA made of ours; `has_keda`: the cluster has KEDA's resources. `comparators` are
    the Deployments of the pods that compare answers. `verdicts` are the last evaluation of the present step, none
    before the first; `replay` is what golden inputs gave that were sent to a revision without traffic, None while that is not known.
    `nodes` are the nodes that offer the accelerator that it wants and `neighbours` the pods on them; None: they were not looked up.
    """

    resource: Manifest
    artifacts: Mapping[str, Manifest] = field(default_factory=dict)
    deployments: tuple[Manifest, ...] = ()
    services: tuple[Manifest, ...] = ()
    pods: tuple[Manifest, ...] = ()
    runtimes: tuple[Manifest, ...] = ()
    foreign: tuple[Manifest, ...] = ()
    routes: tuple[Manifest, ...] = ()
    verdicts: tuple[MetricVerdict, ...] = ()
    replay: Replay | None = None
    comparators: tuple[Manifest, ...] = ()
    autoscalers: tuple[Manifest, ...] = ()
    has_keda: bool = False
    claim_templates: tuple[Manifest, ...] = ()
    nodes: tuple[Manifest, ...] | None = None
    neighbours: tuple[Manifest, ...] = ()


@dataclass(frozen=True, slots=True)
class ArtifactSnapshot:
    """A ModelArtifact, its Jobs, their pods, and the warnings that the Job controller left when it could not make a pod."""

    resource: Manifest
    jobs: tuple[Manifest, ...] = ()
    pods: tuple[Manifest, ...] = ()
    job_warnings: tuple[str, ...] = ()


Snapshot = DeploymentSnapshot | ArtifactSnapshot


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """The address of one object in the cluster."""

    api_version: str
    kind: str
    namespace: str | None
    name: str


@dataclass(frozen=True, slots=True)
class Event:
    """A Kubernetes Event about the resource; equal events are aggregated by the recorder."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What should be done, in this order: apply, delete, write the status (None: leave it), record the events.

    `apply` are complete desired objects for server-side apply; those that need no change are already left out.
    An object whose `metadata.resourceVersion` is set is applied only to that version. `requeue_after` is in seconds. `notifications` are
    for the webhook, if there is one.
    """

    apply: tuple[Manifest, ...] = ()
    delete: tuple[ObjectRef, ...] = ()
    status: Manifest | None = None
    events: tuple[Event, ...] = ()
    notifications: tuple[Notification, ...] = ()
    requeue_after: float | None = None
