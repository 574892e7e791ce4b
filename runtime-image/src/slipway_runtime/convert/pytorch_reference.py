"""The outputs of a source of torch, code or a converted file, twice: what every candidate is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np

from slipway_runtime.artifact import Signature
from slipway_runtime.candidates import REFERENCE
from slipway_runtime.convert.eager import call, check_parameters, source_module
from slipway_runtime.convert.inputs import make_samples
from slipway_runtime.modelfile import Model
from slipway_runtime.reasons import Failure
from slipway_runtime.samples import Batch, check_finite, check_outputs, write_batches
from slipway_runtime.settings import Settings


def prepare(settings: Settings, model: Model) -> dict[str, Any]:
    """Build the module, check it against the signature, and write samples and reference outputs.

    Raises:
        Failure: the reasons of the entrypoint and weights; SignatureMismatch, NonFiniteOutputs; ParityFailed when two runs differ.
    """
    signature = model.signature or _own_signature(settings, model)
    module = source_module(settings.folder, model)
    check_parameters(module, signature)
    samples = make_samples(settings, model, signature)
    outputs = []
    for number, batch in enumerate(samples.batches):
        outputs.append(call(module, batch, signature, settings.folder))
        check_outputs(outputs[-1], batch, signature)
        check_finite(outputs[-1], "the source model", number)
    limit = float(settings.validation.get("maxAbsoluteError") or 1e-3)
    for batch, first in zip(samples.batches, outputs, strict=True):
        _check_same(first, call(module, batch, signature, settings.folder), limit)
    write_batches(settings.candidates / REFERENCE, outputs)
    return {"signature": signature.to_json()}


def _own_signature(settings: Settings, model: Model) -> Signature:
    if model.format != "ExportedProgram":
        raise Failure("SignatureMissing", "there is no signature")
    from slipway_runtime.convert.program_signature import program_signature  # noqa: PLC0415
    from slipway_runtime.torch_files import exported_program  # noqa: PLC0415

    name = model.weights or ""
    return program_signature(exported_program(settings.folder / name, name))


def _check_same(first: Batch, second: Batch, limit: float) -> None:
    for name, array in first.items():
        if array.shape != second[name].shape:
            raise Failure("ParityFailed", f"the source model is not deterministic: {name} changes its shape from run to run")
        error = float(np.max(np.abs(array.astype(np.float64) - second[name].astype(np.float64)), initial=0.0))
        if not error <= limit:
            text = f"the source model is not deterministic: {name} of the same inputs differs by {error:.3g} between two runs in eval mode"
            raise Failure("ParityFailed", f"{text}; look for dropout with training=True, or random numbers in forward")
