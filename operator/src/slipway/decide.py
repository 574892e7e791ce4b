"""The one decision function: `decide(snapshot, now, config) -> Decision`.

No I/O, no clock, no randomness. Whatever the operator does to a cluster was returned from here, so every rollout, failure and recovery
is a row of a table test, and `slipway plan` shows what would happen by calling it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from slipway import names
from slipway.api.reasons import Reason
from slipway.plan import artifact as artifacts
from slipway.plan import autoscaler, autoscaling, experiments, gate, revisions, scarcity, shadow, traffic, workload
from slipway.plan.conversion import decide_artifact, events_for
from slipway.plan.diagnose import Problem, workload_problem
from slipway.plan.notices import notices
from slipway.plan.objects import annotation, changed, label, name_of, owner, ref, status_of
from slipway.plan.rollout import Observed, Plan, advance, is_given_up, may_be_made
from slipway.snapshot import ArtifactSnapshot, Config, Decision, DeploymentSnapshot, Event, Manifest, ObjectRef, Snapshot
from slipway.status import Facts, artifact_state, blocking, deployment_status, rollout_events

NOT_OURS_RETRY_SECONDS = 30.0


def decide(snapshot: Snapshot, now: datetime, config: Config) -> Decision:
    """Return everything that should be done about the snapshot's resource.

    Args:
        snapshot: the resource and what belongs to it.
        now: the present moment, with a time zone.
        config: the settings that shape objects.
    """
    if isinstance(snapshot, ArtifactSnapshot):
        return decide_artifact(snapshot, now, config)
    resource = snapshot.resource
    if resource["metadata"].get("deletionTimestamp") or annotation(resource, names.RECONCILE) == "disabled":
        return Decision()
    return _decide_deployment(snapshot, now, config)


@dataclass(frozen=True, slots=True)
class _Target:
    """What the spec asks for."""

    revision: str
    artifact_spec: Mapping[str, Any]
    artifact: str
    replicas: int


def _target(snapshot: DeploymentSnapshot, config: Config) -> _Target:
    spec = snapshot.resource["spec"]
    revision = names.revision_name(name_of(snapshot.resource), workload.revision_shape(spec))
    wanted = artifacts.artifact_spec(spec, config)
    existing = next((d for d in snapshot.deployments if name_of(d) == revision), None)
    # a revision keeps the artifact it was made with, also when a newer operator would convert with newer tools
    artifact = label(existing, names.ARTIFACT) if existing is not None else None
    return _Target(
        revision, wanted, artifact or names.artifact_name(wanted), autoscaling.replicas(snapshot.resource, _stable_deployment(snapshot))
    )


def _stable_deployment(snapshot: DeploymentSnapshot) -> Manifest | None:
    return _deployment(snapshot, revisions.stable_of(revisions.stable_service_of(snapshot)))


def _deployment(snapshot: DeploymentSnapshot, revision: str | None) -> Manifest | None:
    return next((d for d in snapshot.deployments if name_of(d) == revision), None)


def _decide_deployment(snapshot: DeploymentSnapshot, now: datetime, config: Config) -> Decision:
    resource, target = snapshot.resource, _target(snapshot, config)
    policy = revisions.policy(resource)
    seen = revisions.observe(snapshot, target.revision, target.replicas, now)
    has_comparator = shadow.is_ready(snapshot, seen.stable, target.revision)
    seen = replace(
        seen,
        replay=gate.replay_of(snapshot, target.revision),
        has_comparator=has_comparator,
        is_stable_waking=autoscaling.is_waking(snapshot, seen, config),
    )
    before = revisions.remembered(resource, policy)
    plan = advance(before, seen, policy, now, config.drain_seconds)
    artifact = snapshot.artifacts.get(target.artifact)
    runtime, stopper = _runtime(snapshot, target, artifact)
    stopper = _conflict(snapshot, target) or _route_problem(snapshot) or stopper
    limit = int(resource["spec"].get("revisionHistoryLimit", 5))
    is_new = runtime is not None and artifact is not None and may_be_made(plan)
    fresh = workload.revision_deployment(resource, target.revision, artifact, runtime, config) if is_new else None  # type: ignore[arg-type]
    teams = scarcity.Teams(plan.stable, target.revision, fresh)
    is_asleep = autoscaling.is_asleep(snapshot, _deployment(snapshot, plan.stable), config)
    held = autoscaling.held(resource, plan.sizes, _deployment(snapshot, plan.stable), asleep=is_asleep)
    sizes, problem = scarcity.fitted(snapshot, teams, {**plan.sizes, **held}, _problem(snapshot, target.revision))
    plan = replace(plan, sizes=sizes)
    scaled = _scaled(snapshot, plan, seen, held, config)
    facts = Facts(
        plan=plan,
        seen=seen,
        policy=policy,
        deployments={name_of(d): d for d in snapshot.deployments},
        artifact=artifact,
        artifact_name=target.artifact,
        target_problem=problem,
        stable_problem=_problem(snapshot, plan.stable),
        stopper=stopper,
        shares=traffic.real_shares(plan, seen.sides, _route(snapshot), name_of(resource), has_gateway=policy.has_gateway),
        history_limit=limit,
        shadow=shadow.condition(resource, policy),
        experiments=experiments.condition(resource, plan, target.revision, _experiments_route(snapshot)),
        autoscaling=autoscaler.status_of_scaling(snapshot, scaled, config),
        is_asleep=is_asleep,
    )
    status = deployment_status(resource, facts, now)
    doomed = revisions.surplus(snapshot, (plan.stable, target.revision), status.get("history", ()), limit)
    released, dropped = _release_artifacts(snapshot, target, doomed)
    desired = () if _conflict(snapshot, target) else _desired(snapshot, target, fresh, plan, scaled)
    scaler = () if _conflict(snapshot, target) else autoscaler.to_apply(snapshot, scaled, config)
    comparator = shadow.comparator_of(resource, plan, policy, list(seen.sides))
    if comparator is not None and not _conflict(snapshot, target):
        made = shadow.objects(resource, plan, snapshot.artifacts.get(target.artifact), config)
        desired = (*desired, *changed(made, (*snapshot.comparators, *snapshot.services)))
    return Decision(
        apply=(*_claim_artifact(snapshot, target), *scaler, *desired, *released),
        delete=(
            *_delete_revisions(snapshot, doomed),
            *_delete_routes(snapshot),
            *autoscaler.to_delete(snapshot, scaled, config),
            *_delete_comparators(snapshot, comparator),
            *dropped,
        ),
        status=None if status == status_of(resource) else status,
        events=_events(resource, facts),
        notifications=notices(resource, before, seen.stable, plan, status, now),
        requeue_after=NOT_OURS_RETRY_SECONDS if _conflict(snapshot, target) else plan.again,
    )


def _conflict(snapshot: DeploymentSnapshot, target: _Target) -> Problem | None:
    needed = {name_of(snapshot.resource), target.revision}
    other = next((o for o in snapshot.foreign if name_of(o) in needed), None)
    if other is None:
        return None
    return Problem(Reason.NAME_CONFLICT, f"{other['kind']} {name_of(other)} exists and belongs to somebody else")


def _route(snapshot: DeploymentSnapshot, kind: str = "HTTPRoute") -> Manifest | None:
    return next((r for r in snapshot.routes if (r["kind"], name_of(r)) == (kind, name_of(snapshot.resource))), None)


def _experiments_route(snapshot: DeploymentSnapshot) -> Manifest | None:
    return next((r for r in snapshot.routes if name_of(r) == names.experiments_route(name_of(snapshot.resource))), None)


def _route_problem(snapshot: DeploymentSnapshot) -> Problem | None:
    for kind in traffic.route_kinds(snapshot.resource):
        said = traffic.route_problem(_route(snapshot, kind))
        if said is not None:
            return Problem(Reason.ROUTE_REJECTED, f"the gateway does not take the {kind}: {said}")
    return None


def _runtime(snapshot: DeploymentSnapshot, target: _Target, artifact: Manifest | None) -> tuple[Manifest | None, Problem | None]:
    is_made = any(name_of(d) == target.revision for d in snapshot.deployments)
    if is_made or artifact is None or not artifact_state(artifact)[0]:
        return None, None
    fmt, wanted = status_of(artifact)["format"], (snapshot.resource["spec"].get("serving") or {}).get("runtime")
    runtime = workload.runtime_for(fmt, wanted, snapshot.runtimes)
    if runtime is not None:
        return runtime, None
    named = f"ServingRuntime {wanted} does not exist or does not claim" if wanted else "no ServingRuntime claims"
    return None, Problem(Reason.SERVING_RUNTIME_MISSING, f"{named} the format {fmt}")


def _problem(snapshot: DeploymentSnapshot, revision: str | None) -> Problem | None:
    deployment = next((d for d in snapshot.deployments if name_of(d) == revision), None)
    return None if deployment is None else workload_problem(deployment, revisions.pods_of(snapshot, name_of(deployment)))


def _desired(
    snapshot: DeploymentSnapshot, target: _Target, fresh: Manifest | None, plan: Plan, scaled: autoscaling.Scaled | None
) -> tuple[Manifest, ...]:
    """Return every object that should be written; `fresh` is the target's Deployment when it has none yet."""
    resource = snapshot.resource
    if plan.stable is None and fresh is not None:  # the first of all: its address is there before its pods are
        plan = replace(plan, stable=target.revision, weights={target.revision: 100})
    made = [workload.existing_deployment(resource, d) for d in snapshot.deployments]
    deployments = made if fresh is None else [dict(fresh), *made]
    objects: list[Manifest] = []
    for deployment in deployments:
        name = name_of(deployment)
        size = None if scaled is not None and name == scaled.revision else plan.sizes[name]
        objects.append(workload.with_scale(deployment, size, _role(name, plan, target.revision)))
        objects.append(traffic.revision_service(resource, name))
        claims = workload.revision_claims(resource, deployment)
        objects += [claims] if claims is not None else []
    has_gateway = revisions.policy(resource).has_gateway
    if plan.stable is not None:
        objects.append(traffic.stable_service(resource, plan, has_gateway=has_gateway))
    wanted = changed(objects, (*snapshot.deployments, *snapshot.services, *snapshot.claim_templates))
    kinds = traffic.route_kinds(resource) if plan.stable is not None else ()
    if plan.stable is not None and experiments.is_routed(resource):
        pinned = experiments.route(resource, plan, target.revision, _route(snapshot))
        wanted = (*wanted, *changed((pinned,), snapshot.routes))
    return (*wanted, *(manifest for kind in kinds for manifest in _changed_route(resource, snapshot, plan, kind)))


def _scaled(snapshot: DeploymentSnapshot, plan: Plan, seen: Observed, held: Mapping[str, int], config: Config) -> autoscaling.Scaled | None:
    """Return the revision that an autoscaler sizes, or None.

    None while a lack of accelerators bends the size of stable: the autoscaler would take back what the rollout needs. And none before a
    revision that may sleep has answered: KEDA would take its pod while the model is being loaded.
    """
    may_sleep = autoscaling.may_sleep(snapshot, config)
    has_answered = (plan.stable == seen.stable and seen.since is not None) or seen.side(plan.stable).ready > 0
    is_held = any(plan.sizes[name] == size for name, size in held.items())
    if not is_held or (may_sleep and not has_answered):
        return None
    return autoscaling.scaled(snapshot.resource, plan, seen, revisions.policy(snapshot.resource), may_sleep=may_sleep)


def _delete_comparators(snapshot: DeploymentSnapshot, wanted: str | None) -> tuple[ObjectRef, ...]:
    pattern = re.compile(names.shadow_pattern(name_of(snapshot.resource)))
    found = (*snapshot.comparators, *(s for s in snapshot.services if pattern.fullmatch(name_of(s))))
    return tuple(ref(o) for o in found if name_of(o) != wanted)


def _changed_route(resource: Manifest, snapshot: DeploymentSnapshot, plan: Plan, kind: str) -> tuple[Manifest, ...]:
    observed = _route(snapshot, kind)
    desired = traffic.route(resource, plan.weights, observed, kind, shadow.mirror_of(resource, plan))
    return changed((desired,), snapshot.routes) if traffic.is_routed(observed, desired) else (desired,)


def _role(revision: str, plan: Plan, target: str) -> str:
    if revision == plan.stable:
        return "stable"
    return "canary" if revision == target and not is_given_up(plan) else "retired"


def _claim_artifact(snapshot: DeploymentSnapshot, target: _Target) -> tuple[Manifest, ...]:
    resource, existing = snapshot.resource, snapshot.artifacts.get(target.artifact)
    namespace = resource["metadata"]["namespace"]
    if existing is None:
        if target.artifact != names.artifact_name(target.artifact_spec):
            return ()  # made by an earlier operator and gone since; its revision serves from its pods' own copies
        return (artifacts.artifact_manifest(namespace, target.artifact_spec, [owner(resource, controller=False)], None),)
    owners = existing["metadata"].get("ownerReferences") or []
    if any(o.get("uid") == resource["metadata"].get("uid") for o in owners):
        return ()
    return (_with_owners(existing, [*owners, owner(resource, controller=False)]),)


def _with_owners(artifact: Manifest, owners: Sequence[Mapping[str, Any]]) -> Manifest:
    metadata = artifact["metadata"]
    desired = artifacts.artifact_manifest(metadata["namespace"], artifact["spec"], owners, metadata.get("resourceVersion"))
    return {**desired, "metadata": {**desired["metadata"], "name": metadata["name"]}}


def _release_artifacts(snapshot: DeploymentSnapshot, target: _Target, doomed: Sequence[str]) -> tuple[list[Manifest], list[ObjectRef]]:
    """Give up the artifacts that no kept revision uses: the last owner deletes, others only leave."""
    kept = {target.artifact} | {label(d, names.ARTIFACT) for d in snapshot.deployments if name_of(d) not in doomed}
    uid = snapshot.resource["metadata"].get("uid")
    applied: list[Manifest] = []
    deleted: list[ObjectRef] = []
    for name, artifact in snapshot.artifacts.items():
        owners = artifact["metadata"].get("ownerReferences") or []
        others = [o for o in owners if o.get("uid") != uid]
        if name in kept or len(others) == len(owners):
            continue
        if others:
            applied.append(_with_owners(artifact, others))
        else:
            deleted.append(ref(artifact))
    return applied, deleted


def _delete_revisions(snapshot: DeploymentSnapshot, doomed: Sequence[str]) -> tuple[ObjectRef, ...]:
    return tuple(ref(o) for o in (*snapshot.deployments, *snapshot.services, *snapshot.claim_templates) if name_of(o) in doomed)


def _delete_routes(snapshot: DeploymentSnapshot) -> tuple[ObjectRef, ...]:
    wanted = {(kind, name_of(snapshot.resource)) for kind in traffic.route_kinds(snapshot.resource)}
    if experiments.is_routed(snapshot.resource):
        wanted.add(("HTTPRoute", names.experiments_route(name_of(snapshot.resource))))
    return tuple(ref(route) for route in snapshot.routes if (route["kind"], name_of(route)) not in wanted)


def _events(resource: Manifest, facts: Facts) -> tuple[Event, ...]:
    return (*rollout_events(resource, facts), *events_for(resource, blocking(facts)))
