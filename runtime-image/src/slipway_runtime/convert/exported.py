"""torch.export of the source module with the named dims dynamic: the beginning of ExportedProgram, AOTInductor and TorchTensorRT."""

from __future__ import annotations

import logging
import re
import warnings

import torch
from torch.export._patches import register_gru_while_loop_decomposition, register_lstm_while_loop_decomposition

from slipway_runtime.artifact import Signature
from slipway_runtime.candidates import INT8
from slipway_runtime.convert import Job
from slipway_runtime.convert.eager import flattened, source_module, tensors
from slipway_runtime.convert.onnx_target import export_finding, shape_argument
from slipway_runtime.convert.precision import cast, quantized
from slipway_runtime.reasons import Failure, is_out_of_memory
from slipway_runtime.samples import read_batches

log = logging.getLogger("slipway")

# "length = Dim('length', max=512)": what torch.export suggests for a dim that the model bounds
_BOUND = re.compile(r"(\w+) = Dim\('\w+'(?:, min=(\d+))?(?:, max=(\d+))?\)")

_CALLED_TWICE = "more than one output node"  # of a partition, in torchao's words

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
        program = _exported(_int8(module, program, example, job), example, job)
    _check_dynamic(program, job)
    return program, example


def _int8(module: torch.nn.Module, program: torch.export.ExportedProgram, example: Example, job: Job) -> torch.nn.Module:
    """The module's program, quantized.

    The calls of one module at several places, as of the ReLU in each block of a ResNet, torchao takes for one, and gives up. Only in a
    strict export does each stand by itself; that is slower and takes less of Python, so it comes second. Source: pytorch/ao issue 4478.
    """
    try:
        return quantized(program.module(), job)
    except Failure as failure:
        if _CALLED_TWICE not in failure.message:
            raise
        log.info("a module is called at several places; exporting strictly, which keeps the calls apart")
        return quantized(_exported(module, example, job, strict=True).module(), job)


def _exported(module: torch.nn.Module, example: Example, job: Job, *, strict: bool = False) -> torch.export.ExportedProgram:
    try:
        return program_of(module, example, job.signature, strict=strict)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise export_finding(error, job.source, "torch.export") from error


def program_of(module: torch.nn.Module, example: Example, signature: Signature, *, strict: bool = False) -> torch.export.ExportedProgram:
    """Return torch.export's program with the named dims dynamic, as torch.onnx.export makes one.

    An LSTM and a GRU stay whole: by itself torch.export writes their steps out one by one, and so freezes a dynamic length. What it
    assumes of a dim becomes an assertion of the program instead of an error, and a dim that the model bounds (as positions do) is exported
    with that bound. Source: torch/onnx/_internal/exporter/_capture_strategies.py.

    Raises:
        Exception: whatever torch.export raises; `export_finding` says what that means.
    """

    def export(shapes: object) -> torch.export.ExportedProgram:
        options = {"strict": strict, "prefer_deferred_runtime_asserts_over_guards": True}
        return torch.export.export(module, example, dynamic_shapes=shapes, **options)

    shapes = shape_argument(module, signature)
    with (
        warnings.catch_warnings(),
        torch.no_grad(),
        register_lstm_while_loop_decomposition(),
        register_gru_while_loop_decomposition(),
    ):
        warnings.simplefilter("ignore")
        try:
            return export(shapes)
        except torch._dynamo.exc.UserError as error:
            bounds = {found[1]: (int(found[2] or 0), int(found[3]) if found[3] else None) for found in _BOUND.finditer(str(error))}
            if not bounds:
                raise
            for dim, (least, most) in bounds.items():
                log.info("the model bounds %s, which the signature leaves open: from %d%s", dim, least, f" to {most}" if most else "")
            return export(shape_argument(module, signature, bounds))


def _check_dynamic(program: torch.export.ExportedProgram, job: Job) -> None:
    """Every named dim must have stayed one; the exporter of today refuses to freeze it, and this holds if another does not."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for name, spec in zip(program.graph_signature.user_inputs, job.signature.inputs, strict=True):
        value = nodes[str(name)].meta["val"]
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str) and isinstance(value.shape[axis], int):
                raise Failure("ConversionFailed", f"torch.export froze {dim} of {spec.name} at {value.shape[axis]}")
