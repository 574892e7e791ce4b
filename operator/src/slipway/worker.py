"""The loop: take a key, gather, decide, carry out. A failure of one pass concerns one key and comes back later."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from slipway import logs, metrics
from slipway.analysis.notification import Notification
from slipway.analyst import Analyst
from slipway.api.reasons import Reason
from slipway.apply import NotLeaderError, NotOursError, Writer
from slipway.cluster import ApiError, Cluster, Conflict, Forbidden, Invalid, NoSuchKind
from slipway.decide import decide
from slipway.inventory import Inventory
from slipway.leader import Leader
from slipway.plan.diagnose import job_state, refused
from slipway.plan.objects import status_of
from slipway.queue import KeyQueue
from slipway.snapshot import ArtifactSnapshot, Config, Event, Key, Manifest, Snapshot
from slipway.status import with_write_failure
from slipway.store import Store

LOG = logging.getLogger(__name__)
JOB_PATIENCE = 3.0  # seconds until a Job without a pod is asked why
WARNINGS_SECONDS = 5.0  # how long the answer holds
CONFLICT_BACKOFF = 0.05
ROUNDS = 4  # of decisions in one pass: one that comes to no rest must not keep a worker
RESTLESS_SECONDS = 30.0
PODS_NEED = ("ModelArtifact", "ResourceClaimTemplate", "Deployment")  # what pods start by; a Service may come a moment later
_ids = itertools.count(1)


class JobWarnings:
    """Why an active Job has no pod: its status does not say, only its Events do."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._known: dict[str, tuple[float, tuple[str, ...]]] = {}

    async def add_to(self, snapshot: Snapshot) -> tuple[Snapshot, float | None]:
        """Return the snapshot with the warnings, and the seconds after which to look again (None: no need)."""
        if not isinstance(snapshot, ArtifactSnapshot) or snapshot.pods:
            return snapshot, None
        job = next((j for j in snapshot.jobs if job_state(j) == "Active"), None)
        if job is None:
            return snapshot, None
        age = (datetime.now(UTC) - datetime.fromisoformat(job["metadata"]["creationTimestamp"])).total_seconds()
        if age < JOB_PATIENCE:
            return snapshot, JOB_PATIENCE - age
        return replace(snapshot, job_warnings=await self._of(job)), 2 * WARNINGS_SECONDS

    async def _of(self, job: Manifest) -> tuple[str, ...]:
        uid, now = job["metadata"]["uid"], time.monotonic()
        self._known = {key: entry for key, entry in self._known.items() if now - entry[0] < WARNINGS_SECONDS}
        if uid not in self._known:
            found = await self._cluster.list("Event", job["metadata"]["namespace"], fields=f"involvedObject.uid={uid}")
            warnings = tuple(e["message"] for e in found if e.get("type") == "Warning" and e.get("reason") == "FailedCreate")
            self._known[uid] = (now, warnings)
        return self._known[uid][1]


class _RestLater(Exception):
    """What pods start by is written; the rest waits until that of other keys is too."""


class Worker:
    """Handles keys; several run at once, never on the same key."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts of the operator that it brings together
        self,
        cluster: Cluster,
        store: Store,
        queue: KeyQueue,
        leader: Leader,
        config: Config,
        inventory: Inventory,
        analyst: Analyst,
        notify: Callable[[Notification], None],
    ) -> None:
        self._store, self._queue, self._leader, self._config = store, queue, leader, config
        self._writer = Writer(cluster, store, leader, self._tell_others)
        self._warnings = JobWarnings(cluster)
        self._inventory, self._analyst, self._notify = inventory, analyst, notify
        self._key: Key | None = None

    async def run(self) -> None:
        """Handle keys for ever, while this replica leads."""
        while True:
            await self._leader.elected.wait()
            self._key = key = await self._queue.get()
            logs.PASS.set({"reconcile_id": f"{next(_ids):06x}"})
            started = time.perf_counter()
            metrics.RECONCILES.labels(await self._pass(key)).inc()
            metrics.RECONCILE_SECONDS.observe(time.perf_counter() - started)
            logs.PASS.set(None)

    def _tell_others(self, manifest: Manifest) -> None:
        """Wake the resources that an object of ours is part of; the watch's own event about it is no news any more.

        The one in hand needs no waking: it is decided about again in the same pass.
        """
        for key in self._store.keys_for(manifest):
            if key != self._key:
                self._queue.add(key)

    async def _pass(self, key: Key) -> str:
        try:
            again = await self._handle(key)
        except _RestLater:
            self._queue.rest_later(key)
            return "rest_later"
        except NotLeaderError:
            self._queue.failed(key, retry_after=1.0)
            return "not_leader"
        except (Conflict, NotOursError) as error:  # the next pass knows the version, or whom the name belongs to
            LOG.debug("again key=%s because=%r", key, error)
            self._queue.failed(key, first=CONFLICT_BACKOFF)
            return "conflict"
        except ApiError as error:
            LOG.warning("refused key=%s code=%s message=%r", key, error.code, error.message)
            await self._tell_refusal(key, error)
            self._queue.failed(key, retry_after=error.retry_after)
            return "refused"
        except Exception:
            LOG.exception("failed key=%s", key)
            self._queue.failed(key)
            return "error"
        self._queue.done(key)
        if again is not None:
            self._queue.add_after(key, again)
        return "ok"

    async def _handle(self, key: Key) -> float | None:
        """Write objects until the decision is at rest, then the status once: it tells of the state that was reached."""
        events: dict[Event, None] = {}
        notices: dict[tuple[str, str, int | None], Notification] = {}
        for attempt in range(ROUNDS):
            snapshot = self._store.gather(key)
            if snapshot is None:
                if key.kind == "ModelDeployment":
                    metrics.forget(key.namespace, key.name)
                    self._analyst.drop(key)
                return None
            snapshot, patience = await self._warnings.add_to(snapshot)
            snapshot, look_again = await self._inventory.add_to(self._analyst.add_to(snapshot))
            resource = snapshot.resource
            logs.PASS.set({**(logs.PASS.get() or {}), "generation": resource["metadata"].get("generation")})
            decision = decide(snapshot, datetime.now(UTC), self._config)
            events |= dict.fromkeys(decision.events)
            notices |= {(n.moment, n.revision, n.step): n for n in decision.notifications}
            if not (decision.apply or decision.delete) or attempt == ROUNDS - 1:
                break
            urgent = tuple(m for m in decision.apply if m["kind"] in PODS_NEED)
            if self._queue.is_busy() and urgent and not (events or notices) and _is_news(resource):
                await self._writer.carry_out(resource, replace(decision, apply=urgent, delete=(), status=None, events=()))
                raise _RestLater  # among many new ones the pods of the last start sooner
            await self._writer.carry_out(resource, replace(decision, status=None, events=()))
        await self._writer.carry_out(resource, replace(decision, events=tuple(events)))
        if key.kind == "ModelDeployment":
            metrics.show(key.namespace, key.name, decision.status or status_of(resource))
            self._analyst.follow({**resource, "status": decision.status or status_of(resource)})
        for notice in notices.values():  # after the status: what is not written down did not happen
            self._notify(notice)
        restless = RESTLESS_SECONDS if decision.apply or decision.delete else None
        times = [t for t in (decision.requeue_after, patience, look_again, restless) if t is not None]
        return min(times, default=None)

    async def _tell_refusal(self, key: Key, error: ApiError) -> None:
        resource = self._store.get(key.kind, key.namespace, key.name)
        is_kind_missing = isinstance(error, NoSuchKind)
        if resource is None or not (is_kind_missing or isinstance(error, Forbidden | Invalid)):
            return
        reason = refused(error.message).reason if isinstance(error, Forbidden) else Reason.INVALID_SPEC
        if is_kind_missing:  # the only optional kinds, besides KEDA's, that are written
            reason = Reason.ROUTE_REJECTED
        message = "the cluster lacks HTTPRoute or GRPCRoute of the Gateway API" if is_kind_missing else error.message
        status = with_write_failure(resource, reason, message, datetime.now(UTC))
        if status == status_of(resource):
            return
        try:
            await self._writer.write_status(resource, status)
            await self._writer.record(resource, Event("Warning", str(reason), message))
        except (ApiError, NotLeaderError) as second:
            LOG.warning("refusal not told key=%s because=%r", key, second)


def _is_news(resource: Manifest) -> bool:
    """Say whether no status tells about this generation yet."""
    return bool(status_of(resource).get("observedGeneration") != resource["metadata"].get("generation"))
