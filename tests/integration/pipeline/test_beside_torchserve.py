"""The same archives in TorchServe itself and in our server, side by side: the same requests, the same answers.

TorchServe runs in an environment of its own (kept in the cache, by its lock file's hash), with the machine's Java.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from integration.mar import CLASS, FUNCTION, SCALING, packed
from integration.ports import free_ports
from integration.runtime.test_other_clients import python_with

pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.timeout(1200)]

PICTURES = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 16, 7, stride=4)
        self.norm = torch.nn.BatchNorm2d(16)
        self.fc = torch.nn.Linear(16, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).amax((2, 3)))
"""
NAMES = json.dumps({str(number): [f"n{number:02d}", f"class {number}"] for number in range(10)})
X = [[0.0, 1.0, -2.0, 0.5], [3.0, 1.0, -2.0, 0.5], [-9.0, 1.0, 4.0, 0.5]]
JSON = {"content-type": "application/json"}


@dataclass
class Answer:
    status: int
    body: bytes


def ask(port: int, model: str, body: bytes, headers: dict[str, str]) -> Answer:
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", f"/predictions/{model}", body, headers)
        response = connection.getresponse()
        return Answer(response.status, response.read())
    finally:
        connection.close()


def is_answering(port: int, path: str) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("archives")
    made = {
        "pictures": packed(folder / "a", "image_classifier", {"index_to_name.json": NAMES}, module=PICTURES),
        "scorer": packed(folder / "b", "handler.py", {"handler.py": CLASS, "scaling.py": SCALING}),
        "function": packed(folder / "c", "handler:handle", {"handler.py": FUNCTION}, eager=False),
    }
    store = folder / "store"
    store.mkdir()
    return {name: Path(shutil.copy(path, store / f"{name}.mar")) for name, path in made.items()}


@pytest.fixture(scope="module")
def torchserve(archives: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """TorchServe with the three archives; its port."""
    if shutil.which("java") is None:
        pytest.fail("TorchServe needs Java 11 or later (apt-get install openjdk-17-jre-headless)")
    python, folder, ports = python_with("torchserve"), tmp_path_factory.mktemp("torchserve"), free_ports(5)
    names = ("inference_address", "management_address", "metrics_address")
    lines = [f"{name}=http://127.0.0.1:{port}" for name, port in zip(names, ports, strict=False)]
    lines += [f"grpc_inference_port={ports[3]}", f"grpc_management_port={ports[4]}", "disable_token_authorization=true"]
    lines += ["default_workers_per_model=1", "vmargs=-Xmx512m", "default_response_timeout=300", "default_startup_timeout=600"]
    (folder / "config.properties").write_text("\n".join(lines) + "\n")
    models = [f"{name}={path.name}" for name, path in archives.items()]
    store = str(next(iter(archives.values())).parent)
    command = [str(python.with_name("torchserve")), "--start", "--foreground", "--ncs", "--model-store", store, "--models", *models]
    environment = os.environ | {
        "TEMP": str(folder),
        "TMPDIR": str(folder),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{python.parent}:{os.environ['PATH']}",
    }
    environment |= {"LOG_LOCATION": str(folder / "logs"), "METRICS_LOCATION": str(folder / "logs")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--ts-config", str(folder / "config.properties")],
            cwd=folder,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 600
        waiting = [f"/models/{name}" for name in archives]
        while (
            waiting
            and time.monotonic() < deadline
            and process.poll() is None
            and b"Backend worker error" not in (folder / "log").read_bytes()
        ):
            waiting = [path for path in waiting if not has_worker(ports[1], path)]
            time.sleep(0.5)
        assert not waiting, f"TorchServe is not ready: {waiting}\n{(folder / 'log').read_text()[-4000:]}"
        yield ports[0]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def has_worker(port: int, path: str) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        rows = json.loads(response.read())
        return response.status == 200 and any(worker["status"] == "READY" for worker in rows[0]["workers"])
    except (OSError, ValueError, KeyError, IndexError):
        return False
    finally:
        connection.close()


@pytest.fixture
def served(pipeline, tmp_path):
    """Convert an archive, pull it and serve it; returns the port and what the pipeline said."""
    processes = []

    def serve(mar: Path, name: str, **spec) -> tuple[int, dict]:
        origin = pipeline.work / "origin"
        origin.mkdir(parents=True, exist_ok=True)
        shutil.copy(mar, origin / "m.mar")
        got = pipeline.run({"model": {"uri": "pvc://models/m.mar"}, **spec})
        assert got.reason == "Published", got.log
        folder, digest, (port,) = tmp_path / f"artifact-{name}", got.message["artifactDigest"], free_ports(1)
        command = ["pull", "--repository", pipeline.repository, "--digest", digest, "--output", str(folder)]
        assert pipeline.step(command, {"model": {}}, {}).code == 0
        arguments = ["--model-dir", str(folder), "--artifact-digest", digest, "--model-name", name, "--port", str(port)]
        with (tmp_path / f"log-{name}").open("wb") as log:
            program = [sys.executable, "-c", "import sys; from slipway_runtime.cli import main; sys.exit(main())", "serve"]
            processes.append(subprocess.Popen([*program, *arguments], stdout=log, stderr=log, cwd=tmp_path))
        deadline = time.monotonic() + 150
        while not is_answering(port, "/v2/health/ready") and time.monotonic() < deadline and processes[-1].poll() is None:
            time.sleep(0.1)
        assert is_answering(port, "/v2/health/ready"), (tmp_path / f"log-{name}").read_text()
        return port, got.message

    yield serve
    for process in processes:
        process.kill()
        process.wait()


def picture(size: tuple[int, int], kind: str) -> bytes:
    """A picture with structure at all scales, so that preprocessing that differs would show."""
    rng = np.random.default_rng(size[0])
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = rng.integers(-30, 31, (size[1], size[0], 3))
    file = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)).save(file, kind)
    return file.getvalue()


def form(data: bytes) -> tuple[bytes, dict[str, str]]:
    head = b'--B\r\ncontent-disposition: form-data; name="data"; filename="x"\r\n\r\n'
    return head + data + b"\r\n--B--\r\n", {"content-type": "multipart/form-data; boundary=B"}


@pytest.mark.parametrize("target", ["ONNX", "None"])
def test_image_classifier(torchserve, archives, served, target):
    port, said = served(archives["pictures"], "pictures", conversion={"candidates": [{"target": target}]})
    assert said["format"] == ("ONNX" if target == "ONNX" else "PyTorch")
    for size in ((640, 480), (333, 517), (256, 256), (100, 230)):
        for kind in ("PNG", "JPEG"):
            data = picture(size, kind)
            requests = [(data, {"content-type": f"image/{kind.lower()}"}), (data, {}), form(data)]
            for body, headers in requests:
                theirs, ours = (ask(each, "pictures", body, headers) for each in (torchserve, port))
                assert (theirs.status, ours.status) == (200, 200), (size, kind, headers, theirs.body, ours.body)
                want, got = json.loads(theirs.body), json.loads(ours.body)
                assert list(got) == list(want), (size, kind)
                np.testing.assert_allclose(list(got.values()), list(want.values()), atol=1e-4)


def test_a_handler_of_its_own(torchserve, archives, served):
    port, said = served(archives["scorer"], "scorer")
    assert said["format"] == "TorchServe"
    for row in X:
        text = json.dumps(row).encode()
        for body, headers in ((text, JSON), (text, {}), (json.dumps({"x": row}).encode(), JSON), form(text)):
            theirs, ours = (ask(each, "scorer", body, headers) for each in (torchserve, port))
            assert (theirs.status, ours.status) == (200, 200), (headers, theirs.body, ours.body)
            want, got = json.loads(theirs.body), json.loads(ours.body)
            assert (got["label"], list(got)) == (want["label"], list(want))
            assert got["score"] == pytest.approx(want["score"], abs=1e-5)
    theirs, ours = (ask(each, "scorer", b"[1, 2]", JSON) for each in (torchserve, port))
    assert theirs.status == ours.status == 422
    assert b"x must have 4 numbers" in theirs.body
    assert b"x must have 4 numbers" in ours.body


def test_a_handler_that_is_a_function(torchserve, archives, served):
    signature = {
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 3]}],
    }
    port, said = served(archives["function"], "function", signature=signature)
    assert said["format"] == "TorchServe"
    for row in X:
        theirs, ours = (ask(each, "function", json.dumps(row).encode(), JSON) for each in (torchserve, port))
        assert (theirs.status, ours.status) == (200, 200), (theirs.body, ours.body)
        np.testing.assert_allclose(json.loads(ours.body), json.loads(theirs.body), atol=1e-5)
