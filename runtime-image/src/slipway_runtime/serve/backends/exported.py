"""Exported programs (.pt2): graphs of torch operators, run without any Python code of the model. Also those that hold TensorRT engines."""

from __future__ import annotations

from importlib import import_module, util

import torch

from slipway_runtime.artifact import Artifact
from slipway_runtime.reasons import Failure
from slipway_runtime.serve.backends.pytorch import TorchBackend


def exported_backend(artifact: Artifact, threads: int) -> TorchBackend:
    """Load an exported program on the CPU."""
    if artifact.precision.startswith("Int8"):
        register_int8_operators()
    module = torch.export.load(str(artifact.directory / artifact.entry)).module()
    return TorchBackend(module, artifact, threads, "pytorch_exported")


def register_int8_operators() -> None:
    """Import what defines torch.ops.quantized_decomposed, which a quantized program calls."""
    import_module("torch.ao.quantization.fx._decomposed")


def tensorrt_backend(artifact: Artifact, threads: int) -> TorchBackend:
    """Load a program with TensorRT engines onto the GPU.

    Raises:
        Failure: ModelLoadFailed without the package or a GPU.
    """
    if util.find_spec("torch_tensorrt") is None:
        raise Failure("ModelLoadFailed", "this image cannot serve TorchTensorRT: the package torch_tensorrt is not in it")
    if not torch.cuda.is_available():
        raise Failure("ModelLoadFailed", "a TorchTensorRT model needs a CUDA GPU, and this pod has none; set spec.accelerator")
    import_module("torch_tensorrt")  # registers the operator that runs an engine
    module = torch.export.load(str(artifact.directory / artifact.entry)).module().to("cuda")
    return TorchBackend(module, artifact, threads, "pytorch_tensorrt", device="cuda")
