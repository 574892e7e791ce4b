"""Behind Envoy Gateway: answers are compared before a user sees them, groups of users keep their revision, little traffic is enough."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest

from e2e.kit import PATIENCE, ROOT, WEIGHT, Cluster, Namespace, mdep, model_folder, slipway_cli, until, weights

pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.timeout(900)]
# Asks through the gateway: every other request has the header of the experiment; ends on SIGTERM
LOAD = """
import http.client, json, signal, sys, threading, time
address, host, name, pause = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]})
stopped, count = threading.Event(), {"sent": 0, "failed": 0, "plain": {}, "beta": {}, "errors": []}
signal.signal(signal.SIGTERM, lambda *_: stopped.set())
connection = None
while not stopped.is_set():
    group = ("plain", "beta")[count["sent"] % 2]
    headers = {"Content-Type": "application/json", "Host": host} | ({"x-beta": "true"} if group == "beta" else {})
    count["sent"] += 1
    try:
        connection = connection or http.client.HTTPConnection(address, 80, timeout=20)
        connection.request("POST", f"/v2/models/{name}/infer", body, headers)
        reply = connection.getresponse()
        data = reply.read()
        revision = reply.getheader("x-slipway-revision")
        if reply.status == 200:
            count[group][revision] = count[group].get(revision, 0) + 1
        else:
            count["failed"] += 1
            count["errors"].append(f"{reply.status} {data[:100]!r}")
        if reply.will_close:
            connection = None
    except Exception as caught:
        count["failed"] += 1
        count["errors"].append(repr(caught))
        connection = None
    stopped.wait(pause)
print(json.dumps(count | {"errors": count["errors"][:10]}))
"""


@pytest.fixture(scope="module")
def address(slipway: Cluster) -> str:
    """The gateway's address in the cluster."""
    script = str(ROOT / "hack/gateway.sh")
    subprocess.run([script, "up"], check=True, timeout=900, capture_output=True)
    done = subprocess.run([script, "url"], check=True, timeout=60, capture_output=True, text=True)
    return done.stdout.strip().removeprefix("http://")


def wish(space: Namespace, version: str, rollout: dict[str, Any], **routing: Any) -> dict[str, Any]:
    # two routes without a hostname would both claim everything that comes to the gateway
    gateway = {"gateway": {"name": "gateway", "namespace": "gateway"}, "hostnames": [f"{space.name}.example.com"], **routing}
    return mdep("tiny", f"configmap://{version}", serving={"replicas": 1}, more={"rollout": rollout, "routing": gateway})


def serve(space: Namespace, address: str, rollout: dict[str, Any], pause: float, **routing: Any) -> str:
    """Serve v1 with load; return its revision."""
    v2 = model_folder("v2", weights_safetensors=weights(WEIGHT[::-1]))
    near = model_folder("near", weights_safetensors=weights(WEIGHT + 1e-6))
    space.apply(model_folder("v1"), v2, near, wish(space, "v1", rollout, **routing))
    first = space.wait_ready("tiny")["status"]["stable"]["revision"]
    space.run_pod("load", LOAD, address, f"{space.name}.example.com", "tiny", str(pause))
    space.wait_running("load")
    return str(first)


def test_other_answers_are_found_before_a_user_sees_them(namespace: Namespace, address: str) -> None:
    rollout = {
        "shadow": {"percent": 100, "duration": "30s", "minTop1AgreementPercent": 99},
        "steps": [{"weight": 50, "duration": "10s"}],
        "analysis": {"interval": "5s", "metrics": [{"name": "error-rate", "maximum": "0.01"}]},
    }
    first = serve(namespace, address, rollout, 0.02)
    namespace.apply(wish(namespace, "v2", rollout))

    def given_up() -> Any:
        row = namespace.get("mdep", "tiny")["status"].get("canary") or {}
        return row if row.get("phase") == "RolledBack" else None

    row = until(given_up, PATIENCE, lambda: namespace.explain("tiny"))
    print(json.dumps({key: row.get(key) for key in ("reason", "message", "metrics", "evaluations")}))
    assert row["reason"] == "AnalysisFailed"
    assert "shadow-disagreement" in row["message"]
    namespace.apply(wish(namespace, "near", rollout))
    until(lambda: namespace.get("mdep", "tiny")["status"]["stable"]["revision"] != first, PATIENCE, lambda: namespace.explain("tiny"))
    second = namespace.get("mdep", "tiny")["status"]["stable"]["revision"]
    load = namespace.end_load("load")
    print(json.dumps(load))
    assert load["failed"] == 0, load
    assert set(load["plain"]) == {first, second}, "the revision with other answers answered a user"


def test_a_group_of_users_keeps_its_revision_and_both_sides_are_told(namespace: Namespace, address: str) -> None:
    rollout = {"steps": [{"weight": 10}]}
    experiments = [{"name": "beta", "headers": [{"name": "x-beta", "value": "true"}]}]
    first = serve(namespace, address, rollout, 0.01, experiments=experiments)
    namespace.apply(wish(namespace, "near", rollout, experiments=experiments))
    row = until(
        lambda: (namespace.get("mdep", "tiny")["status"].get("canary") or {}).get("weight") == 10, 240, lambda: namespace.explain("tiny")
    )
    second = namespace.get("mdep", "tiny")["status"]["canary"]["revision"]
    until(lambda: namespace.condition("tiny", "Experiments").get("status") == "True", 180, lambda: namespace.explain("tiny"))
    namespace.end_load("load")
    namespace.kubectl("delete", "pod", "load", "--wait")
    namespace.run_pod("load", LOAD, address, f"{namespace.name}.example.com", "tiny", "0.01")
    done = slipway_cli(namespace.cluster, "experiment", "tiny", "-n", namespace.name, "--for", "15", timeout=90)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert re.search(rf"beta at {second}: [1-9]\d* requests", done.stdout)
    load = namespace.end_load("load")
    print(json.dumps(load), row)
    assert load["failed"] == 0, load
    assert set(load["beta"]) == {second}
    assert load["plain"][first] > load["plain"].get(second, 0) > 0


def test_little_traffic_neither_promotes_nor_rolls_back_and_probes_end_the_rollout(namespace: Namespace, address: str) -> None:
    def rollout(how: str) -> dict[str, Any]:
        metrics = [{"name": "error-rate", "maximum": "0.02"}]
        return {
            "steps": [{"weight": 50, "duration": "5s"}],
            "analysis": {"interval": "5s", "onInsufficientTraffic": how, "metrics": metrics},
        }

    first = serve(namespace, address, rollout("Wait"), 60)
    namespace.apply(wish(namespace, "near", rollout("Wait")))
    until(
        lambda: len((namespace.get("mdep", "tiny")["status"].get("canary") or {}).get("evaluations") or ()) >= 4,
        240,
        lambda: namespace.explain("tiny"),
    )
    status = namespace.get("mdep", "tiny")["status"]
    assert {record["verdict"] for record in status["canary"]["evaluations"]} == {"Inconclusive"}
    assert (status["stable"]["revision"], status["canary"]["phase"]) == (first, "Progressing")
    namespace.apply(wish(namespace, "near", rollout("Probe")))
    until(lambda: namespace.get("mdep", "tiny")["status"]["stable"]["revision"] != first, PATIENCE, lambda: namespace.explain("tiny"))
    load = namespace.end_load("load")
    assert load["failed"] == 0, load
