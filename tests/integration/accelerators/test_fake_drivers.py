"""The fake device plugin against a simulated kubelet, and the fake DRA driver: their own tests are in Go, beside them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[3] / "hack/tools"


@pytest.mark.nightly  # Go compiles for a minute, and the e2e tests use both
@pytest.mark.parametrize("name", ["fake-accelerators", "fake-dra-driver"])
def test_its_own_tests_pass(name: str) -> None:
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/local/go/bin", "GOFLAGS": "-mod=readonly"}
    command = ["go", "test", "./..."]
    done = subprocess.run(command, cwd=TOOLS / name, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
