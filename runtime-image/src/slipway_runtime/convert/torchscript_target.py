"""PyTorch to TorchScript by tracing, checked on a second input of another batch size."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from slipway_runtime.convert import Job
from slipway_runtime.convert.eager import flattened, source_module, tensors
from slipway_runtime.convert.onnx_target import dynamic_shapes
from slipway_runtime.reasons import Failure, first_line, is_out_of_memory
from slipway_runtime.samples import batch_size, read_batches

_ENTRY = "model.pt"


def build(job: Job) -> dict[str, Any]:
    """Trace, check, save, and say what to load.

    Raises:
        Failure: ConversionFailed when tracing fails, or would freeze control flow that depends on values.
    """
    module = source_module(job.source, job.model)
    batches = read_batches(job.samples)
    examples = [tensors(batch, job.signature) for batch in (batches[-1], batches[0])]
    module = flattened(module, examples[0], job.signature)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        traced = _traced(module, examples)
    suspicious = [str(item.message) for item in caught if "Python boolean" in str(item.message)]
    if suspicious:
        _check_control_flow(module, examples[0], job, suspicious[0])
    traced.save(str(job.output / _ENTRY))
    return {"format": "TorchScript", "entry": _ENTRY}


def _traced(module: torch.nn.Module, examples: list[tuple[torch.Tensor, ...]]) -> Any:
    try:
        with torch.no_grad():
            return torch.jit.trace(module, examples[0], check_trace=True, check_inputs=examples)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise Failure("ConversionFailed", f"torch.jit.trace: {' '.join(str(error).split())[:500] or first_line(error)}") from error


def _check_control_flow(module: torch.nn.Module, example: tuple[torch.Tensor, ...], job: Job, warning: str) -> None:
    """A check of shapes warns like a check of values; torch.export tells the two apart."""
    shapes = dynamic_shapes(job.signature) if batch_size(job.signature) is None else None
    try:
        torch.export.export(module, example, dynamic_shapes=(shapes,) if type(module).__name__ == "Flat" and shapes else shapes)
    except Exception as error:
        place = warning.partition("TracerWarning")[0] or warning
        raise Failure(
            "ConversionFailed", f"control flow depends on values, which a trace would freeze: {' '.join(place.split())[:300]}"
        ) from error
