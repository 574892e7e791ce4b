"""Looks at canaries while they have a weight: once an interval, in the background, and hands what it finds to the next decision.

The first look belongs to the beginning of a step and is no evaluation: it is what later ones are compared with. Windows are kept in memory
only; after a restart a step's window begins anew (docs/design/0008-analysis.md). Runs in the leader only, because only its workers ask.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime

import aiohttp

from slipway.analysis.evaluate import evaluate
from slipway.analysis.queries import Target
from slipway.analysis.sources import Pod, PodSource, PrometheusSource, observe
from slipway.analysis.verdict import Evaluation
from slipway.analysis.window import Sample
from slipway.plan.gate import Subject, scrape_urls, subject_of
from slipway.snapshot import DeploymentSnapshot, Key, Manifest, Snapshot
from slipway.store import Store
from slipway.verdict import MetricVerdict

LOG = logging.getLogger(__name__)
STALE_INTERVALS = 3  # data and verdicts older than this are missing data


class Analyst:
    """All canaries that are looked at."""

    def __init__(  # noqa: PLR0913 - the parts of the operator that it brings together
        self,
        store: Store,
        session: aiohttp.ClientSession,
        *,
        add: Callable[[Key], None],
        is_leader: Callable[[], bool],
        prometheus: PrometheusSource | None = None,
        asks_pods: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare.

        Args:
            store: what the watches told.
            session: for the pods; stays the caller's.
            add: wakes a resource when there is news about it.
            is_leader: whether this replica may look.
            prometheus: for custom queries, and for the built-in metrics unless `asks_pods`.
            asks_pods: whether the built-in metrics come from the pods themselves.
            clock: Unix seconds.
        """
        self._store, self._add, self._is_leader, self._clock = store, add, is_leader, clock
        self._prometheus, self._pods, self._asks_pods = prometheus, PodSource(session, clock), asks_pods or prometheus is None
        self._watches: dict[Key, tuple[Subject, asyncio.Task[None]]] = {}
        self._found: dict[Key, tuple[Subject, tuple[MetricVerdict, ...]]] = {}

    def add_to(self, snapshot: Snapshot) -> Snapshot:
        """Return the snapshot with the last evaluation of its present step, if there is one that is not too old."""
        if not isinstance(snapshot, DeploymentSnapshot):
            return snapshot
        key = _key(snapshot.resource)
        subject, verdicts = self._found.get(key, (None, ()))
        is_fresh = subject is not None and all(self._clock() - v.at.timestamp() <= STALE_INTERVALS * subject.interval for v in verdicts)
        if not is_fresh or subject != subject_of(snapshot.resource):
            return snapshot
        return replace(snapshot, verdicts=verdicts)

    def follow(self, resource: Manifest) -> None:
        """Begin, go on, or stop looking, as the resource's status says."""
        key, subject = _key(resource), subject_of(resource)
        known, task = self._watches.get(key, (None, None))
        if task is not None and known == subject and not task.done():
            return
        if task is not None or key in self._found:
            self.forget(key)
        if subject is not None:
            self._watches[key] = subject, asyncio.create_task(self._watch(key, subject), name=f"analysis {key}")

    def forget(self, key: Key) -> None:
        """Stop looking."""
        _, task = self._watches.pop(key, (None, None))
        if task is not None:
            task.cancel()
        self._found.pop(key, None)
        if self._asks_pods:
            others = [subject for other, (subject, _) in self._watches.items() if other.namespace == key.namespace]
            resource = self._store.get(key.kind, key.namespace, key.name)
            own = subject_of(resource) if resource is not None else None
            kept = {name for subject in (*others, *([own] if own else [])) for name in (subject.canary, subject.stable)}
            self._pods.forget(key.namespace, kept)

    async def close(self) -> None:
        """Stop all."""
        tasks = [task for _, task in self._watches.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, key: Key, subject: Subject) -> None:
        """Look now and once an interval; ends with the lease, and the next pass of a leader begins again."""
        try:
            await self._sample(key, subject)
            while True:
                await asyncio.sleep(subject.interval)
                if not self._is_leader():
                    return
                evaluation = await self._evaluate(key, subject)
                self._found[key] = subject, evaluation.verdicts()
                LOG.info(
                    "analysis key=%s canary=%s verdict=%s %s",
                    key,
                    subject.canary,
                    evaluation.verdict,
                    "; ".join(f"{result.name}: {result.message}" for result in evaluation.results),
                )
                self._add(key)
        except Exception:  # the next pass, an interval later at most, begins anew
            LOG.exception("analysis failed key=%s", key)

    async def _evaluate(self, key: Key, subject: Subject) -> Evaluation:
        samples = await self._sample(key, subject)
        targets = _target(key, subject.canary, subject.since), _target(key, subject.stable, subject.since)
        observed = await observe(samples, self._prometheus, subject.specs, targets, subject.interval)
        stale_after = STALE_INTERVALS * subject.interval
        return evaluate(observed, subject.specs, minimum_requests=subject.minimum_requests, now=self._clock(), stale_after=stale_after)

    async def _sample(self, key: Key, subject: Subject) -> tuple[Sample, Sample]:
        """Look at both revisions at the same time."""
        looks = (self._look(_target(key, revision, subject.since), key) for revision in (subject.canary, subject.stable))
        canary, stable = await asyncio.gather(*looks)
        return canary, stable

    async def _look(self, target: Target, key: Key) -> Sample:
        if self._prometheus is not None and not self._asks_pods:
            return await self._prometheus.look(target)
        return await self._pods.look(target, self._pods_of(key, target.revision))

    def _pods_of(self, key: Key, revision: str) -> Iterable[Pod]:
        snapshot = self._store.gather(key)
        return [Pod(*row) for row in scrape_urls(snapshot, revision)] if isinstance(snapshot, DeploymentSnapshot) else []


def _key(resource: Manifest) -> Key:
    return Key("ModelDeployment", resource["metadata"]["namespace"], resource["metadata"]["name"])


def _target(key: Key, revision: str, since: datetime) -> Target:
    return Target(key.namespace, key.name, revision, since.astimezone(UTC).timestamp())
