"""A TorchScript file to ONNX, by the exporter that reads TorchScript graphs: torch.export needs Python code, which such a file has not."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch

from slipway_runtime.convert import Job
from slipway_runtime.convert.eager import source_module, tensors
from slipway_runtime.convert.onnx_files import checked_model
from slipway_runtime.convert.onnx_precision import reduce
from slipway_runtime.reasons import Failure, first_line, is_out_of_memory
from slipway_runtime.samples import read_batches

_ENTRY = "model.onnx"


def build(job: Job) -> dict[str, Any]:
    """Export, check, and say what to load.

    Raises:
        Failure: ConversionFailed with the exporter's words, which name an operator that ONNX lacks.
    """
    module = source_module(job.source, job.model)
    example = tensors(read_batches(job.samples)[-1], job.signature)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    specs = (*job.signature.inputs, *job.signature.outputs)
    axes = {spec.name: {axis: dim for axis, dim in enumerate(spec.shape) if isinstance(dim, str)} for spec in specs}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.inner,
                example,
                str(job.output / _ENTRY),
                dynamo=False,
                input_names=[spec.name for spec in job.signature.inputs],
                output_names=[spec.name for spec in job.signature.outputs],
                dynamic_axes={name: dims for name, dims in axes.items() if dims},
            )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise Failure("ConversionFailed", f"torch.onnx of a TorchScript file: {first_line(error)[:600]}") from error
    reduce(job, _ENTRY)
    checked_model(job.output, _ENTRY)
    return {"format": "ONNX", "entry": _ENTRY}
