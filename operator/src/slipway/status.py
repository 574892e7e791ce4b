"""The status of a ModelDeployment: conditions, the stable and the coming revision, history; one place per condition.

Pure. What a user reads first is `Ready`: True when the spec is served in full, else its reason is THE one thing in the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from slipway import names
from slipway.api.conditions import blocking_message, format_time, get_condition, remove_condition, set_condition
from slipway.api.reasons import REASONS, Reason
from slipway.plan.diagnose import Problem
from slipway.plan.objects import annotation, condition, is_true, label, name_of, status_of
from slipway.plan.takeover import Revisions, is_complete, ready_replicas
from slipway.snapshot import Manifest

Status = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Facts:
    """What the status is computed from, besides the resource."""

    found: Revisions
    replicas: int
    artifact: Manifest | None  # of the target revision
    artifact_name: str
    target_problem: Problem | None = None
    stable_problem: Problem | None = None
    stopper: Problem | None = None  # something that keeps us from making objects at all
    history_limit: int = 5


def artifact_state(artifact: Manifest | None) -> tuple[bool, Problem]:
    """Return whether the artifact is ready, and its Ready reason and message."""
    found = condition(artifact, "Ready") if artifact is not None else None
    if found is None:
        return False, Problem(Reason.PENDING, "the ModelArtifact was made; its conversion has not started yet")
    problem = Problem(Reason(found["reason"]), found.get("message", ""))
    return found.get("status") == "True", problem


def is_settled(facts: Facts) -> bool:
    """Say whether the target is stable and at its full size."""
    found = facts.found
    return found.stable == found.target and is_complete(found.by_name.get(found.target), facts.replicas)


def blocking(facts: Facts) -> Problem:
    """Return the one thing that stands between the present state and Ready."""
    if facts.stopper is not None:
        return facts.stopper
    if is_settled(facts):
        return Problem(Reason.READY, f"revision {facts.found.target} serves with {facts.replicas} replicas")
    is_ready, artifact = artifact_state(facts.artifact)
    if facts.found.target not in facts.found.by_name and not is_ready:
        return artifact
    if facts.target_problem is not None:
        return facts.target_problem
    ready = ready_replicas(facts.found.by_name.get(facts.found.target))
    return Problem(Reason.PROGRESSING, f"{ready} of {facts.replicas} pods of revision {facts.found.target} are ready")


def deployment_status(resource: Manifest, facts: Facts, now: datetime) -> Status:
    """Return the whole status; fields that have no value are absent."""
    before, found = status_of(resource), facts.found
    name, namespace = name_of(resource), resource["metadata"]["namespace"]
    stable = found.by_name.get(found.stable or "")
    values: Status = {
        "observedGeneration": resource["metadata"].get("generation", 1),
        "conditions": _conditions(resource, facts, now),
        "url": names.stable_url(name, namespace) if found.stable else None,
        "replicas": int(status_of(stable).get("replicas", 0)) if stable is not None else 0,
        "selector": f"{names.DEPLOYMENT}={name},{names.REVISION}={found.stable or found.target}",
        "stable": _stable(facts),
        "canary": _coming(facts),
        "history": _history(before, facts, now),
        "lastFailure": _last_failure(before, facts),
        "model": _observed_model(facts.artifact) or before.get("model"),
    }
    return {key: value for key, value in values.items() if value is not None and value != []}


def _conditions(resource: Manifest, facts: Facts, now: datetime) -> list[dict[str, Any]]:
    generation = int(resource["metadata"].get("generation", 1))
    conditions = list(status_of(resource).get("conditions") or ())
    for kind, value, problem in _condition_rows(facts):
        if value is None:
            conditions = remove_condition(conditions, kind)
            continue
        message = blocking_message(problem.reason, problem.message)
        conditions = set_condition(
            conditions, type=kind, status=value, reason=problem.reason, message=message, generation=generation, now=now
        )
    return conditions


def _condition_rows(facts: Facts) -> list[tuple[str, bool | None, Problem]]:
    cause, settled = blocking(facts), is_settled(facts)
    is_artifact_ready, artifact = artifact_state(facts.artifact)
    fails = is_failure(cause.reason)
    is_terminal = fails and not cause.is_retried
    return [
        ("Ready", settled, cause),
        ("ArtifactReady", is_artifact_ready, artifact),
        ("Available", *_availability(facts)),
        ("Progressing", not settled and not fails, Problem(Reason.UP_TO_DATE, "the spec is served") if settled else cause),
        ("Degraded", fails, cause if fails else Problem(Reason.UP_TO_DATE, "nothing is wrong")),
        ("Reconciling", None if settled or is_terminal else True, cause),
        ("Stalled", True if is_terminal else None, cause),
    ]


def _availability(facts: Facts) -> tuple[bool, Problem]:
    stable = facts.found.by_name.get(facts.found.stable or "")
    ready = ready_replicas(stable)
    if stable is not None and (ready > 0 or facts.replicas == 0):
        return True, Problem(Reason.AVAILABLE, f"revision {name_of(stable)} answers from {ready} of {facts.replicas} pods")
    if facts.stable_problem is not None:
        return False, facts.stable_problem
    return False, blocking(facts) if not is_settled(facts) else Problem(Reason.PROGRESSING, "no pod is ready yet")


_NO_FAILURE = {
    Reason.PENDING,
    Reason.FETCHING,
    Reason.CONVERTING,
    Reason.VALIDATING,
    Reason.PUBLISHING,
    Reason.PUBLISHED,
    Reason.CACHE_HIT,
    Reason.READY,
    Reason.AVAILABLE,
    Reason.PROGRESSING,
    Reason.UP_TO_DATE,
    Reason.ARTIFACT_READY,
    Reason.RECONCILE_DISABLED,
}


def is_failure(reason: Reason) -> bool:
    """Say whether a reason means that something is wrong, not only unfinished."""
    return reason in REASONS and reason not in _NO_FAILURE


def _stable(facts: Facts) -> Status | None:
    found = facts.found
    if found.stable is None:
        return None
    values = _revision(found.by_name.get(found.stable), found.stable, weight=100)
    return values | ({"since": format_time(found.since)} if found.since else {})


def _coming(facts: Facts) -> Status | None:
    found = facts.found
    if found.target == found.stable:
        return None
    return {"artifact": facts.artifact_name} | _revision(found.by_name.get(found.target), found.target, weight=0)


def _revision(deployment: Manifest | None, revision: str, *, weight: int) -> Status:
    values: Status = {"revision": revision, "readyReplicas": ready_replicas(deployment), "weight": weight}
    if deployment is not None:
        values |= {
            "artifact": label(deployment, names.ARTIFACT),
            "digest": annotation(deployment, names.DIGEST),
            "format": annotation(deployment, names.FORMAT),
        }
    return {key: value for key, value in values.items() if value is not None}


def _history(before: Mapping[str, Any], facts: Facts, now: datetime) -> list[Status]:
    """Put what ended in this pass in front: a revision that was replaced, or one that was given up before it served."""
    entries, found = list(before.get("history") or ()), facts.found
    coming, served = before.get("canary") or {}, before.get("stable") or {}
    if coming.get("revision") not in (None, found.target, found.stable):
        failure = before.get("lastFailure") or {}
        has_failed = failure.get("revision") == coming["revision"]
        outcome, reason = ("Failed", failure.get("reason")) if has_failed else ("Superseded", str(Reason.REVISION_SUPERSEDED))
        entries.insert(0, _ended(coming, outcome, str(reason), now))
    if served.get("since") is not None and served["revision"] != found.stable:
        entries.insert(0, _ended(served, "Served", str(Reason.REVISION_SUPERSEDED), now))
    return entries[: max(facts.history_limit, 1)]


def _ended(revision: Mapping[str, Any], outcome: str, reason: str, now: datetime) -> Status:
    entry = {"revision": revision["revision"], "digest": revision.get("digest"), "outcome": outcome, "reason": reason}
    return {key: value for key, value in entry.items() if value} | {"finishedAt": format_time(now)}


def _observed_model(artifact: Manifest | None) -> Status | None:
    status = status_of(artifact) if artifact is not None else {}
    return {key: status[key] for key in ("sourceDigest", "signature") if key in status} or None


def _last_failure(before: Mapping[str, Any], facts: Facts) -> Status | None:
    cause = blocking(facts)
    if not is_failure(cause.reason):
        return None if is_settled(facts) else before.get("lastFailure")
    failure = dict(status_of(facts.artifact).get("lastFailure") or {}) if facts.artifact is not None else {}
    own = {key: value for key, value in cause.as_failure().items() if key != "container"}
    shared = {key: failure[key] for key in ("message", "exitCode") if failure.get("reason") == own["reason"] and key in failure}
    return {**own, **shared, "revision": facts.found.target}


def with_write_failure(resource: Manifest, reason: Reason, message: str, now: datetime) -> Status:
    """Return the present status with `Ready` telling that an object could not be written (quota, admission, RBAC)."""
    status = dict(status_of(resource))
    generation = int(resource["metadata"].get("generation", 1))
    conditions = status.get("conditions") or []
    if get_condition(conditions, "Ready") is not None and is_true(resource, "Ready"):
        return status
    text = blocking_message(reason, message)
    conditions = set_condition(conditions, type="Ready", status=False, reason=reason, message=text, generation=generation, now=now)
    return status | {"conditions": conditions}
