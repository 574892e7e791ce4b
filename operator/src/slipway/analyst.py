"""Looks at canaries while they have a weight: once an interval, in the background, and hands what it finds to the next decision.

The first look belongs to the beginning of a step and is no evaluation: it is what later ones are compared with. Windows are kept in memory
only; after a restart a step's window begins anew (docs/design/0008-analysis.md). Runs in the leader only, because only its workers ask.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC

import aiohttp

from slipway import names
from slipway.analysis.evaluate import evaluate
from slipway.analysis.probes import Prober, together
from slipway.analysis.queries import Target
from slipway.analysis.sources import Pod, PodSource, PrometheusSource, observe
from slipway.analysis.verdict import Evaluation
from slipway.analysis.window import Sample
from slipway.plan.gate import Subject, comparator_urls, probe_urls, replayed_revision, replays, scrape_urls, subject_of
from slipway.snapshot import DeploymentSnapshot, Key, Manifest, Snapshot
from slipway.store import Store
from slipway.verdict import MetricVerdict, Replay

LOG = logging.getLogger(__name__)
STALE_INTERVALS = 3  # data and verdicts older than this are missing data
OPEN = frozenset({"Pending", "Inconclusive"})
REPLAY_SECONDS = 5.0  # until a pod that could not be asked is asked again


@dataclass(slots=True)
class Replays:
    """What the pods of a revision said, by uid, and the task that asks them."""

    revision: str
    found: dict[str, Replay] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None


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
        self._prober = Prober(session)
        self._replays: dict[Key, Replays] = {}

    def add_to(self, snapshot: Snapshot) -> Snapshot:
        """Return the snapshot with the last evaluation of its present step, if there is one that is not too old."""
        if not isinstance(snapshot, DeploymentSnapshot):
            return snapshot
        key = _key(snapshot.resource)
        snapshot = self._with_replay(key, snapshot)
        subject, verdicts = self._found.get(key, (None, ()))
        is_fresh = subject is not None and all(self._clock() - v.at.timestamp() <= STALE_INTERVALS * subject.interval for v in verdicts)
        if not is_fresh or subject != subject_of(snapshot.resource):
            return snapshot
        return replace(snapshot, verdicts=verdicts)

    def follow(self, resource: Manifest) -> None:
        """Begin, go on, or stop looking, as the resource's status says."""
        key, subject = _key(resource), subject_of(resource)
        self._replay(key, resource)
        known, task = self._watches.get(key, (None, None))
        if task is not None and known == subject and not task.done():
            return
        if task is not None or key in self._found:
            self.forget(key)
        if subject is not None:
            self._watches[key] = subject, asyncio.create_task(self._watch(key, subject), name=f"analysis {key}")

    def _with_replay(self, key: Key, snapshot: DeploymentSnapshot) -> DeploymentSnapshot:
        """Add what the pods said that there are now."""
        if not self._asks_pods:
            return replace(snapshot, replay=Replay("Skipped", "the operator does not ask pods"))
        known = self._replays.get(key)
        if known is None or known.revision != replayed_revision(snapshot.resource):
            return snapshot
        uids = [uid for uid, _ in probe_urls(snapshot, known.revision)]
        if not uids or any(uid not in known.found for uid in uids):
            return snapshot
        return replace(snapshot, replay=together([known.found[uid] for uid in uids]))

    def _replay(self, key: Key, resource: Manifest) -> None:
        """Begin, or stop, to replay golden inputs on the pods of a revision that has no traffic yet."""
        revision, known = replayed_revision(resource), self._replays.get(key)
        if known is not None and known.revision != revision:
            self._forget_replay(key)
        snapshot = self._store.gather(key)
        if revision is None or not isinstance(snapshot, DeploymentSnapshot) or not replays(snapshot, revision):
            return
        known = self._replays.setdefault(key, Replays(revision))
        if known.task is None or known.task.done():
            todo = [uid for uid, _ in probe_urls(snapshot, revision) if known.found.get(uid, Replay("Pending")).verdict in OPEN]
            if todo and self._asks_pods:
                known.task = asyncio.create_task(self._replay_all(key, known), name=f"replay {key}")

    async def _replay_all(self, key: Key, known: Replays) -> None:
        """Ask each pod that was not asked, and again those that could not answer; pods that come meanwhile too."""
        try:
            while self._is_leader():
                snapshot = self._store.gather(key)
                rows = list(probe_urls(snapshot, known.revision)) if isinstance(snapshot, DeploymentSnapshot) else []
                todo = [row for row in rows if known.found.get(row[0], Replay("Pending")).verdict in OPEN]
                if not todo:
                    return
                for uid, url in todo:
                    known.found[uid] = replay = await self._prober.replay(url)
                    LOG.info("replay key=%s revision=%s verdict=%s %s", key, known.revision, replay.verdict, replay.message)
                known.found = {uid: replay for uid, replay in known.found.items() if uid in dict(rows)}
                self._add(key)
                if any(replay.verdict in OPEN for replay in known.found.values()):
                    await asyncio.sleep(REPLAY_SECONDS)
        except Exception:  # the next pass begins anew
            LOG.exception("replay failed key=%s", key)

    def _forget_replay(self, key: Key) -> None:
        known = self._replays.pop(key, None)
        if known is not None and known.task is not None:
            known.task.cancel()

    def forget(self, key: Key) -> None:
        """Stop looking; a replay goes on, which belongs to a revision without traffic."""
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

    def drop(self, key: Key) -> None:
        """Forget a resource that is gone."""
        self._forget_replay(key)
        self.forget(key)

    async def close(self) -> None:
        """Stop all."""
        tasks = [task for _, task in self._watches.values()] + [r.task for r in self._replays.values() if r.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, key: Key, subject: Subject) -> None:
        """Look now and once an interval; ends with the lease, and the next pass of a leader begins again."""
        try:
            await self._sample(key, subject)
            evaluation: Evaluation | None = None
            while True:
                await asyncio.gather(asyncio.sleep(subject.interval), self._probe(key, subject, evaluation))
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

    async def _probe(self, key: Key, subject: Subject, last: Evaluation | None) -> None:
        """Send golden inputs for the time of one interval, when nothing but requests is lacking."""
        snapshot = self._store.gather(key)
        if not subject.probes or last is None or not last.lacks_traffic_only or not isinstance(snapshot, DeploymentSnapshot):
            return
        if subject.comparator is not None:
            found = [f"{base}/v2/models/{key.name}/infer" for _, base in self._comparators(key, subject.comparator)]
            LOG.info("probed key=%s comparator=%d", key, await self._prober.send(found, subject.interval))
            return
        is_compared = any(spec.increase is not None for spec in subject.specs)
        asked = [subject.canary, *([subject.stable] if is_compared else [])]
        urls = [[url for _, url in probe_urls(snapshot, revision)] for revision in asked]
        counts = await asyncio.gather(*(self._prober.send(found, subject.interval) for found in urls))
        LOG.info("probed key=%s %s", key, " ".join(f"{revision}={count}" for revision, count in zip(asked, counts, strict=True)))

    async def _evaluate(self, key: Key, subject: Subject) -> Evaluation:
        samples = await self._sample(key, subject)
        targets = _target(key, subject, subject.canary), _target(key, subject, subject.stable)
        observed = await observe(samples, self._prometheus, subject.specs, targets, subject.interval)
        stale_after = STALE_INTERVALS * subject.interval
        return evaluate(observed, subject.specs, minimum_requests=subject.minimum_requests, now=self._clock(), stale_after=stale_after)

    async def _sample(self, key: Key, subject: Subject) -> tuple[Sample, Sample | None]:
        """Look at both revisions at the same time, or at who compares them."""
        if subject.comparator is not None:
            target = replace(_target(key, subject, subject.canary), comparator=subject.comparator)
            rows = self._comparators(key, subject.comparator)
            return await self._pods.look(target, [Pod(uid, f"{base}{names.METRICS_PATH}") for uid, base in rows]), None
        looks = (self._look(_target(key, subject, revision), key) for revision in (subject.canary, subject.stable))
        canary, stable = await asyncio.gather(*looks)
        return canary, stable

    def _comparators(self, key: Key, comparator: str) -> list[tuple[str, str]]:
        snapshot = self._store.gather(key)
        return list(comparator_urls(snapshot, comparator)) if isinstance(snapshot, DeploymentSnapshot) else []

    async def _look(self, target: Target, key: Key) -> Sample:
        if self._prometheus is not None and not self._asks_pods:
            return await self._prometheus.look(target)
        return await self._pods.look(target, self._pods_of(key, target.revision))

    def _pods_of(self, key: Key, revision: str) -> Iterable[Pod]:
        snapshot = self._store.gather(key)
        return [Pod(*row) for row in scrape_urls(snapshot, revision)] if isinstance(snapshot, DeploymentSnapshot) else []


def _key(resource: Manifest) -> Key:
    return Key("ModelDeployment", resource["metadata"]["namespace"], resource["metadata"]["name"])


def _target(key: Key, subject: Subject, revision: str) -> Target:
    return Target(key.namespace, key.name, revision, subject.since.astimezone(UTC).timestamp(), subject.probes)
