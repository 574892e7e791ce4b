"""The HorizontalPodAutoscaler of the stable revision, and the sizes of the others beside it. Pure.

The autoscaler holds `spec.replicas` of the stable Deployment, and the operator leaves that field out of what it applies. A revision that
comes up is sized by the operator, in proportion: it has no load of its own yet that could size it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slipway import names
from slipway.plan.objects import name_of, owner, status_of
from slipway.snapshot import Manifest

# As prometheus-adapter names them (docs/autoscaling.md has its rules); the last is that of NVIDIA's dcgm-exporter.
POD_METRICS = {
    "Concurrency": "slipway_inflight_requests",
    "RequestsPerSecond": "slipway_requests_per_second",
    "GPUUtilization": "DCGM_FI_DEV_GPU_UTIL",
}


def size_of(deployment: Manifest | None) -> int:
    """Return the size that a Deployment asks for, 0 when there is none."""
    return 0 if deployment is None else int(deployment["spec"].get("replicas", 1))


def replicas(resource: Manifest, stable: Manifest | None) -> int:
    """Return how many pods would carry the whole load: what the user says, or what the autoscaler found out.

    While a canary has a part of the traffic, stable is sized for the rest alone.
    """
    spec = resource["spec"]
    wish = spec.get("autoscaling")
    if wish is None:
        return int((spec.get("serving") or {}).get("replicas", 1))
    least, most = int(wish.get("minReplicas", 1)), int(wish["maxReplicas"])
    given_away = int((status_of(resource).get("canary") or {}).get("weight", 0))
    whole = -(-size_of(stable) * 100 // max(100 - given_away, 1))
    return min(max(whole, least), most)


def kept(resource: Manifest, sizes: Mapping[str, int], stable: Manifest | None) -> dict[str, int]:
    """Return the sizes with that of stable as the autoscaler made it, if stable is to have pods at all."""
    if resource["spec"].get("autoscaling") is None or stable is None or size_of(stable) == 0 or sizes.get(name_of(stable), 0) == 0:
        return dict(sizes)
    return {**sizes, name_of(stable): size_of(stable)}


def governed(resource: Manifest, sizes: Mapping[str, int], stable: Manifest | None) -> str | None:
    """Return the revision whose size is the autoscaler's, or None.

    None while a lack of accelerators bends the size of stable: the autoscaler would take back what the rollout needs.
    """
    if resource["spec"].get("autoscaling") is None or stable is None or size_of(stable) == 0:
        return None
    return name_of(stable) if sizes.get(name_of(stable)) == size_of(stable) else None


def autoscaler(resource: Manifest, revision: str, beside: int) -> dict[str, Any]:
    """Return the HorizontalPodAutoscaler of the stable revision.

    Args:
        resource: the ModelDeployment.
        revision: the stable revision.
        beside: pods of a canary that count against the bound.
    """
    wish = resource["spec"]["autoscaling"]
    most = max(int(wish["maxReplicas"]) - beside, 1)
    name = name_of(resource)
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {
            "name": revision,
            "namespace": resource["metadata"]["namespace"],
            "labels": names.labels(name, "autoscaler", deployment=name, revision=revision),
            "ownerReferences": [owner(resource)],
        },
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": revision},
            "minReplicas": min(int(wish.get("minReplicas", 1)), most),
            "maxReplicas": most,
            "metrics": [_metric(wish)],
        },
    }


def _metric(wish: Mapping[str, Any]) -> dict[str, Any]:
    metric, target = wish.get("metric", "Concurrency"), int(wish["target"])
    if metric == "CPU":
        return {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": target}}}
    average = {"type": "AverageValue", "averageValue": str(target)}
    return {"type": "Pods", "pods": {"metric": {"name": POD_METRICS[metric]}, "target": average}}


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
