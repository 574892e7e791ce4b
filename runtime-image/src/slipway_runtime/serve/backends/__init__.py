"""Backends: one small interface over the engines that run a model. Each engine is imported only when it is needed."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from slipway_runtime.artifact import Artifact
from slipway_runtime.reasons import Failure
from slipway_runtime.serve.tensors import Array, Tensors

FORMATS = ("ONNX", "TorchScript", "PyTorch", "ExportedProgram", "AOTInductor", "TorchTensorRT", "TorchServe")


class Backend(Protocol):
    """A loaded model; `infer` may be called from several threads at once.

    Attributes:
        platform: what runs it, for the model's metadata.
        lanes: threads that it pays to call `infer` from; 0: as many as there are CPUs.
    """

    platform: str
    lanes: int

    def infer(self, inputs: Tensors) -> Tensors:
        """Run the model: arrays by input name -> arrays by output name, both as the signature has them."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Memory that `infer` likes to read, for the rows of several requests."""

    def close(self) -> None:
        """Free the model; no `infer` after this."""


def load_backend(artifact: Artifact, threads: int) -> Backend:
    """Load the model of an artifact.

    Args:
        artifact: verified.
        threads: CPU threads for one `infer`.

    Raises:
        Failure: ModelLoadFailed, or what building a PyTorch model from its source files raises.
    """
    try:
        return _load(artifact, threads)
    except Failure:
        raise
    except ImportError as error:
        raise Failure("ModelLoadFailed", f"this image cannot serve {artifact.format}: {error}; use slipway-runtime-torch") from error
    except Exception as error:
        raise Failure("ModelLoadFailed", f"{artifact.entry or artifact.format}: {type(error).__name__}: {error}"[:1500]) from error


def _load(artifact: Artifact, threads: int) -> Backend:
    if artifact.format == "ONNX":
        from slipway_runtime.serve.backends.ort import OnnxBackend  # noqa: PLC0415

        return OnnxBackend(artifact, threads)
    if artifact.format in ("TorchScript", "PyTorch"):
        from slipway_runtime.serve.backends.pytorch import eager_backend, torchscript_backend  # noqa: PLC0415

        return torchscript_backend(artifact, threads) if artifact.format == "TorchScript" else eager_backend(artifact, threads)
    if artifact.format in ("ExportedProgram", "TorchTensorRT"):
        from slipway_runtime.serve.backends.exported import exported_backend, tensorrt_backend  # noqa: PLC0415

        return exported_backend(artifact, threads) if artifact.format == "ExportedProgram" else tensorrt_backend(artifact, threads)
    if artifact.format == "AOTInductor":
        from slipway_runtime.serve.backends.aotinductor import aotinductor_backend  # noqa: PLC0415

        return aotinductor_backend(artifact, threads)
    if artifact.format == "TorchServe":
        from slipway_runtime.serve.backends.handler import HandlerBackend  # noqa: PLC0415

        return HandlerBackend(artifact)
    raise Failure("ModelLoadFailed", f"format {artifact.format!r} is not one this server has a backend for ({', '.join(FORMATS)})")
