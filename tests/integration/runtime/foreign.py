"""Other systems' servers, started as the operator would: the pod of the chart's ServingRuntime, the layout of `pull`, the process.

What differs from the pod: folders are this machine's, ports are free ones.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from integration.ports import free_ports
from slipway.plan.workload import revision_deployment
from slipway.snapshot import Config
from unit.chart.rendering import render
from unit.chart.test_objects import shipped_runtimes
from unit.operator.world import model_deployment
from unit.runtime.serve.artifacts import Draft, write

NAME = "digits"


@dataclass
class Asked:
    """An answer, or that there was none (status 0)."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def ask(port: int, path: str, body: bytes | None = None, **headers: str) -> Asked:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET" if body is None else "POST", path, body, named)
        response = connection.getresponse()
        return Asked(response.status, response.read(), {name.lower(): value for name, value in response.getheaders()})
    except OSError:
        return Asked(0, b"")
    finally:
        connection.close()


@dataclass
class Pod:
    """A pod of a foreign server, on this machine."""

    folder: Path
    server: dict[str, Any]
    pull: dict[str, Any]

    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for port in self.server["ports"]}

    def place(self, text: str) -> str:
        return re.sub(r"(?<![\w/])/(models|tmp)\b", lambda found: str(self.folder / found[1]), text)

    def run_pull(self) -> None:
        """Run the init container; what it would pull lies there already, and it checks that."""
        program = [sys.executable, "-c", "import sys; from slipway_runtime.cli import main; sys.exit(main())"]
        command = [*program, *(self.place(word) for word in self.pull["command"][1:])]
        said = {item["name"]: item["value"] for item in self.pull["env"] if "value" in item}
        log = self.folder / "termination"
        environment = os.environ | said | {"SLIPWAY_SERVER_MILLICPUS": "1500", "SLIPWAY_TERMINATION_LOG": str(log)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr

    def has_started(self) -> bool:
        """What the startup probe says."""
        probe = self.server["startupProbe"]
        if "httpGet" in probe:
            return ask(self.ports()["http"], probe["httpGet"]["path"]).status == 200
        command = [sys.executable, *(self.place(word) for word in probe["exec"]["command"][1:])]
        return subprocess.run(command, capture_output=True, check=False, timeout=probe["timeoutSeconds"] * 4).returncode == 0

    @contextmanager
    def running(self, program: list[str], environment: dict[str, str], *more: str) -> Iterator[int]:
        """Run the server's arguments with this program until its startup probe passes; the port of its requests."""
        (self.folder / "tmp").mkdir(exist_ok=True)
        said = {item["name"]: self.place(item["value"]) for item in self.server["env"] if "value" in item}
        log = self.folder / "log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*program, *map(self.place, self.server["args"]), *more],
                cwd=self.folder,
                stdout=stream,
                stderr=stream,
                env=os.environ | said | environment,
                start_new_session=True,
            )
        try:
            deadline, port = time.monotonic() + 300, self.ports()["http"]
            while not self.has_started():
                assert process.poll() is None, f"ended by itself: {log.read_text()[-4000:]}"
                assert time.monotonic() < deadline, f"not ready: {log.read_text()[-4000:]}"
                time.sleep(0.2)
            yield port
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def pod(folder: Path, runtime: str, draft: Draft, **serving: Any) -> Pod:
    """The pod of a model that names this ServingRuntime, and its artifact where `pull` looks for it."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"enabled": True, "image": f"{runtime}:1"}  # the image that only the chart asks for: the process is this machine's
    shipped = shipped_runtimes(render({"servingRuntimes": {runtime: values}}))[runtime]
    http, grpc, metrics = free_ports(3)
    shipped["spec"] |= {"port": http, "metrics": shipped["spec"]["metrics"] | {"port": metrics}}
    if "grpcPort" in shipped["spec"]:
        shipped["spec"]["grpcPort"] = grpc
    digest = write(folder / "models/artifact", draft)
    status = {"digest": digest, "format": draft.config["format"], "repository": "registry.invalid:1/a"}
    artifact = {"metadata": {"name": "mart-1"}, "status": status}
    deployment = revision_deployment(model_deployment(NAME, serving=serving), f"{NAME}-1", artifact, shipped, Config())
    spec = deployment["spec"]["template"]["spec"]
    made = Pod(folder, spec["containers"][0], spec["initContainers"][0])
    made.run_pull()
    return made
