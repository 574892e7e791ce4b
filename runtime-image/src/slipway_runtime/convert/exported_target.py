"""PyTorch to an exported program (.pt2), by torch.export.save."""

from __future__ import annotations

from typing import Any

import torch

from slipway_runtime.convert import Job
from slipway_runtime.convert.exported import exported

_ENTRY = "model.pt2"


def build(job: Job) -> dict[str, Any]:
    """Export, save, and say what to load; raises Failure as `exported` does."""
    program, example = exported(job)
    program.example_inputs = (tuple(torch.zeros_like(tensor) for tensor in example), {})  # they would be saved: no user's data
    torch.export.save(program, str(job.output / _ENTRY))
    return {"format": "ExportedProgram", "entry": _ENTRY}
