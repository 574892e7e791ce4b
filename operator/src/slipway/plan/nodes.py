"""Which nodes could run a pod, and how many accelerators are free on them. Pure.

Only what keeps a pod from a node for good is looked at: labels, taints, cordons, readiness and the accelerator itself. What else the
scheduler weighs (CPU, memory, pod affinity, quotas) shows on the pending pod.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from slipway import names
from slipway.api.common import parse_quantity
from slipway.plan.objects import condition, label, name_of, status_of
from slipway.snapshot import Manifest

_OVER = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Holder:
    """A pod that has accelerators; `revision` when it is one of ours."""

    pod: str
    count: int
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """One node that could run the pod: how many accelerators it offers, and who has them."""

    name: str
    offered: int
    holders: tuple[Holder, ...] = ()

    @property
    def free(self) -> int:
        """How many nobody has; a device that fell ill may make it negative, which counts as none."""
        return max(0, self.offered - sum(h.count for h in self.holders))


@dataclass(frozen=True, slots=True)
class Room:
    """The accelerators of one kind on the nodes that could run a pod, which needs `per_pod` of them on one node.

    `excluded` are the nodes that offer them and may not run it.
    """

    resource: str
    per_pod: int
    nodes: tuple[Node, ...] = ()
    excluded: tuple[str, ...] = ()

    def fits(self) -> int:
        """Return how many more pods find room now."""
        return sum(node.free // self.per_pod for node in self.nodes)

    def fits_without(self, revisions: Iterable[str]) -> int:
        """Return how many pods would find room if these revisions had none."""
        given_up = set(revisions)
        freed = ((n, sum(h.count for h in n.holders if h.revision in given_up)) for n in self.nodes)
        return sum((node.free + count) // self.per_pod for node, count in freed)

    def placed(self, revision: str) -> int:
        """Return how many pods of the revision are on these nodes, those that are ending included."""
        return sum(h.revision == revision for node in self.nodes for h in node.holders)


def demand(pod_spec: Mapping[str, Any], resource: str) -> int:
    """Return how many devices of a kind a pod occupies."""
    return int(occupied(pod_spec, resource))


def occupied(pod_spec: Mapping[str, Any], resource: str) -> Decimal:
    """Return how much of the resource a pod occupies: init containers run one after the other, containers at the same time.

    Source: kubernetes.io/docs/concepts/workloads/pods/init-containers, "Resource sharing within containers".
    """

    def of(container: Mapping[str, Any]) -> Decimal:
        resources = container.get("resources") or {}
        asked = (resources.get("requests") or {}).get(resource) or (resources.get("limits") or {}).get(resource) or 0
        return parse_quantity(asked)

    first = max((of(c) for c in pod_spec.get("initContainers") or ()), default=Decimal(0))
    return max(first, sum((of(c) for c in pod_spec.get("containers") or ()), Decimal(0)))


def room(pod_spec: Mapping[str, Any], resource: str, nodes: Iterable[Manifest], pods: Iterable[Manifest]) -> Room:
    """Return the room for a pod on these nodes beside these pods, which may be of any namespace."""
    holders: dict[str, list[Holder]] = {}
    for pod in pods:
        count = demand(pod["spec"], resource)
        if count and pod["spec"].get("nodeName") and status_of(pod).get("phase") not in _OVER:
            name = f"{pod['metadata'].get('namespace', '')}/{name_of(pod)}"
            holders.setdefault(pod["spec"]["nodeName"], []).append(Holder(name, count, label(pod, names.REVISION)))
    offering = [node for node in nodes if offered(node, resource) > 0]
    found = (Node(name_of(n), offered(n, resource), tuple(holders.get(name_of(n), ()))) for n in offering if admits(n, pod_spec))
    excluded = tuple(name_of(node) for node in offering if not admits(node, pod_spec))
    return Room(resource, demand(pod_spec, resource), tuple(found), excluded)


def offered(node: Manifest, resource: str) -> int:
    """Return how many of the resource the node offers to pods."""
    return int(parse_quantity((status_of(node).get("allocatable") or {}).get(resource, 0)))


def admits(node: Manifest, pod_spec: Mapping[str, Any]) -> bool:
    """Say whether the node's labels, taints and state allow the pod."""
    spec, labels = node.get("spec") or {}, node["metadata"].get("labels") or {}
    ready = condition(node, "Ready")
    if spec.get("unschedulable") or (ready is not None and ready.get("status") != "True"):
        return False
    if any(labels.get(key) != value for key, value in (pod_spec.get("nodeSelector") or {}).items()):
        return False
    affinity = ((pod_spec.get("affinity") or {}).get("nodeAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = affinity.get("nodeSelectorTerms") or ()
    fields = {"metadata.name": name_of(node)}
    if terms and not any(_matches(term, labels, fields) for term in terms):
        return False
    taints = (t for t in spec.get("taints") or () if t.get("effect") in ("NoSchedule", "NoExecute"))
    return all(any(_tolerates(toleration, taint) for toleration in pod_spec.get("tolerations") or ()) for taint in taints)


def _matches(term: Mapping[str, Any], labels: Mapping[str, str], fields: Mapping[str, str]) -> bool:
    rows = [(labels, e) for e in term.get("matchExpressions") or ()] + [(fields, e) for e in term.get("matchFields") or ()]
    return bool(rows) and all(_holds(expression, values.get(expression["key"])) for values, expression in rows)  # an empty term: no node


def _holds(expression: Mapping[str, Any], value: str | None) -> bool:
    wanted, operator = list(expression.get("values") or ()), expression["operator"]
    if operator in ("Gt", "Lt"):
        if value is None or not value.lstrip("-").isdigit():
            return False
        return int(value) > int(wanted[0]) if operator == "Gt" else int(value) < int(wanted[0])
    answers = {"In": value in wanted, "NotIn": value not in wanted, "Exists": value is not None, "DoesNotExist": value is None}
    return answers[operator]


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return toleration.get("key") == taint["key"] and (toleration.get("value") or "") == (taint.get("value") or "")
