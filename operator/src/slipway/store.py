"""What the operator knows of the cluster: the latest version of each object it watches, and the Snapshot of one resource made of it.

Filled by watch events, by the answers to our own writes (so that a pass sees what the pass before it wrote) and by the resync.
An older version never replaces a newer one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from slipway import names
from slipway.snapshot import ArtifactSnapshot, DeploymentSnapshot, Key, Manifest, Snapshot

FOREIGN_SECONDS = 30.0
TOMBSTONE_SECONDS = 60.0
_Id = tuple[str, str, str]


def identity(manifest: Manifest) -> _Id:
    """Return kind, namespace ("" for cluster-scoped) and name."""
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace") or "", metadata["name"]


def version_of(manifest: Manifest) -> int:
    """Return the resourceVersion as a number, which Kubernetes 1.35 and later promise and etcd has always given."""
    text = str(manifest["metadata"].get("resourceVersion", "0"))
    return int(text) if text.isdigit() else 0


class Store:
    """The objects by identity, with indexes by owner label."""

    def __init__(self) -> None:
        self._objects: dict[_Id, Manifest] = {}
        self._by_label: dict[tuple[str, str, str], set[_Id]] = {}
        self._foreign: dict[_Id, tuple[float, Manifest]] = {}
        self._deleted: dict[str, float] = {}

    def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """Return the object, or None."""
        return self._objects.get((kind, namespace, name))

    def of_kind(self, kind: str, namespace: str | None = None) -> list[Manifest]:
        """Return all objects of a kind, in one namespace or everywhere."""
        return [o for (k, ns, _), o in self._objects.items() if k == kind and namespace in (None, ns)]

    def observe(self, manifest: Mapping[str, Any]) -> bool:
        """Take in a version of an object; return whether it was news."""
        key, uid = identity(manifest), str(manifest["metadata"].get("uid"))
        known = self._objects.get(key)
        if uid in self._deleted or (
            known is not None and known["metadata"].get("uid") == uid and version_of(known) >= version_of(manifest)
        ):
            return False
        metadata = {k: v for k, v in manifest["metadata"].items() if k != "managedFields"}
        self._remove_from_indexes(key)
        self._objects[key] = {**manifest, "metadata": metadata}
        for index in self._indexes(key):
            self._by_label.setdefault(index, set()).add(key)
        return True

    def remove(self, manifest: Manifest) -> None:
        """Take in that an object is gone; an event about it that is still under way is then no news."""
        now = time.monotonic()
        self._deleted = {uid: at for uid, at in self._deleted.items() if now - at < TOMBSTONE_SECONDS}
        self._deleted[str(manifest["metadata"].get("uid"))] = now
        key = identity(manifest)
        known = self._objects.get(key)
        if known is not None and known["metadata"].get("uid") == manifest["metadata"].get("uid"):
            self._remove_from_indexes(key)
            del self._objects[key]

    def observe_foreign(self, manifest: Manifest) -> None:
        """Remember for a while that a name we need belongs to somebody else."""
        self._foreign[identity(manifest)] = (time.monotonic(), manifest)

    def _indexes(self, key: _Id) -> list[tuple[str, str, str]]:
        labels = self._objects[key]["metadata"].get("labels") or {}
        return [(label, key[1], labels[label]) for label in (names.DEPLOYMENT, names.ARTIFACT) if label in labels]

    def _remove_from_indexes(self, key: _Id) -> None:
        if key in self._objects:
            for index in self._indexes(key):
                self._by_label.get(index, set()).discard(key)

    def _labelled(self, label: str, namespace: str, value: str) -> list[Manifest]:
        return [self._objects[key] for key in sorted(self._by_label.get((label, namespace, value), ()))]

    def gather(self, key: Key) -> Snapshot | None:
        """Return the Snapshot of a resource, or None when it is gone."""
        resource = self.get(key.kind, key.namespace, key.name)
        if resource is None:
            return None
        if key.kind == "ModelArtifact":
            mine = self._labelled(names.ARTIFACT, key.namespace, key.name)
            return ArtifactSnapshot(resource, _only(mine, "Job"), _only(mine, "Pod"))
        mine = self._labelled(names.DEPLOYMENT, key.namespace, key.name)
        now = time.monotonic()
        return DeploymentSnapshot(
            resource=resource,
            artifacts={a["metadata"]["name"]: a for a in self.of_kind("ModelArtifact", key.namespace)},
            deployments=_only(mine, "Deployment"),
            services=_only(mine, "Service"),
            pods=_only(mine, "Pod"),
            runtimes=tuple(self.of_kind("ServingRuntime")),
            foreign=tuple(o for at, o in self._foreign.values() if now - at < FOREIGN_SECONDS and _namespace(o) == key.namespace),
        )

    def keys_for(self, manifest: Manifest) -> set[Key]:
        """Return the resources whose state an object is part of."""
        kind, namespace, name = identity(manifest)
        labels = manifest["metadata"].get("labels") or {}
        if kind in ("ModelDeployment", "ModelArtifact"):
            keys = {Key(kind, namespace, name)}  # type: ignore[arg-type]
        elif kind == "ServingRuntime":
            keys = {Key("ModelDeployment", o["metadata"]["namespace"], o["metadata"]["name"]) for o in self.of_kind("ModelDeployment")}
        elif names.DEPLOYMENT in labels:
            keys = {Key("ModelDeployment", namespace, labels[names.DEPLOYMENT])}
        else:
            keys = {Key("ModelArtifact", namespace, labels[names.ARTIFACT])} if names.ARTIFACT in labels else set()
        if kind == "ModelArtifact":
            owners = manifest["metadata"].get("ownerReferences") or ()
            keys |= {Key("ModelDeployment", namespace, o["name"]) for o in owners if o["kind"] == "ModelDeployment"}
        return keys


def _only(manifests: Iterable[Manifest], kind: str) -> tuple[Manifest, ...]:
    return tuple(m for m in manifests if m["kind"] == kind)


def _namespace(manifest: Manifest) -> str:
    return manifest["metadata"].get("namespace") or ""
