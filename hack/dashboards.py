"""Writes the Grafana dashboards of the chart: charts/slipway/files/dashboards/*.json. Run `python hack/dashboards.py` after a change.

A dashboard is rows of panels; a panel is a title, a unit and its queries. tests/unit/monitoring checks that each metric in them exists, and
that Grafana's own model of a dashboard has every field.

`python hack/dashboards.py picture URL NAMESPACE NAME [SECONDS]` puts the panels' queries to the Prometheus at URL, for the ModelDeployment
of that name and the last SECONDS (900), and draws the panels where Grafana would have them: docs/img/dashboard-*.png. Grafana itself draws
nothing there.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "charts/slipway/files/dashboards"
SOURCE = {"type": "prometheus", "uid": "${source}"}
MODEL = 'namespace="$namespace",model="$name"'
PODS = 'namespace="$namespace",pod=~"$name-[0-9a-f]{8}-.*"'
NAME = 'namespace="$namespace",name="$name"'
GPU = "avg by (namespace, pod) (100 * slipway_gpu_utilization_ratio or DCGM_FI_DEV_GPU_UTIL)"  # the latter is NVIDIA's dcgm-exporter's
Query = tuple[str, str]  # PromQL, legend
Panel = tuple[str, str, str, list[Query]]  # kind, title, unit, queries


def quantile(q: str, metric: str, where: str, by: str) -> str:
    return f"histogram_quantile({q}, sum by ({by}, le) (rate({metric}_bucket{{{where}}}[$__rate_interval])))"


def rate(metric: str, where: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}{{{where}}}[$__rate_interval]))"


def mean(metric: str, where: str, by: str) -> str:
    return f"{rate(metric + '_sum', where, by)} / {rate(metric + '_count', where, by)}"


def errors(where: str, by: str) -> str:
    failed, total = rate("slipway_requests_total", where + ',code=~"5.."', by), rate("slipway_requests_total", where, by)
    return f"({failed} or 0 * {total}) / {total}"  # a series of failures begins with the first one


FLEET: list[Panel] = [
    ("stat", "Models", "none", [('count(count by (namespace, name) (slipway_condition{type="Ready"}))', "")]),
    ("stat", "Not ready", "none", [('count(slipway_condition{type="Ready",status!="True"} == 1) or vector(0)', "")]),
    ("stat", "Requests", "reqps", [("sum(rate(slipway_requests_total[$__rate_interval]))", "")]),
    ("stat", "Rollouts", "none", [("count(count by (namespace, name) (slipway_traffic_weight > 0) > 1) or vector(0)", "")]),
    ("table", "What is not as it should be", "none", [('slipway_condition{type=~"Degraded|Reconciling|Stalled",status="True"} == 1', "")]),
    (
        "timeseries",
        "Requests by model",
        "reqps",
        [("sum by (namespace, model) (rate(slipway_requests_total[$__rate_interval]))", "{{namespace}}/{{model}}")],
    ),
    ("timeseries", "Share of failed requests", "percentunit", [(errors('model=~".+"', "namespace, model"), "{{namespace}}/{{model}}")]),
    ("timeseries", "p99", "s", [(quantile("0.99", "slipway_request_duration_seconds", "", "namespace, model"), "{{namespace}}/{{model}}")]),
    ("timeseries", "GPU use", "percent", [(f"{GPU} and on (namespace, pod) slipway_model_load_seconds", "{{pod}}")]),
]
ONE: list[Panel] = [
    ("timeseries", "Traffic by revision: what it should get", "percent", [(f"slipway_traffic_weight{{{NAME}}}", "{{revision}}")]),
    ("timeseries", "Requests by revision: what it gets", "reqps", [(rate("slipway_requests_total", MODEL, "revision"), "{{revision}}")]),
    ("timeseries", "Share of failed requests, canary against stable", "percentunit", [(errors(MODEL, "revision"), "{{revision}}")]),
    (
        "timeseries",
        "p99, canary against stable",
        "s",
        [(quantile("0.99", "slipway_request_duration_seconds", MODEL, "revision"), "{{revision}}")],
    ),
    (
        "timeseries",
        "p50, canary against stable",
        "s",
        [(quantile("0.5", "slipway_request_duration_seconds", MODEL, "revision"), "{{revision}}")],
    ),
    ("timeseries", "Waiting for the model, p99", "s", [(quantile("0.99", "slipway_queue_duration_seconds", PODS, "pod"), "{{pod}}")]),
    ("timeseries", "Inside the model, p99", "s", [(quantile("0.99", "slipway_inference_duration_seconds", PODS, "pod"), "{{pod}}")]),
    ("timeseries", "Samples in a batch, on average", "none", [(mean("slipway_batch_size", PODS, "pod"), "{{pod}}")]),
    ("timeseries", "Requests in flight", "none", [(f"slipway_inflight_requests{{{PODS}}}", "{{pod}}")]),
    ("timeseries", "GPU use", "percentunit", [(f"slipway_gpu_utilization_ratio{{{PODS}}}", "{{pod}} {{gpu}}")]),
    (
        "timeseries",
        "GPU memory in use",
        "percentunit",
        [(f"slipway_gpu_memory_used_bytes{{{PODS}}} / slipway_gpu_memory_total_bytes{{{PODS}}}", "{{pod}} {{gpu}}")],
    ),
    ("table", "What is served", "none", [(f"slipway_artifact_info{{{PODS}}}", "")]),
    ("timeseries", "Time to load", "s", [(f"slipway_model_load_seconds{{{PODS}}}", "{{pod}}")]),
]
OPERATOR: list[Panel] = [
    ("stat", "Leaders", "none", [("sum(slipway_leader)", "")]),
    ("stat", "Version", "none", [("count by (version) (slipway_build_info)", "{{version}}")]),
    ("timeseries", "Passes by result", "ops", [("sum by (result) (rate(slipway_reconcile_total[$__rate_interval]))", "{{result}}")]),
    ("timeseries", "Time of a pass", "s", [(quantile(q, "slipway_reconcile_duration_seconds", "", "pod"), q) for q in ("0.5", "0.99")]),
    ("timeseries", "Queue", "none", [("max(slipway_queue_depth)", "resources waiting")]),
    ("timeseries", "The oldest waits for", "s", [("max(slipway_queue_oldest_seconds)", "")]),
    (
        "timeseries",
        "Requests to the API server",
        "ops",
        [("sum by (verb, code) (rate(slipway_api_requests_total[$__rate_interval]))", "{{verb}} {{code}}")],
    ),
    ("timeseries", "Since the watch was last right", "s", [("max by (resource) (slipway_watch_age_seconds)", "{{resource}}")]),
]
VARIABLES = {
    "namespace": "label_values(slipway_condition, namespace)",
    "name": 'label_values(slipway_condition{namespace="$namespace"}, name)',
}


def panel(number: int, place: tuple[int, int, int, int], row: Panel) -> dict[str, Any]:
    kind, title, unit, queries = row
    x, y, width, height = place
    targets = [
        {"refId": chr(65 + i), "datasource": SOURCE, "expr": expr, "legendFormat": legend or "__auto"}
        | ({"instant": True, "format": "table"} if kind == "table" else {})
        for i, (expr, legend) in enumerate(queries)
    ]
    return {
        "id": number,
        "type": kind,
        "title": title,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": width, "h": height},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "options": {},
        "targets": targets,
    }


def dashboard(uid: str, title: str, panels: list[Panel], variables: dict[str, str]) -> dict[str, Any]:
    made, x, y = [], 0, 0
    for number, row in enumerate(panels, start=1):
        width, height = (6, 4) if row[0] == "stat" else (12, 8)
        if x + width > 24:
            x, y = 0, y + (4 if made[-1]["type"] == "stat" else 8)
        made.append(panel(number, (x, y, width, height), row))
        x += width
    source = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    lists = [
        {"name": name, "type": "query", "datasource": SOURCE, "query": {"query": query, "refId": name}, "refresh": 2, "sort": 1}
        for name, query in variables.items()
    ]
    return {
        "uid": uid,
        "title": title,
        "tags": ["slipway"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source, *lists]},
        "panels": made,
    }


DASHBOARDS = {
    "fleet": dashboard("slipway-fleet", "Slipway: all models", FLEET, {}),
    "model": dashboard("slipway-model", "Slipway: one model", ONE, VARIABLES),
    "operator": dashboard("slipway-operator", "Slipway: operator", OPERATOR, {}),
}

# -- pictures, without Grafana --

PICTURES = Path(__file__).parents[1] / "docs/img"
RATE_INTERVAL = "1m"  # what Grafana makes of $__rate_interval with scrapes 15 s apart: four of them
POINTS = 120
HIDDEN = {"__name__", "container", "endpoint", "instance", "job", "service", "prometheus"}  # labels that tell a reader nothing
Found = list[tuple[str, dict[str, Any]]]  # legend, and the series of Prometheus' answer


def ask(address: str, path: str, **arguments: Any) -> list[dict[str, Any]]:
    """Ask Prometheus' HTTP API; returns the series of its answer."""
    with urllib.request.urlopen(f"{address}/api/v1/{path}?{urllib.parse.urlencode(arguments)}", timeout=30) as answer:
        return list(json.loads(answer.read())["data"]["result"])


def filled(expression: str, variables: Mapping[str, str]) -> str:
    """Return a panel's query as Grafana sends it."""
    for key, value in {"__rate_interval": RATE_INTERVAL, **variables}.items():
        expression = re.sub(rf"\${key}\b", value, expression)
    return expression


def legend(template: str, labels: Mapping[str, str]) -> str:
    if template == "__auto":
        return ", ".join(value for key, value in labels.items() if key not in HIDDEN)
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), template)


def asked(address: str, row: Mapping[str, Any], variables: Mapping[str, str], seconds: float) -> Found:
    """Put a panel's queries to Prometheus; a table's for now, others' for the last seconds."""
    found: Found = []
    for target in row["targets"]:
        query, now = filled(target["expr"], variables), time.time()
        if row["type"] == "table":
            series = ask(address, "query", query=query)
        else:
            series = ask(address, "query_range", query=query, start=now - seconds, end=now, step=max(1, round(seconds / POINTS)))
        found += [(legend(target["legendFormat"], one["metric"]), one) for one in series]
    return found


def written(value: float, unit: str) -> str:
    """Return a number in a panel's unit."""
    if unit == "s":
        return f"{value * 1000:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
    scale, suffix = {"percentunit": (100, " %"), "percent": (1, " %"), "reqps": (1, " req/s"), "ops": (1, " /s")}.get(unit, (1, ""))
    return f"{value * scale:.3g}{suffix}"


def draw_panel(axes: Any, row: Mapping[str, Any], found: Found) -> None:
    unit = row["fieldConfig"]["defaults"]["unit"]
    axes.set_title(row["title"], loc="left", fontsize=9, fontweight="bold")
    if row["type"] == "timeseries" and found:
        most = 0.0
        for name, series in found:
            times, values = zip(*((float(at) - time.time(), float(value)) for at, value in series["values"]), strict=True)
            axes.plot([at / 60 for at in times], values, linewidth=1.2, label=name)
            most = max([most, *(value for value in values if math.isfinite(value))])  # a row may be NaN all along
        axes.yaxis.set_major_formatter(lambda value, _: written(value, unit))
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_formatter(lambda minutes, _: f"{minutes:g} min")
        axes.set_ylim(0, most * 1.25 or 1)  # room for the legend
        axes.legend(fontsize=6, loc="upper left", frameon=False, ncols=2)
        return
    axes.set_xticks([])
    axes.set_yticks([])
    if row["type"] == "stat":
        texts = [name or written(float(series["values"][-1][1]), unit) for name, series in found]
        axes.text(0.5, 0.45, "\n".join(texts) or "No data", ha="center", va="center", fontsize=20 if texts else 9)
    else:
        known = (
            HIDDEN | {"model", "name", "namespace"} if "$name" in row["targets"][0]["expr"] else HIDDEN
        )  # one model's dashboard says so above
        labels = [{key: value[:20] for key, value in series["metric"].items() if key not in known} for _, series in found]
        rows = ["   ".join(f"{key}: {value}" for key, value in one.items()) for one in labels]
        axes.text(0.02, 0.95, "\n".join(rows) or "No data", ha="left", va="top", fontsize=6.5, wrap=True)


def picture(address: str, board: Mapping[str, Any], variables: Mapping[str, str], seconds: float, path: Path) -> None:
    """Draw a dashboard's panels in their places, with what Prometheus answers."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow, and writing the JSON needs none

    height = max(row["gridPos"]["y"] + row["gridPos"]["h"] for row in board["panels"])
    figure = Figure(figsize=(13, 0.33 * height + 0.7), dpi=90)
    top = 1 - 0.7 / (0.33 * height + 0.7)
    for row in board["panels"]:
        place = row["gridPos"]
        x, y, width, tall = (place[key] / size for key, size in (("x", 24), ("y", height), ("w", 24), ("h", height)))
        axes = figure.add_axes((x + 0.045, (1 - y - tall) * top + 0.022, width - 0.06, tall * top - 0.05))
        draw_panel(axes, row, asked(address, row, variables, seconds))
    about = ", ".join(f"{key} {value}" for key, value in variables.items() if f"${key}" in json.dumps(board))
    figure.suptitle(f"{board['title']}{f' ({about})' if about else ''}: drawn by hack/dashboards.py, without Grafana", fontsize=11)
    figure.savefig(path)


def pictures(address: str, namespace: str, name: str, seconds: float = 900, folder: Path = PICTURES) -> None:
    """Draw all dashboards from one Prometheus."""
    for key, board in DASHBOARDS.items():
        picture(address, board, {"namespace": namespace, "name": name}, seconds, folder / f"dashboard-{key}.png")


if __name__ == "__main__":
    if sys.argv[1:2] == ["picture"]:
        pictures(*sys.argv[2:5], *map(float, sys.argv[5:6]))
    else:
        FOLDER.mkdir(exist_ok=True)
        for name, content in DASHBOARDS.items():
            (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
