"""Kubernetes Events about our resources: equal ones are counted up instead of written again."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any, TypeVar

from slipway.api.conditions import format_time
from slipway.cluster import MERGE_PATCH, ApiError, Cluster, Conflict, path_of
from slipway.snapshot import Event, Manifest

MAX_MESSAGE = 1000  # the API server takes 1024
AGGREGATE_SECONDS = 10.0  # an Event that is said again within this time is counted, not written
BURST, REFILL_SECONDS = 20.0, 30.0  # Events about one object: so many at once, and one more each so many seconds
REMEMBERED = 4096
_T = TypeVar("_T")


def event_name(resource: Manifest, event: Event) -> str:
    """Name an Event by what it says, so that saying it again finds it."""
    metadata = resource["metadata"]
    text = "/".join((str(metadata.get("uid")), event.type, event.reason, event.message))
    return f"{metadata['name']}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def event_manifest(resource: Manifest, event: Event, now: datetime) -> dict[str, Any]:
    """Return the Event's first version."""
    metadata = resource["metadata"]
    involved = {"apiVersion": resource["apiVersion"], "kind": resource["kind"]}
    involved |= {key: metadata[key] for key in ("name", "namespace", "uid") if key in metadata}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": event_name(resource, event), "namespace": metadata["namespace"]},
        "involvedObject": involved,
        "reason": event.reason,
        "message": event.message[:MAX_MESSAGE],
        "type": event.type,
        "count": 1,
        "firstTimestamp": format_time(now),
        "lastTimestamp": format_time(now),
        "source": {"component": "slipway"},
        "reportingComponent": "slipway.dev/operator",
        "reportingInstance": "slipway-operator",
    }


class Recorder:
    """Writes Events: equal ones at most every few seconds, and not too many about one object."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._said: OrderedDict[str, tuple[float, int]] = OrderedDict()  # when an Event was written, and how often it was left out since
        self._budgets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left for an object, and since when

    async def record(self, resource: Manifest, event: Event) -> None:
        """Write one Event. One that cannot be written is dropped: it is a courtesy, the status is the record."""
        body, now = event_manifest(resource, event, datetime.now(UTC)), time.monotonic()
        times = self._admit(str(resource["metadata"].get("uid")), body["metadata"]["name"], now)
        if times:
            with contextlib.suppress(ApiError):
                await self._write(body, times)

    def _admit(self, uid: str, name: str, now: float) -> int:
        """Return how often the Event counts if it may be written now, else 0."""
        at, left_out = self._said.get(name, (-AGGREGATE_SECONDS, 0))
        tokens, since = self._budgets.get(uid, (BURST, now))
        tokens = min(BURST, tokens + (now - since) / REFILL_SECONDS)
        is_admitted = now - at >= AGGREGATE_SECONDS and tokens >= 1
        self._remember(self._said, name, (now, 0) if is_admitted else (at, left_out + 1))
        self._remember(self._budgets, uid, (tokens - 1 if is_admitted else tokens, now))
        return left_out + 1 if is_admitted else 0

    def _remember(self, memory: OrderedDict[str, _T], key: str, value: _T) -> None:
        memory[key] = value
        memory.move_to_end(key)
        if len(memory) > REMEMBERED:
            memory.popitem(last=False)

    async def _write(self, body: dict[str, Any], times: int) -> None:
        namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
        try:
            await self._cluster.request("POST", path_of("Event", namespace), body | {"count": times})
        except Conflict:
            known = await self._cluster.get("Event", namespace, name)
            patch = {"count": known.get("count", 1) + times, "lastTimestamp": body["lastTimestamp"]}
            await self._cluster.patch("Event", namespace, name, patch, MERGE_PATCH)
