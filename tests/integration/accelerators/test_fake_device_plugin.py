"""The fake device plugin against a simulated kubelet: its own tests are in Go, beside it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

FOLDER = Path(__file__).parents[3] / "hack/tools/fake-accelerators"


def test_its_own_tests_pass() -> None:
    path = f"{os.environ['PATH']}:/usr/local/go/bin"
    done = subprocess.run(
        ["go", "test", "./..."],
        cwd=FOLDER, env={**os.environ, "PATH": path, "GOFLAGS": "-mod=readonly"}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
