"""What is measured of a rollout, and where: from a ModelDeployment to the plain values that the analysis works on. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from slipway import names
from slipway.analysis.verdict import MetricSpec, metric_specs
from slipway.api.analysis import Analysis
from slipway.api.common import parse_duration
from slipway.plan.objects import annotation, label, name_of, status_of
from slipway.plan.revisions import pods_of
from slipway.snapshot import DeploymentSnapshot, Manifest
from slipway.verdict import Replay

DISAGREEMENT = "shadow-disagreement"


@dataclass(frozen=True, slots=True)
class Subject:
    """One step of one rollout, and what it is held against; `interval` in seconds."""

    canary: str
    stable: str
    since: datetime
    interval: int
    minimum_requests: int
    specs: tuple[MetricSpec, ...]
    probes: bool = False  # whether golden inputs are sent while nothing but requests is lacking
    comparator: str | None = None  # while there is no weight: who compares answers to copies of requests


def subject_of(resource: Manifest) -> Subject | None:
    """Return what is to be measured now, or None when the status tells of no canary with a weight or under comparison.

    Steps without `analysis` are measured too, by the default metrics: only a Fail counts then (`Policy.needs_pass`).
    """
    rollout, status = resource["spec"].get("rollout") or {}, status_of(resource)
    canary, stable = status.get("canary") or {}, (status.get("stable") or {}).get("revision")
    is_off = resource["metadata"].get("deletionTimestamp") or annotation(resource, names.RECONCILE) == "disabled"
    is_shadowed = canary.get("phase") == "Shadowing" and rollout.get("shadow") is not None
    is_measured = (canary.get("weight") or is_shadowed) and canary.get("stepStartedAt")
    if is_off or not rollout.get("steps") or not is_measured or stable is None:
        return None
    analysis = Analysis.model_validate(rollout.get("analysis") or {})
    since, interval = datetime.fromisoformat(canary["stepStartedAt"]), parse_duration(analysis.interval)
    probes = analysis.on_insufficient_traffic == "Probe"
    if is_shadowed:
        specs, name = (shadow_spec(rollout["shadow"]),), names.shadow_name(name_of(resource), stable, canary["revision"])
        return Subject(canary["revision"], stable, since, interval, analysis.minimum_requests, specs, probes, name)
    return Subject(canary["revision"], stable, since, interval, analysis.minimum_requests, metric_specs(analysis), probes)


def shadow_spec(shadow: Mapping[str, Any]) -> MetricSpec:
    """Return the limit of `rollout.shadow`: the share of requests that both revisions may answer differently."""
    return MetricSpec(DISAGREEMENT, maximum=1 - int(shadow.get("minTop1AgreementPercent", 99)) / 100)


def comparator_urls(snapshot: DeploymentSnapshot, comparator: str) -> Iterator[tuple[str, str]]:
    """Return uid and base address of each pod of a comparator that has started."""
    for pod in snapshot.pods:
        status = status_of(pod)
        if label(pod, names.COMPARES) == comparator and not pod["metadata"].get("deletionTimestamp") and status.get("podIP"):
            said: dict[str, Any] = next((c for c in status.get("containerStatuses") or () if c["name"] == names.COMPARATOR), {})
            if said.get("ready", False):
                address = f"[{status['podIP']}]" if ":" in status["podIP"] else status["podIP"]
                yield str(pod["metadata"]["uid"]), f"http://{address}:{_port(pod['spec']['containers'][0])}"


def replayed_revision(resource: Manifest) -> str | None:
    """Return the revision whose golden inputs are to be replayed now: one that comes, has no traffic yet, and was not given up."""
    canary, is_off = status_of(resource).get("canary") or {}, resource["metadata"].get("deletionTimestamp")
    is_off = is_off or annotation(resource, names.RECONCILE) == "disabled"
    is_stepwise = (resource["spec"].get("rollout") or {}).get("strategy", "Canary") in ("Canary", "BlueGreen")
    if is_off or "rollout" not in resource["spec"] or not is_stepwise or canary.get("weight") or canary.get("phase") == "RolledBack":
        return None
    return canary.get("revision")


def replays(snapshot: DeploymentSnapshot, revision: str) -> bool:
    """Say whether the server of the revision can replay golden inputs; by its Deployment, which is there before its pods."""
    deployment = next((d for d in snapshot.deployments if name_of(d) == revision), None)
    server = _server(deployment["spec"]["template"]) if deployment is not None else None
    return server is not None and bool(_runtime(snapshot, server).get("replay"))


def replay_of(snapshot: DeploymentSnapshot, revision: str) -> Replay:
    """Return what the replay of the revision's golden inputs says; Skipped when its server has no such thing."""
    return (snapshot.replay or Replay("Pending")) if replays(snapshot, revision) else Replay()


def probe_urls(snapshot: DeploymentSnapshot, revision: str) -> Iterator[tuple[str, str]]:
    """Return uid and address for probes of each pod of a revision whose server has started and can replay golden inputs."""
    for uid, host, server in _started(snapshot, revision):
        if _runtime(snapshot, server).get("replay"):
            yield uid, f"http://{host}:{_port(server)}/v2/models/{name_of(snapshot.resource)}/infer"


def scrape_urls(snapshot: DeploymentSnapshot, revision: str) -> Iterator[tuple[str, str]]:
    """Return uid and address of the metrics of each pod of a revision whose server has started.

    One that is starting (again) counts nothing yet, and one that is being deleted may be gone by the time it is asked.
    """
    for uid, host, server in _started(snapshot, revision):
        yield uid, f"http://{host}:{_port(server, names.METRICS_PORT_NAME)}{_metrics_path(snapshot, server)}"


def metrics_pages(snapshot: DeploymentSnapshot, revision: str) -> Iterator[tuple[str, str, str]]:
    """Return uid, `pod:port` and path of the metrics of each pod of a revision whose server has started."""
    by_uid = {str(pod["metadata"]["uid"]): name_of(pod) for pod in pods_of(snapshot, revision)}
    for uid, address in scrape_urls(snapshot, revision):
        place, _, path = address.removeprefix("http://").partition("/")
        yield uid, f"{by_uid[uid]}:{place.rpartition(':')[2]}", f"/{path}"


def _started(snapshot: DeploymentSnapshot, revision: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Return uid, host and server container of each pod whose server has started."""
    for pod in pods_of(snapshot, revision):
        status, server = status_of(pod), _server(pod)
        if pod["metadata"].get("deletionTimestamp") or not status.get("podIP") or server is None:
            continue
        said: dict[str, Any] = next((c for c in status.get("containerStatuses") or () if c["name"] == names.SERVER), {})
        if said.get("started", said.get("ready", False)):
            host = f"[{status['podIP']}]" if ":" in status["podIP"] else status["podIP"]
            yield str(pod["metadata"]["uid"]), host, server


def _port(container: Mapping[str, Any], *wanted: str) -> int:
    """Return the first port of the container that has one of these names, in their order; `http` is always among them."""
    ports = {str(port.get("name")): int(port["containerPort"]) for port in container.get("ports") or ()}
    return next((ports[name] for name in (*wanted, names.PORT_NAME) if name in ports), 8080)


def _server(pod: Manifest) -> dict[str, Any] | None:
    return next((c for c in pod["spec"].get("containers") or () if c["name"] == names.SERVER), None)


def _runtime(snapshot: DeploymentSnapshot, server: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of the ServingRuntime of the container's image, empty when there is none."""
    for runtime in sorted(snapshot.runtimes, key=name_of):
        spec = runtime["spec"]
        formats = spec.get("formats") or ()
        if server.get("image") in {spec["image"], *(f.get(key) for f in formats for key in ("image", "acceleratorImage"))}:
            return dict(spec)
    return {}


def metrics_place(pod: Manifest, runtimes: Iterable[Manifest]) -> tuple[int, str] | None:
    """Return port and path of a pod's metrics, or None while its server has not started or when it is being deleted."""
    snapshot = DeploymentSnapshot({}, pods=(pod,), runtimes=tuple(runtimes))
    for _, _, server in _started(snapshot, str(label(pod, names.REVISION))):
        return _port(server, names.METRICS_PORT_NAME), _metrics_path(snapshot, server)
    return None


def _metrics_path(snapshot: DeploymentSnapshot, server: dict[str, Any]) -> str:
    return str((_runtime(snapshot, server).get("metrics") or {}).get("path", names.METRICS_PATH))
