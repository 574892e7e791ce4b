"""The only module that writes to the cluster: it carries out a Decision, in its order, and only while this replica leads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from slipway import events, names
from slipway.cluster import Cluster, NotFound
from slipway.leader import Leader
from slipway.plan.objects import owner
from slipway.snapshot import Decision, Manifest, ObjectRef
from slipway.store import Store, identity

LOG = logging.getLogger(__name__)


class NotLeaderError(Exception):
    """This replica lost the lease and writes no more."""


class NotOursError(Exception):
    """A name that we need belongs to somebody else."""


async def apply_shipped(cluster: Cluster, manifests: Sequence[Manifest], cluster_role: str) -> None:
    """Apply the ServingRuntimes that come with the chart, owned by its ClusterRole, so that an uninstall collects them.

    Helm cannot install them itself: their kind comes with the same release.
    """
    references = [owner(await cluster.get("ClusterRole", None, cluster_role), controller=False)] if cluster_role else []
    for manifest in manifests:
        await cluster.apply({**manifest, "metadata": {**manifest["metadata"], "ownerReferences": references}})
        LOG.info("applied object=%s/%s", manifest["kind"], manifest["metadata"]["name"])


class Writer:
    """Carries out decisions."""

    def __init__(self, cluster: Cluster, store: Store, leader: Leader) -> None:
        self._cluster, self._store, self._leader = cluster, store, leader

    async def carry_out(self, resource: Manifest, decision: Decision) -> int:
        """Write everything that the decision says and return the number of writes.

        Raises:
            NotLeaderError: the lease is lost.
            NotOursError: an object of somebody else has a name that we need; nothing of it was changed.
            ApiError: the API server refused; what was written before stays.
        """
        # first claims the shared artifact, whose version guards it; the rest does not depend on each other's order
        head, rest = decision.apply[:1], decision.apply[1:]
        for manifest in head:
            await self._apply(resource, manifest)
        await asyncio.gather(*(self._apply(resource, manifest) for manifest in rest))
        for address in decision.delete:
            await self._delete(resource, address)
        if decision.status is not None:
            await self._write_status(resource, decision.status)
        for event in decision.events:
            self._check()
            LOG.info("event key=%s reason=%s message=%r", _name(resource), event.reason, event.message)
            await events.record(self._cluster, resource, event)
        return len(decision.apply) + len(decision.delete) + (decision.status is not None)

    async def write_status(self, resource: Manifest, status: Mapping[str, Any]) -> None:
        """Write the status alone."""
        await self._write_status(resource, status)

    def _check(self) -> None:
        if not self._leader.is_leader():
            raise NotLeaderError

    async def _apply(self, resource: Manifest, manifest: Manifest) -> None:
        self._check()
        if self._store.get(*identity(manifest)) is None:
            await self._look_before_first_write(manifest)
        self._check()
        self._store.observe(await self._cluster.apply(manifest))
        LOG.info("applied key=%s object=%s/%s", _name(resource), manifest["kind"], manifest["metadata"]["name"])

    async def _look_before_first_write(self, manifest: Manifest) -> None:
        """Server-side apply would take over an object of somebody else that happens to have our name."""
        kind, namespace, name = identity(manifest)
        if kind in ("Job", "ModelArtifact"):  # named by a hash or after one: nobody else's
            return
        try:
            found = await self._cluster.get(kind, namespace, name)
        except NotFound:
            return
        wanted = manifest["metadata"]["labels"].get(names.DEPLOYMENT)
        labels = found["metadata"].get("labels") or {}
        if labels.get(names.MANAGED_BY) != names.FIELD_MANAGER or labels.get(names.DEPLOYMENT) != wanted:
            self._store.observe_foreign(found)
            raise NotOursError(f"{kind} {name} belongs to somebody else")
        self._store.observe(found)

    async def _delete(self, resource: Manifest, address: ObjectRef) -> None:
        self._check()
        known = self._store.get(address.kind, address.namespace or "", address.name)
        uid = None if known is None else known["metadata"].get("uid")
        await self._cluster.delete(address.kind, address.namespace, address.name, uid=uid)
        LOG.info("deleted key=%s object=%s/%s", _name(resource), address.kind, address.name)

    async def _write_status(self, resource: Manifest, status: Mapping[str, Any]) -> None:
        self._check()
        self._store.observe(await self._cluster.put_status(resource, status))


def _name(resource: Manifest) -> str:
    return f"{resource['kind']}/{resource['metadata']['namespace']}/{resource['metadata']['name']}"
