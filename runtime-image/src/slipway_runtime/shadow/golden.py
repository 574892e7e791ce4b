"""Golden inputs as requests, for when users send none: only the files that hold them are fetched, not the model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import orjson

from slipway_runtime.artifact import Signature, TensorSpec, manifest_files
from slipway_runtime.attestation import verified
from slipway_runtime.oci import Access
from slipway_runtime.reasons import Failure
from slipway_runtime.samples import Batch, read_npz
from slipway_runtime.serve.tensors import DATATYPES, to_json
from slipway_runtime.shadow.comparator import Copied

MAX_FILE = 64 << 20
MAX_ROWS = 64


def fetch(repository: str, digest: str, access: Access, path: str) -> tuple[Copied, ...]:
    """Return the golden inputs of an artifact as requests to `path`; none when it has no golden data.

    Raises:
        Failure: ArtifactNotFound, ArtifactCorrupt, RegistryUnavailable, RegistryRejected, ProvenanceUnverified, SigningKeyUnusable,
            ValidationFailed.
    """
    client = access.client(f"{repository}@{digest}")
    manifest = client.manifest(digest)
    if access.signing is not None:
        verified(client, digest, access.signing)
    try:
        config = orjson.loads(client.blob(str(manifest.value["config"]["digest"])))
        golden, signature = config.get("golden"), Signature.from_json(config["signature"])
        files = {file.path: file for file in manifest_files(manifest.value)}
        file = files[golden["inputs"]] if golden else None
    except (KeyError, TypeError, ValueError) as error:
        raise Failure("ArtifactCorrupt", f"the manifest {digest} is no Slipway artifact: {error!r}") from error
    if file is None or file.size > MAX_FILE:
        return ()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "inputs.npz"
        client.download(f"sha256:{file.sha256}", file.size, target)
        return tuple(requests_of(read_npz(target), signature, path))


def requests_of(inputs: Batch, signature: Signature, path: str) -> Iterator[Copied]:
    """Split golden inputs into one request a row where the batch is dynamic: many different ones say more than one large one."""
    first = signature.inputs[0]
    is_dynamic = bool(first.shape) and isinstance(first.shape[0], str)
    batched = [spec.name for spec in signature.inputs if spec.shape[:1] == first.shape[:1]]
    rows = min(len(inputs[first.name]), MAX_ROWS) if is_dynamic else 1
    for row in range(rows):
        part = {name: array[row : row + 1] if is_dynamic and name in batched else array for name, array in inputs.items()}
        body = orjson.dumps({"inputs": [_tensor(spec, part) for spec in signature.inputs]}, option=orjson.OPT_SERIALIZE_NUMPY)
        yield Copied(path, body, source="golden")


def _tensor(spec: TensorSpec, part: Batch) -> dict[str, object]:
    array = part[spec.name].copy(order="C")  # ascontiguousarray makes a row of a scalar
    return {"name": spec.name, "shape": list(array.shape), "datatype": DATATYPES[spec.dtype], "data": to_json(array)}
