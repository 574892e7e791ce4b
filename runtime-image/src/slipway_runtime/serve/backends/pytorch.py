"""TorchScript files and eager PyTorch modules, and the backend of all torch modules on the CPU (cuda.py: on a GPU)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from slipway_runtime.artifact import Artifact
from slipway_runtime.model_source import build_module
from slipway_runtime.reasons import Failure
from slipway_runtime.serve.device import torch_device
from slipway_runtime.serve.tensors import DTYPES, Array, Tensors

COMPILE = "SLIPWAY_TORCH_COMPILE"


class TorchBackend:
    """A callable module; inputs are passed by position, in the order of the signature."""

    lanes = 0

    def __init__(self, module: Any, artifact: Artifact, threads: int, platform: str) -> None:
        """Take a callable in eval mode."""
        torch.set_num_threads(threads)
        self.platform = platform
        self._module = module
        self._inputs = [spec.name for spec in artifact.signature.inputs]
        self._outputs = [spec.name for spec in artifact.signature.outputs]

    def infer(self, inputs: Tensors) -> Tensors:
        """Call the module without gradients."""
        with torch.inference_mode():
            result = self._module(*(as_tensor(inputs[name]) for name in self._inputs))
        return {name: _array(tensor) for name, tensor in self._named(result).items()}

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Plain memory."""
        return np.empty(shape, dtype)

    def close(self) -> None:
        """Drop the module."""
        del self._module

    def _named(self, result: Any) -> Mapping[str, Any]:
        if isinstance(result, Mapping):
            return {name: result[name] for name in self._outputs}
        tensors = [result] if isinstance(result, torch.Tensor) else list(result)
        if len(tensors) < len(self._outputs):
            raise ValueError(f"the model returned {len(tensors)} outputs, the signature has {len(self._outputs)}")
        return dict(zip(self._outputs, tensors, strict=False))


def torch_backend(module: Any, artifact: Artifact, threads: int, platform: str, device: str) -> TorchBackend:
    """Make the backend of a module whose weights are on `device`."""
    if device == "cpu":
        return TorchBackend(module, artifact, threads, platform)
    from slipway_runtime.serve.backends.cuda import CudaBackend  # noqa: PLC0415 - it builds on this module

    use_ieee_float32()
    return CudaBackend(module, artifact, threads, platform)


def use_ieee_float32() -> None:
    """Compute float32 convolutions in float32: torch's default on a GPU is TF32, whose 10 bits of mantissa the parity gate did not see."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def torchscript_backend(artifact: Artifact, threads: int) -> TorchBackend:
    """Load a TorchScript file and freeze it (a frozen one is left as it is)."""
    device = torch_device()
    module = torch.jit.load(str(artifact.directory / artifact.entry), map_location=device).eval()
    if device != "cpu":
        move_constants(module, device)
    if hasattr(module, "training"):
        module = torch.jit.freeze(module)
    return torch_backend(module, artifact, threads, "pytorch_torchscript", device)


def move_constants(module: Any, device: str) -> None:
    """Rewrite the devices that a trace made on the CPU holds for each tensor that it makes itself; map_location moves the weights only."""
    holder = torch.jit.trace(lambda: torch.ones([]).to(torch.device(device)), example_inputs=[])
    wanted = _devices(holder.graph)[-1]
    for part in module.modules():
        for name in part._c._method_names():
            for node in _devices(part._c._get_method(name).graph):
                node.copyAttributes(wanted)


def _devices(graph: Any) -> list[Any]:
    return [node for node in graph.findAllNodes("prim::Constant") if node.output().type().kind() == "DeviceObjType"]


def eager_backend(artifact: Artifact, threads: int) -> TorchBackend:
    """Build the module from the source files of the artifact, as the conversion did; SLIPWAY_TORCH_COMPILE=true compiles it here."""
    if artifact.entrypoint is None:
        raise Failure("ArtifactCorrupt", "slipway.json of a PyTorch artifact has no entrypoint")
    device = torch_device()
    module = build_module(artifact.directory, artifact.entrypoint, artifact.arguments, artifact.weights).eval().to(device)
    if os.environ.get(COMPILE, "").lower() == "true":
        return torch_backend(torch.compile(module), artifact, threads, "pytorch_compile", device)
    return torch_backend(module, artifact, threads, "pytorch_eager", device)


def as_tensor(array: Array) -> torch.Tensor:
    """An array as a tensor on the same memory; torch does not know numpy's bfloat16, which is ml_dtypes'."""
    if array.dtype == DTYPES["bfloat16"]:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _array(tensor: Any) -> Any:
    # numpy has no bfloat16.
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return tensor.numpy(force=True)
