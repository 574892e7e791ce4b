"""The loop: take a key, gather, decide, carry out. A failure of one pass concerns one key and comes back later."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from datetime import UTC, datetime

from slipway import metrics
from slipway.api.reasons import Reason
from slipway.apply import NotLeaderError, NotOursError, Writer
from slipway.cluster import ApiError, Cluster, Conflict, Forbidden, Invalid, NotFound
from slipway.decide import decide
from slipway.leader import Leader
from slipway.plan.diagnose import job_state, refused
from slipway.queue import KeyQueue
from slipway.snapshot import ArtifactSnapshot, Config, Key, Snapshot
from slipway.status import with_write_failure
from slipway.store import Store

LOG = logging.getLogger(__name__)
JOB_PATIENCE = 3.0  # seconds until a Job without a pod is asked why
CONFLICT_RETRY = 0.1


class Worker:
    """Handles keys; several run at once, never on the same key."""

    def __init__(self, cluster: Cluster, store: Store, queue: KeyQueue, leader: Leader, config: Config) -> None:
        self._cluster, self._store, self._queue, self._leader, self._config = cluster, store, queue, leader, config
        self._writer = Writer(cluster, store, leader)

    async def run(self) -> None:
        """Handle keys for ever, while this replica leads."""
        while True:
            await self._leader.elected.wait()
            key = await self._queue.get()
            metrics.QUEUE_DEPTH.set(len(self._queue))
            metrics.QUEUE_OLDEST.set(self._queue.oldest_age())
            started = time.perf_counter()
            result = await self._pass(key)
            metrics.RECONCILES.labels(result).inc()
            metrics.RECONCILE_SECONDS.observe(time.perf_counter() - started)

    async def _pass(self, key: Key) -> str:
        try:
            again = await self._handle(key)
        except (NotLeaderError, Conflict) as error:
            LOG.debug("again key=%s because=%r", key, error)
            self._queue.done(key, failed=True, retry_after=CONFLICT_RETRY if isinstance(error, Conflict) else 1.0)
            return "conflict"
        except NotOursError:
            self._queue.done(key)
            self._queue.add(key)
            return "conflict"
        except ApiError as error:
            LOG.warning("refused key=%s code=%s message=%r", key, error.code, error.message)
            await self._tell_refusal(key, error)
            self._queue.done(key, failed=True, retry_after=error.retry_after)
            return "refused"
        except Exception:
            LOG.exception("failed key=%s", key)
            self._queue.done(key, failed=True)
            return "error"
        self._queue.done(key)
        if again is not None:
            self._queue.add_after(key, again)
        return "ok"

    async def _handle(self, key: Key) -> float | None:
        snapshot = self._store.gather(key)
        if snapshot is None:
            metrics.forget(key.namespace, key.name)
            return None
        snapshot, patience = await self._with_job_warnings(snapshot)
        decision = decide(snapshot, datetime.now(UTC), self._config)
        await self._writer.carry_out(snapshot.resource, decision)
        if key.kind == "ModelDeployment":
            metrics.show(key.namespace, key.name, decision.status or snapshot.resource.get("status") or {})
        times = [t for t in (decision.requeue_after, patience) if t is not None]
        return min(times, default=None)

    async def _with_job_warnings(self, snapshot: Snapshot) -> tuple[Snapshot, float | None]:
        """Ask why an active Job has no pod: the Job's status does not say, only its Events do."""
        if not isinstance(snapshot, ArtifactSnapshot) or snapshot.pods:
            return snapshot, None
        job = next((j for j in snapshot.jobs if job_state(j) == "Active"), None)
        if job is None:
            return snapshot, None
        age = (datetime.now(UTC) - datetime.fromisoformat(job["metadata"]["creationTimestamp"])).total_seconds()
        if age < JOB_PATIENCE:
            return snapshot, JOB_PATIENCE - age
        found = await self._cluster.list("Event", job["metadata"]["namespace"], fields=f"involvedObject.name={job['metadata']['name']}")
        warnings = tuple(e["message"] for e in found if e.get("type") == "Warning" and e.get("reason") == "FailedCreate")
        return replace(snapshot, job_warnings=warnings), 10.0

    async def _tell_refusal(self, key: Key, error: ApiError) -> None:
        resource = self._store.get(key.kind, key.namespace, key.name)
        if resource is None or not isinstance(error, Forbidden | Invalid) or isinstance(error, NotFound):
            return
        reason = refused(error.message).reason if isinstance(error, Forbidden) else Reason.INVALID_SPEC
        try:
            await self._writer.write_status(resource, with_write_failure(resource, reason, error.message, datetime.now(UTC)))
        except (ApiError, NotLeaderError, asyncio.CancelledError) as second:
            LOG.debug("refusal not told key=%s because=%r", key, second)
