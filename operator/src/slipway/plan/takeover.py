"""Which revision serves, which comes up, and how large each should be. Pure.

The stable Service's selector is the record of which revision is stable: one write moves the traffic, and a crash before or after it
leaves nothing half done. A new revision takes over only at its full size; the old one keeps running for `drain_seconds` after that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from slipway import names
from slipway.plan.objects import label, name_of, status_of
from slipway.snapshot import Config, DeploymentSnapshot, Manifest


@dataclass(frozen=True, slots=True)
class Revisions:
    """The revisions of a ModelDeployment: `target` is what the spec asks for, `stable` gets the traffic after this pass."""

    target: str
    stable: str | None
    previous: str | None  # stable before this pass, when it changes now
    since: datetime | None  # when `stable` became stable
    by_name: Mapping[str, Manifest]  # the Deployments there are


def stable_of(snapshot: DeploymentSnapshot) -> str | None:
    """Return the revision that the stable Service selects, or None before there is one."""
    name = name_of(snapshot.resource)
    service = next((s for s in snapshot.services if name_of(s) == name), None)
    return None if service is None else service["spec"].get("selector", {}).get(names.REVISION)


def ready_replicas(deployment: Manifest | None) -> int:
    """Return how many pods are ready."""
    return int(status_of(deployment).get("readyReplicas", 0)) if deployment is not None else 0


def is_complete(deployment: Manifest | None, replicas: int) -> bool:
    """Say whether the Deployment has been seen by its controller and all its pods are available."""
    if deployment is None:
        return False
    status = status_of(deployment)
    is_seen = status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 1)
    is_sized = deployment["spec"].get("replicas", 1) == replicas and status.get("replicas", 0) == replicas
    return bool(is_seen and is_sized and status.get("availableReplicas", 0) >= replicas)


def revisions(snapshot: DeploymentSnapshot, target: str, replicas: int, now: datetime) -> Revisions:
    """Decide which revision is stable: the target once it is complete, until then the one that was, or none has ever served."""
    by_name = {name_of(d): d for d in snapshot.deployments}
    current, recorded = stable_of(snapshot), status_of(snapshot.resource).get("stable") or {}
    has_served = recorded.get("revision") == current and recorded.get("since") is not None
    is_serving = ready_replicas(by_name.get(current or "")) > 0
    moves = current is not None and current != target and (is_complete(by_name.get(target), replicas) or not (has_served or is_serving))
    # no Service yet although there is a Deployment: the operator died between the two
    stable = target if (moves or current is None) and target in by_name else current
    return Revisions(
        target=target,
        stable=stable,
        previous=current if stable != current else None,
        since=_since(recorded, stable, by_name, now),
        by_name=by_name,
    )


def _since(recorded: Mapping[str, Any], stable: str | None, by_name: Mapping[str, Manifest], now: datetime) -> datetime | None:
    if stable is None:
        return None
    if recorded.get("revision") == stable and recorded.get("since"):
        return datetime.fromisoformat(recorded["since"])
    return now if ready_replicas(by_name.get(stable)) > 0 else None


def sizes(found: Revisions, replicas: int, now: datetime, config: Config) -> dict[str, int]:
    """Return the size of each revision's Deployment: full for stable and target, the present one while it drains, else none."""
    drains = found.since is not None and (now - found.since).total_seconds() < config.drain_seconds
    result = {}
    for name, deployment in found.by_name.items():
        if name in (found.stable, found.target):
            result[name] = replicas
        else:
            result[name] = int(deployment["spec"].get("replicas", 1)) if drains else 0
    return result


def drain_left(found: Revisions, now: datetime, config: Config) -> float | None:
    """Return the seconds until old revisions may stop, or None when none runs."""
    runs = any(d["spec"].get("replicas", 1) for name, d in found.by_name.items() if name not in (found.stable, found.target))
    if not runs or found.since is None:
        return None
    return max(config.drain_seconds - (now - found.since).total_seconds(), 0.0)


def surplus(found: Revisions, history: Sequence[Mapping[str, Any]], limit: int) -> tuple[str, ...]:
    """Return the stopped revisions beyond the history limit, those that served longest ago first."""
    rank = {entry["revision"]: index for index, entry in reversed(list(enumerate(history)))}
    stopped = [
        name
        for name, deployment in found.by_name.items()
        if name not in (found.stable, found.target) and deployment["spec"].get("replicas", 1) == 0
    ]
    # most recent first: by place in the history (newest first there), then by age
    kept_first = sorted(stopped, key=lambda n: str(found.by_name[n]["metadata"].get("creationTimestamp", "")), reverse=True)
    kept_first.sort(key=lambda n: rank.get(n, len(history)))
    return tuple(kept_first[limit:])


def pods_of(snapshot: DeploymentSnapshot, revision: str) -> tuple[Manifest, ...]:
    """Return the pods of one revision."""
    return tuple(pod for pod in snapshot.pods if label(pod, names.REVISION) == revision)
