"""The server's metrics (names: design 8). Children are bound once, so that a request pays for additions only."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics, generate_latest

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
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """One registry for one model; `queue`, `inference`, `batch` and `seconds` are bound `observe` methods."""

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
        names, values = ("model", "revision"), (model, revision)
        self._requests = Counter("slipway_requests", "Answered infer and predict requests.", (*names, "code"), registry=self.registry)
        self._codes: dict[int, Counter] = {}
        self._values = values
        seconds = Histogram(
            "slipway_request_duration_seconds", "Request read to answer written.", names, buckets=SECONDS, registry=self.registry
        )
        self.seconds = seconds.labels(*values).observe
        self.queue = self._histogram("slipway_queue_duration_seconds", "Waiting for a worker lane.", SECONDS).observe
        self.inference = self._histogram("slipway_inference_duration_seconds", "Inside the model.", SECONDS).observe
        self.batch = self._histogram("slipway_batch_size", "Samples per call of the model.", SIZES).observe
        Gauge("slipway_inflight_requests", "Requests taken and not answered.", registry=self.registry).set_function(inflight)
        self.load_seconds = Gauge("slipway_model_load_seconds", "Verify, load, warm up, reproduce golden outputs.", registry=self.registry)
        self._info = Gauge("slipway_artifact_info", "The artifact served.", ("digest", "format", "precision"), registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)

    def count(self, status: int) -> None:
        """Count one answer by its HTTP status."""
        child = self._codes.get(status)
        if child is None:
            child = self._codes[status] = self._requests.labels(*self._values, str(status))
        child.inc()

    def set_artifact(self, digest: str, artifact_format: str, precision: str) -> None:
        """Publish which artifact is served."""
        self._info.labels(digest, artifact_format, precision).set(1)

    def render(self) -> bytes:
        """The scrape answer in the text format."""
        return generate_latest(self.registry)
