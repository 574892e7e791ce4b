"""Slipway beside a real prometheus-operator: what Prometheus has of every server and of the operator, and an alert that comes and goes.

Nightly, because an error budget takes minutes to burn. `hack/monitoring.sh up` does the same by hand; SLIPWAY_E2E_PICTURES names a folder
for pictures of the dashboards as they were during the canary.
"""

from __future__ import annotations

import os
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack import dashboards

from e2e.kit import (
    MODEL,
    ODD_LOAD,
    PATIENCE,
    ROOT,
    WEIGHT,
    Cluster,
    Manifest,
    Namespace,
    built,
    drop_namespace,
    fetch_json,
    install,
    mdep,
    model_folder,
    onnx_folder,
    until,
)
from e2e.kit import make_namespace as make
from integration.runtime.test_protocol import SERVING

pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.timeout(2400)]

OPERATOR = {  # design 8
    "slipway_reconcile_total",
    "slipway_reconcile_duration_seconds_bucket",
    "slipway_queue_depth",
    "slipway_queue_oldest_seconds",
    "slipway_api_requests_total",
    "slipway_watch_age_seconds",
    "slipway_leader",
    "slipway_condition",
    "slipway_traffic_weight",
    "slipway_build_info",
}
RULES = yaml.safe_load((ROOT / "charts/slipway/files/monitoring/rules.yaml").read_text())
ONE_STEP = {"rollout": {"steps": [{"weight": 50, "duration": "3m"}]}}
# raises for inputs above 100, which are never among the random ones that a conversion is checked with
RAISES = MODEL.replace(
    "        return self.fc(x)", "        if float(x.max()) > 100:\n            raise ValueError(x)\n        return self.fc(x)"
)


class Prometheus:
    """The HTTP API, through a port-forward."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[Manifest]:
        found = fetch_json(f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}", timeout=30)
        return list(found["data"]["result"])

    def names(self, matchers: str) -> set[str]:
        return {row["metric"]["__name__"] for row in self.query(f'count by (__name__) ({{__name__=~"slipway_.+",{matchers}}})')}

    def rules(self) -> list[Manifest]:
        groups = fetch_json(f"{self.url}/api/v1/rules", timeout=30)["data"]["groups"]
        return [rule for group in groups if group["name"].startswith("slipway") for rule in group["rules"]]

    def alerts(self, name: str, space: str) -> list[str]:
        found = fetch_json(f"{self.url}/api/v1/alerts", timeout=30)["data"]["alerts"]
        return [a["state"] for a in found if (a["labels"]["alertname"], a["labels"].get("namespace")) == (name, space)]


@pytest.fixture(scope="module")
def prometheus(slipway: Cluster) -> Iterator[Prometheus]:
    """prometheus-operator in the cluster, and the chart upgraded so that it finds the CRDs."""

    def script(what: str) -> None:
        environment = {**os.environ, "KUBECONFIG": str(slipway.kubeconfig)}
        done = subprocess.run(
            [ROOT / "hack/monitoring.sh", what], env=environment, capture_output=True, text=True, timeout=1800, check=False
        )
        assert done.returncode == 0, done.stderr

    script("up")
    try:
        install(slipway)
        with slipway.forward("monitoring", "pod/prometheus-slipway-0", 9090) as url:
            yield Prometheus(url)
    finally:
        install(slipway, "monitoring.podMonitors=Never", "monitoring.rules=Never")  # Helm cannot delete what has no CRD any more
        script("down")


@pytest.fixture(scope="module")
def space(slipway: Cluster) -> Iterator[Namespace]:
    made = make(slipway)
    yield made
    drop_namespace(made)


def test_prometheus_has_every_metric_of_the_design(prometheus: Prometheus, space: Namespace) -> None:
    space.apply(onnx_folder("v1"), onnx_folder("v2", WEIGHT * 2), mdep("tiny", "configmap://v1", more=ONE_STEP))
    space.wait_ready("tiny")
    space.run_pod("load", ODD_LOAD, "tiny", "5", "4", "0.05")
    space.wait_running("load")
    ours = f'namespace="{space.name}",model="tiny"'
    missing: set[str] = set()

    def are_all_there() -> bool:
        nonlocal missing
        operators = prometheus.names('pod=~"slipway-operator-.*"') | prometheus.names(f'namespace="{space.name}",name="tiny"')
        missing = (SERVING.keys() - prometheus.names(ours)) | (OPERATOR - operators)
        return not missing

    until(are_all_there, 240, lambda: f"missing: {sorted(missing)}; {prometheus.query('up')}", every=5)
    (row,) = prometheus.query(f"slipway_inflight_requests{{{ours}}}")
    assert row["metric"]["revision"] == space.get("mdep", "tiny")["status"]["stable"]["revision"], (
        "the pod's label, where the server has none"
    )
    assert not prometheus.query('{exported_model=~".+"} or {exported_revision=~".+"}')
    down = [row for row in prometheus.query("up") if row["value"][1] != "1" and row["metric"].get("namespace") == space.name]
    assert not down


def test_the_rules_are_loaded_and_healthy(prometheus: Prometheus) -> None:
    wanted = {rule.get("alert") or rule["record"] for group in RULES["groups"] for rule in group["rules"]}
    until(lambda: {rule["name"] for rule in prometheus.rules()} == wanted, 180, lambda: str(prometheus.rules()), every=5)
    until(lambda: {rule["health"] for rule in prometheus.rules()} == {"ok"}, 120, lambda: str(prometheus.rules()), every=5)
    assert not [rule["name"] for rule in prometheus.rules() if rule.get("state") == "firing"]


def test_every_panel_shows_something_while_a_canary_has_half_of_the_traffic(prometheus: Prometheus, space: Namespace) -> None:
    space.apply(mdep("tiny", "configmap://v2", more=ONE_STEP))
    weights = f'slipway_traffic_weight{{namespace="{space.name}",name="tiny"}} == 50'
    until(lambda: len(prometheus.query(weights)) == 2, PATIENCE, lambda: space.explain("tiny"), every=5)
    time.sleep(100)  # for rates over a minute to have both
    variables = {"namespace": space.name, "name": "tiny"}
    empty = {
        panel["title"]
        for board in dashboards.DASHBOARDS.values()
        for panel in board["panels"]
        if not dashboards.asked(prometheus.url, panel, variables, 300)
    }
    assert empty <= {"GPU use", "GPU memory in use"}, "there is no GPU here"
    if folder := os.environ.get("SLIPWAY_E2E_PICTURES"):
        dashboards.pictures(prometheus.url, space.name, "tiny", 480, Path(folder))
    space.end_load("load")


def test_the_alert_of_a_burnt_error_budget_comes_and_goes(prometheus: Prometheus, space: Namespace) -> None:
    conversion: dict[str, Any] = {"candidates": [{"target": "None"}]}
    space.apply(model_folder("raises", code=RAISES), mdep("raises", "configmap://raises", conversion=conversion))
    space.wait_ready("raises")
    space.run_pod("bad-load", ODD_LOAD, "raises", "4", "2", "0.1")
    until(lambda: "firing" in prometheus.alerts("ModelErrorBudgetBurn", space.name), 600, lambda: str(prometheus.rules()), every=10)
    result = space.end_load("bad-load")
    assert result["failed_though_even"] == 0, result
    assert result["failed"] > 0
    until(lambda: not prometheus.alerts("ModelErrorBudgetBurn", space.name), 600, lambda: str(prometheus.rules()), every=10)


def test_the_libtorch_server_has_the_same_metrics(prometheus: Prometheus, slipway: Cluster, space: Namespace) -> None:
    found = slipway.get("servingruntime", "libtorch")["spec"]
    runtime = {"apiVersion": "slipway.dev/v1alpha1", "kind": "ServingRuntime", "metadata": {"name": "zz-libtorch"}}
    space.apply({**runtime, "spec": {**found, "image": built("slipway-libtorch")}})
    try:
        wish = mdep("native", "configmap://ts", serving={"runtime": "zz-libtorch"}, conversion={"candidates": [{"target": "TorchScript"}]})
        space.apply(model_folder("ts"), wish)
        space.wait_ready("native")
        with slipway.forward(space.name, "service/native", 80) as url:
            space.infer(url, "native", [[1.0, 2.0, 3.0, 4.0]])
        ours = f'namespace="{space.name}",model="native"'
        until(lambda: SERVING.keys() <= prometheus.names(ours), 180, lambda: str(SERVING.keys() - prometheus.names(ours)), every=5)
    finally:
        slipway.run("delete", "servingruntime", "zz-libtorch")
