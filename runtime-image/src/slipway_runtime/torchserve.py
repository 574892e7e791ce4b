"""TorchServe's model archives (.mar), read as model folders: what the manifest and the default handler say, as model.yaml would say it.

Made by torch-model-archiver: a zip of the files and of MAR-INF/MANIFEST.json. Nothing of the archive is run or imported here. An archive
whose handler is one of TorchServe's defaults is a PyTorch model with known preprocessing; one with a handler of its own is served as it
is, through the handler (handler.py), since what that computes is more than the module.
"""

from __future__ import annotations

import ast
import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slipway_runtime.artifact import safe_path
from slipway_runtime.reasons import Failure

log = logging.getLogger("slipway")

MANIFEST = "MAR-INF/MANIFEST.json"
LABELS = "index_to_name.json"
_MAX_BYTES = 1 << 20
_NAMES = ("modelName", "handler", "serializedFile", "modelFile", "requirementsFile", "configFile")
_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
# ts.torch_handler.image_classifier and image_segmenter: Resize(256), CenterCrop(224), ToTensor(), Normalize(ImageNet)
_IMAGE = {"image": {"mode": "RGB", "resize": 256, "size": [224, 224], "layout": "NCHW", **_IMAGENET}}
_PIXELS = {"name": "image", "dtype": "float32", "shape": ["batch", 3, 224, 224]}
_HANDLERS: dict[str, dict[str, Any]] = {
    "image_classifier": {
        "preprocessing": _IMAGE,
        "signature": {"inputs": [_PIXELS], "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", "classes"]}]},
    },
    "image_segmenter": {
        "preprocessing": _IMAGE,
        "signature": {"inputs": [_PIXELS], "outputs": [{"name": "out", "dtype": "float32", "shape": ["batch", "classes", 224, 224]}]},
    },
    "text_classifier": {},  # tokens are the client's to make: the vocabulary is a pickle of torchtext, which is not loaded
    "base_handler": {},
}


def is_archive(folder: Path) -> bool:
    """Say whether a model folder is an unpacked archive."""
    return (folder / MANIFEST).is_file()


def described(folder: Path) -> dict[str, Any]:
    """Return what an unpacked archive says about its model, in the fields of model.yaml.

    Raises:
        Failure: ModelFolderInvalid for a manifest that is damaged or names files that are not there.
    """
    model = manifest_of(folder)["model"]
    found = _HANDLERS.get(_handler(folder, model))
    if found is None:  # a handler of its own, or object_detector, whose models return what no format here has
        return {"format": "TorchServe"}
    serialized = _file(folder, model, "serializedFile")
    source = _file(folder, model, "modelFile")
    if serialized is None and source is None:
        raise Failure("ModelFolderInvalid", f"{MANIFEST} names neither a modelFile nor a serializedFile")
    if model.get("requirementsFile"):
        log.warning("requirements.txt of the archive is not installed; a default handler needs what is in the image")
    kind = {"format": "PyTorch", "entrypoint": _entrypoint(folder, source)} if source else {"format": "TorchScript"}
    return found | kind | {"weights": serialized} | _labels(folder)


def manifest_of(folder: Path) -> dict[str, Any]:
    """Read and check the manifest; its `model` is an object whose names are strings.

    Raises:
        Failure: ModelFolderInvalid, UnsupportedConversion for a C++ backend.
    """
    value = _json(folder, MANIFEST)
    model = value.get("model")
    if not isinstance(model, dict) or not all(isinstance(model.get(key, ""), str) for key in _NAMES):
        raise Failure("ModelFolderInvalid", f"{MANIFEST} is not a manifest of torch-model-archiver: model is not an object of strings")
    if str(value.get("runtime", "python")).lower() == "lsp":
        raise Failure("UnsupportedConversion", "the archive is for a C++ backend (runtime LSP); only Python ones are converted")
    for key in ("serializedFile", "modelFile"):
        _file(folder, model, key)
    if not model.get("handler"):
        raise Failure("ModelFolderInvalid", f"{MANIFEST} names no handler")
    return value


def _json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if path.stat().st_size > _MAX_BYTES:
        raise Failure("ModelFolderInvalid", f"{name} has more than {_MAX_BYTES} bytes")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Failure("ModelFolderInvalid", f"{name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Failure("ModelFolderInvalid", f"{name} is not a JSON object")
    return value


def _handler(folder: Path, model: Mapping[str, Any]) -> str:
    """Return the name of a default handler, or nothing; a file of the archive wins over a default of the same name, as in TorchServe."""
    name = str(model["handler"]).partition(":")[0]
    return "" if (folder / f"{name.removesuffix('.py')}.py").is_file() else name


def _file(folder: Path, model: Mapping[str, Any], key: str) -> str | None:
    name = model.get(key)
    if not name:
        return None
    try:
        path = folder / safe_path(str(name))
    except ValueError as error:
        raise Failure("ModelFolderInvalid", f"{MANIFEST}: {key}: {error}") from error
    if not path.is_file():
        raise Failure("ModelFolderInvalid", f"{MANIFEST} names {name} as {key}, which is not in the archive")
    return str(name)


def _entrypoint(folder: Path, source: str) -> str:
    """Return `module:Class`; as in TorchServe, the file of the model defines one class, which is called without arguments."""
    path = folder / source
    if path.stat().st_size > _MAX_BYTES:
        raise Failure("ModelFolderInvalid", f"{source} has more than {_MAX_BYTES} bytes")
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Failure("ModelFolderInvalid", f"{source} is not Python: {error}") from error
    names = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    if len(names) != 1:
        have = ", ".join(names) or "none"
        raise Failure("ModelFolderInvalid", f"{source} must define one class, as TorchServe wants it; it has {have}. Name it in entrypoint")
    return f"{source.removesuffix('.py').replace('/', '.')}:{names[0]}"


def _labels(folder: Path) -> dict[str, Any]:
    """Read index_to_name.json as TorchServe does: the last of a list is the name."""
    if not (folder / LABELS).is_file():
        return {}
    value = _json(folder, LABELS)
    try:
        names = value["object_type_names"] if "object_type_names" in value else [value[str(number)] for number in range(len(value))]
        return {"labels": [str(name[-1] if isinstance(name, list) else name) for name in names]}
    except (KeyError, TypeError, IndexError) as error:
        raise Failure("ModelFolderInvalid", f"{LABELS} must map 0, 1, 2 … to names: {error!r}") from error


def packed_archive(folder: Path) -> Path | None:
    """Return the one .mar of a folder that was fetched, if that is what it is."""
    found = sorted(folder.glob("*.mar"))
    if len(found) != 1 or is_archive(folder):
        return None
    if not zipfile.is_zipfile(found[0]):
        raise Failure("ModelFolderInvalid", f"{found[0].name} is damaged: it is not a zip archive, as torch-model-archiver makes it")
    return found[0]
