"""The LibTorch server as a process: the Python server's fixtures with another program and the models as TorchScript."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

pytest.register_assert_rewrite(*(f"integration.runtime.test_{name}" for name in ("protocol", "lifecycle", "probes")))

from integration.libtorch.drafts import as_torchscript  # noqa: E402
from integration.ports import free_port  # noqa: E402
from integration.runtime.conftest import Running  # noqa: E402
from unit.runtime.serve.artifacts import Draft, write  # noqa: E402

ROOT = Path(__file__).parents[3]


def built(kind: str) -> Path:
    """The program, built when its sources have changed."""
    done = subprocess.run([ROOT / "hack/libtorch.sh", kind], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def program():
    return built("none")


def launch(
    program: Path, folder: Path, draft: Draft, *options: str, name: str = "m", damage: str | None = None, env: dict[str, str] | None = None
) -> Running:
    """Write the artifact and start a server of it; `damage` is a file whose last bit is turned over."""
    digest = write(folder / "artifact", as_torchscript(draft))
    if damage:
        path = folder / "artifact" / damage.replace("model.onnx", "model.pt")
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    port, termination, log = free_port(), folder / "termination", folder / "log"
    arguments = {"model-dir": folder / "artifact", "artifact-digest": digest, "model-name": name, "revision": f"{name}-1", "port": port}
    command = [str(program), "serve", *(f"--{key}={value}" for key, value in arguments.items()), *options]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=os.environ | {"SLIPWAY_TERMINATION_LOG": str(termination)} | (env or {}), stderr=stream)
    return Running(process, port, termination, log)


@pytest.fixture
def start(program, tmp_path):
    """Start a server of a draft, as the fixture of the Python server's tests does."""
    started: list[Running] = []

    def _start(draft: Draft, *options: str, labels: list[str] | None = None, **other) -> Running:
        folder = tmp_path / f"server{len(started)}"
        folder.mkdir()
        env = {} if labels is None else {"SLIPWAY_LABELS": json.dumps(labels)}
        started.append(launch(program, folder, draft, *options, env=env, **other))
        return started[-1]

    yield _start
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait()
