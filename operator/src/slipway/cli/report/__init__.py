"""`slipway report NAME`: the auction of a model's candidates, and what its predictions cost."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console

from slipway import names
from slipway.analysis.exposition import ScrapeError, Usage, usage
from slipway.cli.errors import CliError
from slipway.cli.kubectl import Cluster
from slipway.cli.options import with_cluster
from slipway.cli.report.model import Report, document, report_of
from slipway.cli.report.page import page
from slipway.cli.report.text import rendered
from slipway.cli.status import gather
from slipway.cli.tree import View
from slipway.plan.cost import Cost, Prices, parse_prices, revision_cost
from slipway.plan.gate import metrics_place
from slipway.plan.objects import label, name_of
from slipway.snapshot import Manifest

_MDEP, _RUNTIMES = "modeldeployments.slipway.dev", "servingruntimes.slipway.dev"
_WIDTH = 400  # of a pipe, as for `slipway status`
_PARALLEL = 8
PRICES, PRICES_KEY = "slipway-prices", "prices.json"


@click.command()
@click.argument("name")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="Default: table.")
@click.option("--html", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Write a page with plots, one file, instead.")
@click.option("--system-namespace", default="slipway-system", help="Where the chart is, for its node prices. Default: slipway-system.")
@with_cluster
def report(*, cluster: Cluster, name: str, output: str, html: Path | None, system_namespace: str) -> None:
    """Show how NAME's candidates did, which one is served and why, and what a million predictions cost."""
    resource = cluster.find(_MDEP, name)
    if resource is None:
        place = f" in namespace {cluster.namespace}" if cluster.namespace else ""
        raise CliError(f"there is no ModelDeployment {name}{place}", "list them: kubectl get mdep -A")
    view = gather(cluster, resource)
    found = report_of(view, costs_of(cluster, view, system_namespace))
    if html is not None:
        _write(html, page(found, datetime.now(UTC)))
        click.echo(f"wrote {html}: open it in a browser")
    elif output == "json":
        click.echo(json.dumps(document(found), indent=2))
    else:
        _print(found)


def _print(found: Report) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    for part in rendered(found, console):
        console.print(part)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CliError(f"{path} cannot be written: {error.strerror}", "name a file in a folder that exists") from error


def costs_of(cluster: Cluster, view: View, system_namespace: str) -> dict[str, Cost]:
    """Return the cost by revision; what the user may not read is a note in it, not an error."""
    servers = [pod for pod in view.pods if label(pod, names.COMPONENT) == names.SERVER and not pod["metadata"].get("deletionTimestamp")]
    by_revision: dict[str, list[Manifest]] = {}
    for pod in servers:
        by_revision.setdefault(str(label(pod, names.REVISION)), []).append(pod)
    prices = _prices(cluster, system_namespace)
    if isinstance(prices, str):
        return {revision: Cost(len(pods), notes=(prices,)) for revision, pods in by_revision.items()}
    nodes = _nodes(cluster, sorted({pod["spec"]["nodeName"] for pod in servers if pod["spec"].get("nodeName")})) if prices else {}
    uses = dict(zip(map(name_of, servers), _uses(cluster, servers) if prices else [""] * len(servers), strict=True))
    return {revision: revision_cost([(pod, uses[name_of(pod)]) for pod in pods], nodes, prices) for revision, pods in by_revision.items()}


def _prices(cluster: Cluster, namespace: str) -> Prices | str | None:
    """Return the chart's prices, None when it has none, or why they cannot be read."""
    try:
        found = Cluster(cluster.kubeconfig, cluster.context, namespace).find("configmap", PRICES)
        return None if found is None else parse_prices((found.get("data") or {}).get(PRICES_KEY, ""))
    except CliError as error:
        return f"the node prices cannot be read: {_said(error)}"
    except ValueError as error:
        return f"ConfigMap {namespace}/{PRICES}: {error}"


def _nodes(cluster: Cluster, wanted: Sequence[str]) -> dict[str, Manifest]:
    """Return the nodes that the user may read."""
    if not wanted:
        return {}
    try:
        found = cluster.find("nodes", *wanted) or {}
    except CliError:
        return {}
    return {name_of(node): node for node in found.get("items", [found] if found else [])}


def _uses(cluster: Cluster, pods: Sequence[Manifest]) -> list[Usage | str]:
    """Ask each pod what it did, by way of the API server."""
    try:
        runtimes = cluster.items(_RUNTIMES)
    except CliError:
        runtimes = []  # their pods then have the default path
    with ThreadPoolExecutor(_PARALLEL) as threads:
        return list(threads.map(lambda pod: _use(cluster, pod, runtimes), pods))


def _said(error: CliError) -> str:
    """Return what is wrong, without the advice: it stands in a line with others."""
    return error.message.partition(". Next: ")[0]


def _use(cluster: Cluster, pod: Manifest, runtimes: Sequence[Mapping[str, object]]) -> Usage | str:
    place = metrics_place(pod, runtimes)
    if place is None:
        return "its server has not started yet"
    (port, path), space = place, pod["metadata"].get("namespace", "default")
    try:
        text = cluster.raw(f"/api/v1/namespaces/{space}/pods/{name_of(pod)}:{port}/proxy{path}")
        return usage(text, str(label(pod, names.REVISION)), time.time())
    except CliError as error:
        return _said(error)
    except ScrapeError as error:
        return str(error)
