"""An auction of five candidates on the cluster, its table in status and report, and what predictions cost on a real node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2e.kit import SYSTEM, Namespace, mdep, model_folder, slipway_cli

pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.timeout(900)]
CANDIDATES = [
    {"target": "ONNX", "precision": "Float32"},
    {"target": "ONNX", "precision": "Int8Dynamic"},
    {"target": "TorchScript", "precision": "Float32"},
    {"target": "ExportedProgram", "precision": "Float32"},
    {"target": "TorchTensorRT", "precision": "Float16"},
]
CONVERSION = {"candidates": CANDIDATES, "objective": "Size", "validation": {"maxAbsoluteError": "0.5", "minTop1AgreementPercent": 50}}
PRICES = {"currency": "EUR", "nodePrices": [{"nodeSelector": {}, "pricePerHour": "1"}]}


def report(space: Namespace, *arguments: str) -> str:
    done = slipway_cli(space.cluster, "report", "tiny", "-n", space.name, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def prices(namespace: Namespace) -> str:
    """Prices as the chart writes them, in a namespace of their own: the chart of the other tests has none."""
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "slipway-prices"}, "data": {"prices.json": json.dumps(PRICES)}}
    namespace.apply(config)
    return namespace.name


def test_five_candidates_a_table_and_the_cost(namespace: Namespace, prices: str, tmp_path: Path) -> None:
    namespace.apply(model_folder("v1"), mdep("tiny", "configmap://v1", conversion=CONVERSION))
    ready = namespace.wait_ready("tiny", timeout=600)
    (artifact,) = namespace.items("mart")
    rows, chosen = artifact["status"]["candidates"], [row for row in artifact["status"]["candidates"] if row.get("chosen")]
    assert [(row["target"], row["precision"]) for row in rows] == [(row["target"], row["precision"]) for row in CANDIDATES]
    assert len(chosen) == 1
    assert rows[-1]["verdict"] == "Unavailable"
    assert ready["status"]["stable"]["format"] == artifact["status"]["format"]
    assert artifact["status"]["choice"]

    (revision,) = json.loads(report(namespace, "-o", "json", "--system-namespace", prices))["revisions"]
    assert [row["chosen"] for row in revision["candidates"]] == [bool(row.get("chosen")) for row in rows]
    assert revision["cost"]["notes"] == ["no traffic yet"]
    asked = [[1.0, 2.0, 3.0, 4.0]] * 3
    with namespace.cluster.forward(namespace.name, "service/tiny", 80) as url:
        for _ in range(7):
            namespace.infer(url, "tiny", asked)
    (revision,) = json.loads(report(namespace, "-o", "json", "--system-namespace", prices))["revisions"]
    assert (revision["cost"]["predictions"], revision["cost"]["podsCounted"]) == (21, revision["cost"]["pods"])
    assert float(revision["cost"]["perMillionPredictions"]) > 0

    text = report(namespace, "--system-namespace", prices)
    print(text)
    assert "EUR per million predictions" in text
    assert "TorchTensorRT Float16: TargetUnavailable" in text
    assert "no node prices" in report(namespace, "--system-namespace", SYSTEM)
    report(namespace, "--html", str(tmp_path / "report.html"), "--system-namespace", prices)
    assert "<svg" in (tmp_path / "report.html").read_text()
    wide = namespace.kubectl("get", "mart", "-o", "wide")
    print(wide)
    assert chosen[0]["latencyP50"] in wide
