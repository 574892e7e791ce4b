"""The second look: every minute the real state is listed and compared with what the watches told.

A watch can end silently (kopf#1276) and an event can be lost; both show as a difference that lasts. The difference is repaired by taking in
the listed objects; a watch that stays behind for several rounds makes the liveness probe fail, so that the process is restarted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from slipway import metrics, names
from slipway.cluster import ApiError, Cluster
from slipway.snapshot import Key, Manifest
from slipway.store import Store, identity, version_of

LOG = logging.getLogger(__name__)
WATCHED: dict[str, str | None] = {
    "ModelDeployment": None,
    "ModelArtifact": None,
    "ServingRuntime": None,
    "Deployment": names.SELECTOR,
    "Service": names.SELECTOR,
    "Job": names.SELECTOR,
    "Pod": names.SELECTOR,
}
GRACE = 10.0  # a watch event may be this late
MAX_BEHIND = 3


class Resync:
    """Compares and repairs."""

    def __init__(self, cluster: Cluster, store: Store, add: Callable[[Key], None], namespaces: tuple[str, ...], period: float) -> None:
        self._cluster, self._store, self._add, self._namespaces, self._period = cluster, store, add, namespaces, period
        self._behind: dict[str, int] = {}
        self._right_at: dict[str, float] = dict.fromkeys(WATCHED, time.monotonic())

    def stale(self) -> list[str]:
        """Return the kinds whose watch stayed behind for too many rounds."""
        return [kind for kind, rounds in self._behind.items() if rounds >= MAX_BEHIND]

    async def run(self) -> None:
        """Compare every period, for ever."""
        while True:
            await asyncio.sleep(self._period)
            for kind in WATCHED:
                try:
                    await self._compare(kind)
                except ApiError as error:
                    LOG.warning("resync kind=%s error=%r", kind, error.message)
                metrics.WATCH_AGE.labels(kind).set(time.monotonic() - self._right_at[kind])

    async def _compare(self, kind: str) -> None:
        suspects = self._differences(kind, await self._list(kind))
        if suspects:
            await asyncio.sleep(min(GRACE, self._period))
            listed = await self._list(kind)
            suspects &= self._differences(kind, listed)
            self._repair(kind, listed, suspects)
        self._behind[kind] = self._behind.get(kind, 0) + 1 if suspects else 0
        if not suspects:
            self._right_at[kind] = time.monotonic()

    async def _list(self, kind: str) -> list[Manifest]:
        spaces: Iterable[str | None] = self._namespaces if self._namespaces and kind != "ServingRuntime" else (None,)
        return [item for space in spaces for item in await self._cluster.list(kind, space, selector=WATCHED[kind])]

    def _differences(self, kind: str, listed: list[Manifest]) -> set[tuple[str, str, int]]:
        """Return what the store lacks or has in an older version, and (version 0) what it has although it is gone."""
        found = {identity(o)[1:]: o for o in listed}
        known = {identity(o)[1:]: o for o in self._store.of_kind(kind)}
        missing = {(*key, version_of(o)) for key, o in found.items() if key not in known or version_of(known[key]) < version_of(o)}
        return missing | {(*key, 0) for key in known if key not in found}

    def _repair(self, kind: str, listed: list[Manifest], suspects: set[tuple[str, str, int]]) -> None:
        found = {identity(o)[1:]: o for o in listed}
        for namespace, name, _ in suspects:
            LOG.warning("missed by the watch kind=%s name=%s/%s", kind, namespace, name)
            present, known = found.get((namespace, name)), self._store.get(kind, namespace, name)
            if present is not None:
                self._store.observe(present)
            elif known is not None:
                self._store.remove(known)
            for key in self._store.keys_for(present or known) if present or known else ():  # type: ignore[arg-type]
                self._add(key)
