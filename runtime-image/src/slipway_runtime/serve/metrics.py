"""The server's metrics (names: design 8).

Requests are counted by `Tally` and `Buckets`, plain Python without locks that the event loop alone writes: an observation
costs 0.2 µs where the client library's costs 1.5. The library renders them at a scrape. Where several processes serve
one model (workers.py), a scrape gives the sum of all.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from slipway_runtime.serve.gpu import Gpu

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
_PER_PROCESS = {"process_start_time_seconds", "process_max_fds"}  # of which there is no sum
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


State = dict[str, Any]


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

    def state(self) -> list[float]:
        """The counts and the total, as `absorb` takes them."""
        return [*self._counts, self.total]

    def absorb(self, state: Any) -> None:
        """Add what another counted."""
        self._counts = [own + int(more) for own, more in zip(self._counts, state[:-1], strict=True)]
        self.total += state[-1]

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

    def state(self) -> dict[str, int]:
        """The counts, as `absorb` takes them."""
        return {str(value): count for value, count in self.counts.items()}

    def absorb(self, state: Any) -> None:
        """Add what another counted."""
        for value, count in state.items():
            self.counts[int(value)] = self.counts.get(int(value), 0) + count

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

    def state(self) -> int:
        """The count, as `absorb` takes it."""
        return self.value

    def absorb(self, state: Any) -> None:
        """Add what another counted."""
        self.value += state

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

    @property
    def parts(self) -> tuple[Tally | Count | Buckets, ...]:
        """All that is counted."""
        return self.requests, self.nonfinite, self.seconds


class Metrics:
    """One registry for one model; the bound methods `queue` to `nonfinite` are for the event loop only."""

    def __init__(self, model: str, revision: str, inflight: Callable[[], int], gpus: Callable[[], Sequence[Gpu]] = tuple) -> None:
        """Register all metrics.

        Args:
            model: value of the label `model`.
            revision: value of the label `revision`.
            inflight: read at scrape time: requests taken and not answered yet.
            gpus: read at scrape time: the GPUs of the pod.
        """
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.others: Callable[[], Sequence[State]] = tuple  # what other processes counted for the same model
        self._inflight, self._gpus = inflight, gpus
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
        self._families: tuple[Tally | Count | Buckets, ...] = (self.requests, self.nonfinite_answers, *buckets, *self.probes.parts)
        self.registry.register(self)
        self.load_seconds = Gauge("slipway_model_load_seconds", "Verify, load, warm up, reproduce golden outputs.", registry=self.registry)
        self._info = Gauge("slipway_artifact_info", "The artifact served.", ("digest", "format", "precision"), registry=self.registry)

    def collect(self) -> Iterable[Metric]:
        """The metrics of requests and processes, for the registry."""
        others = self.others()
        whole = self.whole(others)
        of_experiments = [[part.family() for part in (apart.requests, apart.seconds)] for apart in whole._experiments.values()]
        inflight = self._inflight() + sum(state["inflight"] for state in others)
        return [
            *_processes([state["pid"] for state in others]),
            *(part.family() for part in whole._families),
            *(_joined(families) for families in zip(*of_experiments, strict=True)),
            GaugeMetricFamily("slipway_inflight_requests", "Requests taken and not answered.", inflight),
            *_of_gpus(self._gpus()),
        ]

    def state(self) -> State:
        """What is counted so far, for other processes; JSON can say it."""
        experiments = {name: [part.state() for part in apart.parts] for name, apart in self._experiments.items()}
        parts = [part.state() for part in self._families]
        return {"parts": parts, "experiments": experiments, "inflight": self._inflight(), "pid": os.getpid()}

    def whole(self, others: Sequence[State] | None = None) -> Metrics:
        """What all processes counted together; itself, when there is only one."""
        others = self.others() if others is None else others
        if not others:
            return self
        total = Metrics(self._labels["model"], self._labels["revision"], lambda: 0)
        for state in (self.state(), *others):
            for part, more in zip(total._families, state["parts"], strict=True):
                part.absorb(more)
            for name, rows in state["experiments"].items():
                for part, more in zip(total._experiment(name).parts, rows, strict=True):
                    part.absorb(more)
        return total

    def experiment(self, name: str, status: int, seconds: float) -> None:
        """Count an answer to a request of an experiment besides; of more names than a route can have, the later ones are not counted."""
        is_new = name not in self._experiments
        if is_new and (len(self._experiments) >= MAX_EXPERIMENTS or not _EXPERIMENT.fullmatch(name)):
            return
        self._experiment(name).add(status, seconds)

    def _experiment(self, name: str) -> Apart:
        if name not in self._experiments:
            self._experiments[name] = Apart("slipway_experiment", "requests of an experiment", {**self._labels, "experiment": name})
        return self._experiments[name]

    def set_artifact(self, digest: str, artifact_format: str, precision: str) -> None:
        """Publish which artifact is served."""
        self._info.labels(digest, artifact_format, precision).set(1)

    def render(self) -> bytes:
        """The scrape answer in the text format."""
        return generate_latest(self.registry)


def _processes(others: Sequence[int]) -> list[Metric]:
    """CPU time, memory and files of this process and the others (ids) together."""
    families = [*ProcessCollector(registry=None).collect()]
    for pid in others:
        for family, more in zip(families, ProcessCollector(registry=None, pid=partial(int, pid)).collect(), strict=False):
            if family.name not in _PER_PROCESS and family.name == more.name:
                sample = family.samples[0]
                family.samples[0] = sample._replace(value=sample.value + more.samples[0].value)
    return families


def _of_gpus(gpus: Sequence[Gpu]) -> list[Metric]:
    """The metrics of the GPUs; none where there is no GPU."""
    if not gpus:
        return []
    use = GaugeMetricFamily("slipway_gpu_utilization_ratio", "Share of the last seconds in which a kernel ran.", labels=["gpu"])
    used = GaugeMetricFamily("slipway_gpu_memory_used_bytes", "Memory of the GPU in use, by whoever shares it.", labels=["gpu"])
    total = GaugeMetricFamily("slipway_gpu_memory_total_bytes", "Memory of the GPU.", labels=["gpu"])
    for gpu in gpus:
        used.add_metric([gpu.uuid], gpu.used)
        total.add_metric([gpu.uuid], gpu.total)
        if gpu.utilization is not None:
            use.add_metric([gpu.uuid], gpu.utilization)
    return [use, used, total]


def _joined(families: Iterable[Metric]) -> Metric:
    """One family with the samples of all."""
    first, *rest = families
    for family in rest:
        first.samples.extend(family.samples)
    return first
