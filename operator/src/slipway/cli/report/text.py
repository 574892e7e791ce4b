"""The report on a terminal: one table, or several where it is narrow."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from slipway.cli.report.model import METRICS, Metric, Report, Revision, cost_lines
from slipway.cli.tree import BAD, GOOD

CHOSEN = "*"


def rendered(report: Report, console: Console) -> Iterator[RenderableType]:
    """Yield what is printed, for the width of the console."""
    yield Text(f"ModelDeployment {report.namespace}/{report.name}  {report.uri}", style="bold")
    if not report.revisions:
        yield Text(f"no revision yet; see: slipway status {report.name}")
    for revision in report.revisions:
        yield Text("")
        yield from _revision(revision, console)


def _revision(revision: Revision, console: Console) -> Iterator[RenderableType]:
    built = f"{revision.format} {revision.precision}".strip()
    parts = (f"{revision.role} {revision.name}", f"{revision.weight} % of the traffic", revision.artifact, built)
    yield Text("  ".join(part for part in parts if part), style="bold")
    if not revision.candidates:
        yield Text(f"no candidates: {revision.state}")
    else:
        yield from _tables(revision, console)
        for candidate in revision.candidates:
            mark, style = (CHOSEN, GOOD) if candidate.is_chosen else ("-", "")
            yield Text.assemble((f"{mark} {candidate.title}: ", style), candidate.why)
        if not revision.is_served:
            yield Text(f"none is served: {revision.state}", style=BAD)
    for number, line in enumerate(cost_lines(revision.cost)):
        yield Text(("cost: " if number == 0 else "      ") + line)


def _tables(revision: Revision, console: Console) -> Iterator[Table]:
    """Yield one table, or as many as it takes for none to be wider than the console."""
    left: tuple[Metric, ...] = METRICS
    while left:
        sizes = range(len(left), 1, -1)
        count = next((size for size in sizes if _width(_table(revision, left[:size]), console) <= console.width), 1)
        yield _table(revision, left[:count])
        left = left[count:]


def _width(table: Table, console: Console) -> int:
    return Measurement.get(console, console.options.update(width=10_000), table).maximum


def _table(revision: Revision, metrics: tuple[Metric, ...]) -> Table:
    """Return the candidates with some of their numbers; the verdict stands with the first of all."""
    found = Table(box=None, pad_edge=False, header_style="dim")
    is_first = metrics[0] is METRICS[0]
    for title in ("  candidate", "verdict")[: 1 + is_first]:
        found.add_column(title, no_wrap=True)
    for metric in metrics:
        found.add_column(metric.title, justify="right", no_wrap=True)
    for candidate in revision.candidates:
        words = (
            Text(f"{CHOSEN if candidate.is_chosen else ' '} {candidate.title}", style="bold" if candidate.is_chosen else ""),
            Text(candidate.verdict, style=GOOD if candidate.verdict == "Passed" else BAD),
        )
        found.add_row(*words[: 1 + is_first], *(candidate.text(metric) or "-" for metric in metrics))
    return found
