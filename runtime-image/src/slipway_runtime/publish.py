"""The publish container: pushes the chosen candidate. Has the registry's credentials, runs no model code, trusts no file of convert."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
from slipway_runtime.candidates import VALIDATE_REPORT, candidate_folder, read_report
from slipway_runtime.content_key import canonical_json
from slipway_runtime.fetch import REPORT as FETCH_REPORT
from slipway_runtime.fetch import artifact_client
from slipway_runtime.modelfile import read_model
from slipway_runtime.oci import Client, Manifest
from slipway_runtime.reasons import Failure, shortened, write_termination
from slipway_runtime.settings import Settings, step

File = tuple[str, Path]


def run(settings: Settings) -> None:
    """Publish, or report the artifact that is there already.

    Raises:
        Failure: RegistryUnavailable, RegistryRejected, ArtifactCorrupt, ValidationFailed.
    """
    client = artifact_client(settings)
    fetched = read_report(settings.report / FETCH_REPORT)
    existing = client.manifest(fetched["artifactDigest"]) if fetched["cached"] else client.find_manifest(fetched["contentKey"])
    if existing is not None and (fetched["cached"] or _is_whole(client, existing)):
        config = json.loads(client.blob(str(existing.value["config"]["digest"])))
        _report("CacheHit", "this source was converted before", existing.digest, existing.value, config)
        return
    report = read_report(settings.report / VALIDATE_REPORT)
    files = _files(settings, report)
    config = _config(settings, fetched, report, files)
    with step(f"published {len(files)} files to {settings.repository}"):
        digest, manifest = _push(client, config, files, fetched["contentKey"])
    _report("Published", f"published to {settings.repository}", digest, manifest, config)


def _is_whole(client: Client, manifest: Manifest) -> bool:
    return all(client.has_blob(str(row["digest"])) for row in (manifest.value["config"], *manifest.value["layers"]))


def _report(reason: str, message: str, digest: str, manifest: dict[str, Any], config: dict[str, Any]) -> None:
    write_termination(
        reason,
        message,
        artifactDigest=digest,
        sourceDigest=config["source"]["digest"],
        contentKey=config["contentKey"],
        format=config["format"],
        precision=config["precision"],
        sizeBytes=sum(int(layer["size"]) for layer in manifest["layers"]),
        choice=shortened(config.get("choice", ""), 300),
        candidates=config["candidates"],
        signature=config["signature"],
        tools=config["tools"],
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


def _push(client: Client, config: dict[str, Any], files: list[File], key: str) -> tuple[str, dict[str, Any]]:
    """Push blobs first and the manifest last, so that whoever finds the tag finds all of it."""
    layers = []
    for name, path in files:
        digest = client.push_blob(path)
        layers.append({"mediaType": FILE_TYPE, "digest": digest, "size": path.stat().st_size, "annotations": {TITLE: name}})
    data = canonical_json(config)
    descriptor = {"mediaType": CONFIG_TYPE, "digest": client.push_blob(data), "size": len(data)}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": descriptor,
        "layers": layers,
    }
    return client.put_manifest(canonical_json(manifest), key), manifest
