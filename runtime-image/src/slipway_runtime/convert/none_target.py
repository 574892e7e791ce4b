"""The source as it is: an ONNX file with its data, a TorchScript file, an exported program, or the PyTorch folder for eager serving."""

from __future__ import annotations

import shutil
from typing import Any

from slipway_runtime.artifact import CONFIG_NAME, MANIFEST_NAME
from slipway_runtime.convert import Job
from slipway_runtime.convert.onnx_files import checked_model
from slipway_runtime.reasons import Failure
from slipway_runtime.torchserve import MANIFEST

_RESERVED = (MANIFEST_NAME, CONFIG_NAME, "golden")


def build(job: Job) -> dict[str, Any]:
    """Copy the files that serving needs, and say what to load.

    Raises:
        Failure: ModelFolderInvalid when a file has a name that the artifact itself uses.
    """
    return _COPIES.get(job.model.format, _pytorch)(job)


def _file(job: Job) -> dict[str, Any]:
    """The one file; what was loaded for the reference is this."""
    entry = job.model.weights or ""
    target = job.output / entry
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(job.source / entry, target)
    return {"format": job.model.format, "entry": entry}


def _onnx(job: Job) -> dict[str, Any]:
    entry = job.model.weights or ""
    for path in checked_model(job.source, entry):
        target = job.output / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(job.source / path, target)
    return {"format": "ONNX", "entry": entry}


def _pytorch(job: Job) -> dict[str, Any]:
    for name in _RESERVED:
        if (job.source / name).exists():
            raise Failure("ModelFolderInvalid", f"{name} in the model folder: the artifact needs this name; rename it")
    skipped = {job.model.validation_data}
    for path in sorted(job.source.rglob("*")):
        relative = path.relative_to(job.source)
        if path.is_file() and str(relative) not in skipped and "__pycache__" not in relative.parts:
            target = job.output / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    module = (job.model.entrypoint or "").partition(":")[0].replace(".", "/")
    entry = job.model.weights or (f"{module}.py" if (job.source / f"{module}.py").is_file() else f"{module}/__init__.py")
    return {
        "format": "PyTorch",
        "entry": entry,
        "entrypoint": job.model.entrypoint,
        "arguments": job.model.arguments,
        "weights": job.model.weights,
    }


def _handler(job: Job) -> dict[str, Any]:
    """The whole archive; its manifest says what to load."""
    return _pytorch(job) | {"format": "TorchServe", "entry": MANIFEST}


_COPIES = {"TorchServe": _handler, "ONNX": _onnx, "TorchScript": _file, "ExportedProgram": _file}
