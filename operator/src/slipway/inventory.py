"""What a decision about accelerators needs to know and no watch tells: the nodes that offer them and the pods that hold them.

Looked up on demand, only while a ModelDeployment with an accelerator is on its way, and kept for a moment, so that many of them share one
look. A watch on all nodes and all pods of the cluster would cost memory and events all day for an answer that is needed once a rollout.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from slipway import names
from slipway.cluster import ApiError, Cluster, Forbidden
from slipway.plan.nodes import demand, offered
from slipway.plan.objects import name_of
from slipway.plan.scarcity import uses_claims, wanted_resource
from slipway.snapshot import DeploymentSnapshot, Manifest, Snapshot
from slipway.store import CLAIM_TEMPLATE, Store

LOG = logging.getLogger(__name__)
FRESH_SECONDS = 2.0  # how long a look is good for
AGAIN_SECONDS = 5.0  # after which a pass that needed one looks again: pods of others wake nobody
CLAIMS_SECONDS = 60.0  # between looks for claim templates that somebody deleted
FEW_NODES = 16  # up to here their pods are asked for node by node, which the API server has an index for
_Look = tuple[tuple[Manifest, ...], tuple[Manifest, ...]]


class Inventory:
    """Completes snapshots."""

    def __init__(self, cluster: Cluster, store: Store) -> None:
        self._cluster, self._store = cluster, store
        self._known: dict[str, tuple[float, _Look]] = {}
        self._claims_at: dict[tuple[str, str], float] = {}
        self._lock = asyncio.Lock()
        self._is_forbidden = False

    async def add_to(self, snapshot: Snapshot) -> tuple[Snapshot, float | None]:
        """Return the snapshot with what it needs to know, and the seconds after which to look again (None: no need)."""
        if not isinstance(snapshot, DeploymentSnapshot):
            return snapshot, None
        claims_again = None
        if uses_claims(snapshot):
            await self._see_claims(snapshot)
            snapshot = replace(snapshot, claim_templates=self._store.claim_templates(snapshot.resource))
            claims_again = CLAIMS_SECONDS
        resource = wanted_resource(snapshot)
        look = None if resource is None else await self._look(resource)
        if look is None:
            return snapshot, claims_again
        return replace(snapshot, nodes=look[0], neighbours=look[1]), AGAIN_SECONDS

    async def _see_claims(self, snapshot: DeploymentSnapshot) -> None:
        """Bring what the store knows of the claim templates of one ModelDeployment up to date, at most once a minute.

        They are not watched: clusters before Kubernetes 1.34 have none, and they are written once.
        """
        namespace, name = snapshot.resource["metadata"]["namespace"], name_of(snapshot.resource)
        now = time.monotonic()
        if now - self._claims_at.get((namespace, name), -CLAIMS_SECONDS) < CLAIMS_SECONDS:
            return
        try:
            found = await self._cluster.list(CLAIM_TEMPLATE, namespace, selector=f"{names.SELECTOR},{names.DEPLOYMENT}={name}")
        except ApiError as error:  # no such kind, or no right to it: the write will tell
            LOG.warning("claim templates not read: %s", error.message)
            return
        self._claims_at = {key: at for key, at in self._claims_at.items() if now - at < CLAIMS_SECONDS} | {(namespace, name): now}
        present = {name_of(template) for template in found}
        for present_one in found:
            self._store.observe(present_one)
        for template in self._store.claim_templates(snapshot.resource):
            if name_of(template) not in present:
                self._store.remove(template)

    async def _look(self, resource: str) -> _Look | None:
        """Return the nodes that offer the resource and the pods that hold some of it; None when they may not be read."""
        if self._is_forbidden:
            return None
        async with self._lock:  # who comes while somebody looks takes what that one saw
            known = self._known.get(resource)
            if known is not None and time.monotonic() - known[0] < FRESH_SECONDS:
                return known[1]
            at = time.monotonic()
            try:
                look = await self._read(resource)
            except Forbidden as error:
                self._is_forbidden = True
                LOG.warning("free accelerators are not known, rollouts go by what the scheduler says: %s", error.message)
                return None
            except ApiError as error:
                LOG.warning("free accelerators not read: %s", error.message)
                return None
            self._known[resource] = (at, look)
            return look

    async def _read(self, resource: str) -> _Look:
        nodes = [_slim_node(n) for n in await self._cluster.list("Node", None) if offered(n, resource)]
        if len(nodes) <= FEW_NODES:
            lists = await asyncio.gather(*(self._cluster.list("Pod", None, fields=f"spec.nodeName={name_of(n)}") for n in nodes))
            pods = [pod for some in lists for pod in some]
        else:
            pods = list(await self._cluster.list("Pod", None, fields="status.phase!=Succeeded,status.phase!=Failed"))
        return tuple(nodes), tuple(_slim_pod(pod) for pod in pods if demand(pod["spec"], resource))


def _slim_node(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a decision reads of a node; its list of images alone may be 20 KB."""
    status, metadata = node.get("status") or {}, node["metadata"]
    return {
        "metadata": {"name": metadata["name"], "labels": metadata.get("labels") or {}},
        "spec": {key: value for key, value in (node.get("spec") or {}).items() if key in ("unschedulable", "taints")},
        "status": {
            "allocatable": status.get("allocatable") or {},
            "conditions": [c for c in status.get("conditions") or () if c["type"] == "Ready"],
        },
    }


def _slim_pod(pod: Mapping[str, Any]) -> dict[str, Any]:
    spec, metadata = pod["spec"], pod["metadata"]
    containers = {key: [{"resources": c.get("resources") or {}} for c in spec.get(key) or ()] for key in ("initContainers", "containers")}
    return {
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "labels": metadata.get("labels") or {}},
        "spec": {**containers, "nodeName": spec.get("nodeName")},
        "status": {"phase": (pod.get("status") or {}).get("phase")},
    }
