"""What the steps of the demo share: running tools with their output shown, timing, waiting with progress, and the load pod."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LOAD_POD = "load"
READY_SECONDS = 600
T = TypeVar("T")


class Failed(Exception):
    """A step could not be done."""


@dataclass
class Tour:
    """A cluster, the images, and what was measured so far."""

    environment: dict[str, str]
    images: dict[str, str]
    seconds: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @classmethod
    def from_environment(cls) -> Tour:
        """Read $KUBECONFIG and build/images.env; tools of this repository come before those of the machine."""
        images = ROOT / "build/images.env"
        if not images.exists():
            sys.exit("build/images.env is absent: run `make cluster images` first")
        pairs = (line.removeprefix("export ").partition("=") for line in images.read_text().splitlines())
        environment = {**os.environ, "PATH": f"{ROOT / 'build/bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
        environment.setdefault("KUBECONFIG", str(ROOT / "build/kubeconfig"))
        environment["PYTHONPATH"] = str(ROOT / "operator/src")
        return cls(environment, {key: value.strip().strip("'\"") for key, _, value in pairs if value})

    # -- showing and measuring --

    def say(self, text: str) -> None:
        """Show something, indented under its step."""
        for line in text.rstrip().splitlines():
            print(f"    {line.rstrip()}", flush=True)

    def step(self, title: str, action: Callable[[Tour], T]) -> T:
        """Do a step, with its name and its time."""
        print(f"==> {title}", flush=True)
        begin = time.monotonic()
        try:
            return action(self)
        finally:
            self.seconds[title] = round(time.monotonic() - begin, 1)
            print(f"    {self.seconds[title]:.1f} s", flush=True)

    def require(self, holds: object, otherwise: str) -> None:
        """Note a promise that was not kept; the tour goes on and fails at its end."""
        if not holds:
            self.failures.append(otherwise)

    def sleep(self, seconds: float) -> None:
        """Let the load run."""
        time.sleep(seconds)

    # -- tools --

    def run(self, *command: str, stdin: str = "", timeout: float = 420) -> str:
        """Run a command; what it wrote is the explanation when it fails."""
        done = subprocess.run(command, env=self.environment, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
        if done.returncode != 0:
            raise Failed(f"{' '.join(command[:6])} …: exit code {done.returncode}\n{(done.stderr or done.stdout)[-3000:]}")
        return done.stdout

    def kubectl(self, *arguments: str, stdin: str = "", timeout: float = 420) -> str:
        """Run kubectl."""
        return self.run("kubectl", *arguments, stdin=stdin, timeout=timeout)

    def helm(self, *arguments: str) -> str:
        """Run helm."""
        return self.run("helm", *arguments)

    def slipway(self, *arguments: str) -> str:
        """Run the command line of this tree, and show the command."""
        self.say(f"$ slipway {' '.join(arguments)}".replace(f"{ROOT}/", ""))
        return self.run(sys.executable, "-m", "slipway.cli", *arguments)

    def apply(self, *documents: dict[str, Any]) -> None:
        """Apply manifests."""
        self.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}))

    def get(self, namespace: str, *arguments: str) -> dict[str, Any]:
        """Get an object."""
        return dict(json.loads(self.kubectl("-n", namespace, "get", *arguments, "-o", "json")))

    @contextmanager
    def forward(self, namespace: str, service: str) -> Iterator[str]:
        """A local URL of a Service; it leads to one of its pods."""
        command = ["kubectl", "-n", namespace, "port-forward", f"service/{service}", ":80"]
        with subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            try:
                found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline() if process.stdout else "")
                if found is None:
                    raise Failed(f"no tunnel to service/{service}")
                yield f"http://127.0.0.1:{found[1]}"
            finally:
                process.terminate()

    # -- the model --

    def stable(self, namespace: str, name: str) -> str:
        """Return the stable revision."""
        return str(self.get(namespace, "mdep", name)["status"]["stable"]["revision"])

    def wait_ready(self, namespace: str, name: str) -> None:
        """Wait until the present spec is Ready, and show each thing that it waits for."""
        begin, shown = time.monotonic(), ""
        while True:
            resource = self.get(namespace, "mdep", name)
            conditions = (resource.get("status") or {}).get("conditions") or []
            ready = next((c for c in conditions if c["type"] == "Ready"), {})
            is_seen = ready.get("observedGeneration") == resource["metadata"]["generation"]
            if is_seen:
                line = f"{ready['reason']}: {ready['message']}"
                if line != shown:
                    self.say(f"{time.monotonic() - begin:6.1f} s  {line}")
                    shown = line
                if ready["status"] == "True":
                    return
            if time.monotonic() - begin > READY_SECONDS or (is_seen and any(c["type"] == "Stalled" for c in conditions)):
                raise Failed(f"{name} did not become ready: {shown}")
            time.sleep(0.5)

    # -- the load --

    def start_load(self, namespace: str, body: bytes, url: str, options: dict[str, float], content_type: str = "image/png") -> None:
        """Start load.py in a pod, so that requests go through the Service's address and not to one pod; returns once it sends."""
        self.kubectl("-n", namespace, "delete", "pod", LOAD_POD, "--ignore-not-found", "--wait")
        script = (HERE / "load.py").read_text()
        binary = {"body": base64.b64encode(body).decode()}
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": LOAD_POD, "namespace": namespace},
                "data": {"load.py": script},
                "binaryData": binary,
            },
            load_pod(namespace, self.images["SLIPWAY_RUNTIME_IMAGE"], url, options, content_type),
        )
        begin = time.monotonic()
        while "started" not in self._log(namespace):
            if time.monotonic() - begin > 120:
                raise Failed(f"the load pod does not start\n{self.kubectl('-n', namespace, 'describe', 'pod', LOAD_POD)[-2000:]}")
            time.sleep(0.5)
        self.say(f"load: {options['connections']:g} connections to {url}")

    def _log(self, namespace: str) -> str:
        try:
            return self.kubectl("-n", namespace, "logs", LOAD_POD)
        except Failed:  # no container yet
            return ""

    def stop_load(self, namespace: str) -> None:
        """Tell the load to end, once it has sent as many requests as it was asked for."""
        self.kubectl("-n", namespace, "exec", LOAD_POD, "--", "python", "-c", "import os, signal; os.kill(1, signal.SIGTERM)")

    def end_load(self, namespace: str) -> dict[str, Any]:
        """Wait for the end of the load and return its counts."""
        begin = time.monotonic()
        while True:
            phase = self.get(namespace, "pod", LOAD_POD)["status"].get("phase")
            if phase in ("Succeeded", "Failed"):
                break
            if time.monotonic() - begin > READY_SECONDS:
                raise Failed("the load does not end")
            time.sleep(1)
        lines = self._log(namespace).strip().splitlines()
        if phase == "Failed" or not lines:
            raise Failed(f"the load pod failed: {lines[-5:]}")
        return dict(json.loads(lines[-1]))


def load_pod(namespace: str, image: str, url: str, options: dict[str, float], content_type: str) -> dict[str, Any]:
    """A pod that a namespace with the standard `restricted` admits."""
    flags = [part for key, value in options.items() for part in (f"--{key}", f"{value:g}")]
    command = ["python", "-u", "/load/load.py", url, "--body", "/load/body", "--content-type", content_type, *flags]
    container = {
        "name": "load",
        "image": image,
        "command": command,
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True},
        "volumeMounts": [{"name": "load", "mountPath": "/load"}],
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "load", "configMap": {"name": LOAD_POD}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": LOAD_POD, "namespace": namespace}, "spec": spec}
