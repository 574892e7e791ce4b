"""`slipway push DIR oci://…`: a model folder becomes an OCI artifact, one layer a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from slipway.cli.errors import CliError
from slipway.cli.folder import ModelFolder, read_folder
from slipway.cli.kubectl import Cluster
from slipway.cli.options import with_cluster
from slipway.cli.registry import (
    EMPTY,
    Reference,
    Repository,
    bytes_digest,
    docker_credentials,
    file_digest,
    is_loopback,
    model_manifest,
    parse_reference,
    service_of,
)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("uri")
@click.option("--plain-http", is_flag=True, help="Speak HTTP without TLS; always so inside the cluster and on this machine.")
@click.option("--tunnel/--no-tunnel", default=None, help="Reach the host as a Service through kubectl. Default: when it looks like one.")
@with_cluster
def push(*, cluster: Cluster, folder: Path, uri: str, plain_http: bool, tunnel: bool | None) -> None:
    """Push a model FOLDER to URI (oci://host[:port]/repository[:tag]) and print the pinned URI."""
    reference, checked = parse_reference(uri), read_folder(folder)
    console = Console(stderr=True)
    for note in checked.notes:
        console.print(f"note: {note}", highlight=False)
    with _base(cluster, reference, plain_http=plain_http, tunnel=tunnel) as base:
        repository = Repository(reference, base, docker_credentials(reference.host))
        digest = push_folder(checked, repository, console)
    click.echo(reference.pinned(digest))


def push_folder(folder: ModelFolder, repository: Repository, console: Console) -> str:
    """Upload what the registry lacks, then the manifest; returns its digest."""
    sizes = {name: (folder.root / name).stat().st_size for name in folder.files}
    layers: dict[str, tuple[str, int]] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("push", total=sum(sizes.values()))
        for name, size in sizes.items():
            path = folder.root / name
            digest = file_digest(path)
            progress.update(task, description=name)
            is_new = repository.push_blob(digest, path)
            progress.advance(task, size)
            layers[name] = (digest, size)
            console.print(f"{'pushed' if is_new else 'exists'}  {size:>12,}  {name}", highlight=False, markup=False)
    repository.push_blob(bytes_digest(EMPTY), EMPTY)
    return repository.push_manifest(model_manifest(layers))


@contextmanager
def _base(cluster: Cluster, reference: Reference, *, plain_http: bool, tunnel: bool | None) -> Iterator[str]:
    """Yield the URL under which the registry is reached from here."""
    service = None if tunnel is False else service_of(reference.host)
    if tunnel and service is None:
        raise CliError(f"{reference.host} is not SERVICE.NAMESPACE[:port]", "leave out --tunnel")
    if service is None:
        is_plain = plain_http or is_loopback(reference.host)
        yield f"{'http' if is_plain else 'https'}://{reference.host}"
        return
    name, namespace, port = service
    with cluster.forward(namespace, name, port) as local:
        yield f"http://{local}"
