"""The publish container: pushes the chosen candidate and says where it comes from.

Has the registry's credentials and the key that signs, runs no model code, trusts no file of convert.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slipway_runtime.artifact import (
    ARTIFACT_TYPE,
    CONFIG_TYPE,
    FILE_TYPE,
    MANIFEST_TYPE,
    TITLE,
    Signature,
    file_sha256,
    safe_path,
)
from slipway_runtime.attestation import attach, is_attested
from slipway_runtime.candidates import VALIDATE_REPORT, candidate_folder, read_report
from slipway_runtime.content_key import canonical_json
from slipway_runtime.fetch import REPORT as FETCH_REPORT
from slipway_runtime.fetch import artifact_client, proof_of, timestamp
from slipway_runtime.modelfile import read_model
from slipway_runtime.oci import Client, Manifest
from slipway_runtime.provenance import PREDICATE_TYPE, Build, statement
from slipway_runtime.reasons import Failure, shortened, write_termination
from slipway_runtime.settings import Settings, step

File = tuple[str, Path]


def run(settings: Settings) -> None:
    """Publish, or report the artifact that is there already.

    Raises:
        Failure: RegistryUnavailable, RegistryRejected, SigningKeyUnusable, ArtifactCorrupt, ValidationFailed.
    """
    client = artifact_client(settings)
    fetched = read_report(settings.report / FETCH_REPORT)
    existing = client.manifest(fetched["artifactDigest"]) if fetched["cached"] else client.find_manifest(fetched["contentKey"])
    signed_by = fetched.get("signedBy")
    if existing is not None and not fetched["cached"]:  # somebody published it since fetch looked
        existing, signed_by = _usable(client, existing, settings)
    if existing is not None:
        config = json.loads(client.blob(str(existing.value["config"]["digest"])))
        provenance = _provenance(signed_by) if signed_by or is_attested(client, existing.digest) else None
        _report("CacheHit", "this source was converted before", existing, config, provenance)
        return
    report = read_report(settings.report / VALIDATE_REPORT)
    files = _files(settings, report)
    build = Build(settings.spec, _config(settings, fetched, report, files), fetched.get("started"), timestamp())
    with step(f"published {len(files)} files to {settings.repository}"):
        manifest, signed_by = _push(client, build, files, settings)
    _report("Published", f"published to {settings.repository}", manifest, build.config, _provenance(signed_by))


def _usable(client: Client, existing: Manifest, settings: Settings) -> tuple[Manifest | None, str | None]:
    """Return an artifact that is there, and who signed it; None when it lost a blob, or lacks the signature that is asked for."""
    if not _is_whole(client, existing):
        return None, None
    proof = proof_of(client, existing.digest, settings)
    if settings.signing is not None and proof is None:
        return None, None
    return existing, proof.signed_by if proof is not None else None


def _is_whole(client: Client, manifest: Manifest) -> bool:
    return all(client.has_blob(str(row["digest"])) for row in (manifest.value["config"], *manifest.value["layers"]))


def _provenance(signed_by: str | None) -> dict[str, str]:
    return {"predicateType": PREDICATE_TYPE} | ({"signedBy": signed_by} if signed_by else {})


def _report(reason: str, message: str, manifest: Manifest, config: Mapping[str, Any], provenance: dict[str, str] | None) -> None:
    write_termination(
        reason,
        message,
        artifactDigest=manifest.digest,
        sourceDigest=config["source"]["digest"],
        contentKey=config["contentKey"],
        format=config["format"],
        precision=config["precision"],
        sizeBytes=sum(int(layer["size"]) for layer in manifest.value["layers"]),
        choice=shortened(config.get("choice", ""), 300),
        candidates=config["candidates"],
        signature=config["signature"],
        tools=config["tools"],
        **({"provenance": provenance} if provenance else {}),
    )


def _files(settings: Settings, report: dict[str, Any]) -> list[File]:
    """Return (path in the artifact, file) of the chosen candidate and its golden data, as validate saw them."""
    chosen = report["chosen"]
    folder = candidate_folder(settings.candidates, chosen, report["candidates"][chosen]["target"])
    files = sorted(_candidate_files(folder, report["files"]))
    golden = settings.report / f"golden-{chosen}"
    return files + [(name, golden / name) for name in ("golden/inputs.npz", "golden/outputs.npz") if golden.is_dir()]


def _candidate_files(folder: Path, hashes: dict[str, str]) -> Iterator[File]:
    for name, want in hashes.items():
        path = folder / safe_path(name)
        got = file_sha256(path) if path.resolve().is_relative_to(folder.resolve()) else "a link"
        if got != want:
            raise Failure("ValidationFailed", f"{name} was validated with sha256 {want} and is now {got}")
        yield name, path


def _config(settings: Settings, fetched: dict[str, Any], report: dict[str, Any], files: list[File]) -> dict[str, Any]:
    model = read_model(settings.folder, settings.spec)
    built = {key: value for key, value in report["built"].items() if value is not None}
    described = settings.report / f"golden-{report['chosen']}" / "golden.json"  # none for a handler that nobody gave inputs for
    golden = json.loads(described.read_text()) if described.exists() else None
    return {
        "schemaVersion": 1,
        "precision": report["candidates"][report["chosen"]]["precision"],
        "signature": Signature.from_json(report["signature"]).to_json(),
        "preprocessing": model.preprocessing,
        "labels": model.labels,
        "files": [{"path": name, "sizeBytes": path.stat().st_size, "sha256": file_sha256(path)} for name, path in files],
        "golden": {"inputs": "golden/inputs.npz", "outputs": "golden/outputs.npz"} | golden if golden is not None else None,
        "source": {"uri": settings.model["uri"], "digest": fetched["sourceDigest"]}
        | ({"revision": fetched["sourceRevision"]} if "sourceRevision" in fetched else {}),
        "contentKey": fetched["contentKey"],
        "tools": fetched["tools"],
        "data": fetched.get("data") or {},
        "choice": report["choice"],
        "candidates": report["candidates"],
    } | built


def _push(client: Client, build: Build, files: list[File], settings: Settings) -> tuple[Manifest, str | None]:
    """Push blobs first, then what is said about the artifact, and its manifest last: whoever finds the tag finds all of it.

    Returns:
        The manifest, and the id of the key that signed; None when signing is off.
    """
    layers = []
    for name, path in files:
        digest = client.push_blob(path)
        layers.append({"mediaType": FILE_TYPE, "digest": digest, "size": path.stat().st_size, "annotations": {TITLE: name}})
    config = {"mediaType": CONFIG_TYPE, "digest": client.push_blob(build.config_bytes), "size": len(build.config_bytes)}
    value = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": config,
        "layers": layers,
    }
    data = canonical_json(value)
    manifest = Manifest(f"sha256:{hashlib.sha256(data).hexdigest()}", data, value)
    signed_by = _attest(client, manifest, build, settings)
    client.put_manifest(data, build.config["contentKey"])
    return manifest, signed_by


def _attest(client: Client, manifest: Manifest, build: Build, settings: Settings) -> str | None:
    said = statement(settings.repository, manifest.digest, manifest.value["config"]["digest"], build)
    if settings.signing is None:
        attach(client, manifest, said, is_signed=False)
        return None
    from slipway_runtime.signing import private_key, sign  # noqa: PLC0415 - see there

    signer = private_key(settings.signing)
    attach(client, manifest, sign(said, signer), is_signed=True)
    return str(signer.public_key.keyid)
