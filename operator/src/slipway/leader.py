"""Leader election by a Lease: of several replicas one writes, and a successor takes over within the lease's duration.

The algorithm is client-go's: a candidate trusts its own clock only, and takes a lease that it has not seen renewed for its duration.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from datetime import UTC, datetime
from typing import Any

from slipway import metrics
from slipway.cluster import ApiError, Cluster, NotFound, path_of

LOG = logging.getLogger(__name__)
DURATION = 15
RENEW = 2.0
GIVE_UP = 10.0


class Leader:
    """One replica's side of the election."""

    def __init__(self, cluster: Cluster, namespace: str, name: str, identity: str) -> None:
        self._cluster, self._namespace, self._name, self.identity = cluster, namespace, name, identity
        self._renewed_at: float | None = None
        self._seen: tuple[Any, float] = (None, time.monotonic())
        self._duration: float = DURATION  # of the lease, as its holder wrote it
        self.elected = asyncio.Event()

    def is_leader(self) -> bool:
        """Say whether this replica may write: it holds the lease and renewed it a short while ago, by the monotonic clock."""
        return self._renewed_at is not None and time.monotonic() - self._renewed_at < GIVE_UP

    async def run(self) -> None:
        """Try for the lease and keep it, for ever."""
        while True:
            try:
                await asyncio.wait_for(self._attempt(), GIVE_UP / 2)
            except (ApiError, TimeoutError) as error:
                LOG.debug("lease not renewed: %s", error)
            self._tell()
            await asyncio.sleep(self._pause())

    def _pause(self) -> float:
        """Return the time until the next attempt: a follower wakes at the moment at which the lease it saw runs out."""
        if self.is_leader() or self._seen[0] is None:
            return RENEW
        return min(RENEW, max(self._seen[1] + self._duration - time.monotonic(), 0.05) + 0.05)

    def _tell(self) -> None:
        is_leader = self.is_leader()
        metrics.LEADER.set(is_leader)
        if is_leader and not self.elected.is_set():
            LOG.info("leader identity=%s", self.identity)
            self.elected.set()
        elif not is_leader and self.elected.is_set():
            LOG.warning("lost the lease identity=%s", self.identity)
            self.elected.clear()

    async def _attempt(self) -> None:
        started = time.monotonic()
        try:
            lease = await self._cluster.get("Lease", self._namespace, self._name)
        except NotFound:
            body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self._name, "namespace": self._namespace}}
            await self._cluster.request("POST", path_of("Lease", self._namespace), body | {"spec": self._spec({})})
            self._renewed_at = started
            return
        spec = lease.get("spec") or {}
        if self._seen[0] != spec.get("renewTime"):
            self._seen = (spec.get("renewTime"), started)
        self._duration = spec.get("leaseDurationSeconds", DURATION)
        is_free = not spec.get("holderIdentity") or started - self._seen[1] > self._duration
        if spec.get("holderIdentity") != self.identity and not is_free:
            self._renewed_at = None
            return
        await self._cluster.request("PUT", path_of("Lease", self._namespace, self._name), {**lease, "spec": self._spec(spec)})
        self._renewed_at = started

    def _spec(self, before: dict[str, Any]) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        is_same = before.get("holderIdentity") == self.identity
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": DURATION,
            "renewTime": now,
            "acquireTime": before.get("acquireTime", now) if is_same else now,
            "leaseTransitions": before.get("leaseTransitions", 0) + (0 if is_same else 1),
        }

    async def release(self) -> None:
        """Give the lease back, so that a successor need not wait."""
        if not self.is_leader():
            return
        self._renewed_at = None
        with contextlib.suppress(ApiError):
            lease = await self._cluster.get("Lease", self._namespace, self._name)
            if lease["spec"].get("holderIdentity") == self.identity:
                lease["spec"]["holderIdentity"] = ""
                await self._cluster.request("PUT", path_of("Lease", self._namespace, self._name), lease)
