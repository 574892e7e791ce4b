"""From a snapshot to the plain values that `room.py` decides on, and back to sizes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slipway import names
from slipway.api.reasons import Reason
from slipway.plan import room
from slipway.plan.accelerator import recorded
from slipway.plan.diagnose import Problem
from slipway.plan.nodes import Room
from slipway.plan.nodes import room as room_for
from slipway.plan.objects import condition, label, name_of, status_of
from slipway.plan.workload import revision_shape
from slipway.snapshot import DeploymentSnapshot, Manifest


@dataclass(frozen=True, slots=True)
class Teams:
    """The two revisions that share the accelerators; `fresh` is the target's Deployment when there is none yet."""

    stable: str | None
    target: str
    fresh: Manifest | None = None


def wanted_resource(snapshot: DeploymentSnapshot) -> str | None:
    """Return the resource whose nodes should be looked up: the one that is wanted while something is on its way, else None."""
    resource, spec = snapshot.resource, snapshot.resource["spec"]
    wanted: str | None = (spec.get("accelerator") or {}).get("resourceName")
    target = names.revision_name(name_of(resource), revision_shape(spec))
    sizes = {name_of(d): int(d["spec"].get("replicas", 1)) for d in snapshot.deployments}
    is_scaled = spec.get("autoscaling") is not None  # whatever size it has is the right one
    size = sizes.get(target) if is_scaled else int((spec.get("serving") or {}).get("replicas", 1))
    available = sum(int(status_of(d).get("availableReplicas", 0)) for d in snapshot.deployments if name_of(d) == target)
    is_calm = size is not None and sizes.get(target) == size <= available and not any(s for name, s in sizes.items() if name != target)
    return None if is_calm else wanted


def uses_claims(snapshot: DeploymentSnapshot) -> bool:
    """Say whether a revision that exists gets its accelerators by a ResourceClaimTemplate."""
    wishes = (recorded(d["spec"]["template"]) or {} for d in snapshot.deployments)
    return any(wish.get("deviceClassName") for wish in wishes)


def fitted(
    snapshot: DeploymentSnapshot, teams: Teams, sizes: Mapping[str, int], problem: Problem | None
) -> tuple[dict[str, int], Problem | None]:
    """Return the sizes that there is room for, and what keeps the target from its own (`problem` when the accelerators do not).

    Args:
        snapshot: with `nodes`, if they were looked up.
        teams: who shares.
        sizes: what the rollout wants.
        problem: what the target's pods say.
    """
    deployments = {name_of(d): d for d in snapshot.deployments}
    target = teams.fresh or deployments.get(teams.target)
    wish = None if target is None else recorded(target["spec"]["template"])
    if target is None or wish is None or teams.target not in sizes:
        return dict(sizes), problem
    stable = deployments.get(teams.stable or "")
    scarcity = _scarcity(snapshot, teams, target, stable, problem)
    team = _team(snapshot, teams.target, deployments.get(teams.target))
    if stable is None or teams.stable == teams.target:
        short = room.lone_shortage(sizes[teams.target], team, scarcity)
        return dict(sizes), short if _is_shortage(problem) and short is not None else problem
    other = _team(snapshot, str(teams.stable), stable)
    result = room.share(room.Wish(sizes[str(teams.stable)], sizes[teams.target]), other, team, scarcity)
    found = {**sizes, str(teams.stable): result.stable, teams.target: result.target}
    return found, result.shortage if result.shortage is not None and _is_shortage(problem) else problem


def _is_shortage(problem: Problem | None) -> bool:
    """Say whether nothing but room is missing, as far as the pods say."""
    return problem is None or problem.reason is Reason.INSUFFICIENT_RESOURCES


def _scarcity(
    snapshot: DeploymentSnapshot, teams: Teams, target: Manifest, stable: Manifest | None, problem: Problem | None
) -> room.Scarcity:
    wish = recorded(target["spec"]["template"]) or {}
    return room.Scarcity(
        target=_room(snapshot, target, wish),
        stable=None if stable is None else _room(snapshot, stable, wish),
        refusal=_refusal(snapshot, teams.target, wish),
        is_same=stable is not None and recorded(stable["spec"]["template"]) == wish,
        fault=problem if problem is not None and problem.reason in room.FAULTS else _remembered(snapshot.resource, teams.target),
        leaving=frozenset(name_of(d) for d in snapshot.deployments if name_of(d) not in (teams.stable, teams.target)),
    )


def _room(snapshot: DeploymentSnapshot, deployment: Manifest, wish: Mapping[str, Any]) -> Room | None:
    if snapshot.nodes is None or not wish.get("resourceName"):
        return None
    pod_spec = deployment["spec"]["template"]["spec"]
    found = room_for(pod_spec, wish["resourceName"], snapshot.nodes, snapshot.neighbours)
    return found if found.per_pod else None  # a stable revision on the CPU holds nothing


def _remembered(resource: Manifest, revision: str) -> Problem | None:
    """Return why the revision gave its accelerators back before: it did something wrong, and says nothing any more."""
    failure = status_of(resource).get("lastFailure") or {}
    if failure.get("revision") != revision or failure.get("reason") not in room.FAULTS:
        return None
    return Problem(Reason(failure["reason"]), failure.get("message", ""), failure.get("exitCode"))


def _living(snapshot: DeploymentSnapshot, revision: str) -> list[Manifest]:
    pods = (pod for pod in snapshot.pods if label(pod, names.REVISION) == revision)
    return [pod for pod in pods if status_of(pod).get("phase") not in ("Succeeded", "Failed")]


def _team(snapshot: DeploymentSnapshot, revision: str, deployment: Manifest | None) -> room.Team:
    if deployment is None:
        return room.Team(revision)
    pods, status = _living(snapshot, revision), status_of(deployment)
    return room.Team(
        revision,
        size=int(deployment["spec"].get("replicas", 1)),
        pods=max(len(pods), int(status.get("replicas", 0))),
        placed=sum(bool(pod["spec"].get("nodeName")) for pod in pods),
        ready=int(status.get("readyReplicas", 0)),
    )


def _refusal(snapshot: DeploymentSnapshot, revision: str, wish: Mapping[str, Any]) -> str | None:
    """Return what the scheduler says about a pod of the revision that it finds no accelerator for."""
    for pod in _living(snapshot, revision):
        scheduled = condition(pod, "PodScheduled") or {}
        message = str(scheduled.get("message", ""))
        if scheduled.get("status") == "False" and ("claim" in message or (wish.get("resourceName") or "claim") in message):
            return message
    return None
