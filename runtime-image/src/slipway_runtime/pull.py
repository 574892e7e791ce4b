"""The init container of a serving pod: brings an artifact here by digest and checks every byte. Imports no torch, runs no model code."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

from slipway_runtime.artifact import CONFIG_NAME, MANIFEST_NAME, FileEntry, manifest_files, open_artifact
from slipway_runtime.oci import Client, Manifest, parse_reference, read_docker_config
from slipway_runtime.reasons import Failure
from slipway_runtime.settings import step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `slipway-runtime pull`."""
    parser.add_argument("--repository", required=True, help="host:port/prefix/<namespace>")
    parser.add_argument("--digest", required=True, help="sha256:… of the artifact's manifest")
    parser.add_argument("--output", required=True, type=Path, help="folder to store it in; replaced when it holds something else")


def run(arguments: argparse.Namespace) -> None:
    """Pull an artifact; does nothing when it lies there whole.

    Raises:
        Failure: ArtifactNotFound, ArtifactCorrupt, RegistryUnavailable, RegistryRejected, InvalidArguments.
    """
    plain = tuple(filter(None, os.environ.get("SLIPWAY_PLAIN_HTTP", "").split(",")))
    credentials = Path(os.environ.get("SLIPWAY_REGISTRY_CREDENTIALS_DIR", "/var/run/slipway/registry-credentials"))
    pull(arguments.repository, arguments.digest, arguments.output, plain, credentials)


def pull(repository: str, digest: str, output: Path, plain_http: tuple[str, ...], credentials: Path) -> None:
    """Store manifest.json, slipway.json and the files of an artifact in `output`; there is never half of it under that name.

    Raises:
        Failure: as `run`.
    """
    if _is_whole(output, digest):
        return
    reference = parse_reference(f"{repository}@{digest}")
    client = Client(reference, plain_http, read_docker_config(credentials, reference.host))
    partial = output.with_name(output.name + ".partial")
    with step(f"pulled {digest} from {repository}"):
        manifest = client.manifest(digest)
        _store(client, manifest, partial)
        try:
            open_artifact(partial, digest)
        except Failure:
            shutil.rmtree(partial)  # or the next attempt would find the same bytes
            raise
        shutil.rmtree(output, ignore_errors=True)
        partial.rename(output)


def _is_whole(output: Path, digest: str) -> bool:
    try:
        open_artifact(output, digest)
    except Failure:
        return False
    return True


def _store(client: Client, manifest: Manifest, partial: Path) -> None:
    if partial.exists() and not _belongs_to(partial, manifest):
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        files = manifest_files(manifest.value)
        config = str(manifest.value["config"]["digest"])
    except (KeyError, TypeError, ValueError) as error:
        raise Failure("ArtifactCorrupt", f"the manifest {manifest.digest} is no Slipway artifact: {error}") from error
    (partial / MANIFEST_NAME).write_bytes(manifest.data)
    data = client.blob(config)
    _check_is_ours(data, manifest.digest)
    (partial / CONFIG_NAME).write_bytes(data)
    for file in files:
        if file.path in (MANIFEST_NAME, CONFIG_NAME):
            raise Failure("ArtifactCorrupt", f"the manifest {manifest.digest} has a layer called {file.path}")
        if not _has(partial, file):  # an earlier attempt got this far
            client.download(f"sha256:{file.sha256}", file.size, partial / file.path)


def _belongs_to(partial: Path, manifest: Manifest) -> bool:
    path = partial / MANIFEST_NAME
    return path.is_file() and path.read_bytes() == manifest.data


def _check_is_ours(config: bytes, digest: str) -> None:
    try:
        version = json.loads(config)["schemaVersion"]
    except (ValueError, KeyError, TypeError) as error:
        raise Failure("ArtifactCorrupt", f"the config of {digest} is not a slipway.json") from error
    if version != 1:
        raise Failure("ArtifactCorrupt", f"the config of {digest} has schemaVersion {version}; this image knows 1")


def _has(folder: Path, file: FileEntry) -> bool:
    path = folder / file.path
    return path.is_file() and not path.is_symlink() and path.stat().st_size == file.size  # its hash is checked with all others
