"""The PromQL of the built-in metrics, and what Prometheus' answers mean. Pure; the client that asks is in `sources`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slipway.analysis.exposition import DURATION, ERROR_CODE, NONFINITE, PREFIX, REQUESTS
from slipway.analysis.histogram import from_cumulative
from slipway.analysis.verdict import Points
from slipway.analysis.window import Sample

POINTS = 3  # how many points of a custom query must agree


@dataclass(frozen=True, slots=True)
class Target:
    """Which revision is measured, and since when: the start of the step, Unix seconds. `with_probes`: probes count as requests.

    `comparator`: its comparisons are what counts, instead of the revision's requests.
    """

    namespace: str
    name: str
    revision: str
    since: float
    with_probes: bool = False
    comparator: str | None = None


class QueryError(RuntimeError):
    """Prometheus gave no usable answer; the message says what it said."""


def built_in(target: Target, now: float, scope: str = "", prefix: str = PREFIX) -> dict[str, str]:
    """Return the instant queries for one revision since its step began, by what they measure.

    A revision's name is unique in its namespace only, so the namespace must match; `scope` are further matchers, such as a cluster label.
    With the prefix PROBES they are about probes.
    """
    requests, nonfinite, duration = (prefix + name.removeprefix(PREFIX) for name in (REQUESTS, NONFINITE, DURATION))
    matchers = ",".join(filter(None, [f"revision={_quote(target.revision)}", f"namespace={_quote(target.namespace)}", scope]))
    span = window(target, now)
    return {
        "requests": _grown(f"{requests}{{{matchers}}}", span),
        "errors": _grown(f'{requests}{{{matchers},code=~"{ERROR_CODE}"}}', span),
        "nonfinite": _grown(f"{nonfinite}{{{matchers}}}", span),
        "duration": _grown(f"{duration}_bucket{{{matchers}}}", span, " by (le)"),
        "total": _grown(f"{duration}_sum{{{matchers}}}", span),
        "newest": f"min(timestamp({duration}_count{{{matchers}}} or {requests}{{{matchers}}}))",
    }


def _grown(series: str, span: str, by: str = "") -> str:
    """The PromQL for how much counters grew, added up.

    `increase` takes the first sample of a series for its beginning. A counter with labels is born with its first event, so that the first
    errors of a canary would never count: a series that was not there when the window began counts from 0.
    """
    increase = f"increase({series}[{span}])"
    born = f"(min_over_time({series}[{span}]) unless ({series} offset {span}))"
    return f"sum{by} (({increase} + {born}) or {increase} or {born})"


def custom(query: str, target: Target, now: float) -> str:
    """Return a user's query with its placeholders replaced; values are escaped for a PromQL string."""
    values = {"revision": target.revision, "namespace": target.namespace, "name": target.name, "window": window(target, now)}
    for key, value in values.items():
        query = query.replace("{{" + key + "}}", _quote(value)[1:-1])
    return query


def window(target: Target, now: float) -> str:
    """Return the time since the step began as a PromQL duration, at least a second."""
    return f"{max(1000, round(1000 * (now - target.since)))}ms"


def sample_of(answers: Mapping[str, Any], target: Target, now: float) -> Sample:
    """Return what the revision did, from the parsed answers to `built_in`.

    Neither requests nor durations are missing data (a wrong address, a scrape that is not set up). A counter with labels has no series
    before its first event: durations without requests are no requests, requests without errors are no errors.

    Raises:
        QueryError: A number is NaN, or the buckets are broken.
    """
    requests = number(answers["requests"])
    if requests is None and not answers["duration"]:
        return Sample(now - target.since, now, 0, 0, missing=f"Prometheus has no {REQUESTS} of {target.revision}; does it scrape the pods?")
    buckets = {float(row["metric"]["le"]): float(row["value"][1]) for row in answers["duration"] if "le" in row["metric"]}
    try:
        total = number(answers["total"])
        duration = from_cumulative(buckets, math.nan if total is None else total) if buckets else None
    except ValueError as error:
        raise QueryError(f"the histogram of {target.revision} is broken: {error}") from error
    newest = number(answers["newest"])
    return Sample(
        now - target.since,
        target.since if newest is None else newest,
        requests or 0.0,
        number(answers["errors"]) or 0.0,
        number(answers["nonfinite"]),
        duration,
    )


def number(vector: Any) -> float | None:
    """Return the one value of an instant vector (or scalar), None when it is empty.

    Raises:
        QueryError: More than one series, or a value that is no finite number.
    """
    if isinstance(vector, list) and len(vector) == 2 and isinstance(vector[1], str):
        vector = [{"value": vector}]  # a scalar
    if not vector:
        return None
    if len(vector) > 1:
        raise QueryError(f"the query gives {len(vector)} series, one number is needed; aggregate it, for example with avg()")
    value = float(vector[0]["value"][1])
    if not math.isfinite(value):
        raise QueryError(f"the query gives {value}")
    return value


def points_of(matrix: Any) -> Points:
    """Return the values of a range query, the oldest first; NaN stay in, for the verdict to see."""
    if not matrix:
        return Points(missing="Prometheus has no data for it")
    if len(matrix) > 1:
        return Points(missing=f"it gives {len(matrix)} series, one number is needed; aggregate it, for example with avg()")
    return Points(tuple(float(value) for _, value in matrix[0]["values"]))


def result_of(status: int, body: bytes) -> Any:
    """Return `data.result` of an answer of Prometheus' HTTP API.

    Raises:
        QueryError: With Prometheus' own message, or what else came.
    """
    try:
        answer = json.loads(body)
        if answer["status"] == "success":
            return answer["data"]["result"]
        raise QueryError(f"Prometheus says {answer.get('errorType')}: {answer.get('error')}")
    except (ValueError, KeyError, TypeError) as error:
        raise QueryError(f"HTTP {status} and no answer of Prometheus; is the address right?") from error


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
