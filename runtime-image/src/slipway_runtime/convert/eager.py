"""Calls a PyTorch module with named arrays as the signature orders them. Shared by the reference, the exporters and validate."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from slipway_runtime.artifact import Signature
from slipway_runtime.model_source import build_module, described
from slipway_runtime.modelfile import Model
from slipway_runtime.reasons import Failure, is_out_of_memory
from slipway_runtime.samples import Array, Batch


class Flat(torch.nn.Module):  # type: ignore[misc]
    """A module whose dict of outputs is given as a tuple, in the order of the signature, which export formats need."""

    def __init__(self, inner: torch.nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.inner = inner
        self.names = list(names)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Call the module and order its outputs."""
        outputs = self.inner(*inputs)
        return tuple(outputs[name] for name in self.names)


def source_module(folder: Path, model: Model) -> torch.nn.Module:
    """Build or load the source module; raises Failure as `build_module` and the loaders of `torch_files` do."""
    if model.format in ("TorchScript", "ExportedProgram"):
        from slipway_runtime import torch_files  # noqa: PLC0415 - the readers of picklescan and more, not for the others

        name = model.weights or ""
        return (torch_files.script_module if model.format == "TorchScript" else torch_files.program_module)(folder / name, name)
    if model.entrypoint is None:
        raise Failure("EntrypointNotFound", "there is no entrypoint")
    return build_module(folder, model.entrypoint, model.arguments, model.weights)


def tensors(batch: Mapping[str, Array], signature: Signature) -> tuple[torch.Tensor, ...]:
    """Return fresh tensors in the order of the inputs; forward may change them."""
    return tuple(torch.from_numpy(batch[spec.name].copy()) for spec in signature.inputs)


def check_parameters(module: torch.nn.Module, signature: Signature) -> None:
    """Compare the inputs with forward's parameters: they are passed by position.

    Raises:
        Failure: SignatureMismatch for another number, or the same names in another order.
    """
    names = [spec.name for spec in signature.inputs]
    parameters = inspect.signature(module.forward)
    try:
        parameters.bind(*names)
    except TypeError as error:
        text = f"forward takes {parameters}, the signature has {len(names)} inputs: {', '.join(names)} ({error})"
        raise Failure("SignatureMismatch", text) from error
    own = list(parameters.parameters)[: len(names)]
    if sorted(own) == sorted(names) and own != names:
        raise Failure("SignatureMismatch", f"forward takes ({', '.join(own)}), the signature lists ({', '.join(names)}): another order")


def call(module: torch.nn.Module, batch: Mapping[str, Array], signature: Signature, folder: Path) -> Batch:
    """Run forward without gradients and name its outputs.

    Raises:
        Failure: SignatureMismatch when forward raises on inputs that the signature allows, or returns another number of outputs.
    """
    try:
        with torch.no_grad():
            raw = module(*tensors(batch, signature))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        shapes = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in batch.items())
        raise Failure("SignatureMismatch", f"the model does not accept {shapes}: {described(error, folder)}") from error
    return {name: value.detach().cpu().numpy() for name, value in _named(raw, signature).items()}


def _named(raw: Any, signature: Signature) -> dict[str, torch.Tensor]:
    names = [spec.name for spec in signature.outputs]
    if isinstance(raw, Mapping):
        if set(raw) != set(names):
            raise Failure("SignatureMismatch", f"the model returns {sorted(map(str, raw))}, the signature lists {names}")
        values = [raw[name] for name in names]
    else:
        values = list(raw) if isinstance(raw, (tuple, list)) else [raw]
    if len(values) != len(names):
        raise Failure("SignatureMismatch", f"the model returns {len(values)} outputs, the signature lists {len(names)}: {', '.join(names)}")
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, torch.Tensor):
            raise Failure("SignatureMismatch", f"output {name} is a {type(value).__name__}, not a tensor")
    return dict(zip(names, values, strict=True))


def flattened(module: torch.nn.Module, example: tuple[torch.Tensor, ...], signature: Signature) -> torch.nn.Module:
    """Return the module, wrapped when it gives a dict."""
    with torch.no_grad():
        raw = module(*(tensor.clone() for tensor in example))
    return Flat(module, [spec.name for spec in signature.outputs]).eval() if isinstance(raw, Mapping) else module
