"""PyTorch to an exported program whose parts TensorRT runs. Needs the package torch_tensorrt and a GPU like the one that will serve."""

from __future__ import annotations

from importlib import util
from typing import Any

import torch

from slipway_runtime.candidates import UNAVAILABLE
from slipway_runtime.convert import Job
from slipway_runtime.convert.exported import exported
from slipway_runtime.reasons import Failure, first_line, is_out_of_memory

_ENTRY = "model.pt2"


def build(job: Job) -> dict[str, Any]:
    """Export, let TensorRT compile what it can, and say what to load.

    Raises:
        Failure: TargetUnavailable without the package or a GPU; ConversionFailed with the compiler's words.
    """
    check_available()
    import torch_tensorrt  # noqa: PLC0415

    program, example = exported(job)
    device = torch.device("cuda:0")
    inputs = [tensor.to(device) for tensor in example]
    try:
        # Explicit typing: the precision is that of the exported program, whose weights were cast before.
        compiled = torch_tensorrt.dynamo.compile(program, arg_inputs=inputs, device=device, use_explicit_typing=True, min_block_size=1)
        torch_tensorrt.save(compiled, str(job.output / _ENTRY), output_format="exported_program", arg_inputs=inputs)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise Failure("ConversionFailed", f"torch_tensorrt: {first_line(error)[:600]}") from error
    return {"format": "TorchTensorRT", "entry": _ENTRY}


def check_available() -> None:
    """Look for the package and a GPU; raises Failure TargetUnavailable."""
    if util.find_spec("torch_tensorrt") is None:
        raise Failure(UNAVAILABLE, "the package torch_tensorrt is not in the converter image; use an image that has it")
    if not torch.cuda.is_available():
        raise Failure(UNAVAILABLE, "there is no CUDA GPU on the node of the conversion; an engine is built for the GPU it is built on")
