"""How a pod gets its accelerators: limits or a resource claim, the nodes that have the product, and the taints that guard them. Pure.

A device plugin's resource goes into the container's limits (Kubernetes takes the same number as its request; fractions do not exist). With
DRA a ResourceClaimTemplate makes one claim for each pod. Time-sliced and MPS-shared devices are advertised by the plugin under the same
resource name or as `<name>.shared`; nothing here needs to know. docs/design/0009-accelerators.md has the sources.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from slipway import names
from slipway.api.accelerator import PRODUCT_LABELS
from slipway.plan.objects import owner
from slipway.snapshot import Manifest

CLAIM = "accelerator"  # of the claim in the pod, and of the request in the claim
TARGETS = frozenset({"AOTInductor", "TorchTensorRT"})  # that are compiled on the device that will serve
HOSTNAME, ZONE = "kubernetes.io/hostname", "topology.kubernetes.io/zone"
# How an accelerator's nodes are kept free of other pods: AKS by its own key, GKE and most others by the name of the resource or its vendor.
AKS_TAINT = {"key": "sku", "operator": "Equal", "value": "gpu", "effect": "NoSchedule"}


def for_conversion(spec: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the accelerator that a conversion needs: the one that will serve, when a candidate is built for it."""
    candidates = (spec.get("conversion") or {}).get("candidates") or ()
    needs = any(candidate.get("target") in TARGETS for candidate in candidates)
    return spec.get("accelerator") if needs else None


def equipped(pod: Mapping[str, Any], containers: Collection[str], wish: Mapping[str, Any] | None, template: str) -> dict[str, Any]:
    """Return the pod with accelerators for the containers of these names.

    Args:
        pod: a PodSpec.
        containers: names of init containers, which run one after the other and share the devices, or of containers.
        wish: spec.accelerator; None leaves the pod as it is.
        template: name of the ResourceClaimTemplate, used with deviceClassName.
    """
    if wish is None:
        return dict(pod)
    result = dict(pod)
    for key in ("initContainers", "containers"):
        if key in pod:
            result[key] = [_with_devices(c, wish) if c["name"] in containers else c for c in pod[key]]
    if wish.get("deviceClassName"):
        return result | {"resourceClaims": [{"name": CLAIM, "resourceClaimTemplateName": template}]}
    result["tolerations"] = _tolerations(pod.get("tolerations") or (), wish["resourceName"])
    if wish.get("product"):
        result["affinity"] = _with_product(pod.get("affinity") or {}, wish)
    return result


def _with_devices(container: Mapping[str, Any], wish: Mapping[str, Any]) -> dict[str, Any]:
    resources = dict(container.get("resources") or {})
    if wish.get("deviceClassName"):
        return {**container, "resources": resources | {"claims": [{"name": CLAIM}]}}
    name, count = wish["resourceName"], str(wish.get("count", 1))
    for key in ("limits", "requests"):  # both: the API server would add the request, and the pod should be as it was rendered
        resources[key] = {**(resources.get(key) or {}), name: count}
    return {**container, "resources": resources}


def _tolerations(given: Collection[Mapping[str, Any]], resource: str) -> list[dict[str, Any]]:
    """Return the user's tolerations and those of the usual taints: the resource's name, the vendor's gpu key, and that of AKS."""
    vendor = resource.partition("/")[0]
    keys = dict.fromkeys([resource, *([f"{vendor}/gpu"] if vendor in ("nvidia.com", "amd.com") else [])])
    usual = [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in keys]
    return [*map(dict, given), *(t for t in (*usual, AKS_TAINT) if t not in given)]


def _with_product(affinity: Mapping[str, Any], wish: Mapping[str, Any]) -> dict[str, Any]:
    """Return the affinity with the product demanded in each of the user's alternatives; they are joined by or, expressions by and."""
    label = PRODUCT_LABELS[wish["resourceName"].partition("/")[0]]
    expression = {"key": label, "operator": "In", "values": [wish["product"]]}
    node = dict(affinity.get("nodeAffinity") or {})
    terms = (node.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get("nodeSelectorTerms") or [{}]
    demanded = [{**term, "matchExpressions": [*term.get("matchExpressions", ()), expression]} for term in terms]
    node["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": demanded}
    return {**affinity, "nodeAffinity": node}


def spread(selector: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return constraints that prefer to spread the pods over nodes and zones, so that one broken host takes one of them."""
    return [
        {"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": dict(selector)}}
        for key in (HOSTNAME, ZONE)
    ]


def claim_template(resource: Manifest, name: str, labels: Mapping[str, str], wish: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the ResourceClaimTemplate of a revision or of an artifact's Jobs, or None when no claim is needed.

    Source: kubernetes.io/docs/reference/kubernetes-api, ResourceClaimTemplate of resource.k8s.io/v1 (Kubernetes 1.34).
    """
    if wish is None or not wish.get("deviceClassName"):
        return None
    selectors = [{"cel": {"expression": expression}} for expression in wish.get("selectors") or ()]
    exactly = {"deviceClassName": wish["deviceClassName"], "allocationMode": "ExactCount", "count": int(wish.get("count", 1))}
    request = {"name": CLAIM, "exactly": exactly | ({"selectors": selectors} if selectors else {})}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {
            "name": name,
            "namespace": resource["metadata"]["namespace"],
            "labels": dict(labels),
            "ownerReferences": [owner(resource)],
        },
        "spec": {"spec": {"devices": {"requests": [request]}}},
    }


def recorded(template: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the wish that a pod template was rendered for, or None."""
    text = (template["metadata"].get("annotations") or {}).get(names.ACCELERATOR)
    return None if text is None else dict(json.loads(text))


def as_annotations(wish: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the annotations of a pod template that record the wish."""
    return {} if wish is None else {names.ACCELERATOR: json.dumps(wish, sort_keys=True, separators=(",", ":"))}
