"""The autoscaler of the stable revision: a HorizontalPodAutoscaler, or KEDA's ScaledObject, never both; and what it says. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from slipway import names
from slipway.api.reasons import Reason
from slipway.plan.autoscaling import HPA, SCALED_OBJECT, Scaled, kind_for
from slipway.plan.diagnose import Problem
from slipway.plan.objects import changed, condition, name_of, owner, ref
from slipway.snapshot import Config, DeploymentSnapshot, Manifest, ObjectRef

# As prometheus-adapter names them (docs/autoscaling.md has its rules); the last is that of NVIDIA's dcgm-exporter.
POD_METRICS = {
    "Concurrency": "slipway_inflight_requests",
    "RequestsPerSecond": "slipway_requests_per_second",
    "GPUUtilization": "DCGM_FI_DEV_GPU_UTIL",
}
# What is left of a ReplicaSet's name in those of its pods, before five random letters (k8s.io/apiserver/pkg/storage/names).
MAX_GENERATED = 58


def autoscaler(resource: Manifest, scaled: Scaled, kind: str, config: Config) -> dict[str, Any]:
    """Return the autoscaler of the stable revision."""
    name = name_of(resource)
    return {
        "apiVersion": "autoscaling/v2" if kind == HPA else "keda.sh/v1alpha1",
        "kind": kind,
        "metadata": {
            "name": scaled.revision,
            "namespace": resource["metadata"]["namespace"],
            "labels": names.labels(name, "autoscaler", deployment=name, revision=scaled.revision),
            "ownerReferences": [owner(resource)],
        },
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": scaled.revision},
            **(_hpa(resource, scaled) if kind == HPA else _scaled_object(resource, scaled, config)),
        },
    }


def _hpa(resource: Manifest, scaled: Scaled) -> dict[str, Any]:
    metric = _metric(resource["spec"]["autoscaling"])
    return {"minReplicas": max(scaled.least, 1), "maxReplicas": scaled.most, "metrics": [metric]}


def _metric(wish: Mapping[str, Any]) -> dict[str, Any]:
    metric, target = wish.get("metric", "Concurrency"), int(wish["target"])
    if metric == "CPU":
        return {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": target}}}
    average = {"type": "AverageValue", "averageValue": str(target)}
    return {"type": "Pods", "pods": {"metric": {"name": POD_METRICS[metric]}, "target": average}}


def _scaled_object(resource: Manifest, scaled: Scaled, config: Config) -> dict[str, Any]:
    wish = resource["spec"]["autoscaling"]
    triggers = [_load(resource, scaled, config)]
    if wish.get("minReplicas") == 0:
        # 1 or 0, against a threshold of 1: it keeps one pod and never asks for two
        triggers.append(_prometheus("activation", f"max((\n{wish['activationQuery']}\n) > bool 0)", 1, config))
    return {
        "pollingInterval": config.polling_seconds,
        "cooldownPeriod": config.cooldown_seconds,
        "initialCooldownPeriod": config.cooldown_seconds,  # KEDA's default, 0, would take the pod that has just come up
        "minReplicaCount": scaled.least,
        "maxReplicaCount": scaled.most,
        "triggers": triggers,
    }


def _load(resource: Manifest, scaled: Scaled, config: Config) -> dict[str, Any]:
    wish = resource["spec"]["autoscaling"]
    metric, target = wish.get("metric", "Concurrency"), int(wish["target"])
    if metric == "CPU":
        return {"type": "cpu", "name": "load", "metricType": "Utilization", "metadata": {"value": str(target)}}
    trigger = _prometheus("load", load_query(metric, resource["metadata"]["namespace"], scaled.revision), target, config)
    if wish.get("minReplicas") != 0:
        trigger["metadata"]["ignoreNullValues"] = "false"  # pods without a measurement are no pods without a load: the size stays
    return trigger


def _prometheus(name: str, query: str, threshold: int, config: Config) -> dict[str, Any]:
    metadata = {"serverAddress": config.prometheus_address, "query": query, "threshold": str(threshold), "activationThreshold": "0"}
    return {"type": "prometheus", "name": name, "metricType": "AverageValue", "metadata": metadata}


def load_query(metric: str, namespace: str, revision: str) -> str:
    """Return the PromQL for the load of all pods of a revision together.

    Gauges of a whole pod carry no revision, so pods are found by their names. A counter with labels is born with the first request: pods
    that have had none yet have a load of 0.
    """
    space, pods = f"namespace={json.dumps(namespace)}", f"pod=~{json.dumps(_pods(revision))}"
    inflight = f"sum(slipway_inflight_requests{{{space},{pods}}})"
    if metric == "Concurrency":
        return inflight
    if metric == "GPUUtilization":
        return f"sum(max by (pod) (100 * slipway_gpu_utilization_ratio{{{space},{pods}}} or DCGM_FI_DEV_GPU_UTIL{{{space},{pods}}}))"
    return f"sum(rate(slipway_requests_total{{{space},revision={json.dumps(revision)}}}[1m])) or 0 * {inflight}"


def _pods(revision: str) -> str:
    """Return a regular expression for the names of a revision's pods, `<revision>-<hash>-<random>`; the API server cuts long ones."""
    room = MAX_GENERATED - len("-0123456789-")
    return f"{revision}-[a-z0-9]+-[a-z0-9]+" if len(revision) <= room else f"{revision[:MAX_GENERATED]}.+"


def to_apply(snapshot: DeploymentSnapshot, scaled: Scaled | None, config: Config) -> tuple[Manifest, ...]:
    """Return the autoscaler if it is to be written: not before another one of the same revision is gone."""
    if scaled is None:
        return ()
    kind = kind_for(snapshot, config)
    if any(_is_in_the_way(o, kind, scaled.revision) for o in snapshot.autoscalers):
        return ()
    return changed((autoscaler(snapshot.resource, scaled, kind, config),), snapshot.autoscalers)


def _is_in_the_way(other: Manifest, kind: str, revision: str) -> bool:
    if (other["spec"].get("scaleTargetRef") or {}).get("name") != revision:
        return False
    is_same = other["kind"] == kind and not _is_derived(other)
    return bool(other["metadata"].get("deletionTimestamp")) if is_same else not (kind == SCALED_OBJECT and _is_derived(other))


def _is_derived(manifest: Manifest) -> bool:
    """Say whether it is the HorizontalPodAutoscaler that KEDA made of our ScaledObject: it carries our labels, and is KEDA's to delete."""
    return any(o.get("controller") and o.get("kind") == SCALED_OBJECT for o in manifest["metadata"].get("ownerReferences") or ())


def to_delete(snapshot: DeploymentSnapshot, scaled: Scaled | None, config: Config) -> tuple[ObjectRef, ...]:
    """Return the autoscalers that are not wanted any more; what ends already, or is KEDA's, is left alone."""
    wanted = None if scaled is None else (kind_for(snapshot, config), scaled.revision)
    ours = (o for o in snapshot.autoscalers if not _is_derived(o) and not o["metadata"].get("deletionTimestamp"))
    return tuple(ref(o) for o in ours if (o["kind"], name_of(o)) != wanted)


def status_of_scaling(snapshot: DeploymentSnapshot, scaled: Scaled | None, config: Config) -> tuple[bool, Problem] | None:
    """Return whether the load decides about the number of pods, and why not; None without `spec.autoscaling`."""
    wish = snapshot.resource["spec"].get("autoscaling")
    if wish is None:
        return None
    kind = kind_for(snapshot, config)
    lacks = (
        "the cluster does not have KEDA" if not snapshot.has_keda else "autoscaling.provider, or prometheus.address, of the chart says so"
    )
    if kind == HPA and wish.get("minReplicas") == 0:
        return False, Problem(Reason.KEDA_REQUIRED, f"a HorizontalPodAutoscaler keeps one pod, minReplicas 0 counts as 1: {lacks}")
    if kind == HPA and config.autoscaling_provider == "KEDA":
        return False, Problem(Reason.KEDA_REQUIRED, f"a HorizontalPodAutoscaler stands in: {lacks}")
    if scaled is None:
        return False, Problem(
            Reason.PROGRESSING, "the operator holds the number of pods until the revision answers and has its accelerators"
        )
    found = next((o for o in snapshot.autoscalers if (o["kind"], name_of(o)) == (kind, scaled.revision)), None)
    said = None if found is None else _complaint(found)
    if said is not None:
        return False, Problem(Reason.AUTOSCALER_FAILED, f"the {kind} {scaled.revision} says {said}")
    return True, Problem(Reason.UP_TO_DATE, f"a {kind} sizes revision {scaled.revision}")


def _complaint(found: Manifest) -> str | None:
    """Return why an autoscaler cannot measure; one that has said nothing yet does not complain."""
    said = condition(found, "ScalingActive" if found["kind"] == HPA else "Ready") or {}
    # ScalingDisabled: somebody took the last pod
    return (
        f"{said.get('reason')}: {said.get('message', '')}"
        if said.get("status") == "False" and said.get("reason") != "ScalingDisabled"
        else None
    )
