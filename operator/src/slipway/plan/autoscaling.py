"""Whose the size of a revision is, the autoscaler's or the operator's, and how large the others are beside it. Pure.

The autoscaler (`autoscaler.py` makes it) holds `spec.replicas` of the stable Deployment, and the operator leaves that field out of what it
applies. A revision that comes up is sized by the operator, in proportion: it has no load of its own yet that could size it.

No pods at all is a size that only KEDA gives, and only to a revision that has answered before; the operator never asks for it. A stable
Deployment of size 0 sleeps if its ScaledObject is there; otherwise it is brought back to its size, whoever took that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slipway import names
from slipway.plan.objects import name_of, status_of
from slipway.plan.rollout import Observed, Phase, Plan, Policy, needs_stable
from slipway.snapshot import Config, DeploymentSnapshot, Manifest

HPA, SCALED_OBJECT = "HorizontalPodAutoscaler", "ScaledObject"


def size_of(deployment: Manifest | None) -> int:
    """Return the size that a Deployment asks for, 0 when there is none."""
    return 0 if deployment is None else int(deployment["spec"].get("replicas", 1))


def replicas(resource: Manifest, stable: Manifest | None) -> int:
    """Return how many pods would carry the whole load: what the user says, or what the autoscaler found out.

    While a canary has a part of the traffic, stable is sized for the rest alone. At least one also where the autoscaler may take the last:
    a revision that comes up is proven before it answers, whether somebody asks at the moment or not.
    """
    spec = resource["spec"]
    wish = spec.get("autoscaling")
    if wish is None:
        return int((spec.get("serving") or {}).get("replicas", 1))
    least, most = max(int(wish.get("minReplicas", 1)), 1), int(wish["maxReplicas"])
    given_away = int((status_of(resource).get("canary") or {}).get("weight", 0))
    whole = -(-size_of(stable) * 100 // max(100 - given_away, 1))
    return min(max(whole, least), most)


def kind_for(snapshot: DeploymentSnapshot, config: Config) -> str:
    """Return the kind of the autoscaler: KEDA's where KEDA is and has a Prometheus to ask, unless the operator's settings say otherwise."""
    is_wanted = config.autoscaling_provider == "KEDA" or (config.autoscaling_provider == "Auto" and bool(config.prometheus_address))
    return SCALED_OBJECT if is_wanted and snapshot.has_keda else HPA


def may_sleep(snapshot: DeploymentSnapshot, config: Config) -> bool:
    """Say whether the stable revision may have no pods while nobody wants it."""
    wish = snapshot.resource["spec"].get("autoscaling") or {}
    return wish.get("minReplicas") == 0 and kind_for(snapshot, config) == SCALED_OBJECT


def is_asleep(snapshot: DeploymentSnapshot, stable: Manifest | None, config: Config) -> bool:
    """Say whether KEDA took the last pod of the stable revision, and will bring one back."""
    if stable is None or size_of(stable) > 0 or not may_sleep(snapshot, config):
        return False
    found = (o for o in snapshot.autoscalers if (o["kind"], name_of(o)) == (SCALED_OBJECT, name_of(stable)))
    return any(not o["metadata"].get("deletionTimestamp") for o in found)


def is_waking(snapshot: DeploymentSnapshot, seen: Observed, config: Config) -> bool:
    """Say whether stable has no pod that answers because it slept, so that no traffic can be shared with it yet.

    When something is wrong with its pods, nobody waits for them.
    """
    side = seen.side(seen.stable)
    return may_sleep(snapshot, config) and side.ready == 0 and side.fault is None


def held(resource: Manifest, sizes: Mapping[str, int], stable: Manifest | None, *, asleep: bool) -> dict[str, int]:
    """Return the size of stable as its autoscaler made it, by name; empty when the operator sizes it, or the rollout takes its pods."""
    if resource["spec"].get("autoscaling") is None or stable is None or sizes.get(name_of(stable), 0) == 0:
        return {}
    return {name_of(stable): size_of(stable)} if size_of(stable) > 0 or asleep else {}


@dataclass(frozen=True, slots=True)
class Scaled:
    """The revision that an autoscaler sizes, and between which numbers of pods."""

    revision: str
    least: int
    most: int


def scaled(resource: Manifest, plan: Plan, seen: Observed, policy: Policy, *, may_sleep: bool) -> Scaled:
    """Return what the autoscaler of stable may do. While a rollout needs stable, it does not sleep."""
    wish = resource["spec"]["autoscaling"]
    most = max(int(wish["maxReplicas"]) - _beside(plan, seen.target), 1)
    least = int(wish.get("minReplicas", 1))
    if not may_sleep or needs_stable(plan.rollout, policy):
        least = max(least, 1)
    return Scaled(str(plan.stable), min(least, most), most)


def _beside(plan: Plan, target: str) -> int:
    """Return how many pods of a canary count against the bound; not while it grows to full size, for which stable must not shrink."""
    rollout = plan.rollout
    is_sharing = rollout is not None and rollout.weight > 0 and rollout.phase is not Phase.PROMOTING and target != plan.stable
    return plan.sizes.get(target, 0) if is_sharing else 0


def holds_replicas(deployment: Manifest) -> bool:
    """Say whether our apply holds `spec.replicas`: leaving it out would then not release it but reset it to 1.

    Source: kubernetes.io/docs/reference/using-api/server-side-apply, "Transferring ownership".
    """
    entries = deployment["metadata"].get("managedFields") or ()
    ours = (e for e in entries if e.get("manager") == names.FIELD_MANAGER and e.get("operation") == "Apply" and not e.get("subresource"))
    return any("f:replicas" in (entry.get("fieldsV1") or {}).get("f:spec", {}) for entry in ours)


def handover(deployment: Manifest) -> dict[str, Any]:
    """Return what another field manager applies, so that the size stays while we let go of it."""
    metadata = {key: deployment["metadata"][key] for key in ("name", "namespace")}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": {"replicas": size_of(deployment)}}
