"""What the comparator counts. `source` tells copies of users' requests from golden inputs that a probe asked for."""

from __future__ import annotations

import math
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics, generate_latest

from slipway_runtime.shadow.compare import Finding, Result

SOURCES = ("mirrored", "golden")
ERRORS = (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, math.inf)
SECONDS = (-1.0, -0.25, -0.1, -0.05, -0.02, -0.01, -0.005, -0.001, 0.0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, math.inf)
PAIR = ("model", "revision", "baseline")


class ShadowMetrics:
    """One registry for one pair of revisions; safe from several threads."""

    def __init__(self, model: str, canary: str, stable: str, waiting: Callable[[], int]) -> None:
        """Register all, with every series at 0: what is not there is unknown, which is not zero.

        Args:
            model: label `model`.
            canary: label `revision`.
            stable: label `baseline`.
            waiting: read at a scrape: requests that wait to be compared.
        """
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        pair = (model, canary, stable)
        results = Counter(
            "slipway_shadow_comparisons", "Requests that both were asked.", (*PAIR, "source", "result"), registry=self._registry
        )
        self._results = {(source, result): results.labels(*pair, source, str(result)) for source in SOURCES for result in Result}
        dropped = Counter("slipway_shadow_dropped", "Copies of requests that found the queue full.", PAIR, registry=self._registry)
        left_out = Counter("slipway_shadow_left_out", "Copies of requests beyond the wanted share.", PAIR, registry=self._registry)
        self._dropped, self._left_out = dropped.labels(*pair), left_out.labels(*pair)
        help_absolute, help_relative = "Largest absolute difference of any value.", "Largest difference of any value relative to stable's."
        absolute = Histogram("slipway_shadow_max_absolute_error", help_absolute, PAIR, registry=self._registry, buckets=ERRORS)
        relative = Histogram("slipway_shadow_max_relative_error", help_relative, PAIR, registry=self._registry, buckets=ERRORS)
        help_latency = "Seconds that the canary took longer than stable."
        latency = Histogram("slipway_shadow_latency_difference_seconds", help_latency, PAIR, registry=self._registry, buckets=SECONDS)
        self._absolute, self._relative, self._latency = absolute.labels(*pair), relative.labels(*pair), latency.labels(*pair)
        Gauge("slipway_shadow_queue_depth", "Requests that wait to be compared.", registry=self._registry).set_function(waiting)

    def add(self, source: str, finding: Finding) -> None:
        """Count a comparison."""
        self._results[source, finding.result].inc()
        if finding.absolute is not None:
            self._absolute.observe(finding.absolute)
        if finding.relative is not None:
            self._relative.observe(finding.relative)
        if finding.latency is not None:
            self._latency.observe(finding.latency)

    def drop(self) -> None:
        """Count a copy that found no room."""
        self._dropped.inc()

    def leave_out(self) -> None:
        """Count a copy beyond the wanted share."""
        self._left_out.inc()

    def render(self) -> bytes:
        """The scrape answer in the text format."""
        return generate_latest(self._registry)
