"""The clients of KServe and MLServer, unchanged, each in an environment of its own (kept in the cache, by its lock file's hash)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from integration.ports import free_port
from unit.runtime.serve.artifacts import mlp_answer, mlp_draft

pytestmark = [pytest.mark.nightly]

HERE = Path(__file__).parent / "clients"
ROOT = Path(__file__).parents[3]
X = np.arange(192, dtype=np.float32).reshape(3, 64) / 100


def python_with(name: str) -> Path:
    """The interpreter of an environment with the packages of a lock file."""
    lock = HERE / f"requirements-{name}.txt"
    cache = Path(os.environ.get("SLIPWAY_CACHE") or Path.home() / ".cache/slipway")
    folder = cache / f"client-{name}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    python, done = folder / "bin/python", folder / ".done"
    if not done.exists():
        uv = str(ROOT / ".venv/bin/uv")
        subprocess.run([uv, "venv", "-q", "--clear", "--python", "3.11", str(folder)], check=True)
        subprocess.run([uv, "pip", "sync", "-q", "--python", str(python), "--require-hashes", str(lock)], check=True)
        done.touch()
    return python


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "id_", "plain", "arrays"),
    [
        (
            "kserve",
            "k1",
            {"live": True, "ready": True, "model": True, "grpc ready": True},
            ["rest binary=True", "rest binary=False", "grpc binary=True", "grpc binary=False"],
        ),
        ("mlserver", "s1", {"metadata": "m", "grpc metadata": "m"}, ["rest", "grpc raw=False", "grpc raw=True"]),
    ],
)
def test_their_calls_pass(start, name, id_, plain, arrays):
    python, port = python_with(name), free_port()
    server = start(mlp_draft(), "--grpc-port", str(port)).wait_ready()
    command = [str(python), str(HERE / f"ask_{name}.py"), str(server.port), str(port)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert {key: answers[key] for key in plain} == plain
    for key in arrays:
        assert answers[key][0] == id_, key
        np.testing.assert_allclose(answers[key][1], mlp_answer(X), rtol=1e-3, atol=1e-3, err_msg=key)
    if "v1" in answers:
        np.testing.assert_allclose(answers["v1"], mlp_answer(X), rtol=1e-3, atol=1e-3)
