"""`/docs` and `/openapi.json`: what this server serves and how to ask it. Self-contained: no script or style from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import ml_dtypes
import numpy as np

from slipway_runtime.artifact import Artifact, TensorSpec
from slipway_runtime.serve.tensors import DATATYPES, DTYPES

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Facts:
    """What the pages tell."""

    name: str
    revision: str
    artifact: Artifact
    labels: Sequence[str]
    takes_images: bool


def example(spec: TensorSpec) -> Json:
    """An infer input of zeros, for a batch of one."""
    shape = [dim if isinstance(dim, int) else 1 for dim in spec.shape]
    count = 1
    for dim in shape:
        count *= dim
    value = _zeros(spec.dtype, ())
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": shape, "data": [value] * min(count, 4096)}


def page(facts: Facts) -> str:
    """The HTML page."""
    base = f"/v2/models/{escape(facts.name)}"
    signature = facts.artifact.signature
    body = escape(json.dumps({"inputs": [example(spec) for spec in signature.inputs]}))
    upload = _UPLOAD.replace("BASE", base) if facts.takes_images else ""
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(facts.name)} · Slipway</title>
<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>
<h1>{escape(facts.name)}</h1><p>Revision {escape(facts.revision)}, {escape(facts.artifact.format)} {escape(facts.artifact.precision)},
artifact <code>{escape(facts.artifact.digest)}</code></p>
<table><tr><th></th><th>name</th><th>datatype</th><th>shape</th></tr>
{_rows("input", signature.inputs)}{_rows("output", signature.outputs)}</table>
{f"<p>Classes: {escape(', '.join(facts.labels))}</p>" if facts.labels else ""}{upload}
<h2>POST {base}/infer</h2><p>Open Inference Protocol v2, JSON.</p><textarea id="body" rows="6">{body}</textarea>
<button onclick="ask('{base}/infer', {{body: document.getElementById('body').value}})">Send</button><pre id="answer"></pre>
<h2>Also</h2><ul><li>POST {base}/predict with <code>{{"instances": [...]}}</code>: class, label, probability</li>
<li>POST {base}/infer with the binary tensor extension, and gRPC (tritonclient): the fast ways</li>
<li>POST /v1/models/{escape(facts.name)}:predict (KServe v1), POST /predictions/{escape(facts.name)} (TorchServe)</li>
<li><a href="{base}">{base}</a>, <a href="/v2">/v2</a>,
<a href="/v2/health/ready">/v2/health/ready</a>, <a href="/v2/health/live">/v2/health/live</a></li>
<li><a href="/metrics">/metrics</a>, <a href="/openapi.json">/openapi.json</a></li></ul>
<script>async function ask(path, options) {{
  const answer = await fetch(path, {{method: "POST", ...options}});
  document.getElementById("answer").textContent = answer.status + "\\n" + await answer.text();
}}</script></body></html>"""


def _rows(what: str, specs: Sequence[TensorSpec]) -> str:
    cells = ((what, spec.name, DATATYPES[spec.dtype], str(list(spec.shape))) for spec in specs)
    return "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in cells)


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}"
    "td,th{text-align:left;padding:.2rem 1rem .2rem 0}textarea{width:100%;font:13px monospace}"
    "pre{background:#f3f3f3;padding:.5rem;white-space:pre-wrap;overflow-wrap:anywhere}code{overflow-wrap:anywhere}"
)
_UPLOAD = """<h2>POST BASE/predict</h2><p>An image as form field <code>image</code>: <code>curl -F image=@file.png http://HOST/predict</code></p>
<form onsubmit="ask('BASE/predict', {body: new FormData(this)}); return false"><input type="file" name="image" accept="image/*" required>
<button>Predict</button></form>"""


def openapi(facts: Facts) -> Json:
    """The OpenAPI 3.1 description: as exact as JSON Schema can be, which cannot say that two tensors have the same number of rows."""
    base = f"/v2/models/{facts.name}"
    get = {
        "/v2": "Name and version of the server",
        "/v2/health/live": "Liveness",
        "/v2/health/ready": "Readiness",
        base: "Metadata of the model",
        f"{base}/ready": "Readiness of the model",
        f"{base}/config": "Configuration of the model, as Triton's extension has it",
        f"{base}/stats": "Counts and summed times, as Triton's extension has them",
        f"/v1/models/{facts.name}": "Readiness of the model (KServe v1)",
        "/ping": "Health (TorchServe)",
    }
    paths: Json = {path: {"get": _operation(text, None, "application/json")} for path, text in get.items()}
    paths["/metrics"] = {"get": _operation("Metrics in Prometheus' text format", None, "text/plain")}
    paths["/v2/repository/index"] = {"post": _operation("The one model of this server", None, "application/json")}
    paths[f"{base}/infer"] = {"post": _infer(facts)}
    plain = _plain(facts)
    predict = {**plain, "application/x-npy": _BINARY}
    if facts.takes_images:
        image: Json = {"type": "object", "required": ["image"], "properties": {"image": {"type": "string", "format": "binary"}}}
        predict["multipart/form-data"] = {"schema": image}
    paths[f"{base}/predict"] = paths["/predict"] = {"post": _operation("Class, label and probability", predict, "application/json")}
    rows = "KServe v1: the outputs, a row an instance"
    paths[f"/v1/models/{facts.name}:predict"] = {"post": _operation(rows, plain, "application/json")}
    handled = facts.artifact.format == "TorchServe"
    answer = "what the handler answers" if handled else "the output of a sample or a batch; an image's best classes"
    media = [] if handled else ["application/json"]
    paths[f"/predictions/{facts.name}"] = {"post": _operation(f"TorchServe: {answer}", plain, *media)}
    return {"openapi": "3.1.0", "info": {"title": facts.name, "version": facts.revision}, "paths": paths}


_BINARY: Json = {"schema": {"type": "string", "format": "binary"}}
_ERROR: Json = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string", "minLength": 1}}}


def _operation(summary: str, content: Json | None, *answers: str) -> Json:
    """One operation; `content` is what it takes, `answers` are the media types of what it answers."""
    body: Json = {"requestBody": {"required": True, "content": content}} if content else {}
    good: Json = {"description": summary} | ({"content": {media: {} for media in answers}} if answers else {})
    bad: Json = {"description": "The request is wrong", "content": {"application/json": {"schema": _ERROR}}}
    return {"summary": summary, **body, "responses": {"200": good, "4XX": bad, "default": {"description": "It cannot be answered now"}}}


def _plain(facts: Facts) -> Json:
    """What `:predict` and its like take: samples, an object each where the model has several inputs."""
    specs = facts.artifact.signature.inputs
    if facts.artifact.format == "TorchServe":
        return {"application/json": {"schema": {"type": "object"}, "example": {"instances": [{"data": 0}]}}}
    one = len(specs) == 1
    names: Json = {spec.name: _nested(spec.dtype, spec.shape[1:]) for spec in specs}
    sample = (
        names[specs[0].name] if one else {"type": "object", "required": list(names), "properties": names, "additionalProperties": False}
    )
    zeros = {spec.name: _zeros(spec.dtype, spec.shape[1:]) for spec in specs}
    schema: Json = {
        "type": "object",
        "required": ["instances"],
        "properties": {"instances": {"type": "array", "minItems": 1, "items": sample}},
    }
    return {"application/json": {"schema": schema, "example": {"instances": [zeros[specs[0].name] if one else zeros]}}}


def _infer(facts: Facts) -> Json:
    summary = "Open Inference Protocol v2: JSON, or JSON followed by raw tensors (binary tensor extension)"
    specs = facts.artifact.signature.inputs
    inputs: Json = {"type": "array", "minItems": len(specs), "maxItems": len(specs), "items": {"anyOf": [_tensor(spec) for spec in specs]}}
    schema: Json = {"type": "object", "required": ["inputs"], "properties": {"id": {"type": "string"}, "inputs": inputs}}
    sample: Json = {"schema": schema, "example": {"inputs": [example(spec) for spec in specs]}}
    content: Json = {"application/json": sample, "application/octet-stream": _BINARY}
    length: Json = {
        "in": "header",
        "name": "Inference-Header-Content-Length",
        "required": False,
        "schema": {"type": "integer", "minimum": 1},
    }
    length["description"] = "Length of the JSON part, when raw tensors follow it"
    return {**_operation(summary, content, "application/json", "application/octet-stream"), "parameters": [length]}


def _tensor(spec: TensorSpec) -> Json:
    rank, dims = len(spec.shape), [{"const": dim} if isinstance(dim, int) else {"type": "integer", "minimum": 1} for dim in spec.shape]
    shape: Json = {"type": "array", "minItems": rank, "maxItems": rank} | ({"prefixItems": dims} if dims else {})
    properties: Json = {
        "name": {"const": spec.name},
        "shape": shape,
        "datatype": {"const": DATATYPES[spec.dtype]},
        "data": {"type": "array"},
    }
    return {"type": "object", "required": ["name", "shape", "datatype", "data"], "properties": properties}


def _nested(dtype: str, shape: Sequence[int | str]) -> Json:
    """The schema of a tensor as nested lists."""
    if not shape:
        return _element(dtype)
    size: Json = {"minItems": shape[0], "maxItems": shape[0]} if isinstance(shape[0], int) else {"minItems": 1}
    return {"type": "array", **size, "items": _nested(dtype, shape[1:])}


def _element(dtype: str) -> Json:
    kind = DTYPES[dtype].kind
    if kind in "bO":
        return {"type": "boolean" if kind == "b" else "string"}
    if kind in "iu":
        limits = np.iinfo(DTYPES[dtype])
        return {"type": "integer", "minimum": int(limits.min), "maximum": int(limits.max)}
    number: Json = {"type": ["number", "null"]}  # null: NaN
    if dtype == "float64":
        return number
    largest, eps = (float(value) for value in (ml_dtypes.finfo(DTYPES[dtype]).max, ml_dtypes.finfo(DTYPES[dtype]).eps))
    limit = largest + largest * eps / (2 - eps) / 2  # what is smaller is rounded to the largest
    return number | {"exclusiveMinimum": -limit, "exclusiveMaximum": limit}


def _zeros(dtype: str, shape: Sequence[int | str]) -> object:
    if not shape:
        kind = DTYPES[dtype].kind
        return False if kind == "b" else "" if kind == "O" else 0
    return [_zeros(dtype, shape[1:])] * (shape[0] if isinstance(shape[0], int) else 1)
