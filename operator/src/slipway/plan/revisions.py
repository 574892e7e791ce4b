"""What revisions there are: from a snapshot to the plain values that the state machine of `rollout.py` decides on. Pure.

The stable Service is the record of which revision is stable and whom it lets in besides: one write moves the traffic, and a crash before
or after it leaves nothing half done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from slipway import names
from slipway.api.common import parse_duration
from slipway.api.conditions import format_time, truncate
from slipway.api.reasons import Reason, reason_for_exit_code
from slipway.plan.diagnose import Problem, container_statuses, termination, workload_problem
from slipway.plan.objects import annotation, condition, label, name_of, status_of
from slipway.plan.rollout import Fault, Observed, Phase, Policy, Rollout, Side, Step, Strategy
from slipway.snapshot import DeploymentSnapshot, Manifest


def stable_service_of(snapshot: DeploymentSnapshot) -> Manifest | None:
    """Return the Service that users call, or None before there is one."""
    return next((s for s in snapshot.services if name_of(s) == name_of(snapshot.resource)), None)


def stable_of(service: Manifest | None) -> str | None:
    """Return the revision that the Service says is stable; one of an older operator says it by its selector alone."""
    if service is None:
        return None
    recorded = annotation(service, names.STABLE) or (service["spec"].get("selector") or {}).get(names.REVISION)
    return None if recorded is None else str(recorded)


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


def pods_of(snapshot: DeploymentSnapshot, revision: str) -> tuple[Manifest, ...]:
    """Return the pods of one revision."""
    return tuple(pod for pod in snapshot.pods if label(pod, names.REVISION) == revision)


def observe(snapshot: DeploymentSnapshot, target: str, replicas: int, now: datetime) -> Observed:
    """Return what the state machine needs to know of the cluster."""
    status = status_of(snapshot.resource)
    service, since = stable_service_of(snapshot), _moment((status.get("canary") or {}).get("stepStartedAt"))
    stable, recorded = stable_of(service), status.get("stable") or {}
    sides = {name_of(d): _side(d, pods_of(snapshot, name_of(d)), since) for d in snapshot.deployments}
    return Observed(
        target=target,
        replicas=replicas,
        stable=stable,
        since=_moment(recorded.get("since")) if recorded.get("revision") == stable else None,
        exposed=annotation(service, names.EXPOSED) if service is not None else None,
        previous=_previous(status, stable),
        sides=sides,
        left=_left(status, sides, None if recorded.get("revision") == stable else now),
        verdicts=snapshot.verdicts,
    )


def _previous(status: Mapping[str, Any], stable: str | None) -> str | None:
    """Return the revision that was stable before `stable`; the status may not tell of a young takeover yet."""
    recorded = (status.get("stable") or {}).get("revision")
    if recorded not in (None, stable):
        return str(recorded)
    return next((str(e["revision"]) for e in status.get("history") or () if e["outcome"] == "Served" and e["revision"] != stable), None)


def _left(status: Mapping[str, Any], revisions: Mapping[str, Side], taken: datetime | None) -> dict[str, datetime]:
    """Return when each revision lost its traffic, as far as it is known; the last takeover is the latest that it can be.

    `taken` is set when that takeover is so young that the status does not tell of it.
    """
    recorded = status.get("stable") or {}
    moments = {revision: (taken if recorded else None) or _moment(recorded.get("since")) for revision in revisions}
    for entry in reversed(status.get("history") or ()):
        if taken is None or entry["revision"] != recorded.get("revision"):
            moments[entry["revision"]] = _moment(entry.get("finishedAt"))
    return {revision: moment for revision, moment in moments.items() if moment is not None}


def _side(deployment: Manifest, pods: Sequence[Manifest], since: datetime | None) -> Side:
    size = int(deployment["spec"].get("replicas", 1))
    living = [pod for pod in pods if status_of(pod).get("phase") not in ("Succeeded", "Failed")]
    problem = _crash(pods, since) or workload_problem(deployment, pods)
    return Side(
        size=size,
        pods=max(int(status_of(deployment).get("replicas", 0)), len(living)),
        ready=ready_replicas(deployment),
        is_complete=is_complete(deployment, size),
        fault=None if problem is None else Fault(problem.reason, problem.message),
        is_late=(condition(deployment, "Progressing") or {}).get("reason") == "ProgressDeadlineExceeded",
    )


def _crash(pods: Sequence[Manifest], since: datetime | None) -> Problem | None:
    """Return that a server ended by itself since it has its weight, also when the new container is ready again."""
    for pod in sorted(pods, key=name_of):
        for status in container_statuses(pod):
            ended = (status.get("lastState") or {}).get("terminated") or {}
            moment = _moment(ended.get("finishedAt"))
            if status["name"] == names.SERVER and ended.get("exitCode") and since is not None and moment is not None and moment >= since:
                message, reason = f"ended with exit code {ended['exitCode']}", Reason.PODS_CRASHING
                if ended.get("reason") == "OOMKilled":
                    message, reason = "needed more memory than its limit", Reason.OUT_OF_MEMORY
                elif reason_for_exit_code(int(ended["exitCode"])) is Reason.MODEL_STUCK:
                    message, reason = f"was restarted: {termination(ended).get('message', '')}", Reason.MODEL_STUCK
                return Problem(reason, f"the server in pod {name_of(pod)} {message} after {status.get('restartCount', 1)} restarts")
    return None


def policy(resource: Manifest) -> Policy:
    """Return what the user wants of a rollout."""
    spec = resource["spec"]
    rollout: Mapping[str, Any] | None = spec.get("rollout")
    plain = Policy(
        has_gateway=bool((spec.get("routing") or {}).get("gateway")),
        is_paused=bool(spec.get("paused", False)),
        promote=annotation(resource, names.PROMOTE),
        abort=annotation(resource, names.ABORT),
    )
    if rollout is None:
        return plain
    analysis, steps, shadow = rollout.get("analysis"), rollout.get("steps") or (), rollout.get("shadow")
    return replace(
        plain,
        strategy=Strategy(rollout.get("strategy", Strategy.CANARY)),
        steps=tuple(Step(int(s["weight"]), parse_duration(s["duration"]) if s.get("duration") else None) for s in steps),
        keep=parse_duration(rollout["keepPrevious"]) if rollout.get("keepPrevious") and rollout.get("strategy") != "Recreate" else 0,
        shadow=parse_duration(shadow.get("duration", "1m")) if shadow is not None and steps else None,
        pauses_on_failure=rollout.get("onFailure") == "Pause",
        interval=parse_duration((analysis or {}).get("interval", "15s")) if steps else None,
        needs_pass=analysis is not None,
        needs_traffic=(analysis or {}).get("onInsufficientTraffic") != "Promote",
    )


def remembered(resource: Manifest, policy: Policy) -> Rollout | None:
    """Return the rollout that the status tells of, or None. What it does not say is as at the beginning."""
    row = status_of(resource).get("canary")
    if not row:
        return None
    reason, phase = row.get("reason"), Phase(row.get("phase", Phase.PREPARING))
    return Rollout(
        revision=row["revision"],
        phase=phase,
        step=len(policy.steps) if phase is Phase.PROMOTING else max(0, int(row.get("step", 1)) - 1),
        weight=int(row.get("weight", 0)),
        since=_moment(row.get("stepStartedAt")),
        fault=Fault(Reason(reason), row.get("message", "")) if reason in set(Reason) else None,
    )


def surplus(snapshot: DeploymentSnapshot, kept: Sequence[str | None], history: Sequence[Mapping[str, Any]], limit: int) -> tuple[str, ...]:
    """Return the stopped revisions beyond the history limit, those that served longest ago first."""
    rank = {entry["revision"]: index for index, entry in reversed(list(enumerate(history)))}
    by_name = {name_of(d): d for d in snapshot.deployments}
    stopped = [name for name, d in by_name.items() if name not in kept and d["spec"].get("replicas", 1) == 0]
    # most recent first: by place in the history (newest first there), then by age
    kept_first = sorted(stopped, key=lambda n: str(by_name[n]["metadata"].get("creationTimestamp", "")), reverse=True)
    kept_first.sort(key=lambda n: rank.get(n, len(history)))
    return tuple(kept_first[limit:])


def rollout_row(rollout: Rollout, policy: Policy) -> dict[str, Any]:
    """Return what `remembered` reads, as part of `status.canary`."""
    has_step = policy.steps and rollout.phase is not Phase.PROMOTING
    values = {
        "weight": rollout.weight,
        "phase": str(rollout.phase),
        "step": min(rollout.step + 1, len(policy.steps)) if has_step else None,
        "stepStartedAt": format_time(rollout.since) if rollout.since is not None else None,
        "reason": str(rollout.fault.reason) if rollout.fault is not None else None,
        "message": truncate(rollout.fault.message) if rollout.fault is not None else None,
    }
    return {key: value for key, value in values.items() if value is not None}


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
