"""PyTorch to ONNX by the dynamo exporter, with the named dims dynamic."""

from __future__ import annotations

import inspect
import logging
import re
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from slipway_runtime.artifact import Signature
from slipway_runtime.convert import Job
from slipway_runtime.convert.eager import flattened, source_module, tensors
from slipway_runtime.convert.onnx_files import checked_model
from slipway_runtime.convert.onnx_precision import reduce
from slipway_runtime.model_source import place_in
from slipway_runtime.reasons import Failure, first_line, is_out_of_memory
from slipway_runtime.samples import read_batches

_ENTRY = "model.onnx"
_PROTOBUF_LIMIT = 1 << 30  # a protobuf may have 2 GiB; half of it leaves room for what the optimizer folds
_NO_FUNCTION = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)', overload='([^']+)'\)>")
_CHAIN = 8

Bounds = Mapping[str, tuple[int | None, int | None]]


def build(job: Job) -> dict[str, Any]:
    """Export, check, and say what to load.

    Raises:
        Failure: UnsupportedOperator with its name, or ConversionFailed with the exporter's innermost cause.
    """
    module = source_module(job.source, job.model)
    example = tensors(read_batches(job.samples)[-1], job.signature)  # the last batch: of more than one sample, as 1 would be frozen
    module = flattened(module, example, job.signature)
    shapes = shape_argument(module, job.signature)
    options: dict[str, Any] = {"dynamic_shapes": shapes} if shapes else {}
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _export(module, example, job, external_data=size > _PROTOBUF_LIMIT, **options)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise export_finding(error, job.source, "torch.onnx") from error
    reduce(job, _ENTRY)
    checked_model(job.output, _ENTRY)
    return {"format": "ONNX", "entry": _ENTRY}


def _export(module: torch.nn.Module, example: tuple[torch.Tensor, ...], job: Job, *, external_data: bool, **options: Any) -> None:
    names = {side: [spec.name for spec in specs] for side, specs in (("input", job.signature.inputs), ("output", job.signature.outputs))}
    program = torch.onnx.export(
        module, example, dynamo=True, input_names=names["input"], output_names=names["output"], verbose=False, **options
    )
    # The exporter renames inputs and outputs, and does not look whether a value within has that name: an output `embedding`, say.
    graph = program.model.graph
    for value in (*(value for node in graph.all_nodes() for value in node.outputs), *list(graph.initializers.values())):
        if value.name in {*names["input"], *names["output"]} and not value.is_graph_output():
            value.name = f"inner_{value.name}"
    program.save(str(job.output / _ENTRY), external_data=external_data)


def dynamic_shapes(signature: Signature, bounds: Bounds = MappingProxyType({})) -> tuple[dict[int, Any], ...]:
    """Return torch.export's dynamic_shapes: one dict an input, the same Dim for the same name, and its bounds if there are any."""

    def made(name: str) -> Any:
        least, most = bounds.get(name, (None, None))
        return torch.export.Dim(name, min=least, max=most)

    dims = {dim: made(re.sub(r"\W", "_", dim)) for spec in signature.inputs for dim in spec.shape if isinstance(dim, str)}
    return tuple({axis: dims[dim] for axis, dim in enumerate(spec.shape) if isinstance(dim, str)} for spec in signature.inputs)


def shape_argument(module: torch.nn.Module, signature: Signature, bounds: Bounds = MappingProxyType({})) -> tuple[Any, ...] | None:
    """Return dynamic_shapes as an exporter wants them for this module (one tuple for `*inputs`), None when nothing is dynamic."""
    shapes = dynamic_shapes(signature, bounds)
    if not any(shapes):
        return None
    takes_any = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in inspect.signature(module.forward).parameters.values())
    return (shapes,) if takes_any else shapes


def export_finding(error: BaseException, folder: Path, tool: str) -> Failure:
    """Return what an exporter's exception means to the user: an operator, the place of control flow, or the innermost cause."""
    causes = [error]
    while len(causes) < _CHAIN and causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    text = "".join(traceback.format_exception(error))
    operator = _NO_FUNCTION.search(text)
    if operator:
        return Failure("UnsupportedOperator", f"ONNX has no counterpart of {operator[1]}.{operator[2]}")
    inner = causes[-1]
    if "data-dependent" in str(inner):
        place = next(filter(None, (place_in(cause, folder) for cause in reversed(causes))), "an unknown place")
        return Failure("ConversionFailed", f"control flow that depends on values cannot be exported: {place}")
    return Failure("ConversionFailed", f"{tool}: {first_line(inner)[:600]}")
