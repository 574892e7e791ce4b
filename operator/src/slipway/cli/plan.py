"""`slipway plan -f FILE`: what would happen, without a cluster."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import click
import yaml
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.table import Table

from slipway import names
from slipway.api.models import ModelDeployment, ServingRuntime
from slipway.cli.errors import CliError
from slipway.cli.kubectl import Cluster
from slipway.cli.options import with_cluster
from slipway.cli.simulate import SHIPPED_RUNTIME, Step, World, simulate, summary
from slipway.plan.objects import condition, name_of, status_of
from slipway.snapshot import Config, Manifest

_DEFAULTS = Config()


@click.command()
@click.option("-f", "--filename", "file", required=True, type=click.File("r"), help="The manifest; - is stdin.")
@click.option("-o", "--output", type=click.Choice(["table", "yaml"]), default="table", help="yaml prints the objects. Default: table.")
@click.option("--converter-image", default=_DEFAULTS.converter_image, help="As the operator has it: the artifact's name depends on it.")
@click.option("--runtime-image", default=_DEFAULTS.runtime_image, help="As the operator has it.")
@click.option("--signing-secret", help="As the operator has it: the artifact's name depends on it.")
@click.option("--registry", default=_DEFAULTS.registry, help="Where artifacts are published: host[:port]/prefix.")
@with_cluster
def plan(*, cluster: Cluster, file: Any, output: str, **settings: Any) -> None:
    """Show what Slipway would do for a manifest, if every step succeeded."""
    documents = read_documents(file.read())
    problems = [line for document in documents for line in errors_of(document)]
    if problems:
        for line in problems:
            click.echo(f"error: {file.name}: {line}", err=True)
        raise SystemExit(1)
    config = Config(**settings)
    runtimes = tuple(d for d in documents if d["kind"] == "ServingRuntime") or (SHIPPED_RUNTIME,)
    resources = [placed(d, cluster.namespace) for d in documents if d["kind"] == "ModelDeployment"]
    if not resources:
        raise CliError(f"{file.name} has no ModelDeployment", "name a file that has one")
    for resource in resources:
        world = World(now=datetime.now(UTC), config=config, runtimes=runtimes)
        steps = simulate(resource, world)
        _print(world.objects["ModelDeployment", name_of(resource)], steps, output)


def read_documents(text: str) -> list[Manifest]:
    """Return the documents of a YAML file that are of Slipway; others are left alone.

    Raises:
        CliError: it is not YAML, or holds something that is no resource.
    """
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise CliError(f"the file is not YAML: {error}", "correct the line that is named") from error
    for document in documents:
        if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
            raise CliError("a document in the file has no kind", "write apiVersion and kind, as in examples/digits")
    return [d for d in documents if str(d.get("apiVersion", "")).startswith(f"{names.GROUP}/")]


def errors_of(document: Manifest) -> Iterator[str]:
    """Return what is wrong with a document, each with the path of the field."""
    models: dict[str, type[BaseModel]] = {"ModelDeployment": ModelDeployment, "ServingRuntime": ServingRuntime}
    model = models.get(document["kind"])
    if model is None:
        yield f"kind: {document['kind']} is not written by users; write a ModelDeployment"
        return
    try:
        model.model_validate(document)
    except ValidationError as error:
        rows = error.errors(include_url=False)
        for row in rows:
            # a part that is wrong makes its whole seem empty as well
            if not any(other["loc"][: len(row["loc"])] == row["loc"] and other["loc"] != row["loc"] for other in rows):
                message = "there is no such field" if row["type"] == "extra_forbidden" else row["msg"].removeprefix("Value error, ")
                yield f"{_path(row['loc'])}: {message}"


def _path(place: tuple[int | str, ...]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return path.removeprefix(".") or "the document"


def placed(document: Manifest, namespace: str | None) -> dict[str, Any]:
    """Return a ModelDeployment as the API server would store it: defaults filled in, with a namespace."""
    stored = ModelDeployment.model_validate(document).model_dump(mode="json", by_alias=True, exclude_none=True)
    metadata = {"namespace": namespace or "default", **document["metadata"]}
    return {**stored, "metadata": metadata | ({"namespace": namespace} if namespace else {})}


def _print(resource: Manifest, steps: list[Step], output: str) -> None:
    if output == "yaml":
        manifests = [_plain(step.manifest) for step in steps if step.verb == "create"]
        click.echo(yaml.dump_all(manifests, Dumper=_Plain, sort_keys=False, explicit_start=True), nl=False)
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    metadata, status = resource["metadata"], status_of(resource)
    console.print(f"ModelDeployment {metadata['namespace']}/{name_of(resource)}, if every step succeeds:", markup=False)
    console.print(plan_table(steps))
    stable: Mapping[str, Any] = status.get("stable") or {}
    console.print(f"revision {stable.get('revision', 'none')}, artifact {stable.get('artifact', 'none')}", markup=False)
    found = condition(resource, "Ready") or {}
    console.print(f"end: Ready={found.get('status', 'Unknown')} {found.get('reason', '')}: {found.get('message', '')}", markup=False)


def plan_table(steps: list[Step]) -> Table:
    """Return the sequence of writes as a table."""
    table = Table("when", "what", "object", "why", box=None, pad_edge=False)
    shown = ""
    for stage, verb, item, why in summary(steps):
        table.add_row("" if stage == shown else stage, verb, item, why)
        shown = stage
    return table


class _Plain(yaml.SafeDumper):
    """YAML as people write it: without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write everything out."""
        return True


def _plain(manifest: Manifest) -> dict[str, Any]:
    """Return a manifest without what only the cluster knows."""
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "ownerReferences"}
    return {**manifest, "metadata": metadata}
