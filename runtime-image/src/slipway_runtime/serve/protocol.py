"""Open Inference Protocol v2 in JSON: request body -> arrays, arrays -> answer. Knows the signature, not the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from slipway_runtime.artifact import Signature, TensorSpec
from slipway_runtime.serve.messages import BadRequest, Response, json_response
from slipway_runtime.serve.tensors import DATATYPES, Tensors, array_of, check_inputs, datatype_of, reshaped, wire_shape


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A decoded infer request.

    Attributes:
        inputs: an array for each input of the signature, of its dtype and a shape that fits.
        outputs: names the client wants, in its order.
        id: the client's request id, to be returned.
    """

    inputs: Tensors
    outputs: Sequence[str]
    id: str | None = None


def json_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        BadRequest: not JSON (NaN and Infinity are not JSON either), or not an object.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object")
    return value


def decode_infer(body: bytes, signature: Signature) -> InferRequest:
    """Decode and check an infer request; `parameters` anywhere are accepted and have no effect.

    Args:
        body: the JSON body.
        signature: of the model; inputs are converted to its dtypes.

    Raises:
        BadRequest: names the tensor, what was expected and what came.
    """
    value = json_object(body)
    listed = value.get("inputs")
    if not isinstance(listed, list) or not listed:
        raise BadRequest("'inputs' must be a list of tensors, each with name, shape, datatype and data")
    specs = {spec.name: spec for spec in signature.inputs}
    tensors: Tensors = {}
    for item in listed:
        _decode_tensor(item, specs, tensors)
    check_inputs(tensors, signature.inputs)
    request_id = value.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise BadRequest("'id' must be a string")
    return InferRequest(tensors, _wanted_outputs(value.get("outputs"), signature), request_id)


def _decode_tensor(item: object, specs: dict[str, TensorSpec], tensors: Tensors) -> None:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise BadRequest("each input must be an object with a 'name'")
    name = item["name"]
    spec = specs.get(name)
    if spec is None:
        raise BadRequest(f"unknown input '{name}'; expected {', '.join(map(repr, specs))}")
    if name in tensors:
        raise BadRequest(f"input '{name}' is given twice")
    expected = DATATYPES[spec.dtype]
    if item.get("datatype") != expected:
        raise BadRequest(f"input '{name}': expected datatype {expected}, got {item.get('datatype')!r}")
    if "data" not in item:
        raise BadRequest(f"input '{name}': 'data' is missing (the binary tensor extension is not supported)")
    tensors[name] = reshaped(name, array_of(name, item["data"], spec.dtype), item.get("shape"))


def _wanted_outputs(listed: object, signature: Signature) -> list[str]:
    names = [spec.name for spec in signature.outputs]
    if not listed:
        return names
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise BadRequest("'outputs' must be a list of objects with a 'name'")
    wanted = [item.get("name") for item in listed]
    for name in wanted:
        if name not in names:
            raise BadRequest(f"unknown output {name!r}; this model has {', '.join(map(repr, names))}")
    return wanted


def encode_infer(request: InferRequest, outputs: Tensors, model: str, revision: str) -> Response:
    """Encode the outputs the client asked for, data flat in row-major order.

    NaN and infinities are written as null: JSON has no word for them, and a client that meets null fails loudly where
    the extension literals of some encoders would break its parser.
    """
    answer: dict[str, object] = {"model_name": model, "model_version": revision}
    if request.id is not None:
        answer["id"] = request.id
    answer["outputs"] = [_encoded(name, outputs) for name in request.outputs]
    return json_response(answer)


def _encoded(name: str, outputs: Tensors) -> dict[str, object]:
    array = outputs[name]
    # ravel copies only when the array is not contiguous, which orjson requires.
    return {"name": name, "datatype": datatype_of(array), "shape": array.shape, "data": array.ravel()}


def metadata(signature: Signature, model: str, revision: str, platform: str) -> dict[str, object]:
    """The answer to GET /v2/models/{model}."""
    return {
        "name": model,
        "versions": [revision],
        "platform": platform,
        "inputs": [_described(spec) for spec in signature.inputs],
        "outputs": [_described(spec) for spec in signature.outputs],
    }


def _described(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": wire_shape(spec)}
