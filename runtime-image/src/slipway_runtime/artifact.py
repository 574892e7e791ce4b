"""A converted model on disk: what `pull` stored and the server loads, and the check of every byte before anything is loaded.

Shared by pipeline and server; imports neither torch nor a network library.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from slipway_runtime.reasons import Failure

ARTIFACT_TYPE = "application/vnd.slipway.artifact.v1+json"
CONFIG_TYPE = "application/vnd.slipway.artifact.config.v1+json"
FILE_TYPE = "application/vnd.slipway.file.v1"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
TITLE = "org.opencontainers.image.title"
MANIFEST_NAME = "manifest.json"
CONFIG_NAME = "slipway.json"
_MAX_JSON_BYTES = 16 << 20
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of the signature: numpy dtype name, and a shape whose named dims are dynamic.

    `pad` is the value with which an input may be filled up along its named dims after the first; None: it must not be.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    pad: int | None = None


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives, in the order of its forward arguments and results."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the form that specs, model.yaml and slipway.json use."""
        return {side: [_tensor_json(spec) for spec in specs] for side, specs in (("inputs", self.inputs), ("outputs", self.outputs))}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Signature:
        """Read that form; raises KeyError, TypeError or ValueError when it is malformed."""
        return cls(*(tuple(_tensor(spec) for spec in value[side]) for side in ("inputs", "outputs")))


def takes_batches(signature: Signature) -> bool:
    """Whether rows of several requests may go in together: one named dimension is the first of every input and output."""
    firsts = {spec.shape[0] if spec.shape else None for spec in (*signature.inputs, *signature.outputs)}
    return len(firsts) == 1 and isinstance(next(iter(firsts)), str)


def padded_dims(signature: Signature) -> frozenset[str]:
    """The named dims along which inputs may be filled up: those after the first, of the inputs that have `pad`.

    Raises:
        ValueError: padding could not be done, or not be taken back; says why.
    """
    padded = [spec for spec in signature.inputs if spec.pad is not None]
    dims = frozenset(dim for spec in padded for dim in spec.shape[1:] if isinstance(dim, str))
    if not padded:
        return dims
    for spec in padded:
        if not dims.intersection(spec.shape[1:]):
            raise ValueError(f"input '{spec.name}' has pad, and no named dimension after the first that could be padded")
    for spec in signature.inputs:
        if spec.pad is None and (shared := dims.intersection(spec.shape)):
            raise ValueError(
                f"input '{spec.name}' needs a pad too: it shares the dimension '{min(map(str, shared))}' with an input that has one"
            )
    for spec in signature.outputs:
        for dim in spec.shape[1:]:
            if isinstance(dim, str) and all(dim not in other.shape for other in signature.inputs):
                raise ValueError(f"output '{spec.name}' cannot be cut back after padding: no input has its dimension '{dim}'")
    return dims


@dataclass(frozen=True, slots=True)
class Golden:
    """Recorded inputs and outputs that a serving node must reproduce before it is ready.

    Attributes:
        inputs: path of an npz in the artifact, arrays named like the inputs.
        outputs: path of an npz, arrays named like the outputs.
        max_absolute_error: largest difference of any element that still counts as reproduced.
    """

    inputs: str
    outputs: str
    max_absolute_error: float


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the artifact: path relative to its folder, size in bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact whose every byte was checked.

    Attributes:
        directory: where it lies.
        format: ONNX, TorchScript or PyTorch.
        entry: path of the file to load, relative to the directory (PyTorch: the weights, or the module of the entrypoint).
        preprocessing: of model.yaml, or None.
        labels: class names by class number, or None.
        golden: None when the model has no recorded outputs.
        digest: of the OCI manifest, `sha256:…`.
        entrypoint: PyTorch only, `module:callable`.
        arguments: PyTorch only, for the entrypoint.
        weights: PyTorch only, path of the weights, or None.
        raw: slipway.json.
    """

    directory: Path
    format: str
    precision: str
    entry: str
    signature: Signature
    preprocessing: dict[str, Any] | None
    labels: tuple[str, ...] | None
    golden: Golden | None
    files: tuple[FileEntry, ...]
    digest: str
    entrypoint: str | None
    arguments: dict[str, Any]
    weights: str | None
    raw: dict[str, Any]


def open_artifact(model_dir: str | Path, artifact_digest: str | None) -> Artifact:
    """Check an artifact folder (digest -> manifest.json -> slipway.json -> each file) and describe it.

    Args:
        model_dir: the folder that `pull` filled.
        artifact_digest: the manifest's `sha256:…`; None trusts manifest.json as it lies there.

    Raises:
        Failure: ArtifactNotFound when there is no manifest.json; ArtifactCorrupt, with the file and both hashes, when anything differs.
    """
    directory = Path(model_dir)
    if not (directory / MANIFEST_NAME).is_file():
        raise Failure("ArtifactNotFound", f"there is no {MANIFEST_NAME} in {directory}")
    manifest_bytes = _read_plain(directory, MANIFEST_NAME)
    digest = f"sha256:{hashlib.sha256(manifest_bytes).hexdigest()}"
    if artifact_digest is not None and digest != artifact_digest:
        raise Failure("ArtifactCorrupt", f"{MANIFEST_NAME} has {digest}, wanted {artifact_digest}")
    manifest = _json_object(MANIFEST_NAME, manifest_bytes)
    config_bytes = _read_plain(directory, CONFIG_NAME)
    _check_config(manifest, config_bytes)
    config = _json_object(CONFIG_NAME, config_bytes)
    try:
        artifact = _described(directory, digest, config)
        layers = manifest_files(manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Failure("ArtifactCorrupt", f"{CONFIG_NAME} of {digest} is malformed: {error!r}") from error
    _check_files(artifact, layers)
    return artifact


def manifest_files(manifest: Mapping[str, Any]) -> tuple[FileEntry, ...]:
    """Return the files an OCI manifest lists, one a layer.

    Raises:
        KeyError, TypeError, ValueError: malformed; ValueError names a path that leaves the folder or comes twice.
    """
    rows = []
    for layer in manifest["layers"]:
        algorithm, _, hexadecimal = str(layer["digest"]).partition(":")
        if algorithm != "sha256" or len(hexadecimal) != 64:
            raise ValueError(f"layer digest {layer['digest']!r} is not a sha256")
        rows.append(FileEntry(safe_path(layer["annotations"][TITLE]), int(layer["size"]), hexadecimal))
    if len({row.path for row in rows}) != len(rows):
        raise ValueError("a path is listed twice")
    return tuple(rows)


def safe_path(path: str) -> str:
    """Return `path` when it is relative, normal and inside its folder.

    Raises:
        ValueError: it is absolute, empty, has `..`, a backslash or a NUL.
    """
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or str(pure) != path or path == "." or "\\" in path or "\0" in path:
        raise ValueError(f"unsafe path {path!r}")
    return path


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file in hex, read without following a link at its end."""
    digest = hashlib.sha256()
    with _open_plain(path) as stream:
        while chunk := os.read(stream, _CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class _open_plain:
    """A file descriptor of a regular file; a link, device or pipe raises OSError."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            os.close(self.fd)
            raise OSError(f"{path} is not a regular file")

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def _tensor(value: Mapping[str, Any]) -> TensorSpec:
    shape = tuple(dim if isinstance(dim, int) else str(dim) for dim in value["shape"])
    pad = value.get("pad")
    return TensorSpec(str(value["name"]), str(value["dtype"]), shape, None if pad is None else int(pad))


def _tensor_json(spec: TensorSpec) -> dict[str, Any]:
    plain = {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
    return plain if spec.pad is None else plain | {"pad": spec.pad}


def _read_plain(directory: Path, name: str) -> bytes:
    try:
        with _open_plain(directory / name) as stream:
            size = os.fstat(stream).st_size
            if size > _MAX_JSON_BYTES:
                raise Failure("ArtifactCorrupt", f"{name} has {size} bytes, more than {_MAX_JSON_BYTES}")
            with os.fdopen(os.dup(stream), "rb") as file:
                return file.read()
    except OSError as error:
        raise Failure("ArtifactCorrupt", f"cannot read {name}: {error}") from error


def _json_object(name: str, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise Failure("ArtifactCorrupt", f"{name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Failure("ArtifactCorrupt", f"{name} is not a JSON object")
    return value


def _check_config(manifest: Mapping[str, Any], config: bytes) -> None:
    descriptor = manifest.get("config")
    want = descriptor.get("digest") if isinstance(descriptor, dict) else None
    got = f"sha256:{hashlib.sha256(config).hexdigest()}"
    if got != want:
        raise Failure("ArtifactCorrupt", f"{CONFIG_NAME} has {got}, the manifest wants {want}")


def _described(directory: Path, digest: str, config: dict[str, Any]) -> Artifact:
    golden = config.get("golden")
    labels: Sequence[Any] | None = config.get("labels")
    return Artifact(
        directory=directory,
        format=str(config["format"]),
        precision=str(config["precision"]),
        entry=safe_path(config["entry"]) if config["entry"] else "",
        signature=Signature.from_json(config["signature"]),
        preprocessing=config.get("preprocessing"),
        labels=None if labels is None else tuple(map(str, labels)),
        golden=Golden(safe_path(golden["inputs"]), safe_path(golden["outputs"]), float(golden["maxAbsoluteError"])) if golden else None,
        files=tuple(FileEntry(safe_path(row["path"]), int(row["sizeBytes"]), str(row["sha256"])) for row in config["files"]),
        digest=digest,
        entrypoint=config.get("entrypoint"),
        arguments=dict(config.get("arguments") or {}),
        weights=config.get("weights"),
        raw=config,
    )


def _check_files(artifact: Artifact, layers: tuple[FileEntry, ...]) -> None:
    if sorted(artifact.files, key=lambda row: row.path) != sorted(layers, key=lambda row: row.path):
        raise Failure("ArtifactCorrupt", f"{CONFIG_NAME} and {MANIFEST_NAME} of {artifact.digest} list different files")
    named = [artifact.entry, *((artifact.golden.inputs, artifact.golden.outputs) if artifact.golden else ())]
    paths = {row.path for row in artifact.files}
    for name in named:
        if name and name not in paths:
            raise Failure("ArtifactCorrupt", f"{CONFIG_NAME} names {name}, which is not among the files")
    for row in artifact.files:
        _check_file(artifact.directory, row)


def _check_file(directory: Path, row: FileEntry) -> None:
    for parent in PurePosixPath(row.path).parents:
        if (directory / parent).is_symlink() and str(parent) != ".":
            raise Failure("ArtifactCorrupt", f"{row.path} lies behind the link {parent}")
    path = directory / row.path
    try:
        size = path.lstat().st_size
        if size != row.size:
            raise Failure("ArtifactCorrupt", f"{row.path} has {size} bytes, wanted {row.size} (sha256:{row.sha256})")
        got = file_sha256(path)
    except OSError as error:
        raise Failure("ArtifactCorrupt", f"cannot read {row.path}, wanted sha256:{row.sha256}: {error}") from error
    if got != row.sha256:
        raise Failure("ArtifactCorrupt", f"{row.path} has sha256:{got}, wanted sha256:{row.sha256}")
