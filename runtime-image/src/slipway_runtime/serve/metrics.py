"""The server's metrics (names: design 8).

Requests are counted by `Tally` and `Buckets`, plain Python without locks that the event loop alone writes: an observation
costs 0.2 µs where the client library's costs 1.5. The library renders them at a scrape.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds; steps of at most 2.5, so that a p99 read from the buckets can be held against a limit.
SECONDS = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.02,
    0.035,
    0.05,
    0.075,
    0.1,
    0.15,
    0.25,
    0.4,
    0.6,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)
MAX_EXPERIMENTS = 16  # as many as spec.routing takes; a client that makes names up must not make series without end
_EXPERIMENT = re.compile(r"[a-z0-9][-a-z0-9]{0,62}")
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Buckets:
    """A histogram; `total` is the sum of the values."""

    __slots__ = ("_bounds", "_counts", "_help", "_labels", "_name", "total")

    def __init__(self, name: str, text: str, bounds: tuple[float, ...], labels: dict[str, str]) -> None:
        """Make it; `bounds` are the upper bounds of all buckets but the last."""
        self._name, self._help, self._bounds, self._labels = name, text, bounds, labels
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(self._counts)

    def family(self) -> Metric:
        """The metric as it is now."""
        total, rows = 0, []
        for bound, count in zip((*map(str, map(float, self._bounds)), "+Inf"), self._counts, strict=True):
            total += count
            rows.append((bound, total))
        family = HistogramMetricFamily(self._name, self._help, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), rows, self.total)
        return family


class Tally:
    """Counters by HTTP status. A handler's own status may be any number; one that is none of HTTP counts as 599."""

    def __init__(self, name: str, text: str, label: str, labels: dict[str, str]) -> None:
        """Make it; `label` tells the counters apart."""
        self._name, self._help, self._label, self._labels = name, text, label, labels
        self.counts: dict[int, int] = {}

    def add(self, value: int) -> None:
        """Count one."""
        known = self.counts.get(value)
        if known is None and not 100 <= value <= 599:
            value, known = 599, self.counts.get(599)
        self.counts[value] = (known or 0) + 1

    def family(self) -> Metric:
        """The metric as it is now."""
        family = CounterMetricFamily(self._name, self._help, labels=[*self._labels, self._label])
        for value, count in sorted(self.counts.items()):
            family.add_metric([*self._labels.values(), str(value)], count)
        return family


class Count:
    """One counter, 0 from the start: a rate that is held against a limit must know zero from unknown."""

    def __init__(self, name: str, text: str, labels: dict[str, str]) -> None:
        """Make it."""
        self._name, self._help, self._labels = name, text, labels
        self.value = 0

    def add(self, more: int) -> None:
        """Count so many."""
        self.value += more

    def family(self) -> Metric:
        """The metric as it is now."""
        family = CounterMetricFamily(self._name, self._help, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), self.value)
        return family


class Apart:
    """Requests that are counted beside all others: probes, and those of one experiment."""

    def __init__(self, prefix: str, text: str, labels: dict[str, str]) -> None:
        """Make it; `prefix` begins the names, `text` says whose requests they are."""
        self.requests = Tally(f"{prefix}_requests", f"Answered {text}.", "code", labels)
        self.seconds = Buckets(f"{prefix}_request_duration_seconds", f"Request read to answer written, {text}.", SECONDS, labels)
        self.nonfinite = Count(f"{prefix}_nonfinite_outputs", f"Answers with NaN or infinite values, {text}.", labels)

    def add(self, status: int, seconds: float) -> None:
        """Count an answer."""
        self.requests.add(status)
        self.seconds.observe(seconds)


class Metrics:
    """One registry for one model; the bound methods `queue` to `nonfinite` are for the event loop only."""

    def __init__(self, model: str, revision: str, inflight: Callable[[], int]) -> None:
        """Register all metrics.

        Args:
            model: value of the label `model`.
            revision: value of the label `revision`.
            inflight: read at scrape time: requests taken and not answered yet.
        """
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        labels = {"model": model, "revision": revision}
        self.requests = Tally("slipway_requests", "Answered infer and predict requests.", "code", labels)
        self.nonfinite_answers = Count("slipway_nonfinite_outputs", "Answers whose outputs have NaN or infinite values.", labels)
        self.seconds_buckets = Buckets("slipway_request_duration_seconds", "Request read to answer written.", SECONDS, labels)
        self.queue_buckets = Buckets("slipway_queue_duration_seconds", "Waiting for a worker lane.", SECONDS, {})
        self.inference_buckets = Buckets("slipway_inference_duration_seconds", "Inside the model.", SECONDS, {})
        self.batch_buckets = Buckets("slipway_batch_size", "Samples per call of the model.", SIZES, {})
        self.count, self.seconds = self.requests.add, self.seconds_buckets.observe
        self.queue, self.inference, self.batch = self.queue_buckets.observe, self.inference_buckets.observe, self.batch_buckets.observe
        self.nonfinite = self.nonfinite_answers.add
        buckets = (self.seconds_buckets, self.queue_buckets, self.inference_buckets, self.batch_buckets)
        self.probes = Apart("slipway_probe", "probes (requests with the header x-slipway-probe)", labels)
        self._labels, self._experiments = labels, dict[str, Apart]()
        probes = (self.probes.requests, self.probes.nonfinite, self.probes.seconds)
        self._families = (self.requests, self.nonfinite_answers, *buckets, *probes)
        self.registry.register(self)
        Gauge("slipway_inflight_requests", "Requests taken and not answered.", registry=self.registry).set_function(inflight)
        self.load_seconds = Gauge("slipway_model_load_seconds", "Verify, load, warm up, reproduce golden outputs.", registry=self.registry)
        self._info = Gauge("slipway_artifact_info", "The artifact served.", ("digest", "format", "precision"), registry=self.registry)

    def collect(self) -> Iterable[Metric]:
        """The request metrics, for the registry."""
        of_experiments = [[part.family() for part in (apart.requests, apart.seconds)] for apart in self._experiments.values()]
        return [family.family() for family in self._families] + [_joined(families) for families in zip(*of_experiments, strict=True)]

    def experiment(self, name: str, status: int, seconds: float) -> None:
        """Count an answer to a request of an experiment besides; of more names than a route can have, the later ones are not counted."""
        if name not in self._experiments:
            if len(self._experiments) >= MAX_EXPERIMENTS or not _EXPERIMENT.fullmatch(name):
                return
            self._experiments[name] = Apart("slipway_experiment", "requests of an experiment", {**self._labels, "experiment": name})
        self._experiments[name].add(status, seconds)

    def set_artifact(self, digest: str, artifact_format: str, precision: str) -> None:
        """Publish which artifact is served."""
        self._info.labels(digest, artifact_format, precision).set(1)

    def render(self) -> bytes:
        """The scrape answer in the text format."""
        return generate_latest(self.registry)


def _joined(families: Iterable[Metric]) -> Metric:
    """One family with the samples of all."""
    first, *rest = families
    for family in rest:
        first.samples.extend(family.samples)
    return first
