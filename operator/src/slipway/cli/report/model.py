"""What `slipway report` is about: the objects of a cluster as revisions, candidates and numbers. Pure; text and page show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from slipway.api.common import parse_quantity
from slipway.cli.tree import NEXT, View
from slipway.plan.cost import Cost
from slipway.plan.objects import condition, name_of, status_of
from slipway.snapshot import Manifest

ROLES = (("stable", "stable"), ("coming", "canary"))  # what a user reads, and the field of the status


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a candidate: its name in JSON, its title, what it is, and how it is written for people."""

    key: str
    title: str
    meaning: str
    shown: Callable[[float], str]
    read: Callable[[Mapping[str, Any]], Any]


def _field(key: str, unit: str = "") -> Callable[[Mapping[str, Any]], Any]:
    return lambda row: None if row.get(key) is None else str(row[key]).removesuffix(unit)


def _memory(row: Mapping[str, Any]) -> Any:
    return None if row.get("peakMemory") is None else parse_quantity(str(row["peakMemory"]))


def _rate(value: float) -> str:
    return f"{value:,.0f}/s" if value >= 100 else f"{value:.3g}/s"


def _mebibytes(value: float) -> str:
    return f"{value / 2**20:,.0f} MiB"  # as limits of memory are written


def bytes_shown(value: float) -> str:
    """Return a size for people, in units of 1,000 bytes."""
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.0f} GB" if value >= 100 else f"{value:.3g} GB"


ERROR = Metric(
    "maxAbsoluteError", "max error", "largest difference of any output value from the source", "{:.2g}".format, _field("maxAbsoluteError")
)
RELATIVE = Metric(
    "maxRelativeError", "relative", "largest difference relative to the source's value", "{:.2g}".format, _field("maxRelativeError")
)
TOP1 = Metric(
    "top1AgreementPercent", "top-1", "samples whose best class is that of the source", "{:.4g} %".format, _field("top1AgreementPercent")
)
ACCURACY = Metric("accuracyPercent", "accuracy", "labelled samples that it got right", "{:.4g} %".format, _field("accuracyPercent"))
P50 = Metric("latencyP50Milliseconds", "p50", "median time of one sample", "{:.3g} ms".format, _field("latencyP50", "ms"))
P99 = Metric("latencyP99Milliseconds", "p99", "99th percentile of the time of one sample", "{:.3g} ms".format, _field("latencyP99", "ms"))
THROUGHPUT = Metric("throughput", "throughput", "samples a second at the best batch size", _rate, _field("throughput"))
BATCH = Metric("batchSize", "batch", "that batch size", "{:.0f}".format, _field("batchSize"))
LOAD = Metric("loadSeconds", "load", "time to load it", "{:.2g} s".format, _field("loadSeconds"))
MEMORY = Metric("peakMemoryBytes", "memory", "most memory of its process", _mebibytes, _memory)
SIZE = Metric("sizeBytes", "size", "size of its files", bytes_shown, _field("sizeBytes"))
METRICS = (ERROR, RELATIVE, TOP1, ACCURACY, P50, P99, THROUGHPUT, BATCH, LOAD, MEMORY, SIZE)
_BY_OBJECTIVE = {"Latency": (P50, False), "Throughput": (THROUGHPUT, True), "Size": (SIZE, False)}  # and whether more is better


@dataclass(frozen=True, slots=True)
class Candidate:
    """One row of the auction; `values` by the key of a Metric, absent when not measured."""

    title: str
    target: str
    precision: str
    method: str | None
    verdict: str
    reason: str
    message: str
    values: Mapping[str, float]
    is_chosen: bool = False
    why: str = ""

    def value(self, metric: Metric) -> float | None:
        """Return the number, None when it was not measured."""
        return self.values.get(metric.key)

    def text(self, metric: Metric) -> str:
        """Return the number for people, empty when it was not measured."""
        value = self.value(metric)
        return "" if value is None else metric.shown(value)


@dataclass(frozen=True, slots=True)
class Revision:
    """A revision, its artifact's auction, and what its predictions cost."""

    name: str
    role: str
    weight: int
    artifact: str
    digest: str
    format: str
    precision: str
    state: str
    objective: str | None
    choice: str
    candidates: tuple[Candidate, ...]
    cost: Cost

    @property
    def is_served(self) -> bool:
        """Whether one of the candidates was chosen."""
        return any(candidate.is_chosen for candidate in self.candidates)


@dataclass(frozen=True, slots=True)
class Report:
    """All of it."""

    name: str
    namespace: str
    uri: str
    revisions: tuple[Revision, ...]


def report_of(view: View, costs: Mapping[str, Cost]) -> Report:
    """Return the report; `costs` by revision."""
    metadata, status = view.resource["metadata"], status_of(view.resource)
    rows = [(role, status[key]) for role, key in ROLES if status.get(key)]
    revisions = (_revision(role, row, view.artifacts.get(str(row.get("artifact"))), costs) for role, row in rows)
    return Report(name_of(view.resource), metadata.get("namespace", "default"), view.resource["spec"]["model"]["uri"], tuple(revisions))


def _revision(role: str, row: Mapping[str, Any], artifact: Manifest | None, costs: Mapping[str, Cost]) -> Revision:
    found: Manifest = artifact or {"metadata": {}, "spec": {}}
    status, name = status_of(found), str(row["revision"])
    objective = (found["spec"].get("conversion") or {}).get("objective")
    choice = str(status.get("choice") or "")
    return Revision(
        name=name,
        role=role,
        weight=int(row.get("weight", 0)),
        artifact=str(row.get("artifact", "")),
        digest=str(status.get("digest", "")),
        format=str(status.get("format", "")),
        precision=str(status.get("precision", "")),
        state=_state(artifact),
        objective=objective,
        choice=choice,
        candidates=_explained(_candidates(status), objective, choice),
        cost=costs.get(name, Cost(0, notes=("no pods",))),
    )


def _state(artifact: Manifest | None) -> str:
    """Return why there is no table, or what the artifact says of itself."""
    if artifact is None:
        return "the artifact does not exist"
    ready = condition(artifact, "Ready") or {}
    return f"{ready.get('reason', 'Pending')}: {str(ready.get('message', '')).partition(NEXT)[0]}".rstrip(": ")


def _candidates(status: Mapping[str, Any]) -> tuple[Candidate, ...]:
    rows = list(status.get("candidates") or ())
    chosen = next((number for number, row in enumerate(rows) if row.get("chosen")), None)
    if chosen is None and status.get("digest"):  # an operator or a converter that did not mark it yet
        chosen = next((number for number, row in enumerate(rows) if _may_be(row, status)), None)
    return tuple(replace(_candidate(row), is_chosen=number == chosen) for number, row in enumerate(rows))


def _may_be(row: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
    is_format = row.get("target") in (status.get("format"), "None")
    return row.get("verdict") == "Passed" and is_format and row.get("precision", "Float32") == status.get("precision", "Float32")


def _candidate(row: Mapping[str, Any]) -> Candidate:
    values = {metric.key: _number(metric.read(row)) for metric in METRICS}
    return Candidate(
        title=" ".join(str(row[key]) for key in ("target", "precision", "method") if row.get(key)),
        target=str(row.get("target", "")),
        precision=str(row.get("precision", "")),
        method=row.get("method"),
        verdict=str(row.get("verdict", "")),
        reason=str(row.get("reason") or ""),
        message=str(row.get("message") or ""),
        values={key: value for key, value in values.items() if value is not None},
    )


def _number(text: Any) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _explained(candidates: Sequence[Candidate], objective: str | None, choice: str) -> tuple[Candidate, ...]:
    winner = next((candidate for candidate in candidates if candidate.is_chosen), None)
    return tuple(replace(candidate, why=_why(candidate, winner, objective, choice)) for candidate in candidates)


def _why(candidate: Candidate, winner: Candidate | None, objective: str | None, choice: str) -> str:
    """Say why a candidate is served, or is not."""
    if candidate.is_chosen:
        return choice or "chosen"
    if candidate.verdict != "Passed":
        return f"{candidate.reason}: {candidate.message}".strip(": ")
    return "passed; nothing was chosen" if winner is None else _compared(candidate, winner, objective)


def _compared(candidate: Candidate, winner: Candidate, objective: str | None) -> str:
    if objective not in _BY_OBJECTIVE:
        return f"passed; without conversion.objective the first that passes is served: {winner.title}"
    metric, is_more_better = _BY_OBJECTIVE[objective]
    mine, best = candidate.value(metric), winner.value(metric)
    if mine is None or best is None or min(mine, best) <= 0:
        return candidate.message or f"passed; {metric.title} was not measured"
    if (mine >= best) if is_more_better else (mine <= best):
        return f"passed; no better than {winner.title} by more than the noise, and less simple"
    return f"passed; {metric.title} {metric.shown(mine)} against {metric.shown(best)} of {winner.title}"


def document(report: Report) -> dict[str, Any]:
    """Return the report as JSON; numbers in the unit that their name says, null when not measured, money as decimal strings."""
    return {
        "name": report.name,
        "namespace": report.namespace,
        "model": report.uri,
        "revisions": [_revision_document(revision) for revision in report.revisions],
    }


def _revision_document(revision: Revision) -> dict[str, Any]:
    keys = ("role", "weight", "artifact", "digest", "format", "precision", "state", "objective", "choice")
    return {
        "revision": revision.name,
        **{key: getattr(revision, key) for key in keys},
        "candidates": [_candidate_document(candidate) for candidate in revision.candidates],
        "cost": _cost_document(revision.cost),
    }


def _candidate_document(candidate: Candidate) -> dict[str, Any]:
    keys = ("target", "precision", "method", "verdict", "reason", "message", "why")
    numbers = {metric.key: _plain(candidate.value(metric)) for metric in METRICS}
    return {"chosen": candidate.is_chosen, **{key: getattr(candidate, key) for key in keys}, **numbers}


def _plain(value: float | None) -> float | None:
    return int(value) if value is not None and value.is_integer() else value


def _cost_document(cost: Cost) -> dict[str, Any]:
    return {
        "currency": cost.currency,
        "perMillionPredictions": _decimal(cost.per_million),
        "perHour": _decimal(cost.per_hour),
        "hours": round(cost.hours, 4),
        "predictions": round(cost.predictions),
        "pods": cost.pods,
        "podsCounted": cost.counted,
        "notes": list(cost.notes),
    }


def _decimal(value: Decimal | None) -> str | None:
    return None if value is None else f"{Decimal(f'{value:.6g}').normalize():f}"  # no exponent: not every reader takes one in a decimal


def money(value: Decimal, currency: str) -> str:
    """Return an amount for people: two digits after the point, three significant ones below 1."""
    text = f"{value:,.2f}" if value >= 1 or value == 0 else f"{float(value):.3g}"
    return f"{text} {currency}".strip()


def cost_lines(cost: Cost) -> list[str]:
    """Say what the predictions of a revision cost, and what is not known."""
    lines = []
    if cost.per_million is not None:
        lines.append(f"{money(cost.per_million, cost.currency)} per million predictions")
    if cost.per_hour is not None:
        which = f"{cost.counted} of {cost.pods} pods" if cost.counted != cost.pods else f"{cost.pods} pod{'s' * (cost.pods != 1)}"
        spent = f"{which} at {money(cost.per_hour, cost.currency)} an hour{' together' * (cost.counted > 1)}"
        lines.append(f"{spent}; {cost.predictions:,.0f} predictions in {hours(cost.hours)}")
    return [*lines, *cost.notes]


def hours(value: float) -> str:
    """Return the hours of all pods together for people."""
    if value < 2:
        return f"{value * 3600:.0f} pod seconds" if value < 0.05 else f"{value * 60:.0f} pod minutes"
    return f"{value:,.1f} pod hours"
