"""Where the numbers come from: the pods' own /metrics, or Prometheus. All I/O of the analysis but the webhook.

A source never raises for what a cluster does: what could not be had is missing data, and missing data are Inconclusive.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import aiohttp

from slipway.analysis import queries
from slipway.analysis.evaluate import Observations
from slipway.analysis.exposition import PREFIX, PROBES, Scrape, parse, parse_comparisons
from slipway.analysis.queries import QueryError, Target
from slipway.analysis.verdict import MetricSpec, Points
from slipway.analysis.window import Sample, Track, follow, sample, with_probes

MAX_ANSWER = 4 * 2**20  # bytes; a runtime's answer has a few KiB
MAX_PARALLEL = 16
ACCEPT = {"Accept": "text/plain;version=0.0.4"}
TIMEOUT = aiohttp.ClientTimeout(total=5, connect=2)


@dataclass(frozen=True, slots=True)
class Pod:
    """Where one pod of a revision can be asked."""

    uid: str
    url: str


class PodSource:
    """Scrapes pods and remembers, for each revision and step, what they counted. One `look` an interval."""

    def __init__(self, session: aiohttp.ClientSession, clock: Callable[[], float] = time.time) -> None:
        """`session` is shared and stays the caller's; `clock` gives Unix seconds."""
        self._session, self._clock = session, clock
        self._tracks: dict[tuple[str, str], tuple[Target | None, Track]] = {}  # of each revision the step and what it did
        self._slots = asyncio.Semaphore(MAX_PARALLEL)

    async def look(self, target: Target, pods: Iterable[Pod]) -> Sample:
        """Scrape all pods of the revision now, and return what it did since the first look at this step.

        So the first look belongs at the step's beginning. After a restart of the operator the window is shorter than the step, and its
        `seconds` say so.
        """
        pods, now = list(pods), self._clock()
        step, track = self._tracks.get((target.namespace, target.revision), (None, Track(now)))
        if step != target:
            track = Track(now)
        found = await asyncio.gather(*(self._scrape(pod, target) for pod in pods))
        track = follow(track, {pod.uid: scrape for pod, scrape in zip(pods, found, strict=True)})
        self._tracks[target.namespace, target.revision] = target, track
        return sample(track, self._clock())

    def forget(self, namespace: str, keep: Iterable[str]) -> None:
        """Drop what is remembered of the namespace's revisions, except of those in `keep`."""
        kept = set(keep)
        for key in [key for key in self._tracks if key[0] == namespace and key[1] not in kept]:
            del self._tracks[key]

    async def _scrape(self, pod: Pod, target: Target) -> Scrape | str:
        try:
            async with self._slots, self._session.get(pod.url, headers=ACCEPT, timeout=TIMEOUT, allow_redirects=False) as answer:
                body = await _read(answer)
                if answer.status != 200:
                    return f"{pod.url} answers {answer.status}"
                read = parse if target.comparator is None else parse_comparisons
                return read(body.decode(errors="replace"), target.revision, self._clock(), with_probes=target.with_probes)
        except TimeoutError:
            return f"{pod.url} did not answer in {TIMEOUT.total} s"
        except (aiohttp.ClientError, ValueError) as error:
            return f"{pod.url}: {error or type(error).__name__}"


class PrometheusSource:
    """Asks a Prometheus, or what speaks its HTTP API (Thanos, Mimir, VictoriaMetrics)."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        address: str,
        *,
        headers: Mapping[str, str] | None = None,
        scope: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare to ask `address`, for example http://prometheus.monitoring:9090.

        Args:
            session: shared; stays the caller's.
            address: base URL, with the prefix if there is one.
            headers: sent with each request, for example Authorization.
            scope: label matchers that are added to the built-in queries, for example cluster="a".
            clock: Unix seconds.
        """
        self._session, self._address, self._headers, self._scope, self._clock = session, address.rstrip("/"), headers, scope, clock
        self._slots = asyncio.Semaphore(MAX_PARALLEL)

    async def look(self, target: Target) -> Sample:
        """Return what the revision did since the step began."""
        now = self._clock()
        users = await self._sample(target, now, PREFIX)
        return with_probes(users, await self._sample(target, now, PROBES)) if target.with_probes else users

    async def _sample(self, target: Target, now: float, prefix: str) -> Sample:
        asked = queries.built_in(target, now, self._scope, prefix)
        try:
            answers = await asyncio.gather(*(self.query(query, now) for query in asked.values()))
            return queries.sample_of(dict(zip(asked, answers, strict=True)), target, now)
        except QueryError as error:
            return Sample(now - target.since, now, 0, 0, missing=str(error))

    async def points(self, query: str, target: Target, interval: float) -> Points:
        """Return the last points of a user's query, one an interval, none of them from before the step began."""
        now = self._clock()
        count = min(queries.POINTS - 1, int((now - target.since) / interval))
        try:
            return queries.points_of(await self.query_range(queries.custom(query, target, now), now - count * interval, now, interval))
        except QueryError as error:
            return Points(missing=str(error))

    async def query(self, query: str, at: float) -> object:
        """Run an instant query; the result as Prometheus gives it.

        Raises:
            QueryError: Prometheus is not reached, too slow, or refuses.
        """
        return await self._ask("query", {"query": query, "time": f"{at:.3f}"})

    async def query_range(self, query: str, start: float, end: float, step: float) -> object:
        """Run a range query; the result as Prometheus gives it.

        Raises:
            QueryError: Prometheus is not reached, too slow, or refuses.
        """
        return await self._ask("query_range", {"query": query, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:g}"})

    async def _ask(self, what: str, form: Mapping[str, str]) -> object:
        url = f"{self._address}/api/v1/{what}"
        try:
            async with (
                self._slots,
                self._session.post(
                    url, data={**form, "timeout": "4s"}, headers=self._headers, timeout=TIMEOUT, allow_redirects=False
                ) as answer,
            ):
                return queries.result_of(answer.status, await _read(answer))
        except TimeoutError as error:
            raise QueryError(f"{url} did not answer in {TIMEOUT.total} s") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise QueryError(f"{url}: {error or type(error).__name__}") from error


async def observe(
    samples: tuple[Sample, Sample | None],
    prometheus: PrometheusSource | None,
    specs: Iterable[MetricSpec],
    targets: tuple[Target, Target | None],
    interval: float,
) -> Observations:
    """Return all that an evaluation rests on: the samples, and the points of each custom query.

    Args:
        samples: of canary and stable, from either source.
        prometheus: for the custom queries; without it they are missing data.
        specs: the metrics.
        targets: canary and stable.
        interval: seconds between two points of a query.
    """
    canary, stable = samples
    asked = [spec for spec in specs if spec.query is not None]
    if prometheus is None:
        gap = Points(missing="it needs Prometheus; set prometheus.address in the chart's values")
        return Observations(canary, stable, {spec.name: gap for spec in asked})
    ours, theirs = targets
    compared = [spec for spec in asked if spec.increase is not None] if theirs else []
    found = await asyncio.gather(*(prometheus.points(spec.query or "", ours, interval) for spec in asked))
    others = await asyncio.gather(*(prometheus.points(spec.query or "", theirs, interval) for spec in compared if theirs))
    return Observations(
        canary,
        stable,
        {spec.name: points for spec, points in zip(asked, found, strict=True)},
        {spec.name: points for spec, points in zip(compared, others, strict=True)},
    )


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    """The body, if it is not too large.

    Raises:
        ValueError: It is.
    """
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER:
            raise ValueError(f"the answer is larger than {MAX_ANSWER} bytes")
    return bytes(body)
