"""Canaries on a real cluster, under load: a good one walks its steps without a lost request, one that answers NaN goes back by itself."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from e2e.kit import MODEL, ODD_LOAD, PATIENCE, WEIGHT, Namespace, mdep, model_folder, onnx_folder, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

INTERVAL = 5
LIMITS = [{"name": "error-rate", "maximum": "0.01"}, {"name": "nan-rate", "maximum": "0.01"}]
ROLLOUT = {
    "steps": [{"weight": weight, "duration": "15s"} for weight in (20, 50, 100)],
    "analysis": {"interval": f"{INTERVAL}s", "metrics": LIMITS},
}
# NaN where the first feature is above 100: never in the random inputs of the parity gate, in a fifth of those of the load
NAN_MODEL = MODEL.replace("from torch import nn", "import torch\nfrom torch import nn").replace(
    "return self.fc(x)", "return self.fc(x) + torch.sqrt(100 - x[:, :1]) * 1e-9"
)


def wish(version: str) -> dict[str, Any]:
    return mdep("tiny", f"configmap://{version}", serving={"replicas": 2}, more={"rollout": ROLLOUT})


def test_a_good_canary_is_promoted_and_one_that_answers_nan_goes_back(namespace: Namespace) -> None:
    folders = onnx_folder("v1"), onnx_folder("v2", WEIGHT * 2), model_folder("v3", code=NAN_MODEL)
    namespace.apply(*folders, wish("v1"))
    first = namespace.wait_ready("tiny")["status"]["stable"]["revision"]
    namespace.run_pod("load", ODD_LOAD, "tiny", "5", "8", "0.05")  # enough for a verdict in each step; more takes CPU from all others
    namespace.wait_running("load")
    _good(namespace, first)
    _bad(namespace)
    result = namespace.end_load("load")
    print(json.dumps(result))
    assert result["failed"] == 0, result
    assert result["sent"] > 2000
    assert 0 < result["nan"] < result["sent"] / 20, "the canary had a share of the requests, and not for long"


def _good(space: Namespace, first: str) -> None:
    """v2 walks through all steps, each with a verdict of its own."""
    space.apply(wish("v2"))
    until(lambda: space.get("mdep", "tiny")["status"]["stable"]["revision"] != first, PATIENCE, lambda: space.explain("tiny"))
    told = [re.search(r"gets (\d+) % of the traffic", event["message"]) for event in space.events("tiny")]
    assert sorted(int(found[1]) for found in told if found) == [20, 50, 100]
    space.wait_ready("tiny")


def _bad(space: Namespace) -> None:
    """v3 passes the parity gate, answers NaN to a fifth of the requests, and is given up; nothing of stable moves."""
    stable = space.get("mdep", "tiny")["status"]["stable"]["revision"]
    before = _pods(space, stable)
    space.apply(wish("v3"))

    def given_up() -> Any:
        row = space.get("mdep", "tiny")["status"].get("canary") or {}
        return row if row.get("phase") == "RolledBack" else None

    row = until(given_up, PATIENCE, lambda: space.explain("tiny"))
    print(json.dumps({key: row[key] for key in ("reason", "message", "metrics", "evaluations")}))
    assert row["reason"] == "AnalysisFailed"
    assert "at 20 % of the traffic: nan-rate: " in row["message"]
    assert len(row["evaluations"]) <= 3
    rate = next(m for m in row["metrics"] if m["name"] == "nan-rate")
    assert rate["verdict"] == "Fail"
    assert 0.1 < float(rate["value"]) < 0.3
    assert space.get("mdep", "tiny")["status"]["stable"]["revision"] == stable
    assert _pods(space, stable) == before
    space.wait_event("tiny", "AnalysisFailed")


def _pods(space: Namespace, revision: str) -> dict[str, int]:
    """Restarts of the pods of a revision."""
    pods = space.items("pods", "-l", f"slipway.dev/revision={revision}")
    return {p["metadata"]["uid"]: sum(c["restartCount"] for c in p["status"]["containerStatuses"]) for p in pods}
