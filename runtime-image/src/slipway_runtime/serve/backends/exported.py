"""Exported programs (.pt2): graphs of torch operators, run without any Python code of the model. Also those that hold TensorRT engines."""

from __future__ import annotations

import zipfile
from importlib import import_module, util
from pathlib import Path

import torch

from slipway_runtime.artifact import Artifact
from slipway_runtime.reasons import Failure
from slipway_runtime.serve.backends.pytorch import TorchBackend, torch_backend
from slipway_runtime.serve.device import torch_device


def exported_backend(artifact: Artifact, threads: int) -> TorchBackend:
    """Load an exported program; on a GPU its weights and the tensors that it makes itself are moved there."""
    path = artifact.directory / artifact.entry
    if artifact.precision.startswith("Int8") or _is_quantized(path):
        register_int8_operators()
    device = torch_device()
    program = torch.export.load(str(path))
    if device != "cpu":
        program = import_module("torch.export.passes").move_to_device_pass(program, device)
    return torch_backend(program.module(), artifact, threads, "pytorch_exported", device)


def _is_quantized(path: Path) -> bool:
    """Whether a program that came as it is calls the operators of a quantized one."""
    with zipfile.ZipFile(path) as archive:
        graphs = [name for name in archive.namelist() if "/models/" in name]
        return any(b"torch.ops.quantized_decomposed." in archive.read(name) for name in graphs)


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
    return torch_backend(module, artifact, threads, "pytorch_tensorrt", "cuda")
