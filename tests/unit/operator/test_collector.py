"""The loop around the decision: what it asks, in which order it deletes, and what it does when something fails."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from slipway import names
from slipway.collector import Collector, Terms
from slipway.plan.garbage import ARTIFACT_TYPE, MARK_TYPE, mark_tag
from slipway.registry import DeleteForbiddenError, Manifest, RegistryError
from slipway.snapshot import Config
from slipway.store import Store

REPOSITORY = "artifacts/a"
DIGEST, SIGNATURE, MEMBER, STRANGER = (f"sha256:{letter * 64}" for letter in "abcd")
OLD = mark_tag(DIGEST, 1)


def artifact(size: int = 7) -> dict[str, Any]:
    return {"artifactType": ARTIFACT_TYPE, "layers": [{"size": size}]}


class FakeRegistry:
    """A registry in memory: manifests by digest, tags by repository."""

    host = "registry:5000"

    def __init__(self) -> None:
        self.manifests: dict[str, dict[str, Any]] = {}
        self.tagged: dict[str, dict[str, str]] = {}
        self.deleted: list[str] = []
        self.failing: dict[str, Exception] = {}  # by repository; for deletions under ""
        self.is_listed = True

    def put(self, repository: str, tag: str | None, digest: str, value: dict[str, Any]) -> None:
        self.manifests[digest] = value
        if tag is not None:
            self.tagged.setdefault(repository, {})[tag] = digest

    async def repositories(self) -> list[str] | None:
        return list(self.tagged) if self.is_listed else None

    async def tags(self, repository: str) -> list[str]:
        if repository in self.failing:
            raise self.failing[repository]
        return list(self.tagged.get(repository, {}))

    async def manifest(self, repository: str, reference: str) -> Manifest | None:
        digest = self.tagged.get(repository, {}).get(reference, reference)
        return Manifest(digest, self.manifests[digest]) if digest in self.manifests else None

    async def put_empty(self, repository: str, tag: str, artifact_type: str, annotations: dict[str, str]) -> None:
        assert DIGEST in json.dumps(annotations)
        self.put(repository, tag, f"sha256:{names.digest_of(tag)}", {"artifactType": artifact_type})

    async def delete(self, repository: str, digest: str) -> bool:
        if "" in self.failing:
            raise self.failing[""]
        self.deleted.append(digest)
        for tag in [tag for tag, value in self.tagged.get(repository, {}).items() if value == digest]:
            del self.tagged[repository][tag]
        return self.manifests.pop(digest, None) is not None


class World:
    """A collector between a registry and an API server that answers with `listed`."""

    def __init__(self, **terms: Any) -> None:
        self.registry, self.store, self.listed = FakeRegistry(), Store(Config()), list[dict[str, Any]]()
        self.leads, self.patches = True, list[dict[str, Any]]()
        self.deployment: dict[str, Any] = {"metadata": {"name": "r"}, "spec": {"template": {}}}
        leader = SimpleNamespace(is_leader=lambda: self.leads, elected=asyncio.Event())
        self.collector = Collector(self, self.store, self.registry, Terms("artifacts", 60, **terms), leader)  # type: ignore[arg-type]
        self.registry.put(REPOSITORY, "1" * 64, DIGEST, artifact())

    async def list(
        self, kind: str, namespace: str | None, *, selector: str | None = None, version: str | None = "0"
    ) -> list[dict[str, Any]]:
        assert version is None, "a cache may be old"
        return [o for o in self.listed if o["kind"] == kind and o["metadata"]["namespace"] == namespace]

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any]:
        return self.deployment

    async def patch(self, kind: str, namespace: str, name: str, body: dict[str, Any], content_type: str) -> dict[str, Any]:
        self.patches.append(body)
        self.deployment["metadata"].setdefault("annotations", {}).update(body["metadata"]["annotations"])
        return self.deployment

    def mark(self, tag: str = OLD) -> None:
        self.registry.put(REPOSITORY, tag, f"sha256:{names.digest_of(tag)}", {"artifactType": MARK_TYPE})

    def tags(self, repository: str = REPOSITORY) -> set[str]:
        return set(self.registry.tagged[repository])

    def look(self) -> None:
        asyncio.run(self.collector.look())


def mart(namespace: str = "a", **conditions: str) -> dict[str, Any]:
    rows = [{"type": kind, "status": status} for kind, status in conditions.items()]
    metadata = {"name": "mart-1", "namespace": namespace, "uid": "u", "resourceVersion": "1"}
    return {"kind": "ModelArtifact", "metadata": metadata, "spec": {}, "status": {"conditions": rows, "digest": DIGEST}}


def counted(result: str) -> float:
    return REGISTRY.get_sample_value("slipway_registry_collections_total", {"result": result}) or 0


def test_marked_then_removed_with_all_that_belongs_to_it() -> None:
    world = World()
    world.look()
    marks = world.tags() - {"1" * 64}
    assert len(marks) == 1
    assert not world.registry.deleted
    world.look()
    assert world.tags() == {"1" * 64} | marks, "one mark is enough"
    world.mark()
    for tag in marks:
        del world.registry.tagged[REPOSITORY][tag]
    members = {"manifests": [{"digest": MEMBER}, {"digest": STRANGER}, {"digest": "x"}]}
    world.registry.put(REPOSITORY, None, MEMBER, {"artifactType": "att", "subject": {"digest": DIGEST}})
    world.registry.put(REPOSITORY, None, STRANGER, {"artifactType": "att", "subject": {"digest": MEMBER}})
    world.registry.put(REPOSITORY, f"sha256-{DIGEST[7:]}", f"sha256:{'e' * 64}", members)
    world.registry.put(REPOSITORY, f"sha256-{DIGEST[7:]}.att", SIGNATURE, {"artifactType": "att"})
    world.look()
    assert world.registry.deleted[0] == DIGEST
    assert world.registry.deleted[-1] == f"sha256:{names.digest_of(OLD)}", "the mark goes last"
    assert set(world.registry.deleted[1:-1]) == {MEMBER, SIGNATURE, f"sha256:{'e' * 64}"}
    assert STRANGER in world.registry.manifests
    assert world.tags() == set()


def test_referenced_again_the_mark_goes_and_the_artifact_stays() -> None:
    world = World()
    world.mark()
    world.listed = [mart(Ready="True")]
    world.look()
    assert world.tags() == {"1" * 64}


def test_what_only_the_own_store_knows_yet_holds_it_too() -> None:
    for known in (mart(Ready="False"), mart(Ready="True")):
        world = World()
        world.mark()
        world.store.observe(known)
        world.look()
        assert not world.registry.deleted
    world = World()
    world.mark()
    world.store.observe(mart("b", Ready="False"))
    world.look()
    assert DIGEST in world.registry.deleted, "another namespace is another repository"


def test_without_the_lease_nothing_is_written() -> None:
    world = World(deployment="r")
    world.mark()
    world.leads = False
    world.look()
    assert (world.registry.deleted, world.patches) == ([], [])


def test_a_removal_that_was_cut_off_is_finished() -> None:
    world = World()
    world.mark()
    world.registry.put(REPOSITORY, f"sha256-{DIGEST[7:]}.att", SIGNATURE, {"artifactType": "att"})
    asyncio.run(world.registry.delete(REPOSITORY, DIGEST))
    world.look()
    assert world.tags() == set()


def test_a_mark_never_deletes_what_is_no_artifact() -> None:
    world = World()
    world.mark()
    del world.registry.tagged[REPOSITORY]["1" * 64]
    world.registry.manifests[DIGEST] = {"artifactType": "application/vnd.slipway.model.v1+json"}
    world.look()
    assert DIGEST not in world.registry.deleted


def test_named_namespaces_are_not_looked_for() -> None:
    world = World(namespaces=("b",))
    world.mark()
    world.look()
    assert not world.registry.deleted
    other = World()
    other.registry.is_listed = False
    other.mark()
    other.look()
    assert not other.registry.deleted, "nothing says that there is such a namespace"
    other.store.observe(mart("a", Stalled="True") | {"status": {"conditions": [{"type": "Stalled", "status": "True"}]}})
    other.look()
    assert DIGEST in other.registry.deleted


def test_a_repository_that_fails_keeps_no_other(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.mark()
    world.registry.tagged = {"artifacts/0": {}} | world.registry.tagged
    world.registry.failing["artifacts/0"] = RegistryError("HTTP 500")
    before = counted("Unavailable")
    world.look()
    world.look()
    assert DIGEST in world.registry.deleted
    assert counted("Unavailable") == before + 2
    assert len([record for record in caplog.records if "HTTP 500" in record.message]) == 1


def test_a_registry_that_forbids_it_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.mark()
    world.registry.failing[""] = DeleteForbiddenError("no deletion here")
    before = counted("DeleteForbidden")
    world.look()
    world.look()
    assert len([record for record in caplog.records if "no deletion here" in record.message]) == 1
    assert counted("DeleteForbidden") == before + 2
    del world.registry.failing[""]
    world.look()
    assert DIGEST in world.registry.deleted


def test_what_nobody_thought_of_does_not_end_the_operator() -> None:
    world, before = World(), counted("Error")
    world.registry.failing[REPOSITORY] = KeyError("x")
    world.look()
    assert counted("Error") == before + 1


def test_the_embedded_registry_is_restarted_after_a_deletion_and_then_left_alone() -> None:
    world = World(deployment="r", system_namespace="s")
    world.look()
    assert world.patches == []
    world.mark()
    world.registry.tagged[REPOSITORY] = {"1" * 64: DIGEST, OLD: world.registry.tagged[REPOSITORY][OLD]}
    world.look()
    assert [list(patch) for patch in world.patches] == [["metadata"], ["metadata", "spec"]]
    template = world.patches[1]["spec"]["template"]["metadata"]["annotations"]
    world.deployment["spec"]["template"] = {"metadata": {"annotations": template}}
    assert datetime.fromisoformat(template[names.FREED]) <= datetime.now(UTC)
    world.look()
    assert len(world.patches) == 2


def test_a_failing_deletion_half_way_is_noted_all_the_same() -> None:
    world = World(deployment="r")
    world.mark()
    world.registry.put(REPOSITORY, f"sha256-{DIGEST[7:]}.att", SIGNATURE, {"artifactType": "att"})
    real = world.registry.manifest

    async def manifest(repository: str, reference: str) -> Manifest | None:
        if reference.endswith(".att"):
            raise RegistryError("gone away")
        return await real(repository, reference)

    world.registry.manifest = manifest  # type: ignore[method-assign]
    world.look()
    assert world.registry.deleted == [DIGEST]
    assert names.GARBAGE in world.patches[0]["metadata"]["annotations"]


async def test_without_a_grace_period_it_never_looks() -> None:
    world = World()
    world.collector = Collector(world, world.store, world.registry, Terms("artifacts", 0), SimpleNamespace())  # type: ignore[arg-type]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(world.collector.run(), 0.1)
