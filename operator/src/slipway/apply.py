"""The only module that writes to the cluster: it carries out a Decision, in its order, and only while this replica leads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slipway import names
from slipway.cluster import JSON_PATCH, MERGE_PATCH, Cluster, Conflict, NoSuchKind, NotFound
from slipway.events import Recorder
from slipway.leader import Leader
from slipway.plan.autoscaling import SCALED_OBJECT, handover, holds_replicas
from slipway.plan.objects import changed, label, owner
from slipway.plan.ownership import merged_ownership
from slipway.snapshot import Decision, Event, Manifest, ObjectRef
from slipway.store import Store, identity

LOG = logging.getLogger(__name__)


class NotLeaderError(Exception):
    """This replica lost the lease and writes no more."""


class NotOursError(Exception):
    """A name that we need belongs to somebody else."""


async def apply_shipped(cluster: Cluster, store: Store, manifests: Sequence[Manifest], cluster_role: str) -> None:
    """Apply the ServingRuntimes of the chart that are missing or differ, owned by its ClusterRole, so that an uninstall collects them.

    Helm cannot install them itself: their kind comes with the same release.
    """
    # the hash shows a field that a new version of the chart leaves out, which a look for missing fields would not
    marked = [{**m, "metadata": {**m["metadata"], "annotations": {names.MANIFEST: names.digest_of(m)[:12]}}} for m in manifests]
    wanted = changed(marked, store.of_kind("ServingRuntime"))
    if wanted:  # the watch may not have told yet
        wanted = changed(marked, await cluster.list("ServingRuntime", None))
    references = [owner(await cluster.get("ClusterRole", None, cluster_role), controller=False)] if wanted and cluster_role else []
    for manifest in wanted:
        store.observe(await cluster.apply({**manifest, "metadata": {**manifest["metadata"], "ownerReferences": references}}))
        LOG.info("applied object=%s/%s", manifest["kind"], manifest["metadata"]["name"])


async def patch_registry(cluster: Cluster, namespace: str, name: str, patch: Manifest) -> dict[str, Any]:
    """Patch the annotations of the embedded registry's Deployment, which is Helm's in all else; returns it as it is then."""
    return await cluster.patch("Deployment", namespace, name, patch, MERGE_PATCH)


class Writer:
    """Carries out decisions; `on_change` gets every object that came back from a write."""

    def __init__(self, cluster: Cluster, store: Store, leader: Leader, on_change: Callable[[Manifest], None]) -> None:
        self._cluster, self._store, self._leader, self._on_change = cluster, store, leader, on_change
        self._events = Recorder(cluster)

    async def carry_out(self, resource: Manifest, decision: Decision) -> None:
        """Write everything that the decision says.

        Raises:
            NotLeaderError: the lease is lost.
            NotOursError: an object of somebody else has a name that we need; nothing of it was changed.
            ApiError: the API server refused; what was written before stays.
        """
        # what has a version to hold is a claim on a shared artifact: it comes before what rests on it
        guarded = [m for m in decision.apply if m["metadata"].get("resourceVersion")]
        for manifest in guarded:
            await self._apply(resource, manifest)
        others = [m for m in decision.apply if not m["metadata"].get("resourceVersion")]
        # all of them end before the key is given back, also when one fails
        answers = await asyncio.gather(*(self._apply(resource, manifest) for manifest in others), return_exceptions=True)
        for answer in answers:
            if answer is not None:
                raise answer
        for address in decision.delete:
            await self._delete(resource, address)
        if decision.status is not None:
            await self.write_status(resource, decision.status)
        for event in decision.events:
            await self.record(resource, event)

    async def write_status(self, resource: Manifest, status: Mapping[str, Any]) -> None:
        """Write the status alone, to the version that the decision saw."""
        self._check()
        try:
            self._observe(await self._cluster.put_status(resource, status))
        except (Conflict, NotFound):
            await self._refresh(resource)
            raise
        LOG.info("status key=%s %s", _name(resource), _ready(status))

    async def record(self, resource: Manifest, event: Event) -> None:
        """Write an Event about the resource."""
        self._check()
        LOG.info("event key=%s reason=%s message=%r", _name(resource), event.reason, event.message)
        await self._events.record(resource, event)

    def _check(self) -> None:
        if not self._leader.is_leader():
            raise NotLeaderError

    def _observe(self, manifest: Manifest) -> None:
        if self._store.observe(manifest):
            self._on_change(manifest)

    async def _refresh(self, manifest: Manifest) -> None:
        """Look at the real state after a conflict, which else would come again until the watch tells."""
        kind, namespace, name = identity(manifest)
        try:
            self._store.observe(await self._cluster.get(kind, namespace, name))
        except NotFound:
            known = self._store.get(kind, namespace, name)
            if known is not None:
                self._store.remove(known)
                self._on_change(known)

    async def _apply(self, resource: Manifest, manifest: Manifest) -> None:
        self._check()
        known = self._store.get(*identity(manifest))
        try:
            self._observe(await (self._create(manifest) if known is None else self._update(manifest, known)))
        except (Conflict, NotFound) as error:
            await self._refresh(manifest)
            if isinstance(error, NoSuchKind) and manifest["kind"] == SCALED_OBJECT:
                self._store.has_keda = False  # somebody has just removed it; the next pass makes another autoscaler
                raise Conflict(409, "KindGone", "KEDA is gone") from None
            raise
        LOG.info("applied key=%s object=%s/%s", _name(resource), manifest["kind"], manifest["metadata"]["name"])

    async def _create(self, manifest: Manifest) -> Manifest:
        """Create what should not be there yet: an apply would take over an object of somebody else that happens to have our name."""
        kind, namespace, name = identity(manifest)
        try:
            return await self._cluster.create(manifest)
        except Conflict:
            found = await self._cluster.get(kind, namespace, name)
            if not _is_ours(found, manifest):
                self._store.observe_foreign(found)
                raise NotOursError(f"{kind} {name} belongs to somebody else") from None
            raise  # the watch is behind

    async def _update(self, manifest: Manifest, known: Manifest) -> Manifest:
        kind, namespace, name = identity(manifest)
        if _is_left_over(known, manifest):
            raise Conflict(409, "LeftOver", f"{kind} {name} of a deleted namesake is still there")
        if kind == "ModelArtifact":  # its spec never changes: only who claims it does
            return await self._cluster.patch(kind, namespace, name, {"metadata": manifest["metadata"]}, MERGE_PATCH)
        if kind == "Deployment" and "replicas" not in manifest["spec"]:
            present = await self._cluster.get(kind, namespace, name)
            if holds_replicas(present):
                await self._cluster.apply(handover(present), manager=names.HANDOVER_MANAGER)
        found = await self._cluster.apply(manifest)
        merged = merged_ownership(found["metadata"].get("managedFields") or ())
        if merged is None:
            return found
        # a field that we created and want no more is also held by the create's entry: only when it is none but the apply's does it go
        guard = {"op": "test", "path": "/metadata/resourceVersion", "value": found["metadata"]["resourceVersion"]}
        await self._cluster.patch(
            kind, namespace, name, [guard, {"op": "replace", "path": "/metadata/managedFields", "value": merged}], JSON_PATCH
        )
        metadata = {key: value for key, value in manifest["metadata"].items() if key != "resourceVersion"}  # it was ours to move
        return await self._cluster.apply({**manifest, "metadata": metadata})

    async def _delete(self, resource: Manifest, address: ObjectRef) -> None:
        self._check()
        known = self._store.get(address.kind, address.namespace or "", address.name)
        uid = None if known is None else known["metadata"].get("uid")
        try:
            is_gone = await self._cluster.delete(address.kind, address.namespace, address.name, uid=uid)
        except Conflict:
            if known is not None:
                await self._refresh(known)
            raise
        if is_gone and known is not None:
            self._store.remove(known)
            self._on_change(known)
        elif known is not None:
            await self._refresh(known)  # a finalizer holds it; the next decision knows that it ends
        LOG.info("deleted key=%s object=%s/%s", _name(resource), address.kind, address.name)


def _is_ours(found: Manifest, wanted: Manifest) -> bool:
    keys = (names.MANAGED_BY, names.DEPLOYMENT, names.ARTIFACT)
    return all(label(found, key) == label(wanted, key) for key in keys)


def _is_left_over(known: Manifest, wanted: Manifest) -> bool:
    """Say whether an object belongs to a deleted resource of the same name: the garbage collector is about to remove it."""
    then, now = (_controller(manifest) for manifest in (known, wanted))
    return then is not None and now is not None and then["uid"] != now["uid"] and then["name"] == now["name"]


def _controller(manifest: Manifest) -> Mapping[str, Any] | None:
    return next((owner for owner in manifest["metadata"].get("ownerReferences") or () if owner.get("controller")), None)


def _ready(status: Mapping[str, Any]) -> str:
    found: Mapping[str, Any] = next((c for c in status.get("conditions") or () if c.get("type") == "Ready"), {})
    return f"ready={found.get('status')} reason={found.get('reason')}"


def _name(resource: Manifest) -> str:
    return f"{resource['kind']}/{resource['metadata']['namespace']}/{resource['metadata']['name']}"
