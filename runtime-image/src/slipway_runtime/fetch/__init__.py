"""The fetch container: brings the model folder here, or finds its conversion done. Has network and credentials, runs no model code."""

from __future__ import annotations

import json
import logging
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slipway_runtime.attestation import Proof, verified
from slipway_runtime.content_key import content_key, tool_versions
from slipway_runtime.fetch.archive import unpack
from slipway_runtime.fetch.base import Budget, Source
from slipway_runtime.fetch.configmap import ConfigMapSource
from slipway_runtime.fetch.http import HttpSource
from slipway_runtime.fetch.hub import HubSource
from slipway_runtime.fetch.objectstore import ObjectStoreSource
from slipway_runtime.fetch.oci import OciSource
from slipway_runtime.fetch.pvc import ClaimSource
from slipway_runtime.oci import Client, parse_reference, read_docker_config
from slipway_runtime.reasons import Failure, write_termination
from slipway_runtime.settings import Settings, step, write_json
from slipway_runtime.torchserve import packed_archive

log = logging.getLogger("slipway")

REPORT = "fetch.json"
_SCHEMES: dict[str, type[Source]] = {
    "oci": OciSource,
    "http": HttpSource,
    "https": HttpSource,
    "s3": ObjectStoreSource,
    "gs": ObjectStoreSource,
    "az": ObjectStoreSource,
    "hf": HubSource,
    "configmap": ConfigMapSource,
    "pvc": ClaimSource,
}


def run(settings: Settings) -> None:
    """Fetch the source, or write the marker that its artifact exists; then the report and the termination message.

    Raises:
        Failure: any reason from SourceNotFound to CredentialsMissing, RegistryUnavailable, RegistryRejected, SigningKeyUnusable,
            InvalidArguments.
    """
    started = timestamp()
    _check_credentials(settings)
    _check_keys(settings)
    pinned = settings.model.get("digest")
    source = open_source(settings.model["uri"], settings)
    known = source.resolve() or pinned
    if known:
        _check_pin(known, pinned)
        if _is_cached(known, settings):
            return
    with step(f"fetched {settings.model['uri']}"):
        fetched = source.fetch(_empty(settings.folder))
    _check_pin(fetched.digest, pinned)
    _unpack_archive(settings)
    if fetched.digest != known and _is_cached(fetched.digest, settings):
        return
    data = _fetch_data(settings)
    key = content_key(fetched.digest, settings.spec, tool_versions())
    revision = {"sourceRevision": fetched.revision} if fetched.revision else {}
    found = {"sourceDigest": fetched.digest, "contentKey": key, "bytes": fetched.size, "cached": False, "data": data, "started": started}
    _finish(settings, found | revision)


def timestamp() -> str:
    """Return the present moment as RFC 3339 in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def open_source(uri: str, settings: Settings) -> Source:
    """Return the source for a URI; nothing is fetched yet.

    Raises:
        Failure: InvalidArguments for an unknown scheme.
    """
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise Failure("InvalidArguments", f"the scheme of {uri!r} is not one of {', '.join(_SCHEMES)}")
    return _SCHEMES[scheme](uri, settings)


def artifact_client(settings: Settings) -> Client:
    """Return the client of the repository that artifacts live in."""
    reference = parse_reference(settings.repository)
    return Client(reference, settings.plain_http, read_docker_config(settings.registry_credentials, reference.host))


def _check_credentials(settings: Settings) -> None:
    """The Secret is mounted as optional: one that does not exist is a folder without keys, and a reason instead of a pod that hangs.

    The kubelet's own `..data` is there all the same.
    """
    secret = (settings.model.get("credentialsSecretRef") or {}).get("name")
    folder = settings.source_credentials
    keys = [entry for entry in folder.iterdir() if not entry.name.startswith("..")] if folder.is_dir() else []
    if secret and not keys:
        raise Failure("CredentialsMissing", f"the Secret {secret} that spec.model.credentialsSecretRef names does not exist or is empty")


def _check_keys(settings: Settings) -> None:
    """Find out before the conversion, not at its end, that nothing signed could be verified."""
    if settings.signing is not None:
        from slipway_runtime.signing import public_keys  # noqa: PLC0415 - see there

        public_keys(settings.signing)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _check_pin(got: str, want: str | None) -> None:
    if want and got != want:
        raise Failure("DigestMismatch", f"the source has {got}, spec.model.digest wants {want}")


def _unpack_archive(settings: Settings) -> None:
    """Unpack the one .mar that a source of any scheme may be."""
    packed = packed_archive(settings.folder)
    if packed is None:
        return
    moved = packed.rename(settings.folder.parent / f".{packed.name}")
    try:
        unpack(moved, packed.name, settings.folder, Budget(settings.max_source_bytes))
    finally:
        moved.unlink()


def _is_cached(source_digest: str, settings: Settings) -> bool:
    key, client = content_key(source_digest, settings.spec, tool_versions()), artifact_client(settings)
    with step(f"looked for content key {key[:12]} in {settings.repository}"):
        digest = _whole_artifact(client, key)
        proof = proof_of(client, digest, settings) if digest is not None else None
    if digest is None or (settings.signing is not None and proof is None):
        return False
    data = {"sourceDigest": source_digest, "contentKey": key, "bytes": 0, "cached": True, "artifactDigest": digest}
    write_json(settings.cached, data)
    _finish(settings, data | ({"signedBy": proof.signed_by} if proof is not None else {}))
    return True


def proof_of(client: Client, digest: str, settings: Settings) -> Proof | None:
    """Return the proof of an artifact that is in the registry; None when it has none or signing is off.

    Without one it does not count as converted: who may write to the registry could have put it there.
    """
    if settings.signing is None:
        return None
    try:
        return verified(client, digest, settings.signing)
    except Failure as failure:
        if failure.reason != "ProvenanceUnverified":
            raise
        log.warning("converting again: %s", failure.message)
        return None


def _whole_artifact(client: Client, key: str) -> str | None:
    """Return the digest of the artifact with this key, or None; one that lost a blob is made again rather than served."""
    manifest = client.find_manifest(key)
    if manifest is None:
        return None
    try:
        config = json.loads(client.blob(str(manifest.value["config"]["digest"])))
        if config.get("contentKey") == key and all(client.has_blob(str(layer["digest"])) for layer in manifest.value["layers"]):
            return manifest.digest
    except Failure as failure:
        if failure.reason not in ("ArtifactCorrupt", "ArtifactNotFound"):
            raise
    except (KeyError, ValueError, AttributeError):
        return None
    return None


def _fetch_data(settings: Settings) -> dict[str, str]:
    """Fetch validation and calibration data; returns their digests, for the provenance."""
    wanted = (
        ("validation", settings.validation.get("data"), settings.validation_folder),
        ("calibration", settings.conversion.get("calibration"), settings.calibration_folder),
    )
    digests = {}
    for what, field, folder in wanted:
        uri = (field or {}).get("uri")
        if uri:
            with step(f"fetched {what} data {uri}"):
                digests[what] = open_source(uri, settings).fetch(_empty(folder)).digest
    return digests


def _finish(settings: Settings, data: dict[str, Any]) -> None:
    write_json(settings.report / REPORT, data | {"tools": tool_versions()})
    what = "found the artifact of this source in the registry" if data["cached"] else f"fetched {data['bytes']} bytes"
    write_termination("Fetched", what, **data)
