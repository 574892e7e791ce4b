"""What may go from the artifact registry: converted models that nothing in their namespace names any more. Pure.

Since when an artifact has been without a reference stands in the registry itself, in the name of a tag: a restart of the operator does not
restart the clock, and anyone can see it. What the tag points at is a small manifest of its own and not the artifact: many registries can
delete by digest only, and there taking a tag away from an artifact would delete the artifact (docs/design/0018-registry-gc.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from slipway import names
from slipway.api.conditions import format_time
from slipway.plan.objects import annotation, is_true, status_of
from slipway.snapshot import Manifest

ARTIFACT_TYPE = "application/vnd.slipway.artifact.v1+json"  # what publish pushes; models that users push have another one
MODEL_TYPES = (ARTIFACT_TYPE, "application/vnd.slipway.model.v1+json")  # and what `slipway push` pushes
MARK_TYPE = "application/vnd.slipway.unreferenced.v1+json"
FREE_EVERY = timedelta(days=1)  # between two restarts of the embedded registry
FREE_ANYWAY = timedelta(days=2)  # since the first deletion, although something is being converted
_CONTENT_KEY = re.compile(r"[0-9a-f]{64}")
_MARK = re.compile(r"unreferenced-(\d{1,11})-([0-9a-f]{64})")
_COMPANION = re.compile(r"sha256-([0-9a-f]{64})(?:\.[a-z0-9]+)?")  # attestations and signatures of a digest, and its list of referrers


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag of a repository; digest and artifactType of its manifest are None where the name says enough (see `is_read`)."""

    name: str
    digest: str | None = None
    artifact_type: str | None = None


@dataclass(frozen=True, slots=True)
class References:
    """The digests that a namespace's objects name, and whether an artifact may be about to name one that no object names yet."""

    digests: frozenset[str]
    is_busy: bool = False


@dataclass(frozen=True, slots=True)
class Removal:
    """An artifact to delete, then what belongs to it, its marks last: a mark without an artifact tells that a removal was cut off."""

    digest: str
    companions: tuple[str, ...]  # tags, as are the marks
    marks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Collection:
    """What to do in one repository: digests to mark, marks to take away, artifacts to remove; and how many are unreferenced."""

    mark: tuple[str, ...] = ()
    unmark: tuple[str, ...] = ()
    remove: tuple[Removal, ...] = ()
    unreferenced: int = 0


def is_read(tag: str) -> bool:
    """Say whether the manifest behind a tag must be read to know what to do about it."""
    return _MARK.fullmatch(tag) is None and _COMPANION.fullmatch(tag) is None


def mark_tag(digest: str, since: int) -> str:
    """Return the tag that says since when (Unix seconds) nothing has named an artifact."""
    return f"unreferenced-{since}-{digest.removeprefix('sha256:')}"


def mark_annotations(digest: str, since: datetime) -> dict[str, str]:
    """Return what the mark's manifest tells to those who read it."""
    return {
        "org.opencontainers.image.created": format_time(since),
        "org.opencontainers.image.description": f"nothing has named {digest} since then; Slipway deletes it after a grace period",
    }


def references(objects: Iterable[Manifest], now: datetime) -> References:
    """Return what the ModelArtifacts and Deployments of a namespace say.

    A Deployment serves its artifact also when somebody deleted the ModelArtifact: a pod that moves to another node pulls it again.
    """
    digests, is_busy = set(), False
    for manifest in objects:
        if manifest["kind"] == "Deployment":
            digests.add(annotation(manifest, names.DIGEST))
        else:
            digests.add(status_of(manifest).get("digest"))
            is_busy = is_busy or is_under_way(manifest, now)
    return References(frozenset(d for d in digests if d), is_busy)


def is_under_way(artifact: Manifest, now: datetime) -> bool:
    """Say whether a ModelArtifact may name any artifact of its repository in a moment, because its Job found it there."""
    if is_true(artifact, "Ready") or is_true(artifact, "Stalled"):
        return False
    retry_at = status_of(artifact).get("retryAt")
    # between two attempts nothing runs; a source that is missing for weeks must not keep everything else
    return retry_at is None or datetime.fromisoformat(retry_at) < now + timedelta(minutes=1)


def collect(tags: Iterable[Tag], referenced: References, now: int, grace: int) -> Collection:
    """Decide what to do in one repository.

    Args:
        tags: all that it has.
        referenced: by objects of its namespace.
        now: Unix seconds.
        grace: seconds for which an artifact must have been marked.
    """
    tags = tuple(tags)
    marks, companions = _by_digest(_MARK, tags), _by_digest(_COMPANION, tags)
    artifacts, kept = _artifacts(tags)
    # a mark without an artifact is a removal that was cut off, or somebody took the tag away; both end alike
    loose = ((artifacts | marks.keys()) - kept) - referenced.digests
    since = {digest: max((at for at, _ in marks.get(digest, ()) if at <= now), default=None) for digest in loose}
    over = sorted(d for d, at in since.items() if at is not None and now - at >= grace)
    return Collection(
        mark=tuple(sorted(d for d in loose & artifacts if since[d] is None)),
        # a mark from the future is of a clock that was wrong: the artifact gets another one
        unmark=tuple(sorted(tag for digest, found in marks.items() for at, tag in found if digest not in loose or at > now)),
        remove=() if referenced.is_busy else tuple(Removal(d, _names(companions.get(d, ())), _names(marks[d])) for d in over),
        unreferenced=len(loose & artifacts),
    )


def _names(found: Iterable[tuple[int, str]]) -> tuple[str, ...]:
    return tuple(name for _, name in found)


def _artifacts(tags: Iterable[Tag]) -> tuple[set[str], set[str]]:
    """Return the digests of converted models, and those that are none or that somebody gave a tag of their own."""
    artifacts: set[str] = set()
    kept: set[str] = set()
    for tag in tags:
        if tag.digest is not None:
            is_ours = tag.artifact_type == ARTIFACT_TYPE and _CONTENT_KEY.fullmatch(tag.name) is not None
            (artifacts if is_ours else kept).add(tag.digest)
    return artifacts, kept


def _by_digest(pattern: re.Pattern[str], tags: Iterable[Tag]) -> dict[str, list[tuple[int, str]]]:
    """Return (Unix seconds, 0 where the name has none; tag) by the digest that the names of some tags end in."""
    found: dict[str, list[tuple[int, str]]] = {}
    for tag in sorted(tags, key=lambda tag: tag.name):
        match = pattern.fullmatch(tag.name)
        if match is not None:
            at = int(match[1]) if pattern is _MARK else 0
            found.setdefault(f"sha256:{match[match.lastindex or 0]}", []).append((at, tag.name))
    return found


def left_behind(deployment: Manifest, now: datetime) -> dict[str, Any] | None:
    """Return the patch that notes on the embedded registry's Deployment that its volume holds what may be freed; None: it is noted."""
    if annotation(deployment, names.GARBAGE):
        return None
    return {"metadata": {"annotations": {names.GARBAGE: format_time(now)}}}


def freeing(deployment: Manifest, now: datetime, *, is_busy: bool) -> dict[str, Any] | None:
    """Return the patch that restarts the embedded registry, which frees such blobs when it starts; None: there are none, or not now."""
    noted = _time(annotation(deployment, names.GARBAGE))
    template = deployment["spec"]["template"].get("metadata") or {}
    last = _time((template.get("annotations") or {}).get(names.FREED))
    if noted is None or (last is not None and now - last < FREE_EVERY) or (is_busy and now - noted < FREE_ANYWAY):
        return None
    annotations = {names.FREED: format_time(now)}
    return {"metadata": {"annotations": {names.GARBAGE: None}}, "spec": {"template": {"metadata": {"annotations": annotations}}}}


def _time(text: str | None) -> datetime | None:
    """Read what `format_time` wrote; anything else is no time."""
    try:
        return datetime.fromisoformat(text or "")
    except ValueError:
        return None


def own_repositories(found: Iterable[str], prefix: str) -> dict[str, str]:
    """Return the namespace by repository for those of `found` that are `<prefix>/<namespace>`, or `<namespace>` without a prefix."""
    pattern = re.compile((f"{re.escape(prefix)}/" if prefix else "") + r"([a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?)")
    return {repository: match[1] for repository in found if (match := pattern.fullmatch(repository))}


def members_of(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the digests that an index lists, none for any other manifest."""
    rows = manifest.get("manifests")
    found = (row.get("digest") for row in rows if isinstance(row, dict)) if isinstance(rows, list) else ()
    return tuple(digest for digest in found if isinstance(digest, str) and re.fullmatch(r"sha256:[0-9a-f]{64}", digest))


def belongs_to(manifest: Mapping[str, Any], digest: str) -> bool:
    """Say whether a manifest names an artifact as its subject."""
    subject = manifest.get("subject")
    return isinstance(subject, dict) and subject.get("digest") == digest


def size_of(manifest: Mapping[str, Any]) -> int:
    """Return the bytes that a manifest's blobs have; what is malformed counts nothing."""
    layers = manifest.get("layers")
    rows = [manifest.get("config"), *(layers if isinstance(layers, list) else ())]
    return sum(int(row["size"]) for row in rows if isinstance(row, dict) and isinstance(row.get("size"), int))
