"""The status of a ModelDeployment: conditions, the stable and the coming revision, history; one place per condition.

Pure. What a user reads first is `Ready`: True when the spec is served in full, else its reason is THE one thing in the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from slipway import names
from slipway.api.conditions import blocking_message, format_time, get_condition, remove_condition, set_condition
from slipway.api.reasons import REASONS, Reason
from slipway.plan.diagnose import Problem
from slipway.plan.objects import annotation, condition, is_true, label, name_of, status_of
from slipway.plan.revisions import is_complete, ready_replicas, remembered, rollout_row
from slipway.plan.rollout import Observed, Phase, Plan, Policy, Rollout, is_given_up, needs_shadow, needs_stable
from slipway.snapshot import Event, Manifest
from slipway.verdict import history, open_points

Status = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Facts:
    """What the status is computed from, besides the resource."""

    plan: Plan
    seen: Observed
    policy: Policy
    deployments: Mapping[str, Manifest]  # by revision
    artifact: Manifest | None  # of the target revision
    artifact_name: str
    target_problem: Problem | None = None
    stable_problem: Problem | None = None
    stopper: Problem | None = None  # something that keeps us from making objects at all
    shares: Mapping[str, int] = field(default_factory=dict)  # the traffic that each revision really gets, in percent
    history_limit: int = 5
    shadow: tuple[bool, Problem] | None = None  # whether users' requests can be compared; None when that is not wanted
    experiments: tuple[bool, Problem] | None = None  # whether their users are pinned; None when there are none
    autoscaling: tuple[bool, Problem] | None = None  # whether the load decides about the number of pods; None when that is not wanted
    is_asleep: bool = False  # the autoscaler took the last pod of stable

    @property
    def target(self) -> str:
        """The revision that the spec asks for."""
        return self.seen.target

    @property
    def replicas(self) -> int:
        """How many pods should serve."""
        return self.seen.replicas

    @property
    def stable(self) -> str | None:
        """The revision that serves after this pass."""
        return self.plan.stable


def artifact_state(artifact: Manifest | None) -> tuple[bool, Problem]:
    """Return whether the artifact is ready, and its Ready reason and message."""
    found = condition(artifact, "Ready") if artifact is not None else None
    if found is None:
        return False, Problem(Reason.PENDING, "the ModelArtifact was made; its conversion has not started yet")
    problem = Problem(Reason(found["reason"]), found.get("message", ""))
    return found.get("status") == "True", problem


def is_settled(facts: Facts) -> bool:
    """Say whether the target is stable and at its full size, or needs no pods at the moment."""
    return facts.stable == facts.target and (facts.is_asleep or is_complete(facts.deployments.get(facts.target), facts.replicas))


def blocking(facts: Facts) -> Problem:
    """Return the one thing that stands between the present state and Ready."""
    if facts.stopper is not None:
        return facts.stopper
    if is_settled(facts) and facts.is_asleep:
        return _sleep(facts)
    if is_settled(facts):
        return Problem(Reason.READY, f"revision {facts.target} serves with {facts.replicas} replicas")
    rollout = facts.plan.rollout
    if rollout is not None and rollout.fault is not None:
        return Problem(rollout.fault.reason, rollout.fault.message)
    is_ready, artifact = artifact_state(facts.artifact)
    if facts.target not in facts.deployments and not is_ready:
        return artifact
    return facts.target_problem or _progress(facts)


def _sleep(facts: Facts) -> Problem:
    return Problem(
        Reason.SCALED_TO_ZERO, f"revision {facts.stable} gets a pod as soon as somebody wants it: autoscaling.activationQuery is 0"
    )


def _progress(facts: Facts) -> Problem:
    """Return where a rollout stands that nothing is wrong with."""
    rollout, policy = facts.plan.rollout, facts.policy
    if policy.is_paused and rollout is not None:
        return Problem(Reason.ROLLOUT_PAUSED, f"revision {facts.target} waits at {rollout.weight} % of the traffic: spec.paused is true")
    if rollout is not None and rollout.phase is Phase.PAUSED:
        return Problem(Reason.ROLLOUT_PAUSED, f"{_step(facts, rollout)}; it waits to be promoted")
    if rollout is not None and rollout.phase is Phase.SHADOWING:
        return Problem(Reason.PROGRESSING, _shadow(facts) + _waits_for(facts))
    if rollout is not None and rollout.phase is Phase.PROGRESSING:
        return Problem(Reason.PROGRESSING, _step(facts, rollout) + _waits_for(facts))
    wanted = facts.plan.sizes.get(facts.target, facts.replicas)
    ready, replay = ready_replicas(facts.deployments.get(facts.target)), facts.seen.replay
    is_ready = rollout is not None and ready >= wanted and replay.verdict in ("Pass", "Skipped")
    other = _other_pod(facts, rollout, is_ready=is_ready) if rollout is not None else None
    if other is not None:
        return Problem(Reason.PROGRESSING, f"{ready} of {wanted} pods of revision {facts.target} are ready; waits for {other}")
    is_waiting = rollout is not None and rollout.weight == 0 and ready >= wanted and replay.verdict in ("Pending", "Inconclusive")
    more = f"; waits for the replay of its golden inputs{': ' if replay.message else ''}{replay.message}" if is_waiting else ""
    return Problem(Reason.PROGRESSING, f"{ready} of {wanted} pods of revision {facts.target} are ready{more}")


def _other_pod(facts: Facts, rollout: Rollout, *, is_ready: bool) -> str | None:
    """Return the pod, not the target's own, that a rollout waits for."""
    if facts.seen.is_stable_waking and needs_stable(rollout, facts.policy):
        return f"a pod of {facts.stable}, which had none"
    return "the comparator's pod" if is_ready and needs_shadow(rollout, facts.policy) and not facts.seen.has_comparator else None


def _step(facts: Facts, rollout: Rollout) -> str:
    return f"step {rollout.step + 1} of {len(facts.policy.steps)}: revision {facts.target} gets {rollout.weight} % of the traffic"


def _shadow(facts: Facts) -> str:
    return f"revision {facts.target} answers copies of requests, and its answers are compared with those of {facts.stable}"


def _waits_for(facts: Facts) -> str:
    """Return what the analysis still asks for; nothing when it passes, or need not."""
    open_ones = open_points(facts.seen.verdicts) if facts.policy.interval is not None and facts.policy.needs_pass else ""
    return f"; not passed yet: {open_ones}" if open_ones else ""


def rollout_events(resource: Manifest, facts: Facts) -> tuple[Event, ...]:
    """Return what happened to the rollout in this pass: a new weight, the takeover. A wait or a failure is what blocks."""
    before, after = remembered(resource, facts.policy), facts.plan.rollout
    if facts.stable is not None and facts.seen.stable not in (None, facts.stable):
        return (Event("Normal", str(Reason.AVAILABLE), f"revision {facts.stable} took over from {facts.seen.stable}"),)
    if after is None or after.fault is not None:
        return ()
    known = (before.phase, before.weight) if before is not None and before.revision == after.revision else (None, 0)
    if known == (after.phase, after.weight):
        return ()
    if after.phase not in (Phase.PROGRESSING, Phase.SHADOWING):
        return ()
    return (Event("Normal", str(Reason.PROGRESSING), _shadow(facts) if after.phase is Phase.SHADOWING else _step(facts, after)),)


def deployment_status(resource: Manifest, facts: Facts, now: datetime) -> Status:
    """Return the whole status; fields that have no value are absent."""
    before = status_of(resource)
    name, namespace = name_of(resource), resource["metadata"]["namespace"]
    stable = facts.deployments.get(facts.stable or "")
    values: Status = {
        "observedGeneration": resource["metadata"].get("generation", 1),
        "conditions": _conditions(resource, facts, now),
        "url": names.stable_url(name, namespace) if facts.stable else None,
        "replicas": int(status_of(stable).get("replicas", 0)) if stable is not None else 0,
        "selector": f"{names.DEPLOYMENT}={name},{names.REVISION}={facts.stable or facts.target}",
        "stable": _stable(before, facts, now),
        "canary": _coming(before, facts),
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
    is_terminal = fails and (not cause.is_retried or is_given_up(facts.plan))
    return [
        ("Ready", settled, cause),
        ("ArtifactReady", is_artifact_ready, artifact),
        ("Available", *_availability(facts)),
        ("Progressing", not settled and not fails, Problem(Reason.UP_TO_DATE, "the spec is served") if settled else cause),
        ("Degraded", fails, cause if fails else Problem(Reason.UP_TO_DATE, "nothing is wrong")),
        ("Reconciling", None if settled or is_terminal else True, cause),
        ("Stalled", True if is_terminal else None, cause),
        ("Shadow", *(facts.shadow or (None, cause))),
        ("Experiments", *(facts.experiments or (None, cause))),
        ("Autoscaling", *(facts.autoscaling or (None, cause))),
    ]


def _availability(facts: Facts) -> tuple[bool, Problem]:
    stable = facts.deployments.get(facts.stable or "")
    ready = ready_replicas(stable)
    if facts.is_asleep:
        return True, _sleep(facts)
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
    Reason.ROLLOUT_PAUSED,
    Reason.SCALED_TO_ZERO,
}


def is_failure(reason: Reason) -> bool:
    """Say whether a reason means that something is wrong, not only unfinished."""
    return reason in REASONS and reason not in _NO_FAILURE


def _stable(before: Mapping[str, Any], facts: Facts, now: datetime) -> Status | None:
    if facts.stable is None:
        return None
    rollout = facts.plan.rollout
    values = _revision(facts, facts.stable, weight=100 - (rollout.weight if rollout is not None else 0))
    recorded = before.get("stable") or {}
    is_same = recorded.get("revision") == facts.stable and recorded.get("since")
    since = recorded["since"] if is_same else (format_time(now) if values["readyReplicas"] > 0 else None)
    return values | ({"since": since} if since else {})


def _coming(before: Mapping[str, Any], facts: Facts) -> Status | None:
    if facts.target == facts.stable:
        return None
    rollout = facts.plan.rollout
    row = {"artifact": facts.artifact_name} | _revision(facts, facts.target, weight=0)
    return row | ({} if rollout is None else rollout_row(rollout, facts.policy)) | _measured(before.get("canary") or {}, facts)


def _measured(before: Mapping[str, Any], facts: Facts) -> Status:
    """Return the last evaluation and those before it; they stay, as evidence, when there is no new one.

    When no verdict is asked for, an evaluation is written down only if it changes one: a canary that waits for days is quiet.
    """
    if before.get("revision") != facts.target:
        return {}  # a revision that has no row yet was not measured either
    is_measured = before.get("weight") or before.get("phase") == Phase.SHADOWING
    since = before.get("stepStartedAt") if is_measured else None
    verdicts = [v for v in facts.seen.verdicts if since is not None and v.at > datetime.fromisoformat(since)]
    known: Status = {key: before[key] for key in ("metrics", "evaluations") if key in before}
    is_same = [(row["name"], row["verdict"]) for row in known.get("metrics", ())] == [(v.name, v.verdict) for v in verdicts]
    if not verdicts or (is_same and not facts.policy.needs_pass):
        return known
    return {"metrics": [v.as_status() for v in verdicts], "evaluations": history(verdicts, known.get("evaluations", ()))}


def _revision(facts: Facts, revision: str, *, weight: int) -> Status:
    deployment, rollout = facts.deployments.get(revision), facts.plan.rollout
    values: Status = {"revision": revision, "readyReplicas": ready_replicas(deployment), "weight": weight}
    if rollout is not None and rollout.weight > 0:
        values["share"] = facts.shares.get(revision)
    if deployment is not None:
        values |= {
            "artifact": label(deployment, names.ARTIFACT),
            "digest": annotation(deployment, names.DIGEST),
            "format": annotation(deployment, names.FORMAT),
        }
    return {key: value for key, value in values.items() if value is not None}


def _history(before: Mapping[str, Any], facts: Facts, now: datetime) -> list[Status]:
    """Put what ended in this pass in front: a revision that was replaced, given up, or overtaken before it served."""
    entries, rollout = list(before.get("history") or ()), facts.plan.rollout
    coming, served = before.get("canary") or {}, before.get("stable") or {}
    was_given_up = coming.get("phase") == Phase.ROLLED_BACK
    if coming.get("revision") not in (None, facts.target, facts.stable) and not was_given_up:
        failure = before.get("lastFailure") or {}
        has_failed = failure.get("revision") == coming["revision"]
        outcome, reason = ("Failed", failure.get("reason")) if has_failed else ("Superseded", str(Reason.REVISION_SUPERSEDED))
        entries.insert(0, _ended(coming, outcome, str(reason), now))
    if rollout is not None and is_given_up(facts.plan) and not (was_given_up and coming.get("revision") == rollout.revision):
        reason = str(rollout.fault.reason) if rollout.fault is not None else ""
        entries.insert(0, _ended(_revision(facts, rollout.revision, weight=0), "RolledBack", reason, now))
    if served.get("since") is not None and served["revision"] != facts.stable:
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
    return {**own, **shared, "revision": facts.target}


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
