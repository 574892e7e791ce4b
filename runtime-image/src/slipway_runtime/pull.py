"""The init container of a serving pod: brings an artifact here by digest and checks every byte, and who signed it if they are signed.

Imports no torch, runs no model code.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
from pathlib import Path

from slipway_runtime.artifact import CONFIG_NAME, MANIFEST_NAME, FileEntry, manifest_files, open_artifact
from slipway_runtime.attestation import checked, verified
from slipway_runtime.layout import LAYOUTS, SLIPWAY, Place, lay_out
from slipway_runtime.oci import Access, Client, Manifest, access_from_environment
from slipway_runtime.reasons import Failure
from slipway_runtime.settings import Signing, batching, class_labels, step

log = logging.getLogger("slipway")

PROOF_NAME = "slipway.dsse.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `slipway-runtime pull`."""
    parser.add_argument("--repository", required=True, help="host:port/prefix/<namespace>")
    parser.add_argument("--digest", required=True, help="sha256:… of the artifact's manifest")
    parser.add_argument("--output", required=True, type=Path, help="folder to store it in; replaced when it holds something else")
    parser.add_argument("--layout", choices=LAYOUTS, default=SLIPWAY, help="what the server wants to find (default: Slipway, the artifact)")
    group = parser.add_argument_group("for layouts of other servers")
    group.add_argument("--layout-output", type=Path, help="folder to lay the artifact out in")
    group.add_argument("--model-name", default="model", help="the model's name in paths")
    group.add_argument("--port", type=int, default=8080, help="of inference requests")
    group.add_argument("--metrics-port", type=int, default=8082, help="of the metrics")
    group.add_argument("--max-batch-size", default="1", help="rows of a batch (default: 1, no batching)")
    group.add_argument("--max-delay", default="0s", help="wait for company at most, such as 2ms")
    group.add_argument("--gpu", action="store_true", help="the server has an accelerator")


def run(arguments: argparse.Namespace) -> None:
    """Pull an artifact; does nothing when it lies there whole. Then lay it out, if another server than ours is to load it.

    Raises:
        Failure: ArtifactNotFound, ArtifactCorrupt, RegistryUnavailable, RegistryRejected, ProvenanceUnverified, SigningKeyUnusable,
            InvalidArguments.
    """
    pull(arguments.repository, arguments.digest, arguments.output, access_from_environment())
    if arguments.layout == SLIPWAY:
        return
    if arguments.layout_output is None:
        raise Failure("InvalidArguments", f"--layout {arguments.layout} needs --layout-output")
    max_batch, max_delay = batching(arguments.max_batch_size, arguments.max_delay)
    threads = max(1, int(os.environ.get("SLIPWAY_SERVER_MILLICPUS", "1000")) // 1000)
    place = Place(
        arguments.model_name, arguments.port, arguments.metrics_port, max_batch, max_delay, threads, arguments.gpu, class_labels(os.environ)
    )
    lay_out(open_artifact(arguments.output, arguments.digest), arguments.layout, arguments.layout_output, place)


def pull(repository: str, digest: str, output: Path, access: Access) -> None:
    """Store manifest.json, slipway.json and the files of an artifact in `output`; there is never half of it under that name.

    Where artifacts are signed its proof is stored beside, so that a pod that starts again needs no registry for it.

    Raises:
        Failure: as `run`.
    """
    if _is_whole(output, digest) and _is_proven(output, digest, access.signing):
        return
    client = access.client(f"{repository}@{digest}")
    partial = output.with_name(output.name + ".partial")
    with step(f"pulled {digest} from {repository}"):
        manifest = client.manifest(digest)
        proof = verified(client, digest, access.signing) if access.signing is not None else None
        _store(client, manifest, partial)
        try:
            open_artifact(partial, digest)
        except Failure:
            shutil.rmtree(partial)  # or the next attempt would find the same bytes
            raise
        if proof is not None:
            (partial / PROOF_NAME).write_bytes(proof.envelope)
            log.info("the artifact is signed by the key %s", proof.signed_by)
        shutil.rmtree(output, ignore_errors=True)
        partial.rename(output)


def _is_whole(output: Path, digest: str) -> bool:
    try:
        open_artifact(output, digest)
    except Failure:
        return False
    return True


def _is_proven(output: Path, digest: str, signing: Signing | None) -> bool:
    if signing is None:
        return True
    from slipway_runtime.signing import public_keys  # noqa: PLC0415 - see there

    try:
        checked((output / PROOF_NAME).read_bytes(), digest, public_keys(signing))
    except (OSError, ValueError):
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
        if file.path in (MANIFEST_NAME, CONFIG_NAME, PROOF_NAME):
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
