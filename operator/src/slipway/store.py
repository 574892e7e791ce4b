"""What the operator knows of the cluster: the latest version of each object it watches, and the Snapshot of one resource made of it.

Filled by watch events, by the answers to our own writes (so that a pass sees what the pass before it wrote) and by the resync.
An older version never replaces a newer one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from slipway import names
from slipway.plan.artifact import artifact_spec
from slipway.plan.autoscaling import HPA, SCALED_OBJECT
from slipway.plan.objects import label, status_of
from slipway.snapshot import ArtifactSnapshot, Config, DeploymentSnapshot, Key, Manifest, Snapshot

FOREIGN_SECONDS = 30.0
TOMBSTONE_SECONDS = 60.0
CLAIM_TEMPLATE = "ResourceClaimTemplate"
Identity = tuple[str, str, str]
_Index = tuple[str, str, str]  # label or relation, namespace, value


def identity(manifest: Manifest) -> Identity:
    """Return kind, namespace ("" for cluster-scoped) and name."""
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace") or "", metadata["name"]


def version_of(manifest: Manifest) -> int:
    """Return the resourceVersion as a number, which Kubernetes 1.35 and later promise and etcd has always given."""
    text = str(manifest["metadata"].get("resourceVersion", "0"))
    return int(text) if text.isdigit() else 0


def _uid(manifest: Manifest) -> str:
    return str(manifest["metadata"].get("uid"))


class Store:
    """The objects by identity, with indexes by owner label and by which ModelDeployment uses which ModelArtifact."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._kinds: dict[str, dict[tuple[str, str], Manifest]] = {}
        self._index: dict[_Index, set[Identity]] = {}
        self._entries: dict[Identity, tuple[_Index, ...]] = {}
        self._foreign: dict[Identity, tuple[float, Manifest]] = {}
        self._deleted: dict[str, float] = {}
        self.has_keda = False  # whether the cluster has the resources of KEDA; the resync finds out

    def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """Return the object, or None."""
        return self._kinds.get(kind, {}).get((namespace, name))

    def of_kind(self, kind: str) -> list[Manifest]:
        """Return all objects of a kind."""
        return list(self._kinds.get(kind, {}).values())

    def observe(self, manifest: Mapping[str, Any]) -> bool:
        """Take in a version of an object; return whether it was news."""
        key = identity(manifest)
        known = self.get(*key)
        if _uid(manifest) in self._deleted or (known is not None and version_of(known) >= version_of(manifest)):
            return False
        metadata = {k: v for k, v in manifest["metadata"].items() if k != "managedFields"}
        kept = {**manifest, "metadata": metadata}
        self._kinds.setdefault(key[0], {})[key[1:]] = kept
        self._file(key, self._entries_of(kept))
        return True

    def remove(self, manifest: Manifest) -> bool:
        """Take in that an object is gone, for good: an event about it that is still under way is then no news."""
        now = time.monotonic()
        if len(self._deleted) > 1000 or now - next(iter(self._deleted.values()), now) > TOMBSTONE_SECONDS:
            self._deleted = {uid: at for uid, at in self._deleted.items() if now - at < TOMBSTONE_SECONDS}
        self._deleted[_uid(manifest)] = now
        key = identity(manifest)
        known = self.get(*key)
        if known is None or _uid(known) != _uid(manifest):
            return False
        self._file(key, ())
        del self._kinds[key[0]][key[1:]]
        return True

    def observe_foreign(self, manifest: Manifest) -> None:
        """Remember for a while that a name we need belongs to somebody else."""
        now = time.monotonic()
        self._foreign = {k: v for k, v in self._foreign.items() if now - v[0] < FOREIGN_SECONDS}
        self._foreign[identity(manifest)] = (now, manifest)

    def _file(self, key: Identity, entries: tuple[_Index, ...]) -> None:
        before = self._entries.pop(key, ())
        for entry in before:
            if entry not in entries:
                self._index[entry].discard(key)
                if not self._index[entry]:
                    del self._index[entry]
        for entry in entries:
            self._index.setdefault(entry, set()).add(key)
        if entries:
            self._entries[key] = entries

    def _entries_of(self, manifest: Manifest) -> tuple[_Index, ...]:
        kind, namespace, _ = identity(manifest)
        if kind == "ModelDeployment":
            return tuple(("uses", namespace, name) for name in self._artifacts_used(manifest))
        if kind == "ModelArtifact":
            return tuple(("owned", namespace, name) for name in _owners(manifest))
        values = ((key, label(manifest, key)) for key in (names.DEPLOYMENT, names.ARTIFACT))
        found = [(key, namespace, value) for key, value in values if value is not None]
        return tuple(found[:1])  # what serves a ModelDeployment may name its artifact, but is no part of it

    def _artifacts_used(self, resource: Manifest) -> set[str]:
        roles = (status_of(resource).get(role) or {} for role in ("stable", "canary"))
        used = {str(role["artifact"]) for role in roles if role.get("artifact")}
        return used | {names.artifact_name(artifact_spec(resource["spec"], self._config))}

    def _found(self, *entry: str) -> list[Manifest]:
        found = sorted(self._index.get((entry[0], entry[1], entry[2]), ()))
        return [self._kinds[key[0]][key[1:]] for key in found]

    def gather(self, key: Key) -> Snapshot | None:
        """Return the Snapshot of a resource, or None when it is gone."""
        resource = self.get(key.kind, key.namespace, key.name)
        if resource is None:
            return None
        if key.kind == "ModelArtifact":
            mine = self._found(names.ARTIFACT, key.namespace, key.name)
            return ArtifactSnapshot(resource, _only(mine, "Job"), _only(mine, "Pod"))
        mine = self._found(names.DEPLOYMENT, key.namespace, key.name)
        found, now = _only(mine, "Deployment"), time.monotonic()
        comparators = tuple(d for d in found if label(d, names.COMPONENT) == names.COMPARATOR)
        deployments = tuple(d for d in found if d not in comparators)
        return DeploymentSnapshot(
            resource=resource,
            artifacts=self._artifacts_of(resource, key, deployments),
            deployments=deployments,
            services=_only(mine, "Service"),
            pods=_only(mine, "Pod"),
            routes=(*_only(mine, "HTTPRoute"), *_only(mine, "GRPCRoute")),
            runtimes=tuple(self.of_kind("ServingRuntime")),
            autoscalers=(*_only(mine, HPA), *_only(mine, SCALED_OBJECT)),
            has_keda=self.has_keda,
            claim_templates=_only(mine, CLAIM_TEMPLATE),
            comparators=comparators,
            foreign=tuple(o for k, (at, o) in self._foreign.items() if now - at < FOREIGN_SECONDS and k[1] == key.namespace),
        )

    def claim_templates(self, resource: Manifest) -> tuple[Manifest, ...]:
        """Return the known ResourceClaimTemplates of a ModelDeployment."""
        _, namespace, name = identity(resource)
        return _only(self._found(names.DEPLOYMENT, namespace, name), CLAIM_TEMPLATE)

    def _artifacts_of(self, resource: Manifest, key: Key, deployments: Iterable[Manifest]) -> dict[str, Manifest]:
        """Return the artifacts that a ModelDeployment owns or needs."""
        wanted = self._artifacts_used(resource) | {str(label(d, names.ARTIFACT)) for d in deployments}
        needed = [self.get("ModelArtifact", key.namespace, name) for name in sorted(wanted)]
        owned = self._found("owned", key.namespace, key.name)
        return {a["metadata"]["name"]: a for a in (*owned, *needed) if a is not None}

    def keys_for(self, manifest: Manifest) -> set[Key]:
        """Return the resources whose state an object is part of."""
        kind, namespace, name = identity(manifest)
        if kind == "ModelDeployment":
            return {Key("ModelDeployment", namespace, name)}
        if kind == "ModelArtifact":
            users = {key[2] for key in self._index.get(("uses", namespace, name), ())}
            users |= _owners(manifest)
            return {Key("ModelArtifact", namespace, name), *(Key("ModelDeployment", namespace, user) for user in users)}
        if kind == "ServingRuntime":
            return {Key("ModelDeployment", *place) for place in self._kinds.get("ModelDeployment", {})}
        deployment, artifact = label(manifest, names.DEPLOYMENT), label(manifest, names.ARTIFACT)
        if deployment is not None:
            return {Key("ModelDeployment", namespace, deployment)}
        return set() if artifact is None else {Key("ModelArtifact", namespace, artifact)}


def _owners(artifact: Manifest) -> set[str]:
    owners = artifact["metadata"].get("ownerReferences") or ()
    return {str(owner["name"]) for owner in owners if owner.get("kind") == "ModelDeployment"}


def _only(manifests: Iterable[Manifest], kind: str) -> tuple[Manifest, ...]:
    return tuple(m for m in manifests if m["kind"] == kind)
