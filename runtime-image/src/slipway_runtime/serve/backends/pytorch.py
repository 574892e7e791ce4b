"""TorchScript files and eager PyTorch modules, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from slipway_runtime.artifact import Artifact
from slipway_runtime.model_source import build_module
from slipway_runtime.reasons import Failure
from slipway_runtime.serve.tensors import Tensors


class TorchBackend:
    """A callable module; inputs are passed by position, in the order of the signature."""

    def __init__(self, module: Any, artifact: Artifact, threads: int, platform: str, device: str = "cpu") -> None:
        """Take a callable in eval mode, whose weights are on `device`."""
        torch.set_num_threads(threads)
        self.platform = platform
        self._module = module
        self._device = device
        self._inputs = [spec.name for spec in artifact.signature.inputs]
        self._outputs = [spec.name for spec in artifact.signature.outputs]

    def infer(self, inputs: Tensors) -> Tensors:
        """Call the module without gradients."""
        with torch.inference_mode():
            result = self._module(*(torch.from_numpy(inputs[name]).to(self._device) for name in self._inputs))
        return {name: _array(tensor) for name, tensor in self._named(result).items()}

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


def torchscript_backend(artifact: Artifact, threads: int) -> TorchBackend:
    """Load a TorchScript file and freeze it (a frozen one is left as it is)."""
    module = torch.jit.load(str(artifact.directory / artifact.entry), map_location="cpu").eval()
    if hasattr(module, "training"):
        module = torch.jit.freeze(module)
    return TorchBackend(module, artifact, threads, "pytorch_torchscript")


def eager_backend(artifact: Artifact, threads: int) -> TorchBackend:
    """Build the module from the source files of the artifact, as the conversion did."""
    if artifact.entrypoint is None:
        raise Failure("ArtifactCorrupt", "slipway.json of a PyTorch artifact has no entrypoint")
    module = build_module(artifact.directory, artifact.entrypoint, artifact.arguments, artifact.weights)
    return TorchBackend(module.eval(), artifact, threads, "pytorch_eager")


def _array(tensor: Any) -> Any:
    # numpy has no bfloat16.
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return tensor.numpy(force=True)
