"""`/docs` and `/openapi.json`: what this server serves and how to ask it. Self-contained: no script or style from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from slipway_runtime.artifact import Artifact, TensorSpec
from slipway_runtime.serve.tensors import DATATYPES

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
    value: object = False if spec.dtype == "bool" else 0
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
    """The OpenAPI 3.1 description."""
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
        "/metrics": "Metrics in Prometheus' text format",
    }
    paths: Json = {path: {"get": _operation(text)} for path, text in get.items()}
    infer: Json = {"application/json": {"schema": _infer_schema(facts)}}
    predict: Json = {"application/json": {"schema": {"type": "object"}, "example": {"instances": []}}}
    if facts.takes_images:
        image: Json = {"type": "object", "required": ["image"], "properties": {"image": {"type": "string", "format": "binary"}}}
        predict["multipart/form-data"] = {"schema": image}
    infer["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    asked = _operation("Open Inference Protocol v2: JSON, or JSON followed by raw tensors (binary tensor extension)", infer)
    length = "Length of the JSON part, when raw tensors follow it"
    asked["parameters"] = [
        {"in": "header", "name": "Inference-Header-Content-Length", "required": False, "description": length, "schema": {"type": "integer"}}
    ]
    paths[f"{base}/infer"] = {"post": asked}
    predict["application/x-npy"] = {"schema": {"type": "string", "format": "binary"}}
    plain: Json = {"application/json": {"schema": {"type": "object"}, "example": {"instances": []}}}
    paths[f"/v1/models/{facts.name}:predict"] = {"post": _operation("KServe v1: the outputs, a row an instance", plain)}
    answer = (
        "what the handler answers"
        if facts.artifact.format == "TorchServe"
        else "the output of a sample or a batch; an image's best classes"
    )
    paths[f"/predictions/{facts.name}"] = {"post": _operation(f"TorchServe: {answer}", plain)}
    paths["/v2/repository/index"] = {"post": _operation("The one model of this server")}
    paths[f"{base}/predict"] = paths["/predict"] = {"post": _operation("Class, label and probability", predict)}
    return {"openapi": "3.1.0", "info": {"title": facts.name, "version": facts.revision}, "paths": paths}


def _operation(summary: str, content: Json | None = None) -> Json:
    body: Json = {"requestBody": {"required": True, "content": content}} if content else {}
    errors: Json = {"default": {"description": 'An error: {"error": "..."}'}}
    return {"summary": summary, **body, "responses": {"200": {"description": summary}, **errors}}


def _infer_schema(facts: Facts) -> Json:
    tensor: Json = {
        "type": "object",
        "required": ["name", "shape", "datatype", "data"],
        "properties": {
            "name": {"enum": [spec.name for spec in facts.artifact.signature.inputs]},
            "shape": {"type": "array", "items": {"type": "integer"}},
            "datatype": {"enum": sorted({DATATYPES[spec.dtype] for spec in facts.artifact.signature.inputs})},
            "data": {"type": "array"},
        },
    }
    inputs: Json = {"type": "array", "items": tensor}
    return {"type": "object", "required": ["inputs"], "properties": {"id": {"type": "string"}, "inputs": inputs}}
