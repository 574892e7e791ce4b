"""What the model folder says about itself (model.yaml), overridden field by field by the resource. Runs no model code."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slipway_runtime import torchserve
from slipway_runtime.artifact import Signature, TensorSpec, padded_dims, safe_path
from slipway_runtime.reasons import Failure

FILE_NAME = "model.yaml"
DEFAULT_ONNX = "model.onnx"
_MAX_BYTES = 1 << 20
_MAX_NODES = 100_000
Dtype = Literal["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "string"]
DTYPES = get_args(Dtype)
# Models in one file: its endings, and the name that is assumed when several or none have one of them.
_ENDINGS = {"ONNX": (".onnx",), "ExportedProgram": (".pt2",), "TorchScript": (".pt", ".ts", ".pth")}
_DEFAULTS = {"ONNX": DEFAULT_ONNX, "ExportedProgram": "model.pt2", "TorchScript": "model.pt"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Tensor(_Strict):
    name: str = Field(min_length=1)
    dtype: Dtype
    shape: list[int | str]


class _Input(_Tensor):
    pad: int | None = None


class _Signature(_Strict):
    inputs: list[_Input] = Field(min_length=1)
    outputs: list[_Tensor] = Field(min_length=1)


class _Image(_Strict):
    mode: Literal["L", "RGB"] = "RGB"
    resize: int | None = Field(default=None, ge=1)
    size: list[int] = Field(min_length=2, max_length=2)
    scale: float | int = 1 / 255
    mean: list[float | int] = [0.0]
    std: list[float | int] = [1.0]
    layout: Literal["NCHW", "NHWC"] = "NCHW"


class _Preprocessing(_Strict):
    image: _Image | None = None


class _Validation(_Strict):
    data: str | None = None


class _ModelFile(_Strict):
    format: Literal["PyTorch", "ONNX", "TorchServe", "TorchScript", "ExportedProgram"] | None = None
    entrypoint: str | None = None
    arguments: dict[str, Any] | None = None
    weights: str | None = None
    signature: _Signature | None = None
    preprocessing: _Preprocessing | None = None
    labels: list[str | int] | None = None
    validation: _Validation | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """The model as folder and resource together describe it.

    Attributes:
        format: PyTorch, ONNX, TorchScript, ExportedProgram, or TorchServe for an archive that is served through its handler.
        entrypoint: `module:callable`; None for what is no PyTorch code.
        arguments: for the entrypoint.
        weights: path in the folder; the model itself for what is no PyTorch code.
        signature: None when neither declares one.
        preprocessing: how an image becomes the input, or None.
        labels: class names, or None.
        validation_data: path of an npz in the folder, or None.
    """

    format: str
    entrypoint: str | None
    arguments: dict[str, Any]
    weights: str | None
    signature: Signature | None
    preprocessing: dict[str, Any] | None
    labels: list[str] | None
    validation_data: str | None


def read_model(folder: Path, spec: Mapping[str, Any]) -> Model:
    """Read model.yaml, which may be absent, and let the resource override it.

    Args:
        folder: the model folder.
        spec: ModelArtifact.spec.

    Raises:
        Failure: ModelFolderInvalid, with the field or the file.
    """
    file = _with_archive(_read_file(folder / FILE_NAME), folder, spec["model"])
    own = dict(spec["model"])
    declared = spec.get("signature") or (file.signature and file.signature.model_dump())
    merged = {key: own.get(key) if own.get(key) is not None else getattr(file, key) for key in ("format", "entrypoint", "weights")}
    if own.get("format") == "TorchServe":
        merged["format"] = file.format  # of what the archive holds
    arguments = own.get("arguments") if own.get("arguments") is not None else file.arguments
    model = Model(
        format=merged["format"] or _guessed_format(folder, merged["entrypoint"]),
        entrypoint=merged["entrypoint"],
        arguments=dict(arguments or {}),
        weights=merged["weights"],
        signature=parse_signature(declared) if declared else None,
        preprocessing=file.preprocessing.model_dump(exclude_none=True) if file.preprocessing else None,
        labels=[str(label) for label in file.labels] if file.labels is not None else None,
        validation_data=file.validation.data if file.validation else None,
    )
    return _checked(model, folder)


def parse_signature(value: Mapping[str, Any]) -> Signature:
    """Check a signature of the spec or of model.yaml.

    Raises:
        Failure: ModelFolderInvalid, with the field.
    """
    try:
        parsed = _Signature.model_validate(value)
    except ValidationError as error:
        raise Failure("ModelFolderInvalid", f"signature: {_first(error)}") from error
    signature = Signature(
        tuple(TensorSpec(row.name, row.dtype, tuple(row.shape), row.pad) for row in parsed.inputs),
        tuple(TensorSpec(row.name, row.dtype, tuple(row.shape)) for row in parsed.outputs),
    )
    for side in (signature.inputs, signature.outputs):
        names = [row.name for row in side]
        if len(set(names)) != len(names):
            raise Failure("ModelFolderInvalid", f"signature: a name comes twice in {names}")
        if any(isinstance(dim, int) and dim < 1 for row in side for dim in row.shape):
            raise Failure("ModelFolderInvalid", "signature: a dimension is a number above 0 or a name")
    _check_padding(signature)
    return signature


_WHOLE_BITS = {"float16": 11, "float32": 24, "float64": 53}  # a type has all integers of so many bits


def _check_padding(signature: Signature) -> None:
    for spec in signature.inputs:
        if spec.pad is not None and not _holds(spec.dtype, spec.pad):
            raise Failure("ModelFolderInvalid", f"signature: pad of '{spec.name}' is {spec.pad}, which {spec.dtype} does not have")
    try:
        padded_dims(signature)
    except ValueError as error:
        raise Failure("ModelFolderInvalid", f"signature: {error}") from error


def _holds(dtype: str, value: int) -> bool:
    """Whether a tensor of this type can have this value."""
    if dtype == "string":
        return False
    if dtype == "bool":
        return value in {0, 1}
    if dtype in _WHOLE_BITS:
        return abs(value) <= 1 << _WHOLE_BITS[dtype]
    is_signed, bits = dtype.startswith("int"), int(dtype.lstrip("uint"))
    low, high = (-(1 << bits - 1), 1 << bits - 1) if is_signed else (0, 1 << bits)
    return low <= value < high


def _with_archive(file: _ModelFile, folder: Path, own: Mapping[str, Any]) -> _ModelFile:
    """Fill what model.yaml leaves open from TorchServe's manifest, when the folder is an unpacked archive.

    Whoever names a format of another kind and an entrypoint uses the archive as a plain folder, whatever its handler.
    """
    wanted = own.get("format") or file.format
    if not torchserve.is_archive(folder):
        if wanted == "TorchServe":
            raise Failure("ModelFolderInvalid", f"format is TorchServe, and there is no {torchserve.MANIFEST} in the source")
        return file
    if wanted == "PyTorch" and (own.get("entrypoint") or file.entrypoint):
        return file
    try:
        found = _ModelFile.model_validate(torchserve.described(folder))
    except ValidationError as error:
        raise Failure("ModelFolderInvalid", f"{torchserve.MANIFEST}: {_first(error)}") from error
    return found.model_copy(update={name: getattr(file, name) for name in file.model_fields_set - {"format"}})


def _read_file(path: Path) -> _ModelFile:
    if not path.exists():
        return _ModelFile()
    if path.stat().st_size > _MAX_BYTES:
        raise Failure("ModelFolderInvalid", f"{FILE_NAME} has more than {_MAX_BYTES} bytes")
    try:
        value = _bounded_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise Failure("ModelFolderInvalid", f"{FILE_NAME} is not YAML: {' '.join(str(error).split())}") from error
    try:
        return _ModelFile.model_validate({} if value is None else value)
    except ValidationError as error:
        raise Failure("ModelFolderInvalid", f"{FILE_NAME}: {_first(error)}") from error


def _bounded_yaml(text: str) -> Any:
    """Read YAML whose aliases do not make it larger than a file may be without them.

    Raises:
        yaml.YAMLError: it is not YAML, or it unfolds to too much.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None:
        _check_size(root, {})
    return yaml.safe_load(text)


def _check_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Return how many nodes a node unfolds to; one that is being counted and met again holds itself."""
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise yaml.YAMLError("an alias stands inside of what it names")
        return sizes[id(node)]
    sizes[id(node)] = 0
    inner = node.value if isinstance(node, yaml.CollectionNode) else []
    size = 1 + sum(_check_size(child, sizes) for item in inner for child in (item if isinstance(item, tuple) else (item,)))
    if size > _MAX_NODES:
        raise yaml.YAMLError(f"its aliases unfold to more than {_MAX_NODES} values")
    sizes[id(node)] = size
    return size


def _first(error: ValidationError) -> str:
    rows = error.errors(include_url=False, include_input=False)
    place = ".".join(map(str, rows[0]["loc"])) or "the document"
    more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
    return f"{place}: {rows[0]['msg']}{more}"


def _guessed_format(folder: Path, entrypoint: str | None) -> str:
    """By the files, where no entrypoint says that it is code; a .pt may be weights, so that it must have the look of TorchScript."""
    if entrypoint is not None:
        return "PyTorch"
    if any(folder.glob("*.onnx")):
        return "ONNX"
    if any(folder.glob("*.pt2")):
        return "ExportedProgram"
    return "TorchScript" if any(map(_looks_scripted, _files(folder, "TorchScript"))) else "PyTorch"


def _files(folder: Path, kind: str) -> list[Path]:
    return sorted(path for ending in _ENDINGS[kind] for path in folder.glob(f"*{ending}"))


def _looks_scripted(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist()) and any("/code/" in n for n in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def _checked(model: Model, folder: Path) -> Model:
    if model.format in _ENDINGS:
        model = _with_file(model, folder)
    elif model.format == "TorchServe":
        model = replace(model, entrypoint=None, arguments={}, weights=None)
    elif model.entrypoint is None:
        raise Failure("ModelFolderInvalid", "a PyTorch model needs an entrypoint (module:callable), in spec.model or model.yaml")
    specs = (*model.signature.inputs, *model.signature.outputs) if model.signature else ()
    if model.format != "TorchServe" and any(spec.dtype == "string" for spec in specs):
        raise Failure("ModelFolderInvalid", "signature: string is for handlers of TorchServe; models take and give numbers")
    for field, name in (("weights", model.weights), ("validation.data", model.validation_data)):
        if name is not None:
            _check_file(folder, field, name)
    return model


def _with_file(model: Model, folder: Path) -> Model:
    found = _files(folder, model.format)
    name = model.weights or (found[0].name if len(found) == 1 else _DEFAULTS[model.format])
    return replace(model, entrypoint=None, arguments={}, weights=name)


def _check_file(folder: Path, field: str, name: str) -> None:
    try:
        path = folder / safe_path(name)
    except ValueError as error:
        raise Failure("ModelFolderInvalid", f"{field}: {error}") from error
    if not path.is_file():
        raise Failure("ModelFolderInvalid", f"{field}: {name} is not in the model folder")
