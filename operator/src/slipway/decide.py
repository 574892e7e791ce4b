"""The one decision function: `decide(snapshot, now, config) -> Decision`.

No I/O, no clock, no randomness. Whatever the operator does to a cluster was returned from here, so every rollout, failure and recovery
is a row of a table test, and `slipway plan` shows what would happen by calling it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from slipway import names
from slipway.api.reasons import Reason
from slipway.plan import artifact as artifacts
from slipway.plan import takeover, workload
from slipway.plan.conversion import decide_artifact, events_for
from slipway.plan.diagnose import Problem, workload_problem
from slipway.plan.objects import annotation, changed, label, name_of, owner, ref, status_of
from slipway.snapshot import ArtifactSnapshot, Config, Decision, DeploymentSnapshot, Event, Manifest, ObjectRef, Snapshot
from slipway.status import Facts, artifact_state, blocking, deployment_status

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
    return _Target(revision, wanted, artifact or names.artifact_name(wanted), int((spec.get("serving") or {}).get("replicas", 1)))


def _decide_deployment(snapshot: DeploymentSnapshot, now: datetime, config: Config) -> Decision:
    resource, target = snapshot.resource, _target(snapshot, config)
    found = takeover.revisions(snapshot, target.revision, target.replicas, now)
    artifact = snapshot.artifacts.get(target.artifact)
    runtime, stopper = _runtime(snapshot, target, artifact, found)
    stopper = _conflict(snapshot, target) or stopper
    limit = int(resource["spec"].get("revisionHistoryLimit", 5))
    facts = Facts(
        found=found,
        replicas=target.replicas,
        artifact=artifact,
        artifact_name=target.artifact,
        target_problem=_problem(snapshot, found, target.revision),
        stable_problem=_problem(snapshot, found, found.stable),
        stopper=stopper,
        history_limit=limit,
    )
    status = deployment_status(resource, facts, now)
    doomed = takeover.surplus(found, status.get("history", ()), limit)
    released, dropped = _release_artifacts(snapshot, target, found, doomed)
    fresh = (
        None if runtime is None or artifact is None else workload.revision_deployment(resource, target.revision, artifact, runtime, config)
    )
    sizes = takeover.sizes(found, target.replicas, now, config)
    desired = () if _conflict(snapshot, target) else _desired(resource, target, found, fresh, sizes)
    return Decision(
        apply=(*_claim_artifact(snapshot, target), *changed(desired, (*snapshot.deployments, *snapshot.services)), *released),
        delete=(*_delete_revisions(snapshot, doomed), *dropped),
        status=None if status == status_of(resource) else status,
        events=_events(resource, facts),
        requeue_after=NOT_OURS_RETRY_SECONDS if _conflict(snapshot, target) else takeover.drain_left(found, now, config),
    )


def _conflict(snapshot: DeploymentSnapshot, target: _Target) -> Problem | None:
    needed = {name_of(snapshot.resource), target.revision}
    other = next((o for o in snapshot.foreign if name_of(o) in needed), None)
    if other is None:
        return None
    return Problem(Reason.NAME_CONFLICT, f"{other['kind']} {name_of(other)} exists and belongs to somebody else")


def _runtime(
    snapshot: DeploymentSnapshot, target: _Target, artifact: Manifest | None, found: takeover.Revisions
) -> tuple[Manifest | None, Problem | None]:
    if target.revision in found.by_name or artifact is None or not artifact_state(artifact)[0]:
        return None, None
    fmt, wanted = status_of(artifact)["format"], (snapshot.resource["spec"].get("serving") or {}).get("runtime")
    runtime = workload.runtime_for(fmt, wanted, snapshot.runtimes)
    if runtime is not None:
        return runtime, None
    named = f"ServingRuntime {wanted} does not exist or does not claim" if wanted else "no ServingRuntime claims"
    return None, Problem(Reason.SERVING_RUNTIME_MISSING, f"{named} the format {fmt}")


def _problem(snapshot: DeploymentSnapshot, found: takeover.Revisions, revision: str | None) -> Problem | None:
    deployment = found.by_name.get(revision or "")
    return None if deployment is None else workload_problem(deployment, takeover.pods_of(snapshot, name_of(deployment)))


def _desired(
    resource: Manifest, target: _Target, found: takeover.Revisions, fresh: Manifest | None, sizes: Mapping[str, int]
) -> tuple[Manifest, ...]:
    """Return every object that should exist; `fresh` is the target's Deployment when it has none yet."""
    stable = found.stable or (target.revision if fresh is not None else None)
    deployments = [workload.existing_deployment(resource, observed) for observed in found.by_name.values()]
    wanted = dict(sizes)
    if fresh is not None:
        deployments.insert(0, dict(fresh))
        wanted[target.revision] = target.replicas
    objects: list[Manifest] = []
    for deployment in deployments:
        name = name_of(deployment)
        objects.append(workload.with_scale(deployment, wanted[name], _role(name, stable, target.revision)))
        objects.append(workload.revision_service(resource, name))
    if stable is not None:
        objects.append(workload.stable_service(resource, stable))
    return tuple(objects)


def _role(revision: str, stable: str | None, target: str) -> str:
    if revision == stable:
        return "stable"
    return "canary" if revision == target else "retired"


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


def _release_artifacts(
    snapshot: DeploymentSnapshot, target: _Target, found: takeover.Revisions, doomed: Sequence[str]
) -> tuple[list[Manifest], list[ObjectRef]]:
    """Give up the artifacts that no kept revision uses: the last owner deletes, others only leave."""
    kept = {target.artifact} | {label(d, names.ARTIFACT) for name, d in found.by_name.items() if name not in doomed}
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
    return tuple(ref(o) for o in (*snapshot.deployments, *snapshot.services) if name_of(o) in doomed)


def _events(resource: Manifest, facts: Facts) -> tuple[Event, ...]:
    taken: tuple[Event, ...] = ()
    if facts.found.previous is not None:
        message = f"revision {facts.found.stable} took over from {facts.found.previous}"
        taken = (Event("Normal", str(Reason.AVAILABLE), message),)
    return (*taken, *events_for(resource, blocking(facts)))
