"""`slipway status NAME`: why a model is not ready, and everything below it."""

from __future__ import annotations

import sys

import click
from rich.console import Console
from rich.text import Text

from slipway import names
from slipway.cli.errors import CliError
from slipway.cli.kubectl import Cluster
from slipway.cli.options import with_cluster
from slipway.cli.tree import View, headline, is_ready, status_tree
from slipway.plan.objects import name_of, status_of
from slipway.snapshot import Manifest

_MDEP, _MART = "modeldeployments.slipway.dev", "modelartifacts.slipway.dev"
_ADVICE_WIDTH = 400  # a pipe has no width of its own; a line must not be broken in the middle of a path there


@click.command()
@click.argument("name")
@with_cluster
def status(*, cluster: Cluster, name: str) -> None:
    """Show what stands between NAME and Ready, and its revisions, artifacts and pods. Exit code 0: ready, 1: not."""
    resource = cluster.find(_MDEP, name)
    if resource is None:
        place = f" in namespace {cluster.namespace}" if cluster.namespace else ""
        raise CliError(f"there is no ModelDeployment {name}{place}", "list them: kubectl get mdep -A")
    view = gather(cluster, resource)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _ADVICE_WIDTH)
    text, advice = headline(resource)
    console.print(Text(text, style="bold green" if is_ready(resource) else "bold red"))
    if advice:
        console.print(Text(f"Next: {advice}"))
    console.print(status_tree(view))
    raise SystemExit(0 if is_ready(resource) else 1)


def gather(cluster: Cluster, resource: Manifest) -> View:
    """Read the objects that belong to a ModelDeployment."""
    rows = [row for row in (status_of(resource).get(key) for key in ("stable", "canary")) if row]
    wanted = sorted({str(row["artifact"]) for row in rows if row.get("artifact")})
    artifacts = {name: found for name in wanted if (found := cluster.find(_MART, name)) is not None}
    mine = f"{names.DEPLOYMENT}={name_of(resource)}"
    objects = cluster.items("deployments.apps,pods", "-l", mine)
    jobs = cluster.items("pods", "-l", f"{names.ARTIFACT} in ({','.join(wanted)}),{names.COMPONENT}=converter") if wanted else []
    deployments = tuple(o for o in objects if o["kind"] == "Deployment")
    return View(resource, artifacts, deployments, (*(o for o in objects if o["kind"] == "Pod"), *jobs))
