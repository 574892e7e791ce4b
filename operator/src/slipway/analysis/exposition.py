"""One scrape of one inference pod: the few metrics of design 8 that verdicts rest on, read from the text format."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from slipway.analysis.histogram import Histogram, from_cumulative

REQUESTS, NONFINITE = "slipway_requests_total", "slipway_nonfinite_outputs_total"
DURATION, STARTED = "slipway_request_duration_seconds", "process_start_time_seconds"
# gRPC statuses that are the server's fault; the others are the caller's. HTTP: 429 (we refuse for load) and everything from 500.
GRPC_ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
ERROR_CODE = "5..|429|" + "|".join(sorted(GRPC_ERRORS))  # the same as a PromQL matcher

_WANTED = re.compile(rf"(?:{REQUESTS}|{NONFINITE}|{DURATION}_bucket|{DURATION}_sum|{STARTED})[{{ \t]")
_EXEMPLAR = re.compile(r" # \{.*$")


class ScrapeError(ValueError):
    """The answer of a pod is not what a runtime exports; the message says in what."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Counters of one pod, or what they grew by: requests by code, answers with NaN or infinite outputs, durations in seconds.

    `nonfinite` and `duration` are None when the runtime does not export them: unknown, which is not zero.
    """

    codes: Mapping[str, float] = field(default_factory=dict)
    nonfinite: float | None = None
    duration: Histogram | None = None


@dataclass(frozen=True, slots=True)
class Scrape:
    """What a pod's counters said at `at`, and when its process started (both Unix seconds; started is None when not exported)."""

    at: float
    started: float | None
    counts: Counts


def is_error(code: str) -> bool:
    """Say whether an answer with this status counts as an error of the server."""
    return code == "429" or re.fullmatch("5..", code) is not None or code in GRPC_ERRORS


def parse(text: str, revision: str, at: float) -> Scrape:
    """Return the scrape in an answer of /metrics; lines about other metrics and series of other revisions are ignored.

    Exemplars, which some exporters write into the plain text format, are cut off.

    Args:
        text: Prometheus text format 0.0.4 or OpenMetrics.
        revision: value of the label `revision`; series without that label count too (a runtime that serves one revision only).
        at: when it was scraped, Unix seconds.

    Raises:
        ScrapeError: Broken syntax, counters that are no numbers, or no `slipway_requests_total` metric at all.
    """
    lines = [_EXEMPLAR.sub("", line) for line in text.splitlines() if _WANTED.match(line)]
    try:
        families = text_string_to_metric_families("\n".join(lines) + "\n")
        samples = [sample for family in families for sample in family.samples if sample.labels.get("revision", revision) == revision]
        started = next((sample.value for sample in samples if sample.name == STARTED), None)
        counts = _counts([sample for sample in samples if sample.name != STARTED])
    except ScrapeError:
        raise
    except (ValueError, KeyError) as error:
        raise ScrapeError(f"the metrics cannot be read ({error}); see what the pod answers at its metrics path") from error
    if not counts.codes and counts.duration is None and not _is_declared(REQUESTS, text):
        raise ScrapeError(f"there is no metric {REQUESTS}; a runtime must export it to be analysed (docs/design/0008-analysis.md)")
    # A counter with labels has no series before its first event.
    return Scrape(at, started, replace(counts, nonfinite=0.0) if counts.nonfinite is None and _is_declared(NONFINITE, text) else counts)


def _is_declared(counter: str, text: str) -> bool:
    return f"# TYPE {counter}" in text or f"# TYPE {counter.removesuffix('_total')} " in text  # the second in OpenMetrics


def _counts(samples: Iterable[Sample]) -> Counts:
    codes: dict[str, float] = defaultdict(float)
    buckets: dict[float, float] = defaultdict(float)
    total, nonfinite = 0.0, None
    for sample in samples:
        if not (math.isfinite(sample.value) and sample.value >= 0):
            raise ScrapeError(f"{sample.name} is {sample.value}; a counter is a finite number, not negative")
        if sample.name == REQUESTS:
            codes[sample.labels.get("code", "")] += sample.value
        elif sample.name == NONFINITE:
            nonfinite = (nonfinite or 0.0) + sample.value
        elif sample.name == f"{DURATION}_sum":
            total += sample.value
        else:
            buckets[float(sample.labels["le"])] += sample.value
    return Counts(dict(codes), nonfinite, from_cumulative(buckets, total) if buckets else None)
