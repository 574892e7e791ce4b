"""An ONNX source in another precision."""

from __future__ import annotations

from typing import Any

from slipway_runtime.convert import Job, none_target
from slipway_runtime.convert.onnx_files import checked_model
from slipway_runtime.convert.onnx_precision import reduce


def build(job: Job) -> dict[str, Any]:
    """Copy the file, reduce its precision, check it, and say what to load; raises Failure as those do."""
    built = none_target.build(job)
    reduce(job, built["entry"])
    checked_model(job.output, built["entry"])
    return built
