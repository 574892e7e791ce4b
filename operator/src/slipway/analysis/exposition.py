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

PREFIX, PROBES = "slipway_", "slipway_probe_"  # requests of users, and those that nobody sent
REQUESTS, NONFINITE = "slipway_requests_total", "slipway_nonfinite_outputs_total"
BATCHES = "slipway_batch_size"
DURATION, STARTED = "slipway_request_duration_seconds", "process_start_time_seconds"
# gRPC statuses that are the server's fault; the others are the caller's. HTTP: 429 (we refuse for load) and everything from 500.
GRPC_ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
ERROR_CODE = "5..|429|" + "|".join(sorted(GRPC_ERRORS))  # the same as a PromQL matcher

_METRIC = r"(?:requests_total|nonfinite_outputs_total|request_duration_seconds_(?:bucket|sum))"
_WANTED = re.compile(rf"(?:{PREFIX}{_METRIC}|{STARTED})[{{ \t]")
EXPERIMENTS = "slipway_experiment_"  # those of the users of an A/B experiment, counted besides
_OF_EXPERIMENTS = re.compile(rf"(?:{EXPERIMENTS}{_METRIC}|{STARTED})[{{ \t]")
COMPARISONS = "slipway_shadow_comparisons_total"
_COMPARISONS = re.compile(rf"(?:{COMPARISONS}|{STARTED})[{{ \t]")
_WITH_PROBES = re.compile(rf"(?:{PREFIX}(?:probe_)?{_METRIC}|{STARTED})[{{ \t]")
_BROKEN = "the metrics cannot be read ({}); see what the pod answers at its metrics path"
_EXEMPLAR = re.compile(r" # \{.*$")


class ScrapeError(ValueError):
    """The answer of a pod is not what a runtime exports; the message says in what."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Counters of one pod, or what they grew by: requests by code, answers with NaN or infinite outputs, durations in seconds.

    `nonfinite` and `duration` are None when the runtime does not export them: unknown, which is not zero. `probes` of the requests were
    probes.
    """

    codes: Mapping[str, float] = field(default_factory=dict)
    nonfinite: float | None = None
    duration: Histogram | None = None
    probes: float = 0.0


@dataclass(frozen=True, slots=True)
class Scrape:
    """What a pod's counters said at `at`, and when its process started (both Unix seconds; started is None when not exported)."""

    at: float
    started: float | None
    counts: Counts


_SAMPLES = re.compile(rf"^{BATCHES}_sum(?:\{{[^}}]*\}})?[ \t]+(\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Usage:
    """What one pod did since its process started: how long that is (seconds), answers without error, and what they were about.

    `predictions` are samples: a request with 32 images is 32 of them. A runtime that does not count samples has one a request.
    """

    seconds: float | None
    answers: float
    predictions: float


def usage(text: str, revision: str, at: float) -> Usage:
    """Return what an answer of /metrics says about use; arguments and errors as for `parse`.

    Samples are counted with those of calls that failed, so they are reduced by the share of answers that were errors.
    """
    scrape = parse(text, revision, at)
    total = math.fsum(scrape.counts.codes.values())
    good = math.fsum(count for code, count in scrape.counts.codes.items() if code == "OK" or re.fullmatch("2..", code))
    try:
        samples = math.fsum(float(found[1]) for found in _SAMPLES.finditer(text))
    except ValueError as error:
        raise ScrapeError(f"{BATCHES} is not a number: {error}") from error
    seconds = None if scrape.started is None else max(0.0, at - scrape.started)
    return Usage(seconds, good, samples * good / total if samples and total else good)


def is_error(code: str) -> bool:
    """Say whether an answer with this status counts as an error of the server."""
    return code == "429" or re.fullmatch("5..", code) is not None or code in GRPC_ERRORS


def parse_experiment(text: str, revision: str, at: float, experiment: str) -> Scrape:
    """Return the scrape of one experiment's requests, as `parse` does of all; a server that saw none has no series of it.

    Raises:
        ScrapeError: As in `parse`, or the server counts no requests at all.
    """
    parse(text, revision, at)
    found, started = _samples(text, _OF_EXPERIMENTS, revision)
    own = [sample for sample in found if sample.labels.get("experiment") == experiment]
    return Scrape(at, started, _checked(sample._replace(name=PREFIX + sample.name.removeprefix(EXPERIMENTS)) for sample in own))


def parse_comparisons(text: str, revision: str, at: float, *, with_probes: bool = False) -> Scrape:
    """Return what a comparator counted as a scrape: each comparison a request, each one that differed or failed an error.

    Args:
        text: as in `parse`.
        revision: the canary.
        at: when it was scraped, Unix seconds.
        with_probes: whether comparisons of golden inputs count too.

    Raises:
        ScrapeError: Broken syntax, or no such metric at all.
    """
    samples, started = _samples(text, _COMPARISONS, revision)
    if not samples:
        raise ScrapeError(f"there is no metric {COMPARISONS} about {revision}")
    codes, probes = {"200": 0.0, "500": 0.0}, 0.0
    for sample in samples:
        code = {"agreed": "200", "differed": "500", "failed": "500"}.get(sample.labels.get("result", ""))
        is_probe = sample.labels.get("source") == "golden"
        if code is not None and (with_probes or not is_probe):
            codes[code] += sample.value
            probes += sample.value if is_probe else 0.0
    return Scrape(at, started, Counts(codes, probes=probes))


def parse(text: str, revision: str, at: float, *, with_probes: bool = False) -> Scrape:
    """Return the scrape in an answer of /metrics; lines about other metrics and series of other revisions are ignored.

    Exemplars, which some exporters write into the plain text format, are cut off.

    Args:
        text: Prometheus text format 0.0.4 or OpenMetrics.
        revision: value of the label `revision`; series without that label count too (a runtime that serves one revision only).
        at: when it was scraped, Unix seconds.
        with_probes: whether requests that nobody sent count too.

    Raises:
        ScrapeError: Broken syntax, counters that are no numbers, or no `slipway_requests_total` metric at all.
    """
    samples, started = _samples(text, _WITH_PROBES if with_probes else _WANTED, revision)
    counts = _checked(samples)
    if not counts.codes and counts.duration is None and not _is_declared(REQUESTS, text):
        raise ScrapeError(f"there is no metric {REQUESTS}; a runtime must export it to be analysed (docs/design/0008-analysis.md)")
    # A counter with labels has no series before its first event.
    return Scrape(at, started, replace(counts, nonfinite=0.0) if counts.nonfinite is None and _is_declared(NONFINITE, text) else counts)


def _samples(text: str, wanted: re.Pattern[str], revision: str) -> tuple[list[Sample], float | None]:
    """Return the samples of the wanted metrics about the revision, and when the process started.

    Raises:
        ScrapeError: Broken syntax.
    """
    lines = [_EXEMPLAR.sub("", line) for line in text.splitlines() if wanted.match(line)]
    try:
        families = text_string_to_metric_families("\n".join(lines) + "\n")
        samples = [sample for family in families for sample in family.samples if sample.labels.get("revision", revision) == revision]
    except (ValueError, KeyError) as error:
        raise ScrapeError(_BROKEN.format(error)) from error
    return [s for s in samples if s.name != STARTED], next((s.value for s in samples if s.name == STARTED), None)


def _checked(samples: Iterable[Sample]) -> Counts:
    try:
        return _counts(samples)
    except ScrapeError:
        raise
    except (ValueError, KeyError) as error:
        raise ScrapeError(_BROKEN.format(error)) from error


def _is_declared(counter: str, text: str) -> bool:
    return f"# TYPE {counter}" in text or f"# TYPE {counter.removesuffix('_total')} " in text  # the second in OpenMetrics


def _counts(samples: Iterable[Sample]) -> Counts:
    codes: dict[str, float] = defaultdict(float)
    buckets: dict[float, float] = defaultdict(float)
    total, nonfinite, probes = 0.0, None, 0.0
    for sample in samples:
        if not (math.isfinite(sample.value) and sample.value >= 0):
            raise ScrapeError(f"{sample.name} is {sample.value}; a counter is a finite number, not negative")
        name = PREFIX + sample.name.removeprefix(PROBES) if sample.name.startswith(PROBES) else sample.name
        if name == REQUESTS:
            codes[sample.labels.get("code", "")] += sample.value
            probes += sample.value if name != sample.name else 0.0
        elif name == NONFINITE:
            nonfinite = (nonfinite or 0.0) + sample.value
        elif name == f"{DURATION}_sum":
            total += sample.value
        else:
            buckets[float(sample.labels["le"])] += sample.value
    return Counts(dict(codes), nonfinite, from_cumulative(buckets, total) if buckets else None, probes)
