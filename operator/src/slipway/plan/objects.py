"""What all builders share: owner references, security contexts, reading manifests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slipway import names
from slipway.plan.diff import contains
from slipway.snapshot import Config, Manifest, ObjectRef

UID = 65532
KEYS_DIR = "/var/run/slipway/signing"
PUBLIC_KEY, PRIVATE_KEY = "public.pem", "private.pem"
VERIFICATION_KEY = "verification-key"  # volume


def name_of(manifest: Manifest) -> str:
    """Return the object's name."""
    return str(manifest["metadata"]["name"])


def label(manifest: Manifest, key: str) -> str | None:
    """Return one label of the object, or None."""
    value = (manifest["metadata"].get("labels") or {}).get(key)
    return None if value is None else str(value)


def annotation(manifest: Manifest, key: str) -> str | None:
    """Return one annotation of the object, or None."""
    value = (manifest["metadata"].get("annotations") or {}).get(key)
    return None if value is None else str(value)


def status_of(manifest: Manifest) -> Mapping[str, Any]:
    """Return the status, empty when there is none yet."""
    return manifest.get("status") or {}


def condition(manifest: Manifest, kind: str) -> Mapping[str, Any] | None:
    """Return the condition of that type, or None."""
    return next((c for c in status_of(manifest).get("conditions") or () if c.get("type") == kind), None)


def is_true(manifest: Manifest, kind: str) -> bool:
    """Say whether the condition of that type is there and True."""
    found = condition(manifest, kind)
    return found is not None and found.get("status") == "True"


def owner(manifest: Manifest, *, controller: bool = True) -> dict[str, Any]:
    """Return an ownerReference to the object, so that the cluster collects what it owns even when the operator is away."""
    reference = {
        "apiVersion": manifest.get("apiVersion", names.API_VERSION),
        "kind": manifest["kind"],
        "name": name_of(manifest),
        "uid": manifest["metadata"].get("uid", ""),
    }
    return reference | {"controller": True, "blockOwnerDeletion": False} if controller else reference


def ref(manifest: Manifest) -> ObjectRef:
    """Return the address of the object."""
    return ObjectRef(manifest["apiVersion"], manifest["kind"], manifest["metadata"].get("namespace"), name_of(manifest))


def changed(desired: Iterable[Manifest], observed: Iterable[Manifest]) -> tuple[Manifest, ...]:
    """Return the desired objects that are missing or differ from the observed ones, in their order."""
    known = {(o.get("kind"), name_of(o)): o for o in observed}
    return tuple(d for d in desired if not contains(known.get((d["kind"], name_of(d))), d))


def security_context() -> dict[str, Any]:
    """Return the container security context that the Pod Security Standard `restricted` asks for, with a read-only root."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "runAsUser": UID,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def pod_security_context() -> dict[str, Any]:
    """Return the pod's security context: one unprivileged user, volumes writable by its group."""
    return {"runAsNonRoot": True, "runAsUser": UID, "runAsGroup": UID, "fsGroup": UID, "seccompProfile": {"type": "RuntimeDefault"}}


def secret_source(name: str | None) -> dict[str, Any]:
    """Return what a volume is made of: a Secret, which may be absent, or nothing where none is named."""
    return {"secret": {"secretName": name, "optional": True}} if name else {"emptyDir": {}}


@dataclass(frozen=True, slots=True)
class Verification:
    """What a container needs that verifies artifacts: additions to its pod's volumes, its mounts and its environment."""

    volumes: tuple[dict[str, Any], ...] = ()
    mounts: tuple[tuple[str, str, bool], ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


def verification(secret: str | None) -> Verification:
    """Return what verifies with the public key of a Secret; nothing when artifacts are not signed."""
    if not secret:
        return Verification()
    volume = key_volume(VERIFICATION_KEY, secret, PUBLIC_KEY)
    return Verification((volume,), ((VERIFICATION_KEY, KEYS_DIR, True),), {"SLIPWAY_SIGNING_SECRET": secret})


def key_volume(name: str, secret: str, *files: str) -> dict[str, Any]:
    """Return a volume with these files of the Secret that holds the signing keys; one that is absent is the container's to tell."""
    items = [{"key": file, "path": file} for file in files]
    return {"name": name, "secret": {"secretName": secret, "optional": True, "defaultMode": 0o440, "items": items}}


def env(values: Mapping[str, str]) -> list[dict[str, str]]:
    """Return environment variables as a container's `env`."""
    return [{"name": key, "value": value} for key, value in values.items()]


def scraped(port: int, path: str, config: Config) -> dict[str, str]:
    """Return the annotations that tell where a pod's metrics are; only if the operator's settings say so also that they are to be scraped.

    A PodMonitor reads the first two. Pods that run keep the annotations that they were made with.
    """
    place = {names.SCRAPE_PORT: str(port), names.SCRAPE_PATH: path}
    return {names.SCRAPE: "true", **place} if config.scrape_annotations else place


def mounts(volumes: Sequence[tuple[str, str, bool]]) -> list[dict[str, Any]]:
    """Return `volumeMounts` from (volume, path, read-only) rows."""
    return [{"name": name, "mountPath": path} | ({"readOnly": True} if read_only else {}) for name, path, read_only in volumes]
