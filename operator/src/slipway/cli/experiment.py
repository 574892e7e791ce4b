"""`slipway experiment NAME`: the two sides of an A/B test, with confidence intervals and a verdict.

The numbers are the pods' own counters, read through the API server: since each pod started, or, with --for, of that time alone.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from slipway import names
from slipway.analysis.experiment import Comparison, compare
from slipway.analysis.exposition import Scrape, ScrapeError, parse, parse_experiment
from slipway.analysis.intervals import Interval
from slipway.analysis.window import Sample, Track, follow, sample
from slipway.cli.errors import CliError
from slipway.cli.kubectl import Cluster
from slipway.cli.options import with_cluster
from slipway.cli.rollout import find
from slipway.plan.experiments import experiments_of
from slipway.plan.gate import metrics_pages
from slipway.plan.objects import condition, name_of, status_of
from slipway.snapshot import DeploymentSnapshot, Manifest

SECONDS = ("latency-mean",)  # metrics whose unit is the second


@dataclass(frozen=True, slots=True)
class Side:
    """Whose requests are counted: those of an experiment, or (None) of all users, at one revision."""

    revision: str
    experiment: str | None = None

    def __str__(self) -> str:
        return f"{self.experiment or 'all requests'} at {self.revision}"


@click.command()
@click.argument("name")
@click.option("--experiment", "wanted", help="The experiment. Default: the first that leads to the canary.")
@click.option(
    "--for", "seconds", type=click.IntRange(0, 86400), default=0, help="Count for so many seconds. Default: since the pods began."
)
@click.option("--margin", "margins", multiple=True, metavar="METRIC=VALUE", help="A difference that does not matter, as error-rate=0.005.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="Default: table.")
@with_cluster
def experiment(  # noqa: PLR0913 - the options
    *, cluster: Cluster, name: str, wanted: str | None, seconds: int, margins: tuple[str, ...], output: str
) -> None:
    """Compare the users of an experiment of NAME with its control: an experiment that leads to stable, else all other users."""
    resource = find(cluster, name)
    sides = sides_of(resource, wanted)
    limits = dict(_margin(text) for text in margins)
    samples = measured(cluster, resource, sides, seconds)
    rows = compare(*samples, limits)
    if output == "json":
        click.echo(json.dumps(as_json(sides, samples, rows)))
        return
    for side, found in zip(sides, samples, strict=True):
        click.echo(f"{side}: {int(found.requests)} requests" + (f"; incomplete: {found.missing}" if found.missing else ""))
    Console(highlight=False, width=None if sys.stdout.isatty() else 400).print(table(sides, rows))


def sides_of(resource: Manifest, wanted: str | None) -> tuple[Side, Side]:
    """Return whom the experiment is about, and whom it is compared with.

    Raises:
        CliError: there is no such experiment, no canary with a weight, or no gateway that could pin anybody.
    """
    name, known, status = name_of(resource), experiments_of(resource), status_of(resource)
    of_canary = [str(e["name"]) for e in known if e.get("revision", "Canary") == "Canary"]
    chosen = wanted or next(iter(of_canary), None)
    if chosen not in of_canary:
        raise CliError(f"{name} has no experiment {chosen or 'that leads to the canary'}", "see spec.routing.experiments")
    found = condition(resource, "Experiments") or {}
    if found.get("status") == "False":
        raise CliError(
            f"experiment {chosen} is not in force: {found.get('reason')}: {found.get('message')}", f"see `slipway status {name}`"
        )
    canary, stable = status.get("canary") or {}, (status.get("stable") or {}).get("revision")
    if not canary.get("weight") or stable is None:
        raise CliError(f"{name} has no canary with a weight, so experiment {chosen} has one side only", f"see `slipway status {name}`")
    control = next((str(e["name"]) for e in known if e.get("revision") == "Stable"), None)
    return Side(str(canary["revision"]), chosen), Side(str(stable), control)


def measured(cluster: Cluster, resource: Manifest, sides: tuple[Side, Side], seconds: int) -> tuple[Sample, Sample]:
    """Count the requests of both sides since their pods began, or for some seconds from now on."""
    tracks = [Track(time.time() if seconds else 0.0) for _ in sides]
    for wait in [0, seconds] if seconds else [0]:
        time.sleep(wait)
        snapshot = _snapshot(cluster, resource)
        tracks = [follow(track, dict(_scrapes(cluster, snapshot, side))) for track, side in zip(tracks, sides, strict=True)]
    now = time.time()
    first, second = (sample(track, now) for track in tracks)
    return first, second


def _snapshot(cluster: Cluster, resource: Manifest) -> DeploymentSnapshot:
    pods = cluster.items("pods", "-l", f"{names.DEPLOYMENT}={name_of(resource)}")
    return DeploymentSnapshot(resource, pods=tuple(pods), runtimes=tuple(cluster.items("servingruntimes.slipway.dev")))


def _scrapes(cluster: Cluster, snapshot: DeploymentSnapshot, side: Side) -> Iterator[tuple[str, Scrape | str]]:
    for uid, place, path in metrics_pages(snapshot, side.revision):
        try:
            text = cluster.raw(f"/api/v1/namespaces/{snapshot.resource['metadata']['namespace']}/pods/{place}/proxy{path}")
            at = time.time()
            is_all = side.experiment is None
            yield uid, parse(text, side.revision, at) if is_all else parse_experiment(text, side.revision, at, str(side.experiment))
        except (CliError, ScrapeError) as error:
            yield uid, str(error)


def _margin(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError as error:
        raise click.UsageError(f"--margin {text!r} is not METRIC=VALUE, as error-rate=0.005 or latency-mean=0.002 (seconds)") from error


def as_json(sides: tuple[Side, Side], samples: tuple[Sample, Sample], rows: tuple[Comparison, ...]) -> dict[str, Any]:
    """Return the result for programs; rates are shares, latencies seconds, what is not known is null."""
    return {
        "sides": [
            {"experiment": side.experiment, "revision": side.revision, "requests": int(found.requests), "missing": found.missing}
            for side, found in zip(sides, samples, strict=True)
        ],
        "metrics": [
            {
                "name": row.name,
                "verdict": row.verdict,
                "message": row.message,
                "samples": list(row.samples),
                "sides": [_bounds(row.first), _bounds(row.second)],
                "difference": _bounds(row.difference),
                "always": _bounds(row.always),
            }
            for row in rows
        ],
    }


def _bounds(interval: Interval) -> Mapping[str, float | None]:
    return {
        key: number if math.isfinite(number) else None for key, number in zip(("value", "low", "high"), _numbers(interval), strict=True)
    }


def _numbers(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high


def table(sides: tuple[Side, Side], rows: tuple[Comparison, ...]) -> Table:
    """Return the result for people: each side and the difference with their 95 % intervals, and the verdict, which holds at all looks."""
    result = Table(
        "metric", *(side.experiment or "others" for side in sides), "difference (95 %)", "verdict", "why", box=None, pad_edge=False
    )
    for row in rows:
        shown = [_shown(row.name, interval) for interval in (row.first, row.second, row.difference)]
        result.add_row(row.name, *shown, row.verdict, row.message)
    return result


def _shown(name: str, interval: Interval) -> str:
    if not math.isfinite(interval.value):
        return "unknown"
    factor, unit = (1000.0, " ms") if name in SECONDS else (100.0, " %")
    value, low, high = (f"{number * factor:.3g}" if math.isfinite(number) else "?" for number in _numbers(interval))
    return f"{value}{unit} [{low}, {high}]"
