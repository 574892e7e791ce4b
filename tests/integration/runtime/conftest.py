"""A real server process on loopback, and the smallest HTTP client that shows what is on the wire."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

import pytest

from integration.forks import Forked, fork
from integration.ports import free_port
from unit.runtime.serve.artifacts import Draft, write

ROOT = Path(__file__).parents[3]


@dataclass
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


@dataclass
class Running:
    """A server process."""

    process: subprocess.Popen[bytes] | Forked
    port: int
    termination: Path
    log: Path
    connections: list[HTTPConnection] = field(default_factory=list)

    def ask(self, method: str, path: str, body: bytes | str | None = None, **headers: str) -> Answer:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.ask("GET", path)

    def infer(self, name: str, values: list[list[float]]) -> Answer:
        item = {"name": "x", "shape": [len(values), len(values[0])], "datatype": "FP32", "data": values}
        return self.ask("POST", f"/v2/models/{name}/infer", json.dumps({"inputs": [item]}))

    def raw(self, data: bytes, *, end: bool = True) -> bytes:
        """Send bytes; returns all that comes back until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as client:
            client.sendall(data)
            if end:
                client.shutdown(socket.SHUT_WR)
            received = b""
            while chunk := client.recv(65536):
                received += chunk
            return received

    def wait_ready(self, seconds: float = 150.0) -> Running:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.get("/v2/health/ready").status == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.02)
        raise AssertionError(f"not ready: {self.log.read_text()}")

    @property
    def is_inline(self) -> bool:
        """Whether the model runs on the event loop: on a busy machine it may have been measured as too slow for that."""
        return "inline up to" in self.log.read_text()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = 60.0) -> int:
        return self.process.wait(seconds)


@pytest.fixture
def start(tmp_path, request):
    """Start a server of a draft, with torch loaded already unless the test is marked `fresh`.

    `damage` makes what it finds on disk differ from what it is told; `before` is code that a `fresh` one runs first.
    """
    started: list[Running] = []

    def _start(
        draft: Draft, *options: str, name: str = "m", damage: str | None = None, labels: list[str] | None = None, before: str = ""
    ) -> Running:
        folder = tmp_path / f"artifact{len(started)}"
        digest = write(folder, draft)
        if damage:
            data = (folder / damage).read_bytes()
            (folder / damage).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        port, termination, log = free_port(), tmp_path / f"termination{len(started)}", tmp_path / f"log{len(started)}"
        arguments = [
            "serve",
            "--model-dir",
            str(folder),
            "--artifact-digest",
            digest,
            "--model-name",
            name,
            "--revision",
            f"{name}-1",
            "--port",
            str(port),
        ]
        environment = os.environ | {"SLIPWAY_TERMINATION_LOG": str(termination), "PYTHONPATH": str(ROOT / "runtime-image/src")}
        if labels is not None:
            environment["SLIPWAY_LABELS"] = json.dumps(labels)
        process: subprocess.Popen[bytes] | Forked
        if request.node.get_closest_marker("fresh"):
            program = [str(Path(sys.executable).with_name("slipway-runtime"))]
            if before:
                program = [sys.executable, "-c", f"{before}\nimport sys\nfrom slipway_runtime.cli import main\nsys.exit(main())"]
            with log.open("wb") as stream:
                process = subprocess.Popen([*program, *arguments, *options], env=environment, stderr=stream)
        else:
            process = fork([*arguments, *options], environment, log)
        started.append(Running(process, port, termination, log))
        return started[-1]

    yield _start
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
        code = running.process.wait()
        print(f"server on port {running.port} ended with {code}:\n{running.log.read_text()}")  # which pytest shows when the test failed
