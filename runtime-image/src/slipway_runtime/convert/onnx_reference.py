"""The outputs of an ONNX source in onnxruntime, and its signature where none is declared."""

from __future__ import annotations

from typing import Any

from slipway_runtime.artifact import Signature, TensorSpec
from slipway_runtime.candidates import REFERENCE
from slipway_runtime.convert.inputs import make_samples
from slipway_runtime.convert.onnx_files import checked_model
from slipway_runtime.modelfile import Model
from slipway_runtime.reasons import Failure
from slipway_runtime.samples import check_finite, check_outputs, write_batches
from slipway_runtime.settings import Settings
from slipway_runtime.validate.loaders import onnx_runner, onnx_session


def prepare(settings: Settings, model: Model) -> dict[str, Any]:
    """Check the model, derive or compare the signature, and write samples and reference outputs.

    Raises:
        Failure: ModelFolderInvalid, SignatureMissing, SignatureMismatch, NonFiniteOutputs, ValidationFailed.
    """
    checked_model(settings.folder, model.weights or "")
    session = onnx_session(settings.folder / (model.weights or ""))
    own = _own_signature(session)
    signature = model.signature or own
    _check_names(signature, own)
    samples = make_samples(settings, model, signature)
    runner = onnx_runner(session)
    outputs = []
    for number, batch in enumerate(samples.batches):
        outputs.append(runner(batch))
        check_outputs(outputs[-1], batch, signature)
        check_finite(outputs[-1], "the source model", number)
    write_batches(settings.candidates / REFERENCE, outputs)
    return {"signature": signature.to_json()}


def _own_signature(session: Any) -> Signature:
    return Signature(tuple(map(_tensor, session.get_inputs())), tuple(map(_tensor, session.get_outputs())))


def _tensor(argument: Any) -> TensorSpec:
    kinds = {"float": "float32", "double": "float64"}
    kind = argument.type.removeprefix("tensor(").removesuffix(")")
    if not argument.type.startswith("tensor(") or kind == "string":
        raise Failure("SignatureMissing", f"{argument.name} of the ONNX model is {argument.type}; only tensors of numbers are served")
    shape = tuple(
        dim if isinstance(dim, int) and dim > 0 else str(dim or f"{argument.name}_{axis}") for axis, dim in enumerate(argument.shape)
    )
    if shape and isinstance(shape[0], str):
        shape = ("batch" if argument.shape[0] is None else shape[0], *shape[1:])
    return TensorSpec(argument.name, kinds.get(kind, kind), shape)


def _check_names(signature: Signature, own: Signature) -> None:
    for side, declared, real in (("inputs", signature.inputs, own.inputs), ("outputs", signature.outputs, own.outputs)):
        want, have = [spec.name for spec in declared], [spec.name for spec in real]
        if sorted(want) != sorted(have):
            raise Failure("SignatureMismatch", f"the ONNX model's {side} are {', '.join(have)}, the signature lists {', '.join(want)}")
        dtypes = {spec.name: spec.dtype for spec in real}
        for spec in declared:
            if spec.dtype != dtypes[spec.name]:
                raise Failure("SignatureMismatch", f"{spec.name} is {dtypes[spec.name]}, the signature says {spec.dtype}")
