"""Kubernetes Events about our resources: equal ones are counted up instead of written again."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from slipway.api.conditions import format_time
from slipway.cluster import ApiError, Cluster, Conflict, path_of
from slipway.snapshot import Event, Manifest

MAX_MESSAGE = 1000  # the API server takes 1024


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


async def record(cluster: Cluster, resource: Manifest, event: Event) -> None:
    """Write one Event. One that cannot be written is dropped: it is a courtesy, the status is the record."""
    body = event_manifest(resource, event, datetime.now(UTC))
    namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
    try:
        await cluster.request("POST", path_of("Event", namespace), body)
    except Conflict:
        try:
            known = await cluster.get("Event", namespace, name)
            patch = {"count": known.get("count", 1) + 1, "lastTimestamp": body["lastTimestamp"]}
            await cluster.request("PATCH", path_of("Event", namespace, name), patch, content_type="application/merge-patch+json")
        except ApiError:
            return
    except ApiError:
        return
