"""Writes the Grafana dashboards of the chart: charts/slipway/files/dashboards/*.json. Run `python hack/dashboards.py` after a change.

A dashboard is rows of panels; a panel is a title, a unit and its queries. tests/unit/monitoring checks that each metric in them exists.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "charts/slipway/files/dashboards"
SOURCE = {"type": "prometheus", "uid": "${source}"}
MODEL = 'namespace="$namespace",model="$name"'
PODS = 'namespace="$namespace",pod=~"$name-.*"'
NAME = 'namespace="$namespace",name="$name"'
GPU = "avg by (namespace, pod) (DCGM_FI_DEV_GPU_UTIL)"  # of NVIDIA's dcgm-exporter
Query = tuple[str, str]  # PromQL, legend
Panel = tuple[str, str, str, list[Query]]  # kind, title, unit, queries


def quantile(q: str, metric: str, where: str, by: str) -> str:
    return f"histogram_quantile({q}, sum by ({by}, le) (rate({metric}_bucket{{{where}}}[$__rate_interval])))"


def rate(metric: str, where: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}{{{where}}}[$__rate_interval]))"


def mean(metric: str, where: str, by: str) -> str:
    return f"{rate(metric + '_sum', where, by)} / {rate(metric + '_count', where, by)}"


def errors(where: str, by: str) -> str:
    failed = rate("slipway_requests_total", where + ',code=~"5.."', by)
    return f"{failed} / {rate('slipway_requests_total', where, by)}"


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

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, content in DASHBOARDS.items():
        (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
