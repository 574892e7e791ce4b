"""Removes converted models that nothing references any more from the artifact registry, a grace period after they were last seen so.

What to do is decided in plan/garbage.py. This loop reads, asks the API server itself and not the watches what is referenced, and acts while
this replica leads. A registry that cannot be reached is asked again at the next look; nothing else of the operator waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from slipway import metrics, names
from slipway.apply import patch_registry
from slipway.cluster import ApiError, Cluster
from slipway.leader import Leader
from slipway.plan import garbage
from slipway.plan.garbage import Collection, References, Removal, Tag
from slipway.registry import DeleteForbiddenError, Registry, RegistryError
from slipway.settings import Settings
from slipway.store import Store

LOG = logging.getLogger(__name__)
MAX_PERIOD = 3600.0  # seconds between two looks


@dataclass(frozen=True, slots=True)
class Terms:
    """What a collector goes by.

    Attributes:
        prefix: of the repositories, without the host; empty: none.
        grace: seconds.
        namespaces: to look at; empty: all.
        system_namespace: where `deployment` is.
        deployment: the embedded registry's, empty when it is not ours to restart.
    """

    prefix: str
    grace: int
    namespaces: tuple[str, ...] = ()
    system_namespace: str = ""
    deployment: str = ""

    @classmethod
    def of(cls, settings: Settings) -> Terms:
        """Read them from the operator's settings."""
        return cls(
            prefix=settings.registry.partition("/")[2],
            grace=settings.registry_grace_seconds,
            namespaces=settings.namespaces,
            system_namespace=settings.namespace,
            deployment=settings.registry_deployment,
        )


class Collector:
    """Looks once in a while."""

    def __init__(self, cluster: Cluster, store: Store, registry: Registry, terms: Terms, leader: Leader) -> None:
        self._cluster, self._store, self._registry, self._terms, self._leader = cluster, store, registry, terms, leader
        self._said: str | None = None  # the last failure, which is logged once
        self._removed = 0  # artifacts, at this look

    async def run(self) -> None:
        """Look now and once in a while, for ever; not at all when nothing is to be deleted."""
        if not self._terms.grace:
            await asyncio.Event().wait()  # a part of the operator does not end
        while True:
            await self._leader.elected.wait()
            await self.look()
            await asyncio.sleep(min(MAX_PERIOD, max(1.0, self._terms.grace / 4)))

    async def look(self) -> None:
        """Look at all repositories once; a failure is told by a metric, and by the log until it changes."""
        try:
            failure = await self._look()
        except Exception:  # whatever a registry answers, it does not end the operator
            LOG.exception("looking for unreferenced artifacts failed")
            metrics.REGISTRY_PASSES.labels("Error").inc()
            return
        result = failure.result if isinstance(failure, RegistryError) else "Unavailable" if failure else "Done"
        metrics.REGISTRY_PASSES.labels(result).inc()
        message = str(failure) if failure else None
        if message and message != self._said:
            LOG.warning("unreferenced artifacts stay in the registry=%s result=%s: %s", self._registry.host, result, message)
        self._said = message

    async def _look(self) -> RegistryError | ApiError | None:
        """Look; returns the last failure. One repository that fails does not keep the others, except by a reason that all share."""
        unreferenced, failure, self._removed = 0, None, 0
        try:
            for repository, namespace in sorted((await self._repositories()).items()):
                if not self._leader.is_leader():
                    return failure
                try:
                    plan = await self._plan(repository, namespace)
                    unreferenced += plan.unreferenced
                    await self._mark(repository, namespace, plan)
                    await self._remove(repository, namespace, plan.remove)
                except RegistryError as error:
                    failure = error
                    if isinstance(error, DeleteForbiddenError):
                        break
            metrics.REGISTRY_UNREFERENCED.set(max(unreferenced - self._removed, 0))
            if self._terms.deployment and self._leader.is_leader():
                await self._free()
        except (RegistryError, ApiError) as error:
            return error
        return failure

    async def _repositories(self) -> dict[str, str]:
        """Return the namespace by repository of those to look at."""
        prefix, spaces = self._terms.prefix, self._terms.namespaces
        found = None if spaces else await self._registry.repositories()
        if found is None:  # a namespace in which nothing is left is then not looked at
            known = (m["metadata"]["namespace"] for kind in ("ModelDeployment", "ModelArtifact") for m in self._store.of_kind(kind))
            return {"/".join(filter(None, (prefix, space))): space for space in spaces or set(known)}
        return garbage.own_repositories(found, prefix)

    async def _plan(self, repository: str, namespace: str) -> Collection:
        tags = [await self._tag(repository, name) for name in await self._registry.tags(repository)]
        now = datetime.now(UTC)
        # what is referenced is read last: an artifact that got its reference meanwhile has it in this list
        return garbage.collect(filter(None, tags), await self._references(namespace, now), int(now.timestamp()), self._terms.grace)

    async def _tag(self, repository: str, name: str) -> Tag | None:
        if not garbage.is_read(name):
            return Tag(name)
        manifest = await self._registry.manifest(repository, name)
        return None if manifest is None else Tag(name, manifest.digest, manifest.artifact_type)

    async def _references(self, namespace: str, now: datetime) -> References:
        artifacts = await self._cluster.list("ModelArtifact", namespace, version=None)
        servers = await self._cluster.list("Deployment", namespace, selector=names.SELECTOR, version=None)
        return garbage.references([*artifacts, *servers], now)

    async def _mark(self, repository: str, namespace: str, plan: Collection) -> None:
        now = datetime.now(UTC)
        for digest in plan.mark:
            tag = garbage.mark_tag(digest, int(now.timestamp()))
            await self._registry.put_empty(repository, tag, garbage.MARK_TYPE, garbage.mark_annotations(digest, now))
            LOG.info("unreferenced namespace=%s digest=%s grace=%ds", namespace, digest, self._terms.grace)
        for tag in plan.unmark:
            await self._delete_tag(repository, tag)
            LOG.info("referenced again namespace=%s mark=%s", namespace, tag)

    async def _remove(self, repository: str, namespace: str, removals: Iterable[Removal]) -> None:
        """Remove artifacts and what belongs to them."""
        for removal in removals:
            if not self._may_remove(namespace, removal.digest):
                return
            await self._remove_artifact(repository, namespace, removal.digest)
            for tag in removal.companions:
                await self._remove_companion(repository, tag, removal.digest)
            for tag in removal.marks:
                await self._delete_tag(repository, tag)

    def _may_remove(self, namespace: str, digest: str) -> bool:
        """Say whether this replica still leads and has, since the list was read, begun nothing that may need the artifact.

        Jobs are made by the leader, so that its own store is the first to know.
        """
        known = (*self._store.of_kind("ModelArtifact"), *self._store.of_kind("Deployment"))
        found = garbage.references((m for m in known if m["metadata"]["namespace"] == namespace), datetime.now(UTC))
        return self._leader.is_leader() and not found.is_busy and digest not in found.digests

    async def _remove_artifact(self, repository: str, namespace: str, digest: str) -> None:
        manifest = await self._registry.manifest(repository, digest)
        if manifest is None or manifest.artifact_type != garbage.ARTIFACT_TYPE or not await self._registry.delete(repository, digest):
            return
        size = garbage.size_of(manifest.value)
        self._removed += 1
        metrics.REGISTRY_DELETED.inc()
        metrics.REGISTRY_DELETED_BYTES.inc(size)
        LOG.info("deleted from the registry namespace=%s digest=%s bytes=%d", namespace, digest, size)

    async def _remove_companion(self, repository: str, tag: str, digest: str) -> None:
        """Delete an attestation or signature; of a list of them also its members, unless they are about something else."""
        found = await self._registry.manifest(repository, tag)
        for member_digest in garbage.members_of(found.value) if found is not None else ():
            member = await self._registry.manifest(repository, member_digest)
            if member is not None and garbage.belongs_to(member.value, digest):
                await self._registry.delete(repository, member.digest)
        await self._delete_tag(repository, tag)

    async def _delete_tag(self, repository: str, tag: str) -> None:
        """Delete the manifest behind the tag of a mark or companion; a model that somebody called so stays."""
        manifest = await self._registry.manifest(repository, tag)
        if manifest is not None and manifest.artifact_type not in garbage.MODEL_TYPES:
            await self._registry.delete(repository, manifest.digest)

    async def _free(self) -> None:
        """Note on the embedded registry's Deployment that something was deleted, and restart it once a day: it frees blobs at its start."""
        space, name, now = self._terms.system_namespace, self._terms.deployment, datetime.now(UTC)
        deployment = await self._cluster.get("Deployment", space, name)
        if self._removed and (patch := garbage.left_behind(deployment, now)):
            deployment = await patch_registry(self._cluster, space, name, patch)
        is_busy = any(garbage.is_under_way(artifact, now) for artifact in self._store.of_kind("ModelArtifact"))
        if patch := garbage.freeing(deployment, now, is_busy=is_busy):
            await patch_registry(self._cluster, space, name, patch)
            LOG.info("restarting the registry, which frees the blobs of deleted artifacts deployment=%s/%s", space, name)
