"""The model store that we generate, in TorchServe itself (with the machine's Java), started as the chart's ServingRuntime says."""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from integration.mar import CLASS, SCALING, draft_of, packed
from integration.ports import free_ports
from integration.runtime.foreign import NAME, Pod, ask, pod
from integration.runtime.test_other_clients import python_with
from unit.runtime.serve.artifacts import MLP_SIGNATURE, Draft, mlp, mlp_answer

pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.timeout(900)]
JSON = {"Content-Type": "application/json"}
PATH = f"/predictions/{NAME}"


class Mlp(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (torch.nn.Parameter(torch.from_numpy(weights)) for weights in mlp()[1:])

    def forward(self, x):
        return torch.relu(x @ self.first) @ self.second


def draft() -> Draft:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(Mlp().eval(), torch.zeros(2, 64)), file)
    return Draft({"model.pt": file.getvalue()}, {"format": "TorchScript", "entry": "model.pt", "signature": MLP_SIGNATURE})


def running(made: Pod):
    if shutil.which("java") is None:
        pytest.fail("TorchServe needs Java 11 or later (apt-get install openjdk-17-jre-headless)")
    python, (management, grpc, other) = python_with("torchserve"), free_ports(3)
    command = made.server["startupProbe"]["exec"]["command"]
    command[:] = [word.replace("127.0.0.1:8081", f"127.0.0.1:{management}") for word in command]
    environment = {  # ports that a pod has to itself
        "TS_MANAGEMENT_ADDRESS": f"http://127.0.0.1:{management}",
        "TS_GRPC_INFERENCE_PORT": str(grpc),
        "TS_GRPC_MANAGEMENT_PORT": str(other),
        "PATH": f"{python.parent}:{os.environ['PATH']}",
    }
    return made.running([str(python.with_name("torchserve"))], environment)


def infer(port, x, **more):
    item = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
    return ask(port, PATH, json.dumps({"inputs": [item], **more}).encode(), **JSON)


def test_a_torchscript_model(tmp_path):
    made = pod(tmp_path, "torchserve", draft())
    x = np.random.default_rng(5).standard_normal((3, 64)).astype(np.float32)
    with running(made) as port:
        probes = {made.server[f"{probe}Probe"]["httpGet"]["path"] for probe in ("readiness", "liveness")}
        assert {path: ask(port, path).status for path in probes} == dict.fromkeys(probes, 200)
        start = time.monotonic()
        got = infer(port, x, id="a")
        assert got.status == 200, got.body
        assert time.monotonic() - start < 3, "the probe passed before the model was loaded"
        answer = json.loads(got.body)
        assert (answer["model_name"], answer["id"], answer["outputs"][0]["shape"]) == (NAME, "a", [3, 10])
        np.testing.assert_allclose(np.reshape(answer["outputs"][0]["data"], (3, 10)), mlp_answer(x), rtol=1e-4, atol=1e-4)
        plain = ask(port, PATH, json.dumps(x[0].tolist()).encode(), **JSON)
        np.testing.assert_allclose(json.loads(plain.body), mlp_answer(x)[0], rtol=1e-4, atol=1e-4)
        assert infer(port, x[:, :5]).status == 400
        assert infer(port, x).status == 200
        metrics = ask(made.ports()["metrics"], "/metrics")
        assert metrics.status == 200
        assert b"ts_inference_requests_total" in metrics.body
        # 405: there is no management API on the port of requests
        assert ask(port, "/models").status in (404, 405)


def test_batches(tmp_path):
    made = pod(tmp_path, "torchserve", draft(), batching={"maxBatchSize": 8, "maxDelay": "50ms"})
    rows = np.random.default_rng(6).standard_normal((8, 64)).astype(np.float32)
    barrier = threading.Barrier(8)

    def one(port, number):
        barrier.wait()
        return infer(port, rows[number : number + 1] if number else rows[:1, :5])

    with running(made) as port, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: one(port, number), range(8)))
    assert [answer.status for answer in answers] == [400, *[200] * 7], "one that is wrong fails alone"
    got = [json.loads(answer.body)["outputs"][0]["data"] for answer in answers[1:]]
    np.testing.assert_allclose(got, mlp_answer(rows)[1:], rtol=1e-4, atol=1e-4)


def test_a_user_s_own_archive(tmp_path):
    mar = packed(tmp_path / "source", "handler.py", {"handler.py": CLASS, "scaling.py": SCALING})
    made = pod(tmp_path / "pod", "torchserve", draft_of(mar))
    with zipfile.ZipFile(mar) as theirs, zipfile.ZipFile(made.folder / f"models/layout/model-store/{NAME}.mar") as ours:
        assert {i.filename for i in ours.infolist()} == {i.filename for i in theirs.infolist() if not i.is_dir()}
    with running(made) as port:
        got = ask(port, PATH, b"[0.0, 1.0, -2.0, 0.5]", **JSON)
        assert got.status == 200, got.body
        assert set(json.loads(got.body)) == {"label", "score"}
