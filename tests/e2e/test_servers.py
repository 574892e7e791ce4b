"""One model on the Python server, the C++ server and TorchServe; and servers that are stuck, out of memory, or asked too much."""

from __future__ import annotations

import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import yaml

from e2e.kit import MODEL, ROOT, WEIGHT, Cluster, Manifest, Namespace, built, linear, mdep, model_folder, until, weights

pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.timeout(900)]
ROWS = [[1.0, 2.0, 3.0, 4.0], [-1.0, 0.5, 0.0, 2.0]]
ODD = [[200.0, 2.0, 3.0, 4.0]]
HAS_TRITON = "TRITON" in os.environ  # the folder of an installation, which is brought along by hand


def another(cluster: Cluster, base: str, name: str, *arguments: str, **spec: Any) -> Manifest:
    """A ServingRuntime of the chart with other arguments. Its name sorts last: the first one claims models that name none."""
    found = cluster.get("servingruntime", base)["spec"]
    changed = {**found, "args": [*found["args"], *arguments], **spec}
    return {"apiVersion": "slipway.dev/v1alpha1", "kind": "ServingRuntime", "metadata": {"name": name}, "spec": changed}


def optional(cluster: Cluster, base: str, name: str) -> Manifest:
    """A ServingRuntime of the chart that is off by default, with an image made here."""
    values = [f"servingRuntimes.{base}.{setting}" for setting in ("enabled=true", f"image={built(f'slipway-test-{base}')}")]
    words = [
        "--show-only",
        "templates/servingruntimes.yaml",
        "--kube-version",
        "1.34.0",
        *(word for value in values for word in ("--set", value)),
    ]
    done = cluster.helm("template", "slipway", str(ROOT / "charts/slipway"), *words)
    assert done.returncode == 0, done.stderr
    documents = yaml.safe_load_all(yaml.safe_load(done.stdout)["data"]["servingruntimes.yaml"])
    (found,) = (document for document in documents if document["metadata"]["name"] == base)
    return {**found, "metadata": {"name": name}}


@pytest.fixture(scope="module")
def runtimes(slipway: Cluster) -> Iterator[Cluster]:
    """Other servers, and servers that are quick to call a model stuck, or to refuse."""
    made = [
        another(slipway, "libtorch", "zz-libtorch", image=built("slipway-libtorch")),
        optional(slipway, "torchserve", "zz-torchserve"),
        *([optional(slipway, "triton", "zz-triton")] if HAS_TRITON else []),
        another(slipway, "slipway", "zz-impatient", "--stuck-seconds=3", "--drain-seconds=1"),
        another(slipway, "slipway", "zz-narrow", "--lanes=1", "--queue-size=2"),
    ]
    done = slipway.apply(*made)
    assert done.returncode == 0, done.stderr
    yield slipway
    slipway.run("delete", "servingruntime", *(runtime["metadata"]["name"] for runtime in made))


def odd(line: str, pause: float = 0.0) -> str:
    """The tiny model with a line for inputs above 100, and a pause for all; it is served as PyTorch, so that both are still there."""
    head = MODEL.replace("from torch import nn", "import time\nfrom torch import nn")
    lines = f"        if float(x.max()) > 100:\n            {line}\n" + (f"        time.sleep({pause})\n" if pause else "")
    return head.replace("        return self.fc(x)", f"{lines}        return self.fc(x)")


def ask(url: str, rows: list[list[float]], timeout: float = 30) -> tuple[int, str | None]:
    """Status and Retry-After of an inference; 0 when there is no answer."""
    flat = [value for row in rows for value in row]
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [len(rows), 4], "data": flat}]}
    request = urllib.request.Request(f"{url}/v2/models/tiny/infer", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, None
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("Retry-After")
    except OSError:
        return 0, None


def by_torchserve(url: str, model: str, rows: list[list[float]]) -> np.ndarray:
    """As `Namespace.infer`, on TorchServe's path."""
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [len(rows), 4], "data": np.ravel(rows).tolist()}]}
    request = urllib.request.Request(f"{url}/predictions/{model}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        output = json.load(answer)["outputs"][0]
    return np.reshape(output["data"], output["shape"])


def test_one_model_answers_alike_on_all_servers(runtimes: Cluster, namespace: Namespace) -> None:
    conversion = {"candidates": [{"target": "TorchScript"}]}
    onnx = {"candidates": [{"target": "ONNX"}]}
    by = {"python": "slipway", "cpp": "zz-libtorch", "java": "zz-torchserve"} | ({"triton": "zz-triton"} if HAS_TRITON else {})
    namespace.apply(model_folder("v1"))
    for name, runtime in by.items():
        wish = onnx if name == "triton" else conversion
        namespace.apply(mdep(name, "configmap://v1", conversion=wish, serving={"runtime": runtime}))
    answers = {}
    for name in by:
        namespace.wait_ready(name)
        with namespace.cluster.forward(namespace.name, f"service/{name}", 80) as url:
            answers[name] = (by_torchserve if name == "java" else namespace.infer)(url, name, ROWS)
    answers |= {f"{name} by gRPC": namespace.infer_by_grpc(name, ROWS) for name in by if name != "java"}
    assert len(namespace.items("mart")) == 1 + HAS_TRITON, "one conversion serves all that take its format"
    for name, answer in answers.items():  # Triton's has another format
        np.testing.assert_allclose(answer, answers["python"], rtol=1e-5 if "triton" in name else 1e-6)
    np.testing.assert_allclose(answers["python"], linear(ROWS), rtol=1e-5)


def test_golden_inputs_are_replayed_on_the_cpp_server_before_it_gets_traffic(runtimes: Cluster, namespace: Namespace) -> None:
    conversion, serving = {"candidates": [{"target": "TorchScript"}]}, {"runtime": "zz-libtorch"}
    first, second = (
        mdep("tiny", f"configmap://{folder}", conversion=conversion, serving=serving, more={"rollout": {"strategy": "BlueGreen"}})
        for folder in ("v1", "v2")
    )
    namespace.apply(model_folder("v1"), model_folder("v2", weights_safetensors=weights(WEIGHT * 2)), first)
    old = namespace.wait_ready("tiny")["status"]["stable"]["revision"]
    namespace.apply(second)
    new = namespace.wait_ready("tiny")["status"]["stable"]["revision"]
    assert new != old
    assert replays(namespace, new) >= 3


def replays(namespace: Namespace, revision: str) -> float:
    """How many golden requests the server of a revision answered well."""
    forwarded = namespace.cluster.forward(namespace.name, f"deployment/{revision}", 8080)
    with forwarded as url, urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("slipway_probe_requests_total") and 'code="200"' in line)


def trouble(namespace: Namespace, code: str, serving: Manifest, reason: str) -> str:
    """Serve a model as PyTorch and ask it what it cannot bear: what the one Event of that reason says, once the server is ready again."""
    wish = mdep("tiny", "configmap://v1", conversion={"candidates": [{"target": "None"}]}, serving=serving)
    namespace.apply(model_folder("v1", code=code), wish)
    namespace.wait_ready("tiny")
    with namespace.cluster.forward(namespace.name, "service/tiny", 80) as url:
        assert ask(url, ROWS) == (200, None)
        threading.Thread(target=ask, args=(url, ODD, 300), daemon=True).start()
        namespace.wait_event("tiny", reason, timeout=180)
    (told,) = [event for event in namespace.events("tiny") if event["reason"] == reason]
    namespace.wait_ready("tiny")
    return str(told["message"])


@pytest.mark.parametrize("pause", [0.0, 0.02], ids=["on the event loop", "in a lane"])
def test_a_stuck_model_is_restarted_and_the_reason_told(runtimes: Cluster, namespace: Namespace, pause: float) -> None:
    # on the loop the server ends itself; else liveness fails six times, ten seconds apart
    said = trouble(namespace, odd("time.sleep(86400)", pause), {"runtime": "zz-impatient"}, "ModelStuck")
    assert "a call of the model has been running for" in said


def test_a_server_out_of_memory_is_restarted_and_the_reason_told(runtimes: Cluster, namespace: Namespace) -> None:
    resources = {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}
    code = odd("x = x + x.new_ones(1 << 30).sum()", 0.02)  # 4 GB
    assert "needed more memory than its limit" in trouble(namespace, code, {"resources": resources}, "OutOfMemory")


def test_a_full_queue_is_told_to_clients_and_counted(runtimes: Cluster, namespace: Namespace) -> None:
    conversion = {"candidates": [{"target": "None"}]}
    wish = mdep("tiny", "configmap://v1", conversion=conversion, serving={"runtime": "zz-narrow"})
    namespace.apply(model_folder("v1", code=odd("time.sleep(1)", 0.02)), wish)
    namespace.wait_ready("tiny")
    answers: list[tuple[int, str | None]] = []
    with namespace.cluster.forward(namespace.name, "service/tiny", 80) as url:
        threads = [threading.Thread(target=lambda: answers.append(ask(url, ODD))) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            metrics = answer.read().decode()
    refused = [after for status, after in answers if status == 429]
    assert {status for status, _ in answers} == {200, 429}
    assert all(after and int(after) >= 1 for after in refused), answers
    counted = [line for line in metrics.splitlines() if line.startswith("slipway_requests_total") and 'code="429"' in line]
    assert counted, [line for line in metrics.splitlines() if line.startswith("slipway_requests_total")]
    assert sum(float(line.rpartition(" ")[2]) for line in counted) == len(refused)
    until(lambda: namespace.condition("tiny").get("status") == "True", 180, lambda: namespace.explain("tiny"))
