"""What to do about a ModelArtifact: start an attempt, follow it, record its result, try again later or stop. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from slipway import names
from slipway.api.conditions import blocking_message, format_time, remove_condition, set_condition
from slipway.api.reasons import Reason
from slipway.plan.artifact import conversion_claims, conversion_job
from slipway.plan.diagnose import Problem, job_failure, job_progress, job_state, published, rejected
from slipway.plan.objects import condition, is_true, label, name_of, ref, status_of
from slipway.snapshot import ArtifactSnapshot, Config, Decision, Event, Manifest

FIRST_RETRY_SECONDS = 10
MAX_RETRY_SECONDS = 600


def retry_delay(uid: str, attempt: int) -> float:
    """Return the seconds to wait after the attempt-th failure: doubled each time, with up to 20 % that differ by resource.

    The jitter comes from a hash, since a decision must not be random.
    """
    fraction = hashlib.sha256(f"{uid}/{attempt}".encode()).digest()[0] / 255
    return min(FIRST_RETRY_SECONDS * 2.0 ** (attempt - 1), MAX_RETRY_SECONDS) * (1 + 0.2 * fraction)


def decide_artifact(snapshot: ArtifactSnapshot, now: datetime, config: Config) -> Decision:
    """Decide the next step for a ModelArtifact."""
    artifact, status = snapshot.resource, status_of(snapshot.resource)
    if artifact["metadata"].get("deletionTimestamp") or is_true(artifact, "Ready") or is_true(artifact, "Stalled"):
        return Decision()
    attempt = int(status.get("attempts", 0)) + 1
    job = next((j for j in snapshot.jobs if name_of(j) == names.job_name(name_of(artifact), attempt)), None)
    if job is None:
        return _start(snapshot, attempt, now, config)
    pods = [pod for pod in snapshot.pods if label(pod, "batch.kubernetes.io/job-name") == name_of(job)]
    state = job_state(job)
    if state == "Active":
        return _follow(artifact, job_progress(pods, snapshot.job_warnings), now)
    result = published(pods) if state == "Succeeded" else None
    if result is not None:
        return _succeed(artifact, result, config, now)
    lost = Problem(Reason.INTERNAL_ERROR, "the conversion ended well but its pod was removed before its result was read")
    return _fail(artifact, attempt, lost if state == "Succeeded" else job_failure(job, pods), rejected(pods), now)


def _start(snapshot: ArtifactSnapshot, attempt: int, now: datetime, config: Config) -> Decision:
    artifact = snapshot.resource
    retry_at = status_of(artifact).get("retryAt")
    if retry_at is not None and now < datetime.fromisoformat(retry_at):
        return Decision(requeue_after=(datetime.fromisoformat(retry_at) - now).total_seconds())
    waiting = Problem(Reason.PENDING, "the conversion Job was made; its pod is not there yet")
    first = _follow(artifact, waiting, now)
    return Decision(
        apply=tuple(o for o in (conversion_claims(artifact), conversion_job(artifact, attempt, config)) if o is not None),
        delete=tuple(ref(job) for job in snapshot.jobs),  # earlier attempts, kept for their logs until now
        status=first.status if attempt == 1 else None,  # a retry keeps showing why the last attempt failed until it knows better
    )


def _follow(artifact: Manifest, progress: Problem, now: datetime) -> Decision:
    conditions = _conditions(artifact, progress, now)
    conditions = remove_condition(conditions, "Stalled")
    conditions = set_condition(
        conditions,
        type="Reconciling",
        status=True,
        reason=progress.reason,
        message=progress.message,
        generation=_generation(artifact),
        now=now,
    )
    return _decision(artifact, {"conditions": conditions}, progress)


def _succeed(artifact: Manifest, result: Mapping[str, Any], config: Config, now: datetime) -> Decision:
    reason = Reason.CACHE_HIT if result.get("reason") == "CacheHit" else Reason.PUBLISHED
    message = f"{result.get('format')} artifact {result['artifactDigest']} is in the registry"
    conditions = _conditions(artifact, Problem(reason, message), now, is_ready=True)
    conditions = remove_condition(remove_condition(conditions, "Reconciling"), "Stalled")
    copied = {key: result[key] for key in _RESULT_FIELDS if result.get(key) is not None}
    values: dict[str, Any] = {
        **copied,
        "provenance": result.get("provenance"),
        "digest": result["artifactDigest"],
        "repository": f"{config.registry}/{artifact['metadata']['namespace']}",
        "cacheHit": reason is Reason.CACHE_HIT,
        "conditions": conditions,
        "retryAt": None,
        "lastFailure": None,
    }
    return _decision(artifact, values, Problem(reason, message))


_RESULT_FIELDS = ("sourceDigest", "contentKey", "format", "precision", "sizeBytes", "choice", "candidates", "signature", "tools")


def _fail(artifact: Manifest, attempt: int, problem: Problem, rows: Sequence[Mapping[str, Any]], now: datetime) -> Decision:
    conditions = _conditions(artifact, problem, now)
    values: dict[str, Any] = {"attempts": attempt, "lastFailure": problem.as_failure()} | ({"candidates": list(rows)} if rows else {})
    generation = _generation(artifact)
    if not problem.is_retried:
        conditions = remove_condition(conditions, "Reconciling")
        message = blocking_message(problem.reason, problem.message)
        conditions = set_condition(
            conditions, type="Stalled", status=True, reason=problem.reason, message=message, generation=generation, now=now
        )
        return _decision(artifact, values | {"conditions": conditions, "retryAt": None}, problem)
    delay = retry_delay(str(artifact["metadata"].get("uid", "")), attempt)
    retry_at = format_time(now + timedelta(seconds=delay))
    message = f"attempt {attempt} failed; the next one starts at {retry_at}"
    conditions = set_condition(
        conditions, type="Reconciling", status=True, reason=problem.reason, message=message, generation=generation, now=now
    )
    decision = _decision(artifact, values | {"conditions": conditions, "retryAt": retry_at}, problem)
    return Decision(status=decision.status, events=decision.events, requeue_after=delay)


def _conditions(artifact: Manifest, problem: Problem, now: datetime, *, is_ready: bool = False) -> list[dict[str, Any]]:
    message = problem.message if is_ready else blocking_message(problem.reason, problem.message)
    return set_condition(
        status_of(artifact).get("conditions") or (),
        type="Ready",
        status=is_ready,
        reason=problem.reason,
        message=message,
        generation=_generation(artifact),
        now=now,
    )


def _generation(artifact: Manifest) -> int:
    return int(artifact["metadata"].get("generation", 1))


def _decision(artifact: Manifest, values: Mapping[str, Any], problem: Problem) -> Decision:
    before = status_of(artifact)
    merged = {**before, **values, "observedGeneration": _generation(artifact)}
    after = {key: value for key, value in merged.items() if value is not None}
    return Decision(status=None if after == before else after, events=events_for(artifact, problem))


def events_for(resource: Manifest, problem: Problem) -> tuple[Event, ...]:
    """Return an Event when the Ready reason changes to one that users wait for or must act on; none for mere progress."""
    before = (condition(resource, "Ready") or {}).get("reason")
    if before == str(problem.reason) or problem.reason in _PROGRESS:
        return ()
    is_good = problem.reason in _GOOD
    message = problem.message if is_good else blocking_message(problem.reason, problem.message)
    return (Event("Normal" if is_good else "Warning", str(problem.reason), message),)


_GOOD = {Reason.PUBLISHED, Reason.CACHE_HIT, Reason.READY, Reason.SCALED_TO_ZERO}
_PROGRESS = {Reason.PENDING, Reason.FETCHING, Reason.CONVERTING, Reason.VALIDATING, Reason.PUBLISHING, Reason.PROGRESSING}
