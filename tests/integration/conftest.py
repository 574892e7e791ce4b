"""A real kube-apiserver for all integration tests: started once, on loopback, with its own kubeconfig, and ended at the end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from kube import Kube, kube

ROOT = Path(__file__).parents[2]
CONTEXT = "slipway-test"


@dataclass(frozen=True)
class ApiServer:
    """The API server of the tests. kubectl gets its kubeconfig and context by name, so that no other cluster is ever touched."""

    kubeconfig: Path

    def __post_init__(self) -> None:
        config = yaml.safe_load(self.kubeconfig.read_text())
        servers = [cluster["cluster"]["server"] for cluster in config["clusters"]]
        if config["current-context"] != CONTEXT or not all(server.startswith("https://127.0.0.1:") for server in servers):
            raise RuntimeError(f"{self.kubeconfig} is not the API server of these tests: {config['current-context']}, {servers}")

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """kubectl, whatever it answers."""
        command = [str(ROOT / "build/bin/kubectl"), "--kubeconfig", str(self.kubeconfig), "--context", CONTEXT, *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """What kubectl prints; fails the test when kubectl fails."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def get(self, *arguments: str) -> Any:
        """One object, or a list, as data."""
        return self.kube.get(*arguments)

    def apply(self, *documents: dict[str, Any]) -> None:
        """Server-side apply of manifests."""
        self.kube.apply(*documents)

    def create_dry(self, document: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """What the API server says to a manifest, without storing it: HTTP status, and the object or the Status."""
        return self.kube.dry_create(document)

    @property
    def kube(self) -> Kube:
        """The same API server, asked in process."""
        return kube(self.kubeconfig, CONTEXT)


@pytest.fixture(scope="session")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """The API server with the CRDs installed; KCM=1 in the environment adds the controllers of Kubernetes."""
    folder = tmp_path_factory.mktemp("apiserver")
    script = str(ROOT / "hack/apiserver.sh")
    environment = {key: value for key, value in os.environ.items() if key != "KUBECONFIG"}
    try:
        subprocess.run([script, "up", str(folder)], check=True, env=environment, timeout=1200)
        server = ApiServer(folder / "kubeconfig")
        server.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
        server.kubectl("wait", "--for=condition=established", "crd", "--all", "--timeout=60s")
        yield server
    finally:
        subprocess.run([script, "down", str(folder)], check=False, env=environment, timeout=60)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest file and the tests of the operator: these wait for leases and drains, and at the end the cores would too."""
    items.sort(key=lambda item: (item.path.name != "test_targets.py", item.path.parent.name != "operator"))
