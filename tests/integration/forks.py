"""`slipway-runtime` and the operator in forks of processes that have imported what they need (zygote.py), one each for a test run."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


class Forked:
    """A command in a fork, with what the tests use of `subprocess.Popen`."""

    def __init__(self, client: socket.socket) -> None:
        self._client, self._received = client, b""
        self.pid = int(self._line(60)["pid"])
        self.end: dict[str, Any] = {}

    def _line(self, seconds: float | None) -> dict[str, Any]:
        end = None if seconds is None else time.monotonic() + seconds
        while b"\n" not in self._received:
            self._client.settimeout(None if end is None else max(end - time.monotonic(), 0.001))
            try:
                data = self._client.recv(4096)
            except TimeoutError:
                raise subprocess.TimeoutExpired("slipway-runtime", seconds or 0) from None
            assert data, "the zygote has ended"
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return dict(json.loads(line))

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal; raises TimeoutExpired."""
        self.end = self.end or self._line(timeout)
        return int(self.end["code"])

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


ROOT = Path(__file__).parents[2]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def fork(command: list[str], environment: dict[str, str], log: Path) -> Forked:
    """Begin `slipway-runtime COMMAND`, its output appended to `log`; `environment` is added to that of the tests."""
    return _forked("runtime", command, os.environ | ONE_THREAD | environment, log, log.parent)


def operator(environment: dict[str, str], log: Path) -> Forked:
    """Begin `slipway-operator`, its output appended to `log`; it has this environment and nothing else of that of the tests."""
    return _forked("operator", [], environment, log, ROOT)


def _forked(kind: str, command: list[str], environment: dict[str, str], log: Path, folder: Path) -> Forked:
    client = socket.socket(socket.AF_UNIX)
    client.connect(_zygote(kind))
    request = {"command": command, "environment": environment, "log": str(log), "folder": str(folder)}
    client.sendall(json.dumps(request).encode() + b"\n")
    return Forked(client)


def _zygote(kind: str) -> str:
    """The socket of this test run's zygote of that kind, which is begun when it is first needed."""
    is_worker = "PYTEST_XDIST_TESTRUNUID" in os.environ
    owner = os.getppid() if is_worker else os.getpid()
    path = Path(tempfile.gettempdir()) / f"slipway-zygote-{kind}-{owner}"
    with Path(f"{path}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            program = [sys.executable, str(Path(__file__).with_name("zygote.py")), kind, str(path), str(owner)]
            environment = os.environ | ONE_THREAD
            process = subprocess.Popen(program, stdin=subprocess.DEVNULL, env=environment, start_new_session=True)
            while not path.exists():
                assert process.poll() is None, "the zygote did not begin"
                time.sleep(0.05)
    return str(path)
