"""The report as one HTML file: no script, nothing from elsewhere, light or dark as the reader has it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

from slipway.cli.report.charts import Numbered, bars, element, key, scatter
from slipway.cli.report.model import (
    LOAD,
    MEMORY,
    METRICS,
    P50,
    P99,
    SIZE,
    THROUGHPUT,
    Candidate,
    Report,
    Revision,
    cost_lines,
    money,
)

# The file needs nothing, so it may fetch nothing: what a cluster says is text, and would be harmless even if it were not.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_BARS = (
    ("p50 of one sample (less is better)", P50),
    ("p99 of one sample (less is better)", P99),
    ("throughput (more is better)", THROUGHPUT),
    ("size of the files (less is better)", SIZE),
    ("time to load (less is better)", LOAD),
    ("peak memory (less is better)", MEMORY),
)


def page(report: Report, now: datetime) -> str:
    """Return the file; `now` is when it was made."""
    title = f"{report.name}: candidates and cost"
    head = element(
        "head",
        {},
        element("meta", {"charset": "utf-8"}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": _POLICY}),
        element("title", {}, title),
        element("style", {}, Path(__file__).with_name("page.css").read_text(encoding="utf-8")),
    )
    made = f"slipway report, {now.strftime('%Y-%m-%d %H:%M')} UTC"
    header = element(
        "header",
        {},
        element("h1", {}, title),
        element("p", {}, f"ModelDeployment {report.namespace}/{report.name}, model ", element("code", {}, report.uri)),
    )
    sections = [_section(number, revision) for number, revision in enumerate(report.revisions, 1)]
    empty = [] if sections else [element("p", {}, f"No revision yet; see: slipway status {report.name}")]
    main = element("main", {}, header, *empty, *sections, element("footer", {}, made))
    html = element("html", {"lang": "en"}, head, element("body", {}, main))
    return "<!doctype html>\n" + tostring(html, encoding="unicode", method="html") + "\n"


def _section(number: int, revision: Revision) -> Element:
    ident = f"r{number}"
    built = f"{revision.format} {revision.precision}".strip() or revision.state
    parts = [
        element("h2", {"id": ident}, f"{revision.role.capitalize()} revision {revision.name}"),
        element("p", {}, f"{revision.weight} % of the traffic, artifact ", element("code", {}, revision.artifact), f", {built}"),
    ]
    if revision.choice:
        parts.append(element("p", {"class": "choice"}, f"Chosen: {revision.choice}."))
    elif revision.candidates and not revision.is_served:
        parts.append(element("p", {"class": "choice bad"}, f"None is served: {revision.state}"))
    parts.append(_cost(revision))
    rows = list(enumerate(revision.candidates, 1))
    if rows:
        parts += [_table(rows), _reasons(rows), _meanings(), *_figures(ident, rows)]
    else:
        parts.append(element("p", {}, f"No candidates: {revision.state}"))
    return element("section", {"aria-labelledby": ident}, *parts)


def _cost(revision: Revision) -> Element:
    cost = revision.cost
    lines = cost_lines(cost)
    big: list[Element] = []
    if cost.per_million is not None:
        big = [element("p", {"class": "big"}, money(cost.per_million, cost.currency), element("span", {}, " per million predictions"))]
        lines = lines[1:]
    return element("div", {"class": "card"}, element("h3", {}, "Cost"), *big, *(element("p", {}, line) for line in lines))


def _table(rows: list[Numbered]) -> Element:
    titles = ["#", "candidate", "verdict", *(metric.title for metric in METRICS)]
    head = element("thead", {}, element("tr", {}, *(element("th", {"scope": "col"}, title) for title in titles)))
    body = element("tbody", {}, *(_row(number, candidate) for number, candidate in rows))
    caption = element("caption", {}, "Candidates, in the order of the spec")
    # a region that scrolls must be reachable by keyboard (WCAG 2.1.1)
    region: dict[str, object] = {"class": "scroll", "role": "region", "aria-label": "Candidates", "tabindex": 0}
    return element("div", region, element("table", {}, caption, head, body))


def _row(number: int, candidate: Candidate) -> Element:
    kind = "good" if candidate.verdict == "Passed" else "bad"
    mark = [element("strong", {"class": "tag"}, "chosen")] if candidate.is_chosen else []
    cells = [
        element("td", {}, str(number)),
        element("th", {"scope": "row"}, candidate.title, *mark),
        element("td", {"class": kind}, candidate.verdict),
        *(element("td", {"class": "n"}, candidate.text(metric) or "–") for metric in METRICS),
    ]
    return element("tr", {"class": "chosen"} if candidate.is_chosen else {}, *cells)


def _reasons(rows: list[Numbered]) -> Element:
    """Return why each is served or not, numbered like the table."""
    words = (element("li", {}, element("b", {}, candidate.title), f": {candidate.why}") for _, candidate in rows)
    return element("ol", {"class": "why", "aria-label": "Why each candidate is served or not"}, *words)


def _meanings() -> Element:
    rows = [part for metric in METRICS for part in (element("dt", {}, metric.title), element("dd", {}, metric.meaning))]
    return element("details", {}, element("summary", {}, "What the columns mean"), element("dl", {}, *rows))


def _figures(ident: str, rows: list[Numbered]) -> Iterator[Element]:
    plots = [
        scatter(f"{ident}-latency", "error against latency", rows, P50),
        scatter(f"{ident}-size", "error against size", rows, SIZE),
        *(bars(f"{ident}-{metric.key}", title, rows, metric) for title, metric in _BARS),
    ]
    found = [plot for plot in plots if plot is not None]
    if found:
        yield key()
        yield element("div", {"class": "figures"}, *found)
