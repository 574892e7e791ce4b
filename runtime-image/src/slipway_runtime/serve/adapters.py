"""Thin adapters: KServe's v1 `:predict` and TorchServe's `/predictions`, onto the same decoding and the same queue. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from slipway_runtime.artifact import Signature
from slipway_runtime.serve import form
from slipway_runtime.serve.messages import JSON, BadRequest, HttpError, Request, Response, json_response
from slipway_runtime.serve.predict import decode_npy, decode_plain, decode_sample, is_class_like, is_npy, probabilities
from slipway_runtime.serve.protocol import json_object, json_value
from slipway_runtime.serve.tensors import Array, Tensors, to_lists

TOP = 5


def v1_answer(names: Sequence[str], outputs: Tensors) -> Response:
    """KServe's v1 answer: `{"predictions": [row, ...]}`; with several outputs a row is an object."""
    if len(names) == 1:
        return json_response({"predictions": to_lists(outputs[names[0]])})
    columns = {name: to_lists(outputs[name]) for name in names}
    rows = len(next(iter(columns.values())))
    return json_response({"predictions": [{name: column[row] for name, column in columns.items()} for row in range(rows)]})


def torchserve_files(request: Request) -> list[bytes]:
    """The parts `data` or `body` of a form, or the raw body that is no JSON; empty when the body is to be read as JSON."""
    kind = request.head.content_type.lower()
    if kind.startswith("multipart/form-data"):
        return form.uploaded_files(request, ("data", "body", "image"))
    if kind.startswith("image/") or not (looks_like_json(request.body) or is_npy(request.body)):
        return [request.body]
    return []


def looks_like_json(body: bytes) -> bool:
    """Whether a body starts like a JSON object or list; no image format does."""
    return body.lstrip()[:1] in (b"{", b"[")


def torchserve_inputs(body: bytes, signature: Signature) -> Tensors:
    """What TorchServe's base handler takes: a sample or a batch as nested lists, bare or under `data` or `body`, or KServe's envelope."""
    if is_npy(body):
        return decode_npy(body, signature)
    value = json_value(body)
    if isinstance(value, dict):
        if "instances" in value or "inputs" in value:
            return decode_plain(body, signature)
        value = value.get("data", value.get("body"))
    return decode_sample(value, signature, body)


def torchserve_classes(first: str, labels: Sequence[str], outputs: Tensors) -> Response:
    """What TorchServe's image_classifier answers: the five best classes and their probabilities; a list for a batch."""
    scores = outputs[first]
    if not is_class_like(scores):
        return torchserve_values(first, outputs)
    if not np.isfinite(scores).all():
        raise HttpError(500, f"output '{first}' has NaN or infinite values, so there is no prediction")
    rows = [_best(row, labels) for row in probabilities(scores)]
    return json_response(rows[0] if len(rows) == 1 else rows)


def torchserve_values(first: str, outputs: Tensors) -> Response:
    """What TorchServe's base handler answers: the output as nested lists, without the batch dimension when it is one sample."""
    nested = to_lists(outputs[first])
    return json_response(nested[0] if isinstance(nested, list) and len(nested) == 1 else nested)


def handler_row(request: Request) -> dict[str, Any]:
    """What TorchServe gives a handler of a request: the parts of a form by name, or the body; JSON parsed, text decoded, the rest bytes."""
    kind = request.head.content_type
    if kind.lower().startswith("multipart/form-data"):
        return {name: _value(part, own) for name, own, part in form.form_parts(request)}
    return {"body": _value(request.body, kind)}


def _value(data: bytes, kind: str) -> Any:
    kind = kind.lower()
    try:
        if kind == "application/json" or kind.startswith("application/json;"):
            return orjson.loads(data)
        return data.decode() if kind.startswith("text") else data
    except ValueError:  # TorchServe hands on what it cannot decode
        return data


def v1_rows(body: bytes) -> list[dict[str, Any]]:
    """The rows of KServe's v1 request; an instance that is no object is given under `data`."""
    instances = json_object(body).get("instances")
    if not isinstance(instances, list) or not instances:
        raise BadRequest("'instances' must be a list of at least one sample")
    return [instance if isinstance(instance, dict) else {"data": instance} for instance in instances]


def handler_answer(outputs: Tensors) -> Response:
    """A handler's answer to one row, as TorchServe writes it: bytes and text as they are, else JSON; status and headers as it says."""
    answer = outputs["answers"][0]
    value, told = answer.value, answer.told
    headers = {name: text for name, text in told.get_response_headers().items() if _is_header(name, text)}
    kind = next((headers.pop(name) for name in list(headers) if name.lower() == "content-type"), None)
    status = told.get_response_status_code()
    if isinstance(value, (bytes, bytearray)):
        return Response(status, bytes(value), kind or "application/octet-stream", headers)
    if isinstance(value, str):
        return Response(status, value.encode(), kind or "text/plain; charset=utf-8", headers)
    return Response(status, _json(value), kind or JSON, headers)


def v1_handled(outputs: Tensors) -> Response:
    """KServe's v1 answer of a handler."""
    return Response(200, _json({"predictions": [answer.value for answer in outputs["answers"]]}))


def _json(value: Any) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    except TypeError as error:
        raise HttpError(500, f"the handler returned a {type(value).__name__} that is not JSON: {error}"[:300]) from error


def _is_header(name: object, text: object) -> bool:
    return isinstance(name, str) and isinstance(text, str) and re.fullmatch(r"[A-Za-z0-9-]+", name) is not None and text.isprintable()


def _best(row: Array, labels: Sequence[str]) -> dict[str, float]:
    order = np.argsort(-row, kind="stable")[:TOP]
    return {labels[index] if index < len(labels) else str(index): float(row[index]) for index in order}
