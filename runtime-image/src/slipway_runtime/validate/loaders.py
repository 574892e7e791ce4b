"""Loads a candidate as the server does, and gives a function from named inputs to named outputs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slipway_runtime.artifact import Artifact, Signature
from slipway_runtime.reasons import Failure, first_line, is_out_of_memory
from slipway_runtime.samples import Batch, with_texts
from slipway_runtime.serve.backends import load_backend
from slipway_runtime.serve.cgroup import cpu_limit
from slipway_runtime.serve.device import torch_device

Runner = Callable[[Batch], Batch]


def load(folder: Path, built: dict[str, Any], signature: Signature, precision: str = "Float32") -> Runner:
    """Load a candidate.

    Args:
        folder: its files.
        built: format, entry, and for PyTorch entrypoint, arguments and weights.
        signature: names and order of the tensors.
        precision: that it was built in.

    Raises:
        Failure: ValidationFailed when it cannot be loaded; PyTorch: the reasons of the entrypoint.
    """
    if built["format"] == "ONNX":
        return onnx_runner(onnx_session(folder / built["entry"]))
    if built["format"] not in ("TorchScript", "PyTorch") or torch_device() != "cpu":
        return _by_backend(folder, built, signature, precision)
    return _torchscript(folder / built["entry"], signature) if built["format"] == "TorchScript" else _eager(folder, built, signature)


def onnx_session(path: Path) -> Any:
    """Open an ONNX file on the CPU; raises Failure ValidationFailed."""
    import onnxruntime  # noqa: PLC0415 - heavy, and only where needed

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, len(os.sched_getaffinity(0)))
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise Failure("ValidationFailed", f"onnxruntime cannot load {path.name}: {' '.join(str(error).split())[:400]}") from error


def onnx_runner(session: Any) -> Runner:
    """Return the function that runs a session; it raises Failure ValidationFailed."""
    names = [output.name for output in session.get_outputs()]

    def run(batch: Batch) -> Batch:
        try:
            return dict(zip(names, session.run(names, batch), strict=True))
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in batch.items())
            raise Failure("ValidationFailed", f"onnxruntime fails on {shapes}: {' '.join(str(error).split())[:400]}") from error

    return run


def _torchscript(path: Path, signature: Signature) -> Runner:
    import torch  # noqa: PLC0415

    from slipway_runtime.convert.eager import call  # noqa: PLC0415

    try:
        module = torch.jit.load(str(path), map_location="cpu").eval()
    except Exception as error:
        raise Failure("ValidationFailed", f"torch.jit cannot load {path.name}: {' '.join(str(error).split())[:400]}") from error
    return lambda batch: _as_validation(lambda: call(module, batch, signature, path.parent))


def _by_backend(folder: Path, built: dict[str, Any], signature: Signature, precision: str) -> Runner:
    """Load with the server's own backend, and run it as the server does."""
    try:
        backend = load_backend(as_artifact(folder, built, signature, precision), cpu_limit())
    except Failure as failure:
        raise Failure("ValidationFailed", failure.message) from failure

    def run(batch: Batch) -> Batch:
        try:
            return with_texts(backend.infer({name: array.copy() for name, array in batch.items()}))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in batch.items())
            raise Failure("ValidationFailed", f"{built['format']} fails on {shapes}: {first_line(error)[:400]}") from error

    return run


def as_artifact(folder: Path, built: dict[str, Any], signature: Signature, precision: str) -> Artifact:
    """Describe a candidate as the artifact that it becomes if it is chosen; its files are not hashed yet."""
    return Artifact(
        directory=folder,
        format=built["format"],
        precision=precision,
        entry=built["entry"],
        signature=signature,
        preprocessing=None,
        labels=None,
        golden=None,
        files=(),
        digest="",
        entrypoint=built.get("entrypoint"),
        arguments=dict(built.get("arguments") or {}),
        weights=built.get("weights"),
        raw={},
    )


def _eager(folder: Path, built: dict[str, Any], signature: Signature) -> Runner:
    from slipway_runtime.convert.eager import call  # noqa: PLC0415
    from slipway_runtime.model_source import build_module  # noqa: PLC0415

    module = build_module(folder, built["entrypoint"], built.get("arguments") or {}, built.get("weights"))
    return lambda batch: _as_validation(lambda: call(module, batch, signature, folder))


def _as_validation(action: Callable[[], Batch]) -> Batch:
    try:
        return action()
    except Failure as failure:
        raise Failure("ValidationFailed", failure.message) from failure
