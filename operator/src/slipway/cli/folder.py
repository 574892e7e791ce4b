"""A model folder before it is pushed: which files belong to it, and whether what model.yaml names is there.

The pipeline in the cluster checks all of it again and more; this is for the user's sake, who should hear of a slip before a Job runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from slipway.cli.errors import CliError

FILE_NAME = "model.yaml"
FIELDS = {"format", "entrypoint", "arguments", "weights", "signature", "preprocessing", "labels", "validation"}
FORMATS = ("PyTorch", "ONNX", "TorchServe", "TorchScript", "ExportedProgram")
_SKIPPED = re.compile(r"(^|/)(__pycache__|\.git|\.ipynb_checkpoints|\.DS_Store)(/|$)|\.pyc$")
_MAX_MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What would be pushed: paths relative to the folder, sorted, and what the user should know although it is no error."""

    root: Path
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_folder(root: Path) -> ModelFolder:
    """Check a model folder.

    Raises:
        CliError: with the file or field that is wrong.
    """
    files = tuple(sorted(_files(root)))
    if not files:
        raise CliError(f"{root} has no files", "name the folder that holds the model")
    manifest = _manifest(root) if FILE_NAME in files else None
    if manifest is None:
        if any(name.endswith((".onnx", ".pt2", ".mar")) for name in files):
            return ModelFolder(root, files)
        return ModelFolder(root, files, (f"there is no {FILE_NAME}: the resource has to name the entrypoint and the weights",))
    _check(root, manifest, set(files))
    return ModelFolder(root, files)


def _files(root: Path) -> Iterator[str]:
    inside = root.resolve()
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(folder) / name
            relative = path.relative_to(root).as_posix()
            if path.is_symlink():
                _check_link(path, relative, inside)
            if name in names and not _SKIPPED.search(relative):
                _check_file(path, relative)
                yield relative
        folders[:] = [name for name in folders if not _SKIPPED.search(name)]


def _check_link(path: Path, relative: str, inside: Path) -> None:
    target = path.resolve()
    if not target.is_relative_to(inside):
        raise CliError(f"{relative} is a link that leads out of the folder, to {target}", "put a copy of the file there")
    if target.is_dir():
        raise CliError(f"{relative} is a link to a folder", "put the files themselves there")


def _check_file(path: Path, relative: str) -> None:
    if not path.is_file():
        raise CliError(f"{relative} is no regular file, or a link that leads nowhere", "remove it")
    if not os.access(path, os.R_OK):
        raise CliError(f"{relative} cannot be read", "correct its permissions")


def _manifest(root: Path) -> Mapping[str, Any]:
    path = root / FILE_NAME
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise CliError(f"{FILE_NAME} is larger than 1 MiB", "move data into files of their own")
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise CliError(f"{FILE_NAME} is not YAML: {error}", "correct the line that is named") from error
    if not isinstance(value, dict):
        raise CliError(f"{FILE_NAME} is not a mapping of fields", f"write fields such as {', '.join(sorted(FIELDS)[:3])}")
    return value


def _check(root: Path, manifest: Mapping[str, Any], files: set[str]) -> None:
    unknown = [str(key) for key in manifest if key not in FIELDS]
    if unknown:
        raise CliError(f"{FILE_NAME}: {unknown[0]}: no such field", f"the fields are {', '.join(sorted(FIELDS))}")
    if manifest.get("format", FORMATS[0]) not in FORMATS:
        raise CliError(f"{FILE_NAME}: format: {manifest['format']!r} is not supported", f"write {' or '.join(FORMATS)}")
    validation = manifest.get("validation")
    data = validation.get("data") if isinstance(validation, dict) else None
    for field, name in (("weights", manifest.get("weights")), ("validation.data", data)):
        if name is not None:
            _check_named(root, field, name, files)
    if manifest.get("entrypoint") is not None:
        _check_entrypoint(str(manifest["entrypoint"]), files)


def _check_named(root: Path, field: str, name: object, files: set[str]) -> None:
    if not isinstance(name, str) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise CliError(f"{FILE_NAME}: {field}: {name!r} is no path inside the folder", "write a path relative to the folder")
    if PurePosixPath(name).as_posix() not in files:
        raise CliError(f"{FILE_NAME}: {field}: {name} is not in {root}", "correct the name or add the file")


def _check_entrypoint(entrypoint: str, files: set[str]) -> None:
    module, _, function = entrypoint.partition(":")
    if not module or not function:
        raise CliError(f"{FILE_NAME}: entrypoint: {entrypoint!r} is not module:callable", "write for example model:build")
    path = module.replace(".", "/")
    if not files & {f"{path}.py", f"{path}/__init__.py"}:
        raise CliError(f"{FILE_NAME}: entrypoint: there is no module {module} ({path}.py) in the folder", "correct it or add the file")
