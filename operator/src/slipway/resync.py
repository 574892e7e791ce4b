"""The second look: every minute the real state is listed and compared with what the watches told.

A watch can end silently (kopf#1276) and an event can be lost; both show as a difference that lasts. The difference is repaired by taking in
the listed objects; a watch that stays behind for several rounds makes the liveness probe fail, so that the process is restarted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from slipway import metrics, names
from slipway.cluster import ApiError, Cluster, Forbidden, NotFound
from slipway.plan.autoscaling import SCALED_OBJECT
from slipway.snapshot import Key
from slipway.store import Store, identity, version_of

LOG = logging.getLogger(__name__)
WATCHED: dict[str, str | None] = {
    "ModelDeployment": None,
    "ModelArtifact": None,
    "ServingRuntime": None,
    "Deployment": names.SELECTOR,
    "Service": names.SELECTOR,
    "HorizontalPodAutoscaler": names.SELECTOR,
    "Job": names.SELECTOR,
    "Pod": names.SELECTOR,
    "HTTPRoute": names.SELECTOR,
    "GRPCRoute": names.SELECTOR,
    "ScaledObject": names.SELECTOR,
}
GRACE = 10.0  # a watch event may be this late
MAX_BEHIND = 3
GONE = -1
_Place = tuple[str, str]  # namespace and name


class Resync:
    """Compares and repairs."""

    def __init__(self, cluster: Cluster, store: Store, add: Callable[[Key], None], namespaces: tuple[str, ...], period: float) -> None:
        self._cluster, self._store, self._add, self._namespaces, self._period = cluster, store, add, namespaces, period
        self._grace = min(GRACE, period)
        self._behind: dict[str, int] = {}
        self._has_missed_keda = False
        self._right_at: dict[str, float] = dict.fromkeys(WATCHED, time.monotonic())

    def stale(self) -> list[str]:
        """Return the kinds whose watch stayed behind for too many rounds."""
        return [kind for kind, rounds in self._behind.items() if rounds >= MAX_BEHIND]

    def tell_ages(self) -> None:
        """Bring the metric up to date."""
        for kind, at in self._right_at.items():
            metrics.WATCH_AGE.labels(kind).set(time.monotonic() - at)

    async def run(self) -> None:
        """Compare every period, for ever."""
        while True:
            await asyncio.sleep(self._period)
            await self.compare()

    async def find_keda(self) -> None:
        """Find out whether the cluster has KEDA, before the first decision: without it a model that sleeps would be woken."""
        while True:
            try:
                await self._list(SCALED_OBJECT)
            except (NotFound, Forbidden):
                return
            except ApiError as error:
                LOG.warning("resync kind=%s error=%r", SCALED_OBJECT, error.message)
                await asyncio.sleep(1)
            else:
                self._store.has_keda = True
                return

    def _tell_keda(self, *, is_there: bool) -> None:
        """Decide anew about who is scaled when KEDA comes or goes; that it is gone is believed at the second look."""
        is_sure = is_there or self._has_missed_keda
        self._has_missed_keda = not is_there
        if not is_sure or self._store.has_keda == is_there:
            return
        LOG.info("KEDA is %s", "there" if is_there else "gone")
        self._store.has_keda = is_there
        for resource in self._store.of_kind("ModelDeployment"):
            if resource["spec"].get("autoscaling") is not None:
                self._add(Key("ModelDeployment", *identity(resource)[1:]))

    async def compare(self) -> None:
        """Compare all kinds once; what differs gets some time, because a watch event may be under way."""
        suspects = {kind: await self._missed(kind) for kind in WATCHED}
        if any(suspects.values()):
            await asyncio.sleep(self._grace)
        for kind, first in suspects.items():
            if first is None:
                continue
            lasting = {place for place, version in first.items() if self._is_behind(kind, place, version)}
            self._behind[kind] = self._behind.get(kind, 0) + 1 if lasting else 0
            if not lasting:
                self._right_at[kind] = time.monotonic()
            for place in lasting:
                await self._repair(kind, place)

    async def _missed(self, kind: str) -> dict[_Place, int] | None:
        """Return the objects that the store lacks or has in an older version, and (version GONE) those it has although they are gone.

        None: the API server did not say.
        """
        known = {identity(o)[1:]: version_of(o) for o in self._store.of_kind(kind)}
        try:
            listed = {identity(o)[1:]: version_of(o) for o in await self._list(kind)}
            is_there = True
        except NotFound:
            listed, is_there = {}, False  # its CRD is not there: the Gateway API and KEDA are optional
        except ApiError as error:
            LOG.warning("resync kind=%s error=%r", kind, error.message)
            return None
        if kind == SCALED_OBJECT:
            self._tell_keda(is_there=is_there)
        missed = {place: version for place, version in listed.items() if self._is_behind(kind, place, version)}
        return missed | {place: GONE for place in known if place not in listed}

    async def _list(self, kind: str) -> list[dict[str, Any]]:
        spaces: Iterable[str | None] = self._namespaces if self._namespaces and kind != "ServingRuntime" else (None,)
        return [item for space in spaces for item in await self._cluster.list_metadata(kind, space, selector=WATCHED[kind])]

    def _is_behind(self, kind: str, place: _Place, version: int) -> bool:
        known = self._store.get(kind, *place)
        if version == GONE:
            return known is not None
        return known is None or version_of(known) < version

    async def _repair(self, kind: str, place: _Place) -> None:
        """Take in the real state of one object."""
        known, present = self._store.get(kind, *place), None
        try:
            present = await self._cluster.get(kind, place[0] or None, place[1])
            is_news = self._store.observe(present)
        except NotFound:
            is_news = known is not None and self._store.remove(known)
        except ApiError as error:
            LOG.warning("resync kind=%s error=%r", kind, error.message)
            return
        if not is_news:
            return
        LOG.warning("missed by the watch kind=%s name=%s/%s", kind, *place)
        for key in self._store.keys_for(present or known or {}):
            self._add(key)
