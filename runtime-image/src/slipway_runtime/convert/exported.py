"""torch.export of the source module with the named dims dynamic: the beginning of ExportedProgram, AOTInductor and TorchTensorRT."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.export._patches import register_gru_while_loop_decomposition, register_lstm_while_loop_decomposition

from slipway_runtime.candidates import INT8
from slipway_runtime.convert import Job
from slipway_runtime.convert.eager import flattened, source_module, tensors
from slipway_runtime.convert.onnx_target import export_finding, shape_argument
from slipway_runtime.convert.precision import cast, quantized
from slipway_runtime.reasons import Failure, is_out_of_memory
from slipway_runtime.samples import read_batches

Example = tuple[torch.Tensor, ...]


def exported(job: Job) -> tuple[torch.export.ExportedProgram, Example]:
    """Return the source in the wanted precision as an exported program, and the example it was made with.

    Raises:
        Failure: ConversionFailed, with the place of control flow that depends on values, or the exporter's innermost cause.
    """
    module = source_module(job.source, job.model)
    example = tensors(read_batches(job.samples)[-1], job.signature)  # the last batch: of more than one sample, as 1 would be frozen
    module = cast(flattened(module, example, job.signature), job.wanted.precision, job.signature)
    program = _exported(module, example, job)
    if job.wanted.precision in INT8:
        program = _exported(quantized(program.module(), job), example, job)
    _check_dynamic(program, job)
    return program, example


def _exported(module: torch.nn.Module, example: Example, job: Job) -> torch.export.ExportedProgram:
    shapes = shape_argument(module, job.signature)
    try:
        with warnings.catch_warnings(), torch.no_grad(), whole_recurrence():
            warnings.simplefilter("ignore")
            return torch.export.export(module, example, dynamic_shapes=shapes)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise export_finding(error, job.source, "torch.export") from error


@contextmanager
def whole_recurrence() -> Iterator[None]:
    """Have torch.export leave an LSTM or a GRU whole.

    By itself it writes their steps out one after the other, and so freezes a dynamic length. torch.onnx.export does the same
    (torch/onnx/_internal/exporter/_capture_strategies.py, patch_dynamic_shape_rnn_decompositions).
    """
    with register_lstm_while_loop_decomposition(), register_gru_while_loop_decomposition():
        yield


def _check_dynamic(program: torch.export.ExportedProgram, job: Job) -> None:
    """Every named dim must have stayed one; the exporter of today refuses to freeze it, and this holds if another does not."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for name, spec in zip(program.graph_signature.user_inputs, job.signature.inputs, strict=True):
        value = nodes[str(name)].meta["val"]
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str) and isinstance(value.shape[axis], int):
                raise Failure("ConversionFailed", f"torch.export froze {dim} of {spec.name} at {value.shape[axis]}")
