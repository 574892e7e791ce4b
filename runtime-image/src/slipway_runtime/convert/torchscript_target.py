"""PyTorch to TorchScript: by tracing, checked on several other inputs, or by compiling the source code where control flow needs it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch

from slipway_runtime.convert import Job
from slipway_runtime.convert.eager import flattened, source_module, tensors
from slipway_runtime.convert.exported import program_of
from slipway_runtime.convert.precision import cast
from slipway_runtime.reasons import Failure, first_line, is_out_of_memory
from slipway_runtime.samples import read_batches

_ENTRY = "model.pt"
_TRACED_BATCHES = 4
_FACTORS = (-1.0, 0.0, 100.0)  # floats of a batch times these: control flow that depends on values takes its other branches
_TOLERANCE = 1e-3
_ADVICE = "which a trace would freeze; use method: Script, or ONNX or ExportedProgram with torch.cond"

Inputs = tuple[torch.Tensor, ...]


def build(job: Job) -> dict[str, Any]:
    """Trace or compile, check, save, and say what to load.

    Raises:
        Failure: ConversionFailed when that fails, or when a trace would freeze control flow that depends on values.
    """
    module = source_module(job.source, job.model)
    batches = [tensors(batch, job.signature) for batch in reversed(read_batches(job.samples))]
    scripted = _scripted(module, batches[0], job) if job.wanted.method == "Script" else _checked_trace(module, batches, job)
    scripted.save(str(job.output / _ENTRY))
    return {"format": "TorchScript", "entry": _ENTRY}


def _scripted(module: torch.nn.Module, example: Inputs, job: Job) -> Any:
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            scripted = torch.jit.script(module)
            if job.wanted.precision == "Float32":
                return scripted
            # The casts around it are traced; what they call stays compiled, with its control flow.
            return torch.jit.trace(cast(flattened(scripted, example, job.signature), job.wanted.precision, job.signature), example)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise Failure("ConversionFailed", f"torch.jit.script: {' '.join(str(error).split())[:500] or first_line(error)}") from error


def _checked_trace(module: torch.nn.Module, batches: list[Inputs], job: Job) -> Any:
    module = cast(flattened(module, batches[0], job.signature), job.wanted.precision, job.signature)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        traced = _traced(module, batches[0])
    _check_answers(module, traced, batches)
    suspicious = [str(item.message) for item in caught if "Python boolean" in str(item.message)]
    if suspicious:
        _check_control_flow(module, batches[0], job, suspicious[0])
    return traced


def _traced(module: torch.nn.Module, example: Inputs) -> Any:
    try:
        with torch.no_grad():
            return torch.jit.trace(module, example, check_trace=False)  # checked below, on more than the same input
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise Failure("ConversionFailed", f"torch.jit.trace: {' '.join(str(error).split())[:500] or first_line(error)}") from error


def _check_answers(module: torch.nn.Module, traced: Any, batches: list[Inputs]) -> None:
    """Compare the trace with the module on inputs that it was not made with: other sizes, and values of other signs and scales.

    Raises:
        Failure: ConversionFailed, when the module answers and the trace answers otherwise or not at all.
    """
    for what, inputs in _variants(batches):
        try:
            with torch.no_grad():
                want = _flat(module(*(tensor.clone() for tensor in inputs)))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            continue
        try:
            with torch.no_grad():
                got = _flat(traced(*(tensor.clone() for tensor in inputs)))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise Failure("ConversionFailed", f"the trace fails on {what}: {first_line(error)[:300]}; use method: Script") from error
        if not all(_is_close(a, b) for a, b in zip(got, want, strict=True)):
            raise Failure("ConversionFailed", f"on {what} the trace answers unlike the module: control flow depends on values, {_ADVICE}")


def _variants(batches: list[Inputs]) -> Iterator[tuple[str, Inputs]]:
    sizes = {tuple(tensor.shape for tensor in batch): number for number, batch in reversed(list(enumerate(batches)))}
    for number in sorted({*sizes.values(), *range(min(_TRACED_BATCHES, len(batches)))}):
        yield f"a batch of shapes {', '.join(str(list(tensor.shape)) for tensor in batches[number])}", batches[number]
    for factor in _FACTORS:
        yield (
            f"inputs multiplied by {factor:g}",
            tuple(tensor * factor if tensor.is_floating_point() else tensor for tensor in batches[0]),
        )


def _flat(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else list(value)


def _is_close(got: torch.Tensor, want: torch.Tensor) -> bool:
    if got.shape != want.shape or got.dtype != want.dtype:
        return False
    return bool(torch.allclose(got.double(), want.double(), rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True))


def _check_control_flow(module: torch.nn.Module, example: Inputs, job: Job, warning: str) -> None:
    """The tracer warns of a branch that none of the inputs took; a check of shapes warns alike, and torch.export tells the two apart."""
    try:
        program_of(module, example, job.signature)
    except Exception as error:
        place = warning.partition("TracerWarning")[0] or warning
        text = f"control flow depends on values, {_ADVICE}: {' '.join(place.split())[:300]}"
        raise Failure("ConversionFailed", text) from error
