"""`slipway promote|abort|pause|resume|undo|history`: the levers of a rollout.

Each is one patch of the user's own resource: an annotation or a part of the spec. What follows from it is the operator's business, so
nothing is lost when it is away, and `kubectl annotate` or an editor would do the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from slipway import names
from slipway.cli.errors import CliError
from slipway.cli.kubectl import Cluster
from slipway.cli.options import with_cluster
from slipway.plan.objects import annotation, name_of, status_of
from slipway.plan.workload import SHAPE_KEYS
from slipway.snapshot import Manifest

MDEP = "modeldeployments.slipway.dev"
Patch = list[dict[str, Any]]


@click.command()
@click.argument("name")
@click.option("--full", is_flag=True, help="Skip all steps that are left, and the verdict of the analysis.")
@with_cluster
def promote(*, cluster: Cluster, name: str, full: bool) -> None:
    """Let NAME's rollout go on past the step that it is in, or past the comparison of answers before the first."""
    resource = find(cluster, name)
    revision, step = _coming(resource)
    if not full and step is None:
        raise CliError(f"revision {revision} is in no step", "promote it all the way with --full, or wait")
    is_compared = (status_of(resource).get("canary") or {}).get("phase") == "Shadowing"
    step = 0 if is_compared else step
    past = "the comparison of answers" if is_compared else f"step {step}"
    value = revision if full else f"{revision}/{step}"
    cluster.patch(MDEP, name, [*_note(resource, names.PROMOTE, value), *_note(resource, names.ABORT, None)])
    click.echo(f"{name}: revision {revision} promoted " + ("all the way" if full else f"past {past}"))


@click.command()
@click.argument("name")
@with_cluster
def abort(*, cluster: Cluster, name: str) -> None:
    """Give up NAME's new revision; the stable one gets all requests. It is not tried again until the spec changes."""
    resource = find(cluster, name)
    revision, _ = _coming(resource)
    cluster.patch(MDEP, name, _note(resource, names.ABORT, revision))
    stable = (status_of(resource).get("stable") or {}).get("revision", "none")
    click.echo(f"{name}: revision {revision} aborted; stable is {stable}")


@click.command()
@click.argument("name")
@with_cluster
def pause(*, cluster: Cluster, name: str) -> None:
    """Hold NAME's rollout where it is (spec.paused). A bad revision is still rolled back."""
    cluster.patch(MDEP, name, [{"op": "add", "path": "/spec/paused", "value": True}])
    click.echo(f"{name}: paused")


@click.command()
@click.argument("name")
@with_cluster
def resume(*, cluster: Cluster, name: str) -> None:
    """Let NAME's rollout go on after a pause."""
    cluster.patch(MDEP, name, [{"op": "add", "path": "/spec/paused", "value": False}])
    click.echo(f"{name}: resumed")


@click.command()
@click.argument("name")
@click.option("--to", "revision", help="The revision to go back to. Default: the one that served before.")
@with_cluster
def undo(*, cluster: Cluster, name: str, revision: str | None) -> None:
    """Put NAME's spec back to what an earlier revision was made of; nothing is downloaded from its source or converted again."""
    resource = find(cluster, name)
    deployments = cluster.items("deployments.apps", "-l", f"{names.DEPLOYMENT}={name}")
    to = revision or previous(resource)
    found = next((d for d in deployments if name_of(d) == to), None)
    if found is None:
        raise CliError(f"revision {to} of {name} is not there any more", f"choose one that `slipway history {name}` shows as kept")
    cluster.patch(MDEP, name, undo_patch(resource, found))
    click.echo(f"{name}: the spec is that of revision {to} again. If it is kept in Git, change it there too:")
    click.echo(f"  spec.model.uri: {json.loads(annotation(found, names.SHAPE) or '{}')['model']['uri']}")


@click.command()
@click.argument("name")
@with_cluster
def history(*, cluster: Cluster, name: str) -> None:
    """Show NAME's revisions: what serves, what comes, what was, and which of them `undo` can go back to."""
    resource = find(cluster, name)
    deployments = cluster.items("deployments.apps", "-l", f"{names.DEPLOYMENT}={name}")
    table = Table("revision", "state", "reason", "since", "kept", "model", box=None, pad_edge=False)
    for row in rows(resource, deployments):
        table.add_row(*row)
    Console(highlight=False, width=None if sys.stdout.isatty() else 400).print(table)


def rows(resource: Manifest, deployments: Sequence[Manifest]) -> list[tuple[str, ...]]:
    """Return the revisions, the newest first: name, state, reason, since when, whether it can be gone back to, its model."""
    status = status_of(resource)
    canary, stable = status.get("canary") or {}, status.get("stable") or {}
    found = [
        (canary, str(canary.get("phase", "Coming")), canary.get("reason"), canary.get("stepStartedAt")),
        (stable, "Stable", None, stable.get("since")),
        *((entry, entry["outcome"], entry.get("reason"), entry.get("finishedAt")) for entry in status.get("history") or ()),
    ]
    kept = {name_of(d): d for d in deployments}
    result: dict[str, tuple[str, ...]] = {}
    for entry, state, reason, since in found:
        revision = str(entry.get("revision", ""))
        if revision and revision not in result:
            shape = json.loads((annotation(kept[revision], names.SHAPE) if revision in kept else None) or "{}")
            uri = str((shape.get("model") or {}).get("uri", ""))
            result[revision] = (revision, state, str(reason or ""), str(since or ""), "yes" if shape else "no", uri)
    return list(result.values())


def previous(resource: Manifest) -> str:
    """Return the revision that `undo` means: the stable one while another comes or was given up, else the one that served before it.

    Raises:
        CliError: none has served before.
    """
    status = status_of(resource)
    stable = (status.get("stable") or {}).get("revision")
    if status.get("canary") and stable:
        return str(stable)
    served = [entry["revision"] for entry in status.get("history") or () if entry["outcome"] == "Served" and entry["revision"] != stable]
    if not served:
        raise CliError(f"{name_of(resource)} has no earlier revision that served", "name one with --to, or change the spec")
    return str(served[0])


def undo_patch(resource: Manifest, deployment: Manifest) -> Patch:
    """Return the JSON patch that makes the spec that of the revision again, and sends it all the way at once.

    Raises:
        CliError: the revision was made by an operator that did not keep its spec.
    """
    shape: Mapping[str, Any] = json.loads(annotation(deployment, names.SHAPE) or "{}")
    spec, revision = resource["spec"], name_of(deployment)
    if not shape:
        raise CliError(f"revision {revision} does not say what it was made of", "put the earlier spec back with kubectl apply")
    replicas = {key: value for key, value in (spec.get("serving") or {}).items() if key == "replicas"}
    wanted = {key: shape.get(key) for key in SHAPE_KEYS} | {"serving": {**shape.get("serving", {}), **replicas}}
    patch: Patch = [{"op": "test", "path": "/metadata/resourceVersion", "value": resource["metadata"]["resourceVersion"]}]
    for key, value in wanted.items():
        if value is not None:
            patch.append({"op": "add", "path": f"/spec/{key}", "value": value})
        elif key in spec:
            patch.append({"op": "remove", "path": f"/spec/{key}"})
    has_served = revision == (status_of(resource).get("stable") or {}).get("revision")
    notes = [] if has_served else _note(resource, names.PROMOTE, revision)
    return [*patch, *notes, *(_note(resource, names.ABORT, None) if annotation(resource, names.ABORT) == revision else [])]


def find(cluster: Cluster, name: str) -> Manifest:
    """Return the ModelDeployment.

    Raises:
        CliError: there is none of that name.
    """
    resource = cluster.find(MDEP, name)
    if resource is None:
        place = f" in namespace {cluster.namespace}" if cluster.namespace else ""
        raise CliError(f"there is no ModelDeployment {name}{place}", "list them: kubectl get mdep -A")
    return resource


def _coming(resource: Manifest) -> tuple[str, int | None]:
    """Return the revision that is coming, and its step, counted from 1."""
    canary = status_of(resource).get("canary")
    if not canary:
        raise CliError(f"{name_of(resource)} has no rollout in progress", f"see `slipway history {name_of(resource)}`")
    if canary.get("phase") == "RolledBack":
        raise CliError(
            f"revision {canary['revision']} was rolled back: {canary.get('reason', '')}", "change the spec, or go back with undo"
        )
    step = canary.get("step")
    return str(canary["revision"]), None if step is None else int(step)


def _note(resource: Manifest, key: str, value: str | None) -> Patch:
    """Return the patch that sets an annotation, or removes it with None."""
    annotations = resource["metadata"].get("annotations")
    path = "/metadata/annotations/" + key.replace("~", "~0").replace("/", "~1")
    if value is None:
        return [{"op": "remove", "path": path}] if key in (annotations or {}) else []
    first = [] if annotations else [{"op": "add", "path": "/metadata/annotations", "value": {}}]
    return [*first, {"op": "add", "path": path, "value": value}]


COMMANDS = (promote, abort, pause, resume, undo, history)
