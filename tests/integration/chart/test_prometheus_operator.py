"""The real prometheus-operator takes the chart's PodMonitors and rules: the configuration that it writes is one that Prometheus accepts.

`tests/e2e/test_monitoring.py` runs that Prometheus too.
"""

from __future__ import annotations

import base64
import gzip
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from integration.conftest import ApiServer
from integration.ports import free_port
from unit.chart.rendering import CHART, NAMESPACE, ROOT, run_helm

pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.timeout(1800)]
FILES = CHART / "files/monitoring"
EMPTY: dict[str, Any] = {}
PROMETHEUS = {
    "apiVersion": "monitoring.coreos.com/v1",
    "kind": "Prometheus",
    "metadata": {"name": "test", "namespace": NAMESPACE},
    "spec": {"version": "v2.42.0"} | {f"{what}Selector": EMPTY for what in ("podMonitor", "podMonitorNamespace", "rule", "ruleNamespace")},
}


@pytest.fixture(scope="module")
def objects() -> list[dict[str, Any]]:
    done = run_helm({}, "--api-versions", "monitoring.coreos.com/v1")
    assert done.returncode == 0, done.stderr
    return [o for o in yaml.safe_load_all(done.stdout) if o and o["kind"] in ("PodMonitor", "PrometheusRule")]


@pytest.fixture(scope="module")
def configured(apiserver: ApiServer, objects: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """The API server with the chart's objects and a Prometheus, and prometheus-operator at work."""
    subprocess.run([ROOT / "hack/tools.sh", "prometheus-operator"], check=True, timeout=1800)
    for path in (ROOT / "build/crds").glob("monitoring.coreos.com_*.yaml"):
        apiserver.kubectl("apply", "--server-side", "-f", str(path))
    apiserver.kubectl("wait", "--for=condition=established", "crd", "--all", "--timeout=60s")
    apiserver.kubectl("create", "namespace", NAMESPACE)
    apiserver.apply(*objects, PROMETHEUS)
    log = tmp_path_factory.mktemp("prometheus-operator") / "log"
    command = [str(ROOT / "build/bin/prometheus-operator"), f"-web.listen-address=127.0.0.1:{free_port()}"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env={**os.environ, "KUBECONFIG": str(apiserver.kubeconfig)}, stdout=out, stderr=out)
    try:
        end = time.monotonic() + 120
        while apiserver.run("-n", NAMESPACE, "get", "statefulset", "prometheus-test").returncode:
            assert time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(1)
        yield apiserver
    finally:
        process.terminate()
        process.wait(20)


def test_prometheus_accepts_what_becomes_of_the_pod_monitors(configured: ApiServer, tmp_path: Path) -> None:
    data = configured.get("-n", NAMESPACE, "secret", "prometheus-test")["data"]
    (packed,) = data.values()
    config = yaml.safe_load(gzip.decompress(base64.b64decode(packed)))
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert {name.split("/")[2] for name in jobs} == {"slipway-models", "slipway-operator"}
    models = jobs[f"podMonitor/{NAMESPACE}/slipway-models/0"]
    plain = yaml.safe_load((FILES / "relabelings.yaml").read_text())
    assert _bare(plain["metric_relabel_configs"]) == _bare(models["metric_relabel_configs"])
    wanted = _bare(plain["relabel_configs"])
    assert [rule for rule in _bare(models["relabel_configs"]) if rule in wanted] == wanted, "in this order, after the operator's own"
    for job in config["scrape_configs"]:
        del job["kubernetes_sd_configs"]  # which Debian's promtool does not know
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.safe_dump(config | {"rule_files": []}))
    done = subprocess.run(["promtool", "check", "config", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_arrive_whole(configured: ApiServer) -> None:
    found = configured.get("-n", NAMESPACE, "configmaps", "-l", "prometheus-name=test")["items"]
    groups = [group for item in found for text in item["data"].values() for group in yaml.safe_load(text)["groups"]]
    wanted = yaml.safe_load((FILES / "rules.yaml").read_text())["groups"]
    assert [(g["name"], [r.get("alert") or r["record"] for r in g["rules"]]) for g in groups] == [
        (g["name"], [r.get("alert") or r["record"] for r in g["rules"]]) for g in wanted
    ]


def _bare(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what is the default, which the operator may write or leave out."""
    defaults = {"action": "replace", "replacement": "$1", "regex": "(.*)", "separator": ";"}
    return [{key: value for key, value in rule.items() if defaults.get(key) != value} for rule in rules]
