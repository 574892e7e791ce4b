"""What is measured of a rollout, and where: from a ModelDeployment to the plain values that the analysis works on. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from slipway import names
from slipway.analysis.verdict import MetricSpec, metric_specs
from slipway.api.analysis import Analysis
from slipway.api.common import parse_duration
from slipway.plan.objects import annotation, name_of, status_of
from slipway.plan.revisions import pods_of
from slipway.snapshot import DeploymentSnapshot, Manifest

METRICS_PATH = "/metrics"


@dataclass(frozen=True, slots=True)
class Subject:
    """One step of one rollout, and what it is held against; `interval` in seconds."""

    canary: str
    stable: str
    since: datetime
    interval: int
    minimum_requests: int
    specs: tuple[MetricSpec, ...]


def subject_of(resource: Manifest) -> Subject | None:
    """Return what is to be measured now, or None when the status tells of no canary with a weight.

    Steps without `analysis` are measured too, by the default metrics: only a Fail counts then (`Policy.needs_pass`).
    """
    rollout, status = resource["spec"].get("rollout") or {}, status_of(resource)
    canary, stable = status.get("canary") or {}, (status.get("stable") or {}).get("revision")
    is_off = resource["metadata"].get("deletionTimestamp") or annotation(resource, names.RECONCILE) == "disabled"
    if is_off or not rollout.get("steps") or not canary.get("weight") or not canary.get("stepStartedAt") or stable is None:
        return None
    analysis = Analysis.model_validate(rollout.get("analysis") or {})
    since, interval = datetime.fromisoformat(canary["stepStartedAt"]), parse_duration(analysis.interval)
    return Subject(canary["revision"], stable, since, interval, analysis.minimum_requests, metric_specs(analysis))


def scrape_urls(snapshot: DeploymentSnapshot, revision: str) -> Iterator[tuple[str, str]]:
    """Return uid and address of the metrics of each pod of a revision whose server has started.

    One that is starting (again) counts nothing yet, and one that is being deleted may be gone by the time it is asked.
    """
    for pod in pods_of(snapshot, revision):
        status, server = status_of(pod), _server(pod)
        if pod["metadata"].get("deletionTimestamp") or not status.get("podIP") or server is None:
            continue
        said: dict[str, Any] = next((c for c in status.get("containerStatuses") or () if c["name"] == names.SERVER), {})
        if said.get("started", said.get("ready", False)):
            address = f"[{status['podIP']}]" if ":" in status["podIP"] else status["podIP"]
            port = next((p["containerPort"] for p in server.get("ports") or () if p.get("name") == names.PORT_NAME), 8080)
            yield str(pod["metadata"]["uid"]), f"http://{address}:{port}{_metrics_path(snapshot, server)}"


def _server(pod: Manifest) -> dict[str, Any] | None:
    return next((c for c in pod["spec"].get("containers") or () if c["name"] == names.SERVER), None)


def _metrics_path(snapshot: DeploymentSnapshot, server: dict[str, Any]) -> str:
    """Return the path that the ServingRuntime of the container's image names."""
    for runtime in sorted(snapshot.runtimes, key=name_of):
        spec = runtime["spec"]
        if server.get("image") in {spec["image"], *(f.get("image") for f in spec.get("formats") or ())}:
            return str((spec.get("metrics") or {}).get("path", METRICS_PATH))
    return METRICS_PATH
