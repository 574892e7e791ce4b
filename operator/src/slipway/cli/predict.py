"""`slipway predict NAME FILE`: ask a model about an image or a JSON document."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import requests

from slipway.cli.errors import CliError
from slipway.cli.kubectl import Cluster
from slipway.cli.options import with_cluster

TIMEOUT = (5, 60)  # seconds to connect, and to answer
_FILE = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)


@click.command()
@click.argument("name")
@click.argument("file", required=False, type=_FILE)
@click.option("--image", type=_FILE, help="An image file.")
@click.option("--json", "document", type=_FILE, help="A JSON file: one input tensor by name, or instances or inputs; - is stdin.")
@click.option("--url", help="Base URL of the model, instead of a tunnel to its Service.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Default: text.")
@with_cluster
def predict(*, cluster: Cluster, name: str, url: str | None, output: str, **files: Path | None) -> None:
    """Ask model NAME about FILE (an image, or JSON by its name or content)."""
    body, content_type = request_body(files["file"], files["image"], files["document"])
    with _base(cluster, name, url) as base:
        answer = ask(f"{base}/v2/models/{name}/predict", body, content_type)
    for line in [json.dumps(answer)] if output == "json" else lines(answer):
        click.echo(line)


def request_body(file: Path | None, image: Path | None, document: Path | None) -> tuple[bytes, str]:
    """Return what is sent, and its type.

    Raises:
        UsageError: not exactly one file was named, or the JSON is malformed.
    """
    given = [path for path in (file, image, document) if path is not None]
    if len(given) != 1:
        raise click.UsageError("name one file: an image (--image FILE) or JSON (--json FILE)")
    data = sys.stdin.buffer.read() if str(given[0]) == "-" else given[0].read_bytes()
    is_json = document is not None or (image is None and data.lstrip()[:1] in (b"{", b"["))
    return (_document(data), "application/json") if is_json else (data, "image/*")


def _document(data: bytes) -> bytes:
    """Return a predict request: `{"x": …}` and a bare list are tensors, what has `instances` or `inputs` is a request already."""
    try:
        value = json.loads(data)
    except ValueError as error:
        raise click.UsageError(f"the file is not JSON: {error}") from error
    if isinstance(value, dict) and value.keys() & {"instances", "inputs"}:
        return data
    return json.dumps({"inputs": value}).encode()


def ask(url: str, body: bytes, content_type: str) -> Mapping[str, Any]:
    """Send one request.

    Raises:
        CliError: no answer, or a refusal, in the server's own words.
    """
    session = requests.Session()
    session.trust_env = False
    try:
        response = session.post(url, data=body, headers={"Content-Type": content_type}, timeout=TIMEOUT)
    except requests.RequestException as error:
        raise CliError(f"{url} does not answer: {type(error).__name__}", "check --url, or `slipway status`") from error
    try:
        answer = response.json()
    except ValueError:
        answer = {"error": response.text[:200]}
    if not response.ok:
        said = answer.get("error") if isinstance(answer, dict) else answer
        raise CliError(f"{url} answers HTTP {response.status_code}: {said}", "correct the file, or see `slipway status`")
    return dict(answer)


def lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """Say an answer in words: class, probability, revision."""
    revision = f"revision {answer.get('revision', 'unknown')}"
    if "outputs" in answer:
        yield f"{json.dumps(answer['outputs'])}  {revision}"
    for row in answer.get("predictions") or ([answer] if "prediction" in answer else []):
        label = f"{row['label']} (class {row['prediction']})" if "label" in row else f"class {row['prediction']}"
        yield f"{label}  {100 * float(row['probability']):.1f} %  {revision}"


@contextmanager
def _base(cluster: Cluster, name: str, url: str | None) -> Iterator[str]:
    if url:
        yield url.rstrip("/")
        return
    with cluster.forward(None, name, 80) as local:
        yield f"http://{local}"
