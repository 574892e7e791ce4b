"""Alerts fire as their promtool cases say, each has a runbook, and nothing asks for a metric that nobody exports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard
from hack import dashboards
from matplotlib.figure import Figure
from prometheus_client import REGISTRY

from slipway import metrics
from unit.chart.rendering import CHART, ROOT, environment, render, run_helm

RULES = CHART / "files/monitoring/rules.yaml"
CASES = Path(__file__).parent / "alerts.test.yaml"
DASHBOARDS = sorted((CHART / "files/dashboards").glob("*.json"))
OTHERS = {"DCGM_FI_DEV_GPU_UTIL"}  # of NVIDIA's dcgm-exporter
SUFFIXES = ("", "_total", "_bucket", "_sum", "_count", "_info")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule]


def exported() -> set[str]:
    """The names of the operator's metrics and of those that the server registers."""
    own = {metric.name for registry in (REGISTRY, metrics.MODELS) for metric in registry.collect()}
    sources = (ROOT / "runtime-image/src/slipway_runtime/serve").rglob("*.py")
    return own | {name for path in sources for name in re.findall(r'"(slipway_[a-z_]+)"', path.read_text())}


def asked(text: str) -> set[str]:
    return set(re.findall(r"\b(slipway_[a-z_]+|DCGM_[A-Z_]+)\b", text))


def unknown(text: str) -> set[str]:
    known = {name + suffix for name in exported() for suffix in SUFFIXES}
    return asked(text) - known - OTHERS


def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.fail("promtool is absent: hack/prometheus.sh install")
    return found


def test_every_alert_fires_and_stays_silent_as_its_cases_say() -> None:
    done = subprocess.run([promtool(), "test", "rules", str(CASES)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    cases = [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == {rule["alert"] for rule in rules()}


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert {rule["annotations"]["runbook_url"] for rule in rules()} == {f"docs/runbooks/{rule['alert']}.md" for rule in rules()}
    pages = {path.stem: path.read_text() for path in (ROOT / "docs/runbooks").glob("*.md")}
    assert pages.keys() == {rule["alert"] for rule in rules()}
    for name, page in pages.items():
        assert page.startswith(f"# {name}\n")
        assert "## What to do\n1. " in page


def test_alerts_ask_only_for_metrics_that_exist() -> None:
    assert len(asked(RULES.read_text())) >= 9
    assert unknown(RULES.read_text()) == set()
    assert unknown("rate(slipway_no_such_thing_total[5m])") == {"slipway_no_such_thing_total"}


@pytest.mark.parametrize("path", DASHBOARDS, ids=[path.stem for path in DASHBOARDS])
def test_a_dashboard_is_whole(path: Path, tmp_path: Path) -> None:
    board = json.loads(path.read_text())
    assert board["uid"] == f"slipway-{path.stem}"
    assert board["panels"]
    variables = {v["name"] for v in board["templating"]["list"]}
    assert unknown(path.read_text()) == set()
    taken: set[tuple[int, int]] = set()
    expressions: list[str] = []
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${source}"
            used = set(re.findall(r"\$(?:\{)?([a-z_]+)", target["expr"])) - {"__rate_interval"}
            assert used <= variables, (panel["title"], used)
            expressions.append(dashboards.filled(target["expr"], {"namespace": "a", "name": "b"}))
    recorded = [{"record": "r", "expr": expression, "labels": {"n": str(n)}} for n, expression in enumerate(expressions)]
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": [{"name": "panels", "rules": recorded}]}))
    done = subprocess.run([promtool(), "check", "rules", str(tmp_path / "rules.yaml")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def lost(given: Any, kept: Any, place: str = "") -> list[str]:
    """Where `kept` lacks something that is in `given`."""
    if isinstance(given, dict) and isinstance(kept, dict):
        absent = [f"{place}.{key}" for key in given.keys() - kept.keys()]
        return absent + [found for key in given.keys() & kept.keys() for found in lost(given[key], kept[key], f"{place}.{key}")]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        return [found for number, pair in enumerate(zip(given, kept, strict=True)) for found in lost(*pair, f"{place}[{number}]")]
    return [] if given == kept else [place]


def read_by_grafana(board: dict[str, Any]) -> Any:
    """What Grafana's own model of a dashboard, which its SDK has, keeps of one: a field that it does not know is lost."""
    return json.loads(JSONEncoder().encode(Dashboard.from_json(board)))


@pytest.mark.parametrize("path", DASHBOARDS, ids=[path.stem for path in DASHBOARDS])
def test_grafana_s_model_knows_every_field_of_a_dashboard(path: Path) -> None:
    board = json.loads(path.read_text())
    assert lost(board, read_by_grafana(board)) == []
    known = {value for value in vars(units).values() if isinstance(value, str)}
    assert {panel["fieldConfig"]["defaults"]["unit"] for panel in board["panels"]} <= known
    board["panels"][0]["gridPosition"] = board["panels"][0].pop("gridPos")
    assert ".panels[0].gridPosition" in lost(board, read_by_grafana(board))


def test_the_dashboards_are_those_of_their_source() -> None:
    assert {path.stem: json.loads(path.read_text()) for path in DASHBOARDS} == dashboards.DASHBOARDS


def kinds(objects: list[dict[str, Any]]) -> set[str]:
    return {o["kind"] for o in objects} & {"PodMonitor", "PrometheusRule"}


def test_the_chart_monitors_when_prometheus_operator_is_there() -> None:
    assert kinds(render()) == set()
    done = run_helm({}, "--api-versions", "monitoring.coreos.com/v1")
    assert done.returncode == 0, done.stderr
    objects = [o for o in yaml.load_all(done.stdout, yaml.CSafeLoader) if o]  # the safe one, in C
    assert kinds(objects) == {"PodMonitor", "PrometheusRule"}
    (rule,) = [o for o in objects if o["kind"] == "PrometheusRule"]
    assert rule["spec"] == yaml.safe_load(RULES.read_text())
    assert kinds(render({"monitoring": {"podMonitors": "Always", "rules": "Never"}})) == {"PodMonitor"}


def with_crds(values: dict[str, Any]) -> list[dict[str, Any]]:
    done = run_helm(values, "--api-versions", "monitoring.coreos.com/v1")
    assert done.returncode == 0, done.stderr
    return [o for o in yaml.load_all(done.stdout, yaml.CSafeLoader) if o]


def test_the_pod_monitor_relabels_as_the_plain_file() -> None:
    (monitor,) = [o for o in with_crds({}) if o["kind"] == "PodMonitor" and o["metadata"]["name"] == "slipway-models"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    plain = yaml.safe_load((CHART / "files/monitoring/relabelings.yaml").read_text())
    camel = {"source_labels": "sourceLabels", "target_label": "targetLabel"}
    for key, place in (("relabel_configs", "relabelings"), ("metric_relabel_configs", "metricRelabelings")):
        assert endpoint[place] == [{camel.get(word, word): value for word, value in rule.items()} for rule in plain[key]]


@pytest.mark.parametrize(
    ("has_crds", "monitoring", "expected"),
    [
        (False, {}, True),
        (True, {}, False),
        (True, {"podMonitors": "Never"}, True),
        (False, {"podMonitors": "Always"}, False),
        (True, {"scrapeAnnotations": "Always"}, True),
        (False, {"scrapeAnnotations": "Never"}, False),
    ],
)
def test_pods_are_annotated_to_be_scraped_unless_a_pod_monitor_does_it(has_crds: bool, monitoring: dict[str, str], expected: bool) -> None:
    objects = (with_crds if has_crds else render)({"monitoring": monitoring})
    assert environment(objects)["SLIPWAY_SCRAPE_ANNOTATIONS"] == ("true" if expected else "false")
    operator = next(o for o in objects if o["kind"] == "Deployment" and o["metadata"]["name"] == "slipway-operator")
    notes = operator["spec"]["template"]["metadata"]["annotations"]
    assert notes.get("prometheus.io/scrape") == ("true" if expected else None)
    assert notes["prometheus.io/port"] == "8080"


def test_the_dashboards_are_config_maps_for_the_sidecar() -> None:
    boards = [o for o in render() if o["kind"] == "ConfigMap" and o["metadata"]["labels"].get("grafana_dashboard") == "1"]
    assert {name for o in boards for name in o["data"]} == {path.name for path in DASHBOARDS}
    for board in boards:
        for text in board["data"].values():
            json.loads(text)
    assert not [o for o in render({"monitoring": {"dashboards": False}}) if (o["metadata"].get("labels") or {}).get("grafana_dashboard")]


@pytest.mark.parametrize("values", [["1", "2.5"], ["NaN", "NaN"], ["NaN", "3"]])
def test_a_series_is_drawn_whatever_its_values_are(values: list[str]) -> None:
    row = {"title": "p99", "type": "timeseries", "fieldConfig": {"defaults": {"unit": "s"}}}
    axes = Figure().subplots()
    dashboards.draw_panel(axes, row, [("digits-1", {"values": [[number, value] for number, value in enumerate(values)]})])
    assert len(axes.lines) == 1
