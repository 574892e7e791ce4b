"""The operator's own metrics; their names are fixed in the design and are the same in dashboards, alerts and docs.

Only the replica that leads shows the series of models: what a follower knew when it last led would contradict them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

RECONCILES = Counter("slipway_reconcile", "Passes over one resource, by result.", ["result"])
RECONCILE_SECONDS = Histogram("slipway_reconcile_duration_seconds", "Time of one pass.", buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10))
QUEUE_DEPTH = Gauge("slipway_queue_depth", "Resources waiting for a pass.")
QUEUE_OLDEST = Gauge("slipway_queue_oldest_seconds", "How long the oldest of them has been waiting.")
API_REQUESTS = Counter("slipway_api_requests", "Requests to the API server.", ["verb", "code"])
WATCH_AGE = Gauge("slipway_watch_age_seconds", "Time since the watch of this resource was last known to be right.", ["resource"])
LEADER = Gauge("slipway_leader", "1 while this replica holds the lease.")
MODELS = CollectorRegistry()
CONDITION = Gauge("slipway_condition", "1 for the status that a condition has.", ["namespace", "name", "type", "status"], registry=MODELS)
TRAFFIC = Gauge("slipway_traffic_weight", "Share of the traffic in percent.", ["namespace", "name", "revision"], registry=MODELS)
REGISTRY_PASSES = Counter("slipway_registry_collections", "Looks for unreferenced artifacts in the registry, by result.", ["result"])
REGISTRY_UNREFERENCED = Gauge("slipway_registry_unreferenced_artifacts", "Artifacts that nothing referenced at the last look.")
REGISTRY_DELETED = Counter("slipway_registry_artifacts_deleted", "Artifacts deleted from the registry.")
REGISTRY_DELETED_BYTES = Counter("slipway_registry_deleted_bytes", "Their size; blobs that others share stay.")
BUILD = Gauge("slipway_build_info", "Always 1.", ["version"])
BUILD.labels(version("slipway")).set(1)

_seen: dict[tuple[str, str], set[tuple[str, ...]]] = {}


def page(*, is_leader: bool) -> bytes:
    """Return the answer to a scrape, in Prometheus' text format."""
    return generate_latest() + (generate_latest(MODELS) if is_leader else b"")


def show(namespace: str, name: str, status: Mapping[str, Any]) -> None:
    """Export one ModelDeployment's conditions and weights, and drop the series that it no longer has."""
    rows: dict[tuple[str, ...], float] = {}
    for condition in status.get("conditions") or ():
        rows[("c", condition["type"], condition["status"])] = 1
    for role in ("stable", "canary"):
        if status.get(role):
            rows[("t", status[role]["revision"])] = status[role].get("weight", 0)
    for row in _seen.get((namespace, name), set()) - rows.keys():
        _remove(namespace, name, row)
    for row, value in rows.items():
        (CONDITION if row[0] == "c" else TRAFFIC).labels(namespace, name, *row[1:]).set(value)
    _seen[(namespace, name)] = set(rows)


def forget(namespace: str, name: str) -> None:
    """Drop all series of a ModelDeployment that is gone."""
    for row in _seen.pop((namespace, name), set()):
        _remove(namespace, name, row)


def _remove(namespace: str, name: str, row: tuple[str, ...]) -> None:
    (CONDITION if row[0] == "c" else TRAFFIC).remove(namespace, name, *row[1:])
