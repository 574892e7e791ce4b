"""A real registry and a web server on the loopback interface, and the four containers as forks of one process."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from integration.forks import fork
from integration.ports import free_port

ROOT = Path(__file__).parents[3]
STEPS = ("fetch", "convert", "validate", "publish")
MODULE_VERSION = "github.com/distribution/distribution/v3/cmd/registry@v3.1.1"

CNN = """
import torch

class Net(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 8, 3, padding=1)
        self.drop = torch.nn.Dropout(0.5)
        self.fc = torch.nn.Linear(8 * 16, classes)

    def forward(self, image):
        x = torch.relu(self.conv(image))
        x = torch.nn.functional.max_pool2d(x, 2)
        return self.fc(self.drop(x.flatten(1)))

def build(classes=10):
    return Net(classes)
"""
YAML = """
format: PyTorch
entrypoint: model:build
arguments: {classes: 10}
weights: weights.safetensors
signature:
  inputs: [{name: image, dtype: float32, shape: [batch, 1, 8, 8]}]
  outputs: [{name: logits, dtype: float32, shape: [batch, 10]}]
preprocessing: {image: {mode: L, size: [8, 8], scale: 0.0625, mean: [0.0], std: [1.0], layout: NCHW}}
labels: [zero, one, two, three, four, five, six, seven, eight, nine]
"""


def registry_binary() -> str:
    found = shutil.which("registry") or shutil.which("registry", path=str(ROOT / "build" / "bin"))
    built = sorted(Path("~/.cache/slipway/tools").expanduser().glob("registry-*/registry"))
    if found or built:
        return found or str(built[-1])
    target = Path("~/.cache/slipway/pipeline-tests").expanduser()
    if not (target / "registry").exists():
        subprocess.run(["go", "install", MODULE_VERSION], check=True, env=os.environ | {"GOBIN": str(target), "CGO_ENABLED": "0"})
    return str(target / "registry")


@dataclass
class RegistryProcess:
    host: str
    data: Path
    process: subprocess.Popen


def start_registry(folder: Path, htpasswd: str = "", *, deletes: bool = False) -> RegistryProcess:
    port = free_port()
    auth = ""
    if htpasswd:
        (folder / "htpasswd").write_text(htpasswd)
        auth = f"auth: {{htpasswd: {{realm: test, path: {folder / 'htpasswd'}}}}}\n"
    (folder / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}, delete: {{enabled: {json.dumps(deletes)}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n{auth}"
    )
    log = (folder / "log").open("wb")
    process = subprocess.Popen([registry_binary(), "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    return RegistryProcess(f"127.0.0.1:{port}", folder / "data", process)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    running = start_registry(tmp_path_factory.mktemp("registry"))
    yield running
    running.process.kill()


@pytest.fixture(scope="session")
def private_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    # user:secret, bcrypt of cost 5
    line = "user:" + HTPASSWD + "\n"
    running = start_registry(tmp_path_factory.mktemp("private"), line)
    yield running
    running.process.kill()


HTPASSWD = "$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"


@dataclass
class Outcome:
    step: str
    code: int
    seconds: float
    peak: int
    message: dict
    log: str

    @property
    def reason(self) -> str:
        return self.message.get("reason", "")

    @property
    def text(self) -> str:
        return self.message.get("message", "")


@dataclass
class Pipeline:
    """One conversion Job's pod: a work folder and the environment that the operator sets."""

    work: Path
    repository: str
    plain_http: str
    outcomes: list[Outcome] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, spec: dict, steps: tuple[str, ...] = STEPS, **environment: str) -> Outcome:
        """Run the steps until one fails; returns the last outcome."""
        for step in steps:
            self.outcomes.append(self.step([step], spec, environment))
            if self.outcomes[-1].code:
                break
        return self.outcomes[-1]

    def step(self, command: list[str], spec: dict, environment: dict[str, str]) -> Outcome:
        self.work.mkdir(parents=True, exist_ok=True)
        termination, log = self.work / f"{command[0]}.termination", self.work / f"{command[0]}.log"
        termination.unlink(missing_ok=True)
        settings = {
            "SLIPWAY_ARTIFACT_SPEC": json.dumps(spec),
            "SLIPWAY_REPOSITORY": self.repository,
            "SLIPWAY_PLAIN_HTTP": self.plain_http,
            "SLIPWAY_TIMEOUT_SECONDS": "300",  # a busy machine
            "SLIPWAY_MAX_SOURCE_BYTES": str(50 << 20),
            "SLIPWAY_WORK": str(self.work),
            "SLIPWAY_TERMINATION_LOG": str(termination),
            "SLIPWAY_SOURCE_DIR": str(self.work / "origin"),
            "SLIPWAY_SOURCE_CREDENTIALS_DIR": str(self.work / "source-credentials"),
            "SLIPWAY_REGISTRY_CREDENTIALS_DIR": str(self.work / "registry-credentials"),
        }
        forked = fork(command, settings | self.environment | environment, log)
        code = forked.wait()
        message = json.loads(termination.read_text()) if termination.exists() else {}
        if termination.exists():
            assert termination.stat().st_size <= 4096
        return Outcome(command[0], code, forked.end["seconds"], forked.end["peak"], message, log.read_text())


@pytest.fixture
def pipeline(tmp_path: Path, registry: RegistryProcess) -> Pipeline:
    name = hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8]
    return Pipeline(tmp_path / "work", f"{registry.host}/artifacts/{name}", registry.host)


@pytest.fixture(scope="session")
def cnn_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights for CNN, seeded."""
    import torch  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    torch.manual_seed(0)
    scope: dict = {}
    exec(CNN, scope)
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(scope["build"]().state_dict(), path)
    return path


@pytest.fixture
def model_folder(tmp_path: Path, cnn_weights: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.py").write_text(CNN)
    (folder / "model.yaml").write_text(YAML)
    shutil.copy(cnn_weights, folder)
    return folder


@pytest.fixture
def claim(pipeline: Pipeline) -> Callable[[Path], dict]:
    """Put a folder into the mounted claim; returns spec.model's beginning."""

    def put(folder: Path) -> dict:
        shutil.copytree(folder, pipeline.work / "origin" / "m", dirs_exist_ok=True)
        return {"uri": "pvc://models/m"}

    return put


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files with Range, an account user:secret under /private, and one broken connection under /flaky."""

    broken: ClassVar[set[str]] = set()
    ranges: ClassVar[list[str]] = []

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/error"):
            self.send_error(503)
            return
        if self.path.startswith("/private") and self.headers.get("Authorization") not in ("Basic dXNlcjpzZWNyZXQ=", "Bearer t0ken"):
            self.send_error(401)
            return
        path = Path(self.directory) / self.path.rsplit("/", 1)[-1]
        if not path.is_file():
            self.send_error(404)
            return
        self._send(path.read_bytes())

    def _send(self, data: bytes) -> None:
        start = 0
        if self.headers.get("Range"):
            self.ranges.append(self.headers["Range"])
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()[:8]}"')
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.path.startswith("/flaky") and self.path not in self.broken:
            self.broken.add(self.path)
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(data[start:])


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "web"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", folder
    server.shutdown()
    server.server_close()


def push_model(
    host: str,
    repository: str,
    tag: str,
    folder: Path,
    credentials: tuple[str, str] | None = None,
    *,
    kind: str = "application/vnd.slipway.model.v1+json",
) -> str:
    """Push a folder as a model artifact with plain urllib, apart from the code under test; returns the manifest's digest."""
    base = f"http://{host}/v2/{repository}"
    headers = {}
    if credentials:
        import base64  # noqa: PLC0415

        headers["Authorization"] = "Basic " + base64.b64encode(":".join(credentials).encode()).decode()

    def send(method: str, url: str, data: bytes, media: str) -> urllib.request.addinfourl:
        request = urllib.request.Request(url, data=data, method=method, headers=headers | {"Content-Type": media})
        return urllib.request.urlopen(request)

    def blob(data: bytes) -> dict:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        location = send("POST", f"{base}/blobs/uploads/", b"", "application/octet-stream").headers["Location"]
        location = location if location.startswith("http") else f"http://{host}{location}"
        send("PUT", f"{location}{'&' if '?' in location else '?'}digest={digest}", data, "application/octet-stream")
        return {"digest": digest, "size": len(data), "mediaType": "application/vnd.slipway.model.file.v1"}

    layers = [
        blob(path.read_bytes()) | {"annotations": {"org.opencontainers.image.title": path.relative_to(folder).as_posix()}}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": kind,
        "config": blob(b"{}") | {"mediaType": "application/vnd.oci.empty.v1+json"},
        "layers": layers,
    }
    data = json.dumps(manifest).encode()
    send("PUT", f"{base}/manifests/{tag}", data, manifest["mediaType"])
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture(scope="session")
def push() -> Callable[..., str]:
    return push_model
