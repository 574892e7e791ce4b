"""Thin adapters: KServe's v1 `:predict` and TorchServe's `/predictions`, onto the same decoding and the same queue. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from slipway_runtime.artifact import Signature
from slipway_runtime.serve import form
from slipway_runtime.serve.messages import HttpError, Request, Response, json_response
from slipway_runtime.serve.predict import decode_npy, decode_plain, decode_sample, is_class_like, is_npy, probabilities
from slipway_runtime.serve.protocol import json_value
from slipway_runtime.serve.tensors import Array, Tensors

TOP = 5


def v1_answer(names: Sequence[str], outputs: Tensors) -> Response:
    """KServe's v1 answer: `{"predictions": [row, ...]}`; with several outputs a row is an object."""
    if len(names) == 1:
        return json_response({"predictions": _nested(outputs[names[0]])})
    columns = {name: _nested(outputs[name]) for name in names}
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
    return decode_sample(value, signature)


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
    nested = _nested(outputs[first])
    return json_response(nested[0] if isinstance(nested, list) and len(nested) == 1 else nested)


def _best(row: Array, labels: Sequence[str]) -> dict[str, float]:
    order = np.argsort(-row, kind="stable")[:TOP]
    return {labels[index] if index < len(labels) else str(index): float(row[index]) for index in order}


def _nested(array: Array) -> Any:
    if array.dtype.kind in "OUS":
        return [value.decode(errors="backslashreplace") if isinstance(value, bytes) else value for value in array.tolist()]
    return (array.astype(np.float32) if array.dtype.kind == "V" else array).tolist()
