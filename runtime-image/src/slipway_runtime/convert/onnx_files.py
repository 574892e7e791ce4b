"""Checks an ONNX file from an untrusted place before onnxruntime opens it: format, and external data that stays in its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from slipway_runtime.artifact import safe_path
from slipway_runtime.reasons import Failure


def checked_model(folder: Path, name: str) -> list[str]:
    """Check a model and return the paths of the files it needs, itself first.

    Raises:
        Failure: ModelFolderInvalid when it is damaged, or its external data is absent, a link or outside the folder.
    """
    path = folder / name
    if not path.is_file():
        raise Failure("ModelFolderInvalid", f"the ONNX file {name} is not in the model folder")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise Failure("ModelFolderInvalid", f"{name} is not an ONNX model: {error}") from error
    data = sorted({_confined(folder, path.parent, location) for location in _locations(model)})
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:
        raise Failure("ModelFolderInvalid", f"{name} is not a valid ONNX model: {' '.join(str(error).split())[:400]}") from error
    return [name, *data]


def _confined(folder: Path, base: Path, location: str) -> str:
    try:
        path = base / safe_path(location)
    except ValueError as error:
        raise Failure("ModelFolderInvalid", f"external data of the ONNX model: {error}") from error
    if path.is_symlink() or not path.is_file() or path.stat().st_nlink > 1:
        raise Failure("ModelFolderInvalid", f"external data {location!r} of the ONNX model is not a regular file of the folder")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise Failure("ModelFolderInvalid", f"external data {location!r} of the ONNX model lies outside the folder")
    return path.relative_to(folder).as_posix()


def _locations(message: Any) -> Iterator[str]:
    """Walk every message of the model: tensors hide in attributes, subgraphs, functions and sparse tensors as well."""
    if message.DESCRIPTOR.full_name.endswith(".TensorProto"):
        yield from (entry.value for entry in message.external_data if entry.key == "location")
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if field.is_repeated else [value]:
                yield from _locations(item)
