"""What the e2e tests do to a cluster: apply, wait with an explanation when the wait is in vain, call the server, run pods."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import re
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save as save_safetensors

from kube import kube

ROOT = Path(__file__).parents[2]
CONTEXT = "kind-slipway"
SYSTEM = "slipway-system"
MANAGED = "app.kubernetes.io/managed-by=slipway"
IMAGE_VALUES = {
    "operator.image": "SLIPWAY_OPERATOR_IMAGE",
    "runtime.image": "SLIPWAY_RUNTIME_IMAGE",
    "runtime.torchImage": "SLIPWAY_RUNTIME_TORCH_IMAGE",
    "registry.image": "SLIPWAY_REGISTRY_IMAGE",
}
PATIENCE = 400.0  # seconds for what is promised without a time: a conversion took 160 on a busy two-core machine
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Cluster:
    """kubectl and helm, bound to one context by name."""

    kubeconfig: Path
    images: dict[str, str]

    def run(self, *arguments: str, stdin: str = "", timeout: float = 120) -> subprocess.CompletedProcess[str]:
        command = [str(ROOT / "build/bin/kubectl"), "--kubeconfig", str(self.kubeconfig), "--context", CONTEXT, *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)

    def kubectl(self, *arguments: str, stdin: str = "", timeout: float = 120) -> str:
        done = self.run(*arguments, stdin=stdin, timeout=timeout)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def helm(self, *arguments: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        command = [str(ROOT / "build/bin/helm"), "--kubeconfig", str(self.kubeconfig), "--kube-context", CONTEXT, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)

    def get(self, *arguments: str) -> Any:
        return kube(self.kubeconfig, CONTEXT).get(*arguments)

    def items(self, *arguments: str) -> list[Manifest]:
        return list(self.get(*arguments)["items"])

    def apply(self, *documents: Manifest) -> subprocess.CompletedProcess[str]:
        return self.run(
            "apply",
            "--server-side",
            "--force-conflicts",
            "-f",
            "-",
            stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}),
        )

    def audit(self, since: float) -> list[Manifest]:
        """The answered requests from the audit log of the control plane's node, from that time (seconds since 1970) on."""
        node = "slipway-control-plane"
        engine = {"DOCKER_HOST": "unix:///run/slipway-docker.sock"} if (ROOT / "build/engine").read_text().strip() == "own" else {}
        command = ["docker", "exec", node, "sh", "-c", "cat $(ls -tr /var/log/kubernetes/audit*.log)"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env={**os.environ, **engine})
        stamp = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        key = '"requestReceivedTimestamp":"'
        return [json.loads(line) for line in done.stdout.splitlines() if line.partition(key)[2][: len(stamp)] >= stamp]

    @contextmanager
    def forward(self, namespace: str, target: str, port: int) -> Iterator[str]:
        """A local URL of a port in the cluster."""
        command = [str(ROOT / "build/bin/kubectl"), "--kubeconfig", str(self.kubeconfig), "--context", CONTEXT]
        command += ["-n", namespace, "port-forward", target, f":{port}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                found = re.search(r"127\.0\.0\.1:(\d+)", line)
                assert found, f"port-forward {target}: {line}"
                yield f"http://127.0.0.1:{found[1]}"
            finally:
                process.terminate()


def until(check: Callable[[], Any], timeout: float, explain: Callable[[], str] = lambda: "", *, every: float = 1.0) -> Any:
    """Return the first true answer of `check`; fails with the explanation when there is none in time."""
    end = time.monotonic() + timeout
    while True:
        answer = check()
        if answer:
            return answer
        assert time.monotonic() < end, f"not within {timeout:g} s\n{explain()}"
        time.sleep(every)


@dataclass(frozen=True)
class Namespace:
    """One test's namespace."""

    cluster: Cluster
    name: str

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        return self.cluster.kubectl("-n", self.name, *arguments, stdin=stdin)

    def get(self, *arguments: str) -> Any:
        return self.cluster.get("-n", self.name, *arguments)

    def items(self, *arguments: str) -> list[Manifest]:
        return self.cluster.items("-n", self.name, *arguments)

    def apply(self, *documents: Manifest) -> None:
        done = self.cluster.apply(*self._placed(documents))
        assert done.returncode == 0, done.stderr

    def refused(self, document: Manifest) -> str:
        """What the API server says when it rejects a manifest."""
        done = self.cluster.apply(*self._placed([document]))
        assert done.returncode != 0, f"the API server accepted {document}"
        return done.stderr

    def _placed(self, documents: Any) -> list[Manifest]:
        placed = []
        for document in documents:
            scoped = {} if document["kind"] == "ServingRuntime" else {"namespace": self.name}
            placed.append({**document, "metadata": {**document["metadata"], **scoped}})
        return placed

    def condition(self, name: str, kind: str = "Ready") -> Manifest:
        """A condition of a ModelDeployment that speaks about its present generation; empty when there is none yet."""
        resource = self.get("mdep", name)
        conditions = (resource.get("status") or {}).get("conditions") or []
        found = next((c for c in conditions if c["type"] == kind), {})
        return found if found.get("observedGeneration") == resource["metadata"]["generation"] else {}

    def wait_ready(self, name: str, timeout: float = PATIENCE) -> Manifest:
        """The ModelDeployment once it is Ready."""
        until(lambda: self.condition(name).get("status") == "True", timeout, lambda: self.explain(name))
        return dict(self.get("mdep", name))

    def wait_reason(self, name: str, reason: str, timeout: float = PATIENCE) -> Manifest:
        """The Ready condition once it is False for that reason."""

        def found() -> Manifest | None:
            condition = self.condition(name)
            return condition if (condition.get("status"), condition.get("reason")) == ("False", reason) else None

        return dict(until(found, timeout, lambda: f"expected {reason}\n{self.explain(name)}"))

    def events(self, name: str) -> list[Manifest]:
        return self.items("events", "--field-selector", f"involvedObject.name={name},involvedObject.kind=ModelDeployment")

    def wait_event(self, name: str, reason: str, kind: str = "Warning", timeout: float = 60) -> None:
        def seen() -> bool:
            return any((event["reason"], event["type"]) == (reason, kind) for event in self.events(name))

        until(seen, timeout, lambda: f"no {kind} Event {reason} of {name}\n{self.explain(name)}")

    def jobs(self) -> set[str]:
        return {job["metadata"]["uid"] for job in self.items("jobs", "-l", MANAGED)}

    def owned(self) -> list[str]:
        """Everything of Slipway in the namespace."""
        kinds = "modelartifacts.slipway.dev,deployments,replicasets,services,jobs,pods,endpointslices"
        return [f"{item['kind']}/{item['metadata']['name']}" for item in self.items(kinds, "-l", MANAGED)]

    def explain(self, name: str) -> str:
        """All that helps to see why a wait was in vain."""
        parts = [slipway_cli(self.cluster, "status", name, "-n", self.name).stdout]
        for arguments in (
            ("get", "mdep", name, "-o", "jsonpath={.status}"),
            ("get", "mart,deploy,svc,jobs,pods", "-o", "wide"),
            ("get", "mart", "-o", "jsonpath={range .items[*]}{.metadata.name}: {.status}{'\\n'}{end}"),
            ("get", "events", "--sort-by=.lastTimestamp"),
        ):
            done = self.cluster.run("-n", self.name, *arguments)
            parts.append(f"$ kubectl {' '.join(arguments)}\n{(done.stdout or done.stderr)[-4000:]}")
        return "\n".join(parts)

    def infer(self, url: str, name: str, rows: list[list[float]]) -> np.ndarray:
        """The answers of the Open Inference Protocol to some rows."""
        flat = [value for row in rows for value in row]
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [len(rows), len(rows[0])], "data": flat}]}
        answer = fetch_json(f"{url}/v2/models/{name}/infer", body)
        output = answer["outputs"][0]
        return np.array(output["data"], dtype=np.float32).reshape(output["shape"])

    def infer_by_grpc(self, name: str, rows: list[list[float]]) -> np.ndarray:
        """The same over gRPC, through the model's Service, by Triton's client."""
        import tritonclient.grpc as triton  # noqa: PLC0415 - half a second that few tests need

        item = triton.InferInput("x", [len(rows), len(rows[0])], "FP32")
        item.set_data_from_numpy(np.array(rows, np.float32))
        with (
            self.cluster.forward(self.name, f"service/{name}", 9000) as url,
            triton.InferenceServerClient(url.removeprefix("http://")) as client,
        ):
            return np.array(client.infer(name, [item]).as_numpy("y"))

    def run_pod(self, name: str, script: str, *arguments: str, port: int | None = None) -> None:
        """Run a Python script in a pod of the runtime image, as a namespace that enforces `restricted` wants it."""
        container: Manifest = {
            "name": "main",
            "image": self.cluster.images["SLIPWAY_RUNTIME_IMAGE"],
            "command": ["python", "-u", "-c", script, *arguments],
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True},
        }
        spec = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
        }
        self.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec})
        if port is not None:
            service = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": port}]}
            self.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": service})

    def end_load(self, pod: str) -> Manifest:
        """Tell a pod that runs LOAD to end, and return its counts."""
        self.kubectl("exec", pod, "--", "python", "-c", "import os, signal; os.kill(1, signal.SIGTERM)")
        until(lambda: self.phase(pod) in ("Succeeded", "Failed"), PATIENCE, lambda: self.kubectl("describe", "pod", pod))
        return dict(json.loads(self.kubectl("logs", pod).splitlines()[-1]))

    def wait_running(self, pod: str) -> None:
        """Wait until a pod runs."""
        until(lambda: self.phase(pod) == "Running", PATIENCE, lambda: self.kubectl("describe", "pod", pod))

    def phase(self, pod: str) -> str:
        return str(self.get("pod", pod)["status"].get("phase"))


def images() -> dict[str, str]:
    """The images of build/images.env, by variable."""
    lines = (ROOT / "build/images.env").read_text().splitlines()
    pairs = (line.removeprefix("export ").strip().partition("=") for line in lines if "=" in line)
    return {key: value.strip("'\"") for key, _, value in pairs}


def built(name: str) -> str:
    """An image that `make images` does not build by itself; builds it unless it is there."""
    subprocess.run([str(ROOT / "hack/images.sh"), name], check=True, timeout=1800, stdout=subprocess.DEVNULL)
    return images()[f"{name.upper().replace('-', '_')}_IMAGE"]


def install(cluster: Cluster, *settings: str, command: tuple[str, ...] = ("upgrade", "--install")) -> None:
    """Install or upgrade the chart of this tree at its images, with these settings besides, and wait until its pods are ready.

    Every node pulls the images beforehand: on a new cluster the tests would otherwise wait for that, each within its own time.
    """
    images = [f"{path}={cluster.images[variable]}" for path, variable in IMAGE_VALUES.items()] + ["prePull.enabled=true"]
    values = [argument for setting in (*images, *settings) for argument in ("--set", setting)]
    place = ("-n", SYSTEM, "--create-namespace", "--wait", "--timeout", "10m")
    done = cluster.helm(*command, "slipway", str(ROOT / "charts/slipway"), *place, *values, timeout=660)
    assert done.returncode == 0, f"helm: {done.stderr}\n{cluster.run('-n', SYSTEM, 'get', 'pods,events', '-o', 'wide').stdout}"


def make_namespace(cluster: Cluster) -> Namespace:
    """A namespace that enforces the Pod Security Standard `restricted`."""
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted", "slipway.dev/e2e": "true"}
    document = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(document))
    return Namespace(cluster, name)


def drop_namespace(space: Namespace) -> None:
    """Delete it without waiting; SLIPWAY_E2E_KEEP=1 leaves it for a look."""
    if not os.environ.get("SLIPWAY_E2E_KEEP"):
        space.cluster.run("delete", "namespace", space.name, "--wait=false")


def fetch_json(url: str, body: Any = None, timeout: float = 10) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.loads(answer.read())


def slipway_cli(cluster: Cluster, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """The CLI as it stands in this working tree."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator/src"), "KUBECONFIG": str(cluster.kubeconfig)}
    environment["PATH"] = f"{ROOT / 'build/bin'}:{environment['PATH']}"
    command = [sys.executable, "-m", "slipway.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)


# -- the tiny model --

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4) / 10
BIAS = np.array([0.5, -0.5, 0.25], dtype=np.float32)
MODEL = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x)

def build():
    return Tiny().eval()
"""
SIGNATURE: Manifest = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 3]}],
}


def model_yaml(**changes: Any) -> str:
    return yaml.safe_dump(
        {"format": "PyTorch", "entrypoint": "model:build", "weights": "weights.safetensors", "signature": SIGNATURE} | changes
    )


def weights(weight: np.ndarray = WEIGHT, bias: np.ndarray = BIAS) -> bytes:
    return bytes(save_safetensors({"fc.weight": np.ascontiguousarray(weight), "fc.bias": bias}))


def linear(rows: Any, weight: np.ndarray = WEIGHT, bias: np.ndarray = BIAS) -> np.ndarray:
    """What the tiny model computes, by torch."""
    import torch  # noqa: PLC0415 - seconds to import, and only some tests need it

    return np.asarray(torch.nn.functional.linear(torch.tensor(rows), torch.tensor(weight), torch.tensor(bias)))


class Exploit:
    """A pickle of this runs code when it is loaded."""

    def __reduce__(self) -> Any:
        return os.system, ("true",)


def evil_pickle() -> bytes:
    buffer = io.BytesIO()
    pickle.dump({"fc.weight": Exploit()}, buffer, protocol=2)
    return buffer.getvalue()


def model_folder(name: str, code: str = MODEL, manifest: str | None = None, **files: bytes) -> Manifest:
    """A ConfigMap with the model folder; `files` replaces the weights, with `_` for the dot."""
    binary = {
        key.replace("_", "."): base64.b64encode(value).decode() for key, value in (files or {"weights_safetensors": weights()}).items()
    }
    data = {"model.py": code, "model.yaml": manifest or model_yaml()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data, "binaryData": binary}


def onnx_folder(name: str, weight: np.ndarray = WEIGHT, bias: np.ndarray = BIAS) -> Manifest:
    """The same model as an ONNX file, for tests in which converting is not the matter: exporting takes eight seconds of CPU."""
    from onnx import helper, numpy_helper  # noqa: PLC0415 - only some tests need it

    sides = [helper.make_tensor_value_info(side, 1, ["batch", size]) for side, size in (("x", weight.shape[1]), ("y", weight.shape[0]))]
    constants = [numpy_helper.from_array(array, key) for key, array in (("weight", weight), ("bias", bias))]
    node = helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], transB=1)
    graph = helper.make_graph([node], "tiny", sides[:1], sides[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    manifest = yaml.safe_dump({"format": "ONNX", "signature": SIGNATURE})
    binary = {"model.onnx": base64.b64encode(model.SerializeToString()).decode()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"model.yaml": manifest}, "binaryData": binary}


SMALL: Manifest = {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "3Gi"}}
SERVER: Manifest = {"requests": {"cpu": "20m", "memory": "64Mi"}}


def mdep(
    name: str, uri: str, *, serving: Manifest | None = None, conversion: Manifest | None = None, more: Manifest | None = None, **model: Any
) -> Manifest:
    """A ModelDeployment that asks for little, so that many fit on the nodes of a test cluster; `more` are other parts of its spec."""
    spec = {
        "model": {"uri": uri, **model},
        "conversion": {"resources": SMALL, **(conversion or {})},
        "serving": {"resources": SERVER, **(serving or {})},
        **(more or {}),
    }
    return {"apiVersion": "slipway.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": name}, "spec": spec}


# -- load --

# What the loads below begin with: a Service that has just become ready reaches the packet filter of this pod's node a moment later, and
# refuses connections until then.
FIRST_ANSWER = """
import http.client, json, signal, sys, threading, time

def wait_for_answers(name):
    end = time.monotonic() + 30
    while not answers(name) and time.monotonic() < end:
        time.sleep(0.2)

def answers(name):
    try:
        connection = http.client.HTTPConnection(name, 80, timeout=5)
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
"""

# 16 connections; ends 15 s after the answers have changed (the old revision drains for 10), after its limit, or on SIGTERM.
# At most 320 requests a second, as more takes CPU from what else runs.
LOAD = (
    FIRST_ANSWER
    + """
name, limit = sys.argv[1], float(sys.argv[2])
body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]})
lock = threading.Lock()
count = {"sent": 0, "failed": 0, "answers": {}}
errors, changed, stopped = [], [], threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopped.set())

def over():
    now = time.monotonic()
    return stopped.is_set() or now - begin > limit or bool(changed and now - changed[0] > 15)

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
        time.sleep(0.05)

wait_for_answers(name)
begin = time.monotonic()
threads = [threading.Thread(target=work) for _ in range(16)]
[t.start() for t in threads]
while any(t.is_alive() for t in threads):  # a join would keep the signal's handler from running
    time.sleep(0.2)
print(json.dumps(count | {"errors": errors[:20], "seconds": round(time.monotonic() - begin, 1)}))
"""
)

# Some of the requests are odd: their first feature is 200, which random inputs never hold. One thread a connection; a connection is used
# for 20 requests only, because a Service balances connections. Arguments: the model, every how many-th is odd, threads, pause in seconds.
ODD_LOAD = (
    FIRST_ANSWER
    + """
name, every, width, pause = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
rows = [[first, 2, 3, 4] for first in [1] * (every - 1) + [200]]
bodies = [json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": row}]}) for row in rows]
lock, stopped = threading.Lock(), threading.Event()
count, errors = {"sent": 0, "odd": 0, "failed": 0, "failed_though_even": 0, "nan": 0, "revisions": {}}, []
signal.signal(signal.SIGTERM, lambda *_: stopped.set())

def work(number):
    connection = None
    while not stopped.is_set():
        number, error, is_nan, revision = number + 1, None, False, None
        is_odd = number % every == every - 1
        try:
            connection = connection or http.client.HTTPConnection(name, 80, timeout=20)
            connection.request("POST", f"/v2/models/{name}/infer", bodies[number % every], {"Content-Type": "application/json"})
            reply = connection.getresponse()
            data = reply.read()
            revision = reply.getheader("x-slipway-revision")
            if reply.status == 200:
                is_nan = not isinstance(json.loads(data)["outputs"][0]["data"][0], float)
            else:
                error = f"{reply.status} {data[:200]!r}"
            if reply.will_close or number % 20 == 0:
                connection.close()
                connection = None
        except Exception as caught:
            error, connection = repr(caught), None
        with lock:
            count["sent"] += 1
            count["odd"] += is_odd
            count["failed"] += error is not None
            count["failed_though_even"] += error is not None and not is_odd
            count["nan"] += is_nan
            count["revisions"][str(revision)] = count["revisions"].get(str(revision), 0) + 1
            if error:
                errors.append(f"{time.monotonic() - begin:.1f}s {error}")
        time.sleep(pause)

wait_for_answers(name)
begin = time.monotonic()
threads = [threading.Thread(target=work, args=(number,)) for number in range(width)]
[t.start() for t in threads]
while any(t.is_alive() for t in threads):  # a join would keep the signal's handler from running
    time.sleep(0.2)
print(json.dumps(count | {"errors": errors[:20]}))
"""
)
