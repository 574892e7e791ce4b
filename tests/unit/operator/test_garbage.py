"""What is marked, unmarked and removed in a repository, by what it holds and what is referenced."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from slipway import names
from slipway.cli.registry import MODEL_TYPE
from slipway.plan.garbage import (
    ARTIFACT_TYPE,
    FREE_ANYWAY,
    FREE_EVERY,
    MODEL_TYPES,
    Collection,
    References,
    Removal,
    Tag,
    belongs_to,
    collect,
    freeing,
    is_read,
    left_behind,
    mark_tag,
    members_of,
    own_repositories,
    references,
    size_of,
)
from slipway_runtime import artifact as runtime_artifact

NOW, GRACE = 1_800_000_000, 3600
A, B, OTHER = (f"sha256:{letter * 64}" for letter in "abc")


def artifact(digest: str, key: str = "1") -> Tag:
    return Tag(key * 64, digest, ARTIFACT_TYPE)


def mark(digest: str, age: int) -> Tag:
    return Tag(mark_tag(digest, NOW - age))


def companion(digest: str, end: str = ".att") -> Tag:
    return Tag(f"sha256-{digest[7:]}{end}")


def removal(digest: str, age: int, *companions: Tag) -> Removal:
    return Removal(digest, tuple(tag.name for tag in companions), (mark(digest, age).name,))


OLD, YOUNG = GRACE, GRACE - 1
MODEL = Tag("v1", A, MODEL_TYPE)
# what the repository holds, what is referenced, what to do
ROWS: dict[str, tuple[list[Tag], References, Collection]] = {
    "empty": ([], References(frozenset()), Collection()),
    "referenced": ([artifact(A)], References(frozenset({A})), Collection()),
    "unreferenced": ([artifact(A)], References(frozenset({B})), Collection(mark=(A,), unreferenced=1)),
    "marked": ([artifact(A), mark(A, YOUNG)], References(frozenset()), Collection(unreferenced=1)),
    "over": ([artifact(A), mark(A, OLD)], References(frozenset()), Collection(remove=(removal(A, OLD),), unreferenced=1)),
    "referenced again": ([artifact(A), mark(A, OLD)], References(frozenset({A})), Collection(unmark=(mark(A, OLD).name,))),
    "busy": ([artifact(A), artifact(B, "2"), mark(A, OLD)], References(frozenset(), True), Collection(mark=(B,), unreferenced=2)),
    "one of two": (
        [artifact(A), artifact(B, "2"), mark(A, OLD), mark(B, YOUNG)],
        References(frozenset()),
        Collection(remove=(removal(A, OLD),), unreferenced=2),
    ),
    "with what belongs to it": (
        [artifact(A), companion(A), companion(A, ""), companion(B), mark(A, OLD)],
        References(frozenset()),
        Collection(remove=(removal(A, OLD, companion(A, ""), companion(A)),), unreferenced=1),
    ),
    "what belongs to a referenced one": ([artifact(A), companion(A)], References(frozenset({A})), Collection()),
    "a signature of something else": ([companion(B, ".sig")], References(frozenset()), Collection()),
    "a model folder": ([MODEL], References(frozenset()), Collection()),
    "a model folder, tagged like an artifact": ([Tag("1" * 64, A, MODEL_TYPE)], References(frozenset()), Collection()),
    "a model folder that somebody marked": ([MODEL, mark(A, OLD)], References(frozenset()), Collection(unmark=(mark(A, OLD).name,))),
    "an image": ([Tag("v1", A, "application/vnd.oci.image.config.v1+json")], References(frozenset()), Collection()),
    "a manifest without a type": ([Tag("1" * 64, A, "")], References(frozenset()), Collection()),
    "two keys, one digest": (
        [artifact(A, "1"), artifact(A, "2"), mark(A, OLD)],
        References(frozenset()),
        Collection(remove=(removal(A, OLD),), unreferenced=1),
    ),
    "two keys, one digest, referenced": ([artifact(A, "1"), artifact(A, "2")], References(frozenset({A})), Collection()),
    "a tag of the user's holds it": ([artifact(A), Tag("keep", A, ARTIFACT_TYPE)], References(frozenset()), Collection()),
    "a tag of the user's came later": (
        [artifact(A), Tag("keep", A, ARTIFACT_TYPE), mark(A, OLD)],
        References(frozenset()),
        Collection(unmark=(mark(A, OLD).name,)),
    ),
    "two marks": (
        [artifact(A), mark(A, OLD), mark(A, YOUNG)],
        References(frozenset()),
        Collection(unreferenced=1),  # the newer one counts
    ),
    "two marks, both old": (
        [artifact(A), mark(A, OLD), mark(A, OLD + 1)],
        References(frozenset()),
        Collection(remove=(Removal(A, (), (mark(A, OLD + 1).name, mark(A, OLD).name)),), unreferenced=1),
    ),
    "a mark of the future": (
        [artifact(A), mark(A, -1)],
        References(frozenset()),
        Collection(mark=(A,), unmark=(mark(A, -1).name,), unreferenced=1),
    ),
    "a mark that is none": (
        [
            artifact(A),
            Tag(f"unreferenced-soon-{A[7:]}", OTHER, ""),
            Tag("unreferenced-1", OTHER, ""),
            Tag(f"unreferenced-1-{A[8:]}", OTHER, ""),
        ],
        References(frozenset()),
        Collection(mark=(A,), unreferenced=1),
    ),
    "a removal that was cut off": (
        [companion(A), mark(A, OLD)],
        References(frozenset()),
        Collection(remove=(removal(A, OLD, companion(A)),)),
    ),
    "without its tag, but referenced": ([companion(A), mark(A, OLD)], References(frozenset({A})), Collection(unmark=(mark(A, OLD).name,))),
}


@pytest.mark.parametrize(("tags", "referenced", "want"), ROWS.values(), ids=ROWS.keys())
def test_what_is_done(tags: list[Tag], referenced: References, want: Collection) -> None:
    assert collect(tags, referenced, NOW, GRACE) == want
    assert collect(reversed(tags), referenced, NOW, GRACE) == want


def test_marks_and_what_belongs_to_an_artifact_are_known_by_name_alone() -> None:
    names_read = ["1" * 64, "latest", "unreferenced-x", f"sha256-{'g' * 64}", f"sha256-{'a' * 64}.ATT", f"unreferenced-1-{'a' * 63}"]
    assert [name for name in names_read if not is_read(name)] == []
    assert [tag.name for tag in (mark(A, 0), companion(A), companion(A, ""), companion(A, ".sig")) if is_read(tag.name)] == []
    assert len(mark(A, 0).name) <= 128


def mart(digest: str | None = None, *, retry: float | None = None, **conditions: bool) -> dict[str, Any]:
    rows = [{"type": kind, "status": str(value)} for kind, value in conditions.items()]
    now = datetime.fromtimestamp(NOW, UTC)
    more = {"digest": digest} if digest else {}
    more |= {"retryAt": (now + timedelta(seconds=retry)).isoformat()} if retry is not None else {}
    return {"kind": "ModelArtifact", "metadata": {"name": "m"}, "status": {"conditions": rows, **more}}


SERVER = {"kind": "Deployment", "metadata": {"name": "d", "annotations": {names.DIGEST: B}}}
OBJECTS: dict[str, tuple[list[dict[str, Any]], References]] = {
    "nothing": ([], References(frozenset())),
    "ready": ([mart(A, Ready=True)], References(frozenset({A}))),
    "a server of an artifact that somebody deleted": ([SERVER], References(frozenset({B}))),
    "a Deployment without a digest": ([{"kind": "Deployment", "metadata": {"name": "d"}}], References(frozenset())),
    "new": ([mart()], References(frozenset(), True)),
    "converting": ([mart(A, Ready=True), mart(Ready=False, Reconciling=True)], References(frozenset({A}), True)),
    "given up": ([mart(Ready=False, Stalled=True)], References(frozenset())),
    "tried again in a while": ([mart(retry=300, Ready=False)], References(frozenset())),
    "tried again soon": ([mart(retry=30, Ready=False)], References(frozenset(), True)),
    "trying again": ([mart(retry=-30, Ready=False)], References(frozenset(), True)),
}


@pytest.mark.parametrize(("objects", "want"), OBJECTS.values(), ids=OBJECTS.keys())
def test_what_is_referenced(objects: list[dict[str, Any]], want: References) -> None:
    assert references(objects, datetime.fromtimestamp(NOW, UTC)) == want


@pytest.mark.parametrize(("prefix", "want"), [("artifacts", {"artifacts/a": "a", "artifacts/b-1": "b-1"}), ("", {"a": "a"})])
def test_only_repositories_under_the_prefix_are_looked_at(prefix: str, want: dict[str, str]) -> None:
    found = ["artifacts/a", "artifacts/b-1", "artifacts/a/b", "artifacts", "models/a", "my/artifacts/a", "artifacts/a_b", "a"]
    want = want | ({"artifacts": "artifacts"} if not prefix else {})
    assert own_repositories(found, prefix) == want


T0 = datetime(2026, 11, 24, 12, tzinfo=UTC)
LATER = T0 + FREE_EVERY


def registry(noted: datetime | None = None, freed: datetime | None = None) -> dict[str, Any]:
    def annotated(key: str, at: datetime | None) -> dict[str, Any]:
        return {"annotations": {key: at.isoformat()}} if at else {}

    return {"metadata": {"name": "r"} | annotated(names.GARBAGE, noted), "spec": {"template": {"metadata": annotated(names.FREED, freed)}}}


@pytest.mark.parametrize(
    ("deployment", "now", "is_busy", "is_restarted"),
    [
        (registry(), T0, False, False),
        (registry(noted=T0), T0, False, True),
        (registry(noted=T0), T0, True, False),
        (registry(noted=T0), T0 + FREE_ANYWAY, True, True),
        (registry(noted=LATER, freed=T0 + timedelta(seconds=1)), LATER, False, False),
        (registry(noted=LATER, freed=T0), LATER, False, True),
        (registry(freed=T0), LATER, False, False),
    ],
    ids=["nothing to free", "first time", "busy", "busy for days", "once a day", "a day later", "freed"],
)
def test_when_the_embedded_registry_is_restarted(deployment: dict[str, Any], now: datetime, is_busy: bool, is_restarted: bool) -> None:
    patch = freeing(deployment, now, is_busy=is_busy)
    assert (patch is not None) == is_restarted
    if patch is not None:
        assert patch["metadata"]["annotations"] == {names.GARBAGE: None}
        assert list(patch["spec"]["template"]["metadata"]["annotations"]) == [names.FREED]


def test_that_something_was_deleted_is_noted_once() -> None:
    patch = left_behind(registry(), T0)
    assert patch == {"metadata": {"annotations": {names.GARBAGE: "2026-11-24T12:00:00Z"}}}
    assert left_behind(registry(noted=T0), LATER) is None


@pytest.mark.parametrize(
    "value", [{}, {"config": 1, "layers": 2, "manifests": 3, "subject": 4}, {"layers": [{"size": "x"}], "manifests": ["x", {}]}]
)
def test_malformed_manifests_say_nothing(value: dict[str, Any]) -> None:
    assert (size_of(value), members_of(value), belongs_to(value, A)) == (0, (), False)


def test_the_types_are_those_that_the_others_push() -> None:
    assert MODEL_TYPES == (runtime_artifact.ARTIFACT_TYPE, MODEL_TYPE)


def test_well_formed_ones_do() -> None:
    value = {"config": {"size": 2}, "layers": [{"size": 3}], "manifests": [{"digest": A}, {"digest": "sha256:x"}], "subject": {"digest": B}}
    assert (size_of(value), members_of(value), belongs_to(value, B)) == (5, (A,), True)
