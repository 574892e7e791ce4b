"""`/predict`: plain JSON -> inputs, and outputs -> class, label and probability. Pure functions."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from slipway_runtime.artifact import Signature, TensorSpec
from slipway_runtime.serve.messages import BadRequest, HttpError
from slipway_runtime.serve.protocol import json_object
from slipway_runtime.serve.tensors import DTYPES, Array, Tensors, array_of, check_inputs, describe, refuse_booleans, size_of, to_lists


def decode_plain(body: bytes, signature: Signature) -> Tensors:
    """Decode `{"instances": [sample, ...]}` or `{"inputs": tensor or {name: tensor}}`.

    A single sample under `inputs` may leave out the batch dimension.

    Raises:
        BadRequest: names the tensor, what was expected and what came.
    """
    value = json_object(body)
    specs = signature.inputs
    if "instances" in value:
        columns = _columns(value["instances"], specs)
    elif "inputs" in value:
        inputs = value["inputs"]
        columns = inputs if isinstance(inputs, dict) else {_only(specs).name: inputs}
    else:
        raise BadRequest('expected {"instances": [...]} or {"inputs": ...}, or an image upload')
    by_name = {spec.name: spec for spec in specs}
    tensors = {name: _batched(_values(name, data, by_name[name], body), by_name[name]) for name, data in columns.items() if name in by_name}
    check_inputs(tensors | {name: np.empty(0) for name in columns if name not in by_name}, specs)
    return tensors


def _values(name: str, data: object, spec: TensorSpec, body: bytes) -> Array:
    if (b"true" in body or b"false" in body) and DTYPES[spec.dtype].kind not in "bO":
        refuse_booleans(name, data, spec.dtype)
    return array_of(name, data, spec.dtype)


def decode_sample(value: object, signature: Signature, body: bytes = b"") -> Tensors:
    """Decode a bare sample or batch of the model's only input, as nested lists, which stood in `body`.

    Raises:
        BadRequest: several inputs, or data that do not fit.
    """
    spec = _only(signature.inputs)
    tensors = {spec.name: _batched(_values(spec.name, value, spec, body), spec)}
    check_inputs(tensors, signature.inputs)
    return tensors


def is_npy(body: bytes) -> bool:
    """Whether a body is a file of numpy's .npy format."""
    return body.startswith(b"\x93NUMPY")


def decode_npy(body: bytes, signature: Signature) -> Tensors:
    """Decode a .npy file: a sample or a batch of the model's only input, of a type that converts to the model's without loss.

    Raises:
        BadRequest: damaged, of Python objects, or not what the model takes.
    """
    file = io.BytesIO(body)
    shape, is_fortran, dtype = _npy_header(file)
    left = len(body) - file.tell()
    if dtype.hasobject or size_of(shape) * dtype.itemsize != left:
        raise BadRequest(f"the .npy file holds objects, or its {left} bytes are not those of {dtype} {list(shape)}"[:300])
    try:
        array = np.frombuffer(body, dtype, offset=file.tell()).reshape(shape, order="F" if is_fortran else "C")
    except (ValueError, TypeError) as error:
        raise BadRequest(f"the .npy file cannot be read: {error}"[:300]) from error
    return decode_sample(array, signature)


def _npy_header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        header: tuple[tuple[int, ...], bool, np.dtype[Any]] = read(file)
    except Exception as error:  # the header is a Python literal: whatever the tokenizer and the parser raise
        raise BadRequest(f"the .npy file cannot be read: {error}"[:300]) from error
    return header


def _columns(instances: object, specs: Sequence[TensorSpec]) -> dict[str, Any]:
    if not isinstance(instances, list) or not instances:
        raise BadRequest("'instances' must be a list of at least one sample")
    if not all(isinstance(item, dict) for item in instances):
        return {_only(specs).name: instances}
    names = instances[0].keys()
    if any(item.keys() != names for item in instances):
        raise BadRequest("all instances must have the same inputs")
    return {name: [item[name] for item in instances] for name in names}


def _only(specs: Sequence[TensorSpec]) -> TensorSpec:
    if len(specs) != 1:
        names = ", ".join(f"'{spec.name}': {describe(spec)}" for spec in specs)
        raise BadRequest(f"this model has several inputs; name them: {names}")
    return specs[0]


def _batched(array: Array, spec: TensorSpec) -> Array:
    return array[np.newaxis] if array.ndim == len(spec.shape) - 1 and isinstance(spec.shape[0], str) else array


def is_class_like(array: Array) -> bool:
    """Whether an output is [batch, classes] of floats, so that an argmax means something."""
    return array.ndim == 2 and array.shape[1] >= 2 and array.dtype.kind == "f"


def probabilities(scores: Array) -> Array:
    """Softmax over the last axis, float64; scores that are probabilities already are returned unchanged.

    Args:
        scores: [batch, classes] floats.
    """
    scores = scores.astype(np.float64)
    if np.all(scores >= 0) and np.allclose(scores.sum(axis=-1), 1.0, atol=1e-3):
        return scores
    exponents = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: Array = exponents / exponents.sum(axis=-1, keepdims=True)
    return shares


def answer(outputs: Tensors, first: str, labels: Sequence[str], *, as_list: bool) -> dict[str, object]:
    """The body of a predict answer, without model and revision.

    One sample gives `prediction`, `label` (when there are labels) and `probability`; `predictions` lists them for a
    batch, or always with `as_list`. Outputs that are no class scores are returned as nested lists under `outputs`.

    Raises:
        HttpError: 500, the scores are not finite.
    """
    scores = outputs[first]
    if not is_class_like(scores):
        return {"outputs": {name: _encodable(array) for name, array in outputs.items()}}
    if not np.isfinite(scores).all():
        raise HttpError(500, f"output '{first}' has NaN or infinite values, so there is no prediction")
    rows = [_row(row, labels) for row in probabilities(scores)]
    single = rows[0] if len(rows) == 1 else {}
    return {**single, "predictions": rows} if as_list or not single else dict(single)


def _encodable(array: Array) -> Any:
    return np.ascontiguousarray(array) if array.dtype.kind in "biuf" else to_lists(array)  # orjson writes numbers from their memory


def _row(row: Array, labels: Sequence[str]) -> dict[str, object]:
    index = int(row.argmax())
    label = {"label": labels[index]} if index < len(labels) else {}
    return {"prediction": index, **label, "probability": round(float(row[index]), 6)}
