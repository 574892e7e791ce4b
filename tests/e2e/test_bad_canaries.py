"""Versions that pass every check before traffic and go bad under it: each goes back by itself, stable keeps answering.

What makes them bad is an input that the parity gate's random data never hold: its first feature is 200, in a tenth of the load's requests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.kit import MODEL, ODD_LOAD, PATIENCE, Cluster, Namespace, drop_namespace, make_namespace, mdep, model_folder, until

pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.timeout(900)]
INTERVAL, WEIGHT = 5, 20
METRICS = [
    {"name": "error-rate", "maximum": "0.01"},
    {"name": "nan-rate", "maximum": "0.01"},
    {"name": "latency-p95", "maximumIncreasePercent": 200},
]
ROLLOUT = {
    "steps": [{"weight": WEIGHT, "duration": "120s"}, {"weight": 100, "duration": "10s"}],
    "analysis": {"interval": f"{INTERVAL}s", "metrics": METRICS},
}
# The code that runs for an odd input: (lines, reason of the rollback, words of its message)
BAD = {
    "answers 5xx": ("raise RuntimeError('odd')", "AnalysisFailed", "error-rate"),
    "is slow": ("time.sleep(0.5)", "AnalysisFailed", "latency-p95"),
    "answers NaN": ("return x[:, :3] * float('nan')", "AnalysisFailed", "nan-rate"),
    "crashes": ("os._exit(3)", "PodsCrashing", ""),
    "takes all memory": ("hoard.append(torch.ones(1 << 30))", "OutOfMemory", ""),
}


def code(line: str) -> str:
    """The tiny model with a line for odd inputs; it is served as PyTorch, so that the line is still there."""
    head = MODEL.replace("from torch import nn", "import os\nimport time\nimport torch\nfrom torch import nn\n\nhoard = []")
    head = head.replace("    return Tiny()", "    time.sleep(float(os.environ.get('SLEEP', 0)))\n    return Tiny()")
    return head.replace(
        "        return self.fc(x)", f"        if float(x.abs().max()) > 100:\n            {line}\n        return self.fc(x)"
    )


def wish(version: str, **env: str) -> dict[str, Any]:
    conversion = {"candidates": [{"target": "None"}]}
    resources = {"requests": {"cpu": "20m", "memory": "300Mi"}, "limits": {"memory": "1Gi"}}
    serving = {"replicas": 2, "resources": resources, "env": [{"name": name, "value": value} for name, value in env.items()]}
    return mdep("tiny", f"configmap://{version}", conversion=conversion, serving=serving, more={"rollout": ROLLOUT})


@pytest.fixture(scope="module")
def served(slipway: Cluster) -> Iterator[Namespace]:
    """A good version, ready, and the folders of the bad ones."""
    space = make_namespace(slipway)
    folders = [model_folder(f"v{number}", code=code(line)) for number, (line, _, _) in enumerate(BAD.values())]
    space.apply(model_folder("good", code=code("pass")), *folders, wish("good"))
    space.wait_ready("tiny")
    yield space
    drop_namespace(space)


@pytest.mark.parametrize("name", BAD)
def test_a_canary_goes_back_that(served: Namespace, name: str) -> None:
    _, reason, words = BAD[name]
    stable = served.get("mdep", "tiny")["status"]["stable"]["revision"]
    pod = f"load-{list(BAD).index(name)}"
    served.run_pod(pod, ODD_LOAD, "tiny", "10", "10", "0.03")
    served.wait_running(pod)
    served.apply(wish(f"v{list(BAD).index(name)}"))

    def given_up() -> Any:
        row = served.get("mdep", "tiny")["status"].get("canary") or {}
        return row if row.get("phase") == "RolledBack" else None

    row = until(given_up, PATIENCE, lambda: served.explain("tiny"))
    load = served.end_load(pod)
    print(json.dumps({"load": load} | {key: row.get(key) for key in ("reason", "message", "metrics", "evaluations")}))
    assert row["reason"] == reason, row
    assert words in row["message"]
    verdicts = [record["verdict"] for record in row.get("evaluations") or ()]
    assert verdicts.count("Fail") <= 2, "it went on after a failed verdict"
    status = served.get("mdep", "tiny")["status"]
    assert (status["stable"]["revision"], status["stable"]["readyReplicas"]) == (stable, 2)
    # two of three pods are stable's: by replicas the canary's real share may be above its weight, but not beyond a pod's
    assert load["revisions"].get(row["revision"], 0) <= 0.45 * load["sent"]
    # what ends a process takes the even requests along that it was working on: ten connections, and the restarts until it is given up
    assert load["failed_though_even"] <= (0 if reason == "AnalysisFailed" else 200), load
    served.apply(wish("good"))
    served.wait_ready("tiny")


@pytest.mark.timeout(1200)
def test_a_canary_that_never_gets_ready_gets_no_request(served: Namespace) -> None:
    stable = served.get("mdep", "tiny")["status"]["stable"]["revision"]
    served.run_pod("load", ODD_LOAD, "tiny", "10", "10", "0.1")
    served.wait_running("load")
    served.apply(wish("good", SLEEP="86400"))

    def given_up() -> Any:
        row = served.get("mdep", "tiny")["status"].get("canary") or {}
        return row if row.get("phase") == "RolledBack" else None

    row = until(given_up, 900, lambda: served.explain("tiny"), every=5)
    load = served.end_load("load")
    print(json.dumps({"load": load, "reason": row["reason"], "message": row["message"]}))
    assert row["reason"] == "ProgressDeadlineExceeded", row
    assert load["failed"] == 0, load
    assert set(load["revisions"]) == {stable}
    assert served.get("mdep", "tiny")["status"]["stable"]["readyReplicas"] == 2
    served.apply(wish("good"))
    served.wait_ready("tiny")
