"""What a revision did since a step began: the growth of its pods' counters, added up over pods, restarts and replacements.

Pure and immutable: a `Track` is kept between looks and fed with each round of scrapes. It is lost with the operator's process; the next
one begins a new window, with fewer samples and therefore Inconclusive at first, never with a wrong number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from slipway.analysis.exposition import Counts, Scrape, is_error
from slipway.analysis.histogram import Histogram, difference, is_reset, merge


@dataclass(frozen=True, slots=True)
class Sample:
    """What one revision did in the window.

    Args:
        seconds: length of the window.
        at: when the newest data were taken, Unix seconds.
        requests: answers, whatever their code.
        errors: answers that were the server's fault.
        nonfinite: answers with NaN or infinite outputs; None when the runtime does not say.
        duration: of the requests, in seconds; None when the runtime does not say.
        missing: why the data are incomplete; None when they are complete.
        probes: how many of the requests were probes.
    """

    seconds: float
    at: float
    requests: float
    errors: float
    nonfinite: float | None = None
    duration: Histogram | None = None
    missing: str | None = None
    probes: float = 0.0


@dataclass(frozen=True, slots=True)
class PodTrack:
    """One pod: its last scrape, and what it counted within the window so far."""

    last: Scrape
    grown: Counts


@dataclass(frozen=True, slots=True)
class Track:
    """One revision since `since` (Unix seconds): its pods by uid, what pods counted that are gone, and what the last round missed."""

    since: float
    pods: Mapping[str, PodTrack] = field(default_factory=dict)
    gone: Counts | None = None
    missing: str | None = "nothing was scraped yet"


def follow(track: Track, scrapes: Mapping[str, Scrape | str]) -> Track:
    """Return the track after one round of scrapes.

    Args:
        track: so far.
        scrapes: for each pod of the revision that is there (by uid) what it said, or why it could not be scraped.
    """
    pods: dict[str, PodTrack] = {}
    lost = [pod.grown for uid, pod in track.pods.items() if uid not in scrapes]
    for uid, scrape in scrapes.items():
        before = track.pods.get(uid)
        if isinstance(scrape, Scrape):
            pods[uid] = _follow_pod(before, scrape, track.since)
        elif before is not None:
            pods[uid] = before
    missing = "; ".join(f"pod {uid}: {why}" for uid, why in sorted(scrapes.items()) if not isinstance(why, Scrape))
    gone = _add([*([track.gone] if track.gone else []), *lost]) if lost else track.gone
    return replace(track, pods=pods, gone=gone, missing=missing or (None if scrapes else "the revision has no pods"))


def sample(track: Track, now: float) -> Sample:
    """Return what the revision did in the window; data that cannot be added up are missing, not wrong."""
    at = min((pod.last.at for pod in track.pods.values()), default=track.since)
    parts = [pod.grown for pod in track.pods.values()] + ([track.gone] if track.gone else [])
    try:
        total = _add(parts)
    except ValueError as error:
        return Sample(now - track.since, at, 0, 0, missing=str(error))
    requests = sum(total.codes.values())
    errors = sum(count for code, count in total.codes.items() if is_error(code))
    return Sample(now - track.since, at, requests, errors, total.nonfinite, total.duration, track.missing, total.probes)


def with_probes(users: Sample, probes: Sample) -> Sample:
    """Return the sample of users' requests and probes together; no data about probes means that there were none."""
    if users.missing or probes.missing:
        return users
    counts = [Counts({"": one.requests}, one.nonfinite, one.duration) for one in (users, probes)]
    try:
        total = _add(counts)
    except ValueError as error:
        return replace(users, missing=str(error))
    requests, errors = users.requests + probes.requests, users.errors + probes.errors
    return replace(users, requests=requests, errors=errors, nonfinite=total.nonfinite, duration=total.duration, probes=probes.requests)


def _follow_pod(before: PodTrack | None, scrape: Scrape, since: float) -> PodTrack:
    if before is None:
        # A process younger than the window did all it counted within it; of an older one only what comes now.
        is_young = scrape.started is not None and scrape.started >= since
        return PodTrack(scrape, scrape.counts if is_young else _minus(scrape.counts, scrape.counts))
    if scrape.at <= before.last.at:
        return before
    # After a restart the counters began at 0: all they say is new. What was counted between the last scrape and the end is lost.
    restarted = scrape.started != before.last.started or _fell(scrape.counts, before.last.counts)
    return PodTrack(scrape, _add([before.grown, scrape.counts if restarted else _minus(scrape.counts, before.last.counts)]))


def _fell(now: Counts, before: Counts) -> bool:
    if any(now.codes.get(code, 0.0) < count for code, count in before.codes.items()):
        return True
    if before.nonfinite is not None and (now.nonfinite or 0.0) < before.nonfinite:
        return True
    return before.duration is not None and (now.duration is None or is_reset(now.duration, before.duration))


def _minus(now: Counts, before: Counts) -> Counts:
    codes = {code: count - before.codes.get(code, 0.0) for code, count in now.codes.items()}
    nonfinite = None if now.nonfinite is None else now.nonfinite - (before.nonfinite or 0.0)
    duration = now.duration if now.duration is None or before.duration is None else difference(now.duration, before.duration)
    return Counts(codes, nonfinite, duration, now.probes - before.probes)


def _add(parts: Iterable[Counts]) -> Counts:
    """The counts together; a metric that one part has and another part with requests has not is unknown.

    Raises:
        ValueError: The histograms have different buckets.
    """
    parts = list(parts)
    codes: dict[str, float] = {}
    for part in parts:
        for code, count in part.codes.items():
            codes[code] = codes.get(code, 0.0) + count
    busy = [part for part in parts if any(part.codes.values())] or parts
    nonfinite = None if any(part.nonfinite is None for part in busy) or not busy else sum(part.nonfinite or 0.0 for part in parts)
    duration = None if any(part.duration is None for part in busy) else merge(p.duration for p in parts if p.duration is not None)
    return Counts(codes, nonfinite, duration, sum(part.probes for part in parts))
