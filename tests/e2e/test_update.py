"""A new version takes over without a lost request, and going back needs no conversion."""

from __future__ import annotations

import json

import numpy as np
import pytest

from e2e.kit import WEIGHT, Namespace, linear, mdep, model_folder, until, weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
# 16 connections; ends 15 s after the answers have changed (the old revision drains for 10), or after its limit
LOAD = """
import http.client, json, sys, threading, time
name, limit = sys.argv[1], float(sys.argv[2])
body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]})
begin, lock = time.monotonic(), threading.Lock()
count = {"sent": 0, "failed": 0, "answers": {}}
errors, changed = [], []

def over():
    now = time.monotonic()
    return now - begin > limit or bool(changed and now - changed[0] > 15)

def work():
    connection = None
    while not over():
        try:
            connection = connection or http.client.HTTPConnection(name, 80, timeout=20)
            connection.request("POST", f"/v2/models/{name}/infer", body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            data = reply.read()
            key = str(round(json.loads(data)["outputs"][0]["data"][0], 3)) if reply.status == 200 else None
            error = None if key else f"{reply.status} {data[:200]!r}"
            if reply.will_close:
                connection.close()
                connection = None
        except Exception as caught:
            key, error, connection = None, repr(caught), None
        with lock:
            count["sent"] += 1
            if error:
                count["failed"] += 1
                errors.append(f"{time.monotonic() - begin:.1f}s {error}")
            else:
                count["answers"][key] = count["answers"].get(key, 0) + 1
                if len(count["answers"]) > 1 and not changed:
                    changed.append(time.monotonic())
        time.sleep(0.02)

threads = [threading.Thread(target=work) for _ in range(16)]
[t.start() for t in threads]
[t.join() for t in threads]
print(json.dumps(count | {"errors": errors[:20], "seconds": round(time.monotonic() - begin, 1)}))
"""


def test_update_under_load_then_revert_without_a_conversion(namespace: Namespace) -> None:
    namespace.apply(model_folder("v1"), model_folder("v2", weights_safetensors=weights(WEIGHT * 2)), mdep("tiny", "configmap://v1"))
    first = namespace.wait_ready("tiny")["status"]["stable"]["revision"]

    _under_load(namespace, "load-update", "configmap://v2")
    second = namespace.wait_ready("tiny", timeout=60)["status"]["stable"]["revision"]
    assert second != first
    with namespace.cluster.forward(namespace.name, "service/tiny", 80) as url:
        rows = [[1.0, 2.0, 3.0, 4.0]]
        np.testing.assert_allclose(namespace.infer(url, "tiny", rows), linear(rows, WEIGHT * 2), atol=1e-5)

    jobs = namespace.jobs()
    _under_load(namespace, "load-revert", "configmap://v1")
    assert namespace.wait_ready("tiny", timeout=60)["status"]["stable"]["revision"] == first
    assert namespace.jobs() == jobs, "going back converted the model again"


def _under_load(space: Namespace, pod: str, uri: str) -> None:
    """Change the model while 16 connections ask; not one request may fail, and both versions must have answered."""
    space.run_pod(pod, LOAD, "tiny", "300")
    until(lambda: space.phase(pod) == "Running", 60, lambda: space.kubectl("describe", "pod", pod))
    space.apply(mdep("tiny", uri))
    until(lambda: space.phase(pod) in ("Succeeded", "Failed"), 330, lambda: space.explain("tiny"))
    result = json.loads(space.kubectl("logs", pod).splitlines()[-1])
    print(pod, result)
    assert result["failed"] == 0, result
    assert len(result["answers"]) == 2, result
