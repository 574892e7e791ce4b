"""The servers of the serving bench: how each is installed (an environment of its own, from a hashed lock file) and started."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from serving_models import BenchModel

from slipway_runtime.artifact import open_artifact
from slipway_runtime.layout import Place, lay_out

ROOT = Path(__file__).parents[2]
APPS = Path(__file__).with_name("peers")
CACHE = Path(os.environ.get("SLIPWAY_CACHE") or Path.home() / ".cache/slipway")
PYTHON = os.path.realpath(sys.executable) if sys.version_info[:2] == (3, 11) else "3.11"  # ours: how one was compiled counts for a fifth
SERVE = (
    "import argparse, sys; from slipway_runtime.serve.main import add_arguments, run;"
    "p = argparse.ArgumentParser(); add_arguments(p); sys.exit(run(p.parse_args()))"
)
INFER = "/v2/models/m/infer"


class AbsentError(Exception):
    """This peer cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Bench:
    """What a peer is started with."""

    model: BenchModel
    folder: Path
    port: int

    @property
    def file(self) -> Path:
        """The ONNX file."""
        return self.folder / "artifact/model.onnx"


@dataclass(frozen=True)
class Peer:
    """A server.

    Attributes:
        bodies: what it takes, with the path: `json` and `binary` of the protocol, or `plain` ({"x": rows}).
        grpc: its port for the protocol over gRPC, counted from the first; 0: it has none.
        command: makes its command, and files in the folder.
        lock: whether it has a lock file, `requirements-` and its package.
    """

    name: str
    bodies: Mapping[str, str]
    command: Callable[[Bench], list[str]]
    lock: bool = False
    grpc: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def package(self) -> str:
        """The first word of its name; the rest says how it is started."""
        return self.name.partition(" ")[0]

    def install(self) -> None:
        """Make its environment, once.

        Raises:
            AbsentError: with the last line of what failed.
        """
        if not self.lock:
            return
        folder, lock = home(self.package), APPS / f"requirements-{self.package}.txt"
        if (folder / ".done").exists():
            return
        uv = str(ROOT / ".venv/bin/uv")
        for command in (
            [uv, "venv", "-q", "--clear", "--python", PYTHON, str(folder)],
            [uv, "pip", "sync", "-q", "--python", str(folder), "--require-hashes", str(lock)],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise AbsentError(f"not installed: {' '.join(done.stderr.split())[-300:]}")
        (folder / ".done").touch()

    def variables(self, bench: Bench) -> dict[str, str]:
        """Its environment variables; a peer that starts others by name finds them."""
        own = f"{home(self.package)}/bin:" if self.lock else ""
        path = str(APPS) if self.lock else str(ROOT / "runtime-image/src")
        told = {
            "MODEL_FILE": str(bench.file),
            "MODEL_SHAPE": json.dumps(bench.model.shape),
            "PORT": str(bench.port),
            "WORKERS": str(bench.model.workers),
        }
        fixed = {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": path,
            "PEERS": str(APPS),
            "PATH": f"{own}{os.environ['PATH']}",
            "PYTHONSAFEPATH": "",
            "TMPDIR": str(bench.folder),
        }
        return {**os.environ, **fixed, **told, **self.environment}


def home(name: str) -> Path:
    """The environment of a peer; another lock file or another Python, another folder."""
    lock = (APPS / f"requirements-{name}.txt").read_bytes()
    return CACHE / "peers" / f"{name}-{hashlib.sha256(lock + PYTHON.encode()).hexdigest()[:12]}"


def _program(name: str, program: str) -> str:
    return str(home(name) / "bin" / program)


def _slipway(*more: str) -> Callable[[Bench], list[str]]:
    def command(bench: Bench) -> list[str]:
        words = [sys.executable, "-c", SERVE, "--model-dir", str(bench.folder / "artifact"), "--model-name", "m", "--port", str(bench.port)]
        return [*words, "--host", "127.0.0.1", "--grpc-port", str(bench.port + 1), *more]

    return command


def _bare(bench: Bench) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("bare_server.py")), str(bench.file), str(bench.port)]


def _triton(bench: Bench, max_batch: int = 1) -> list[str]:
    root = os.environ.get("TRITON", "")
    if not (Path(root) / "backends/onnxruntime").is_dir():
        raise AbsentError("$TRITON names no installation with the onnxruntime backend; it is brought by hand")
    place = Place("m", max_batch=max_batch, threads=bench.model.workers)
    lay_out(open_artifact(bench.folder / "artifact", None), "Triton", bench.folder / "triton", place)
    words = [f"{root}/bin/tritonserver", "--model-repository", str(bench.folder / "triton"), "--backend-directory", f"{root}/backends"]
    return [
        *words,
        "--http-port",
        str(bench.port),
        "--grpc-port",
        str(bench.port + 1),
        "--allow-metrics",
        "false",
        "--http-address",
        "127.0.0.1",
    ]


def _fastapi(bench: Bench) -> list[str]:
    words = [_program("fastapi", "uvicorn"), "fastapi_app:app", "--port", str(bench.port), "--workers", str(bench.model.workers)]
    return [*words, "--no-access-log", "--log-level", "warning"]


def _mlserver(bench: Bench) -> list[str]:
    folder, port, workers = bench.folder / "mlserver", bench.port, bench.model.workers
    folder.mkdir(exist_ok=True)
    settings = {"http_port": port, "grpc_port": port + 1, "metrics_port": port + 2, "host": "127.0.0.1", "debug": False}
    settings |= {"parallel_workers": 0 if workers == 1 else workers, "metrics_dir": str(folder)}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps({"name": "m", "implementation": "mlserver_app.Ort"}))
    return [_program("mlserver", "mlserver"), "start", str(folder)]


def _kserve(bench: Bench) -> list[str]:
    ports = ["--http_port", str(bench.port), "--grpc_port", str(bench.port + 1)]
    return [_program("kserve", "python"), str(APPS / "kserve_app.py"), *ports, "--workers", str(bench.model.workers)]


def _bentoml(bench: Bench) -> list[str]:
    words = [_program("bentoml", "bentoml"), "serve", "bentoml_app:Model", "--working-dir", str(APPS)]
    return [*words, "--host", "127.0.0.1", "--port", str(bench.port)]


def _litserve(bench: Bench) -> list[str]:
    return [_program("litserve", "python"), str(APPS / "litserve_app.py")]


def _torchserve(bench: Bench) -> list[str]:
    if shutil.which("java") is None:
        raise AbsentError("TorchServe needs Java 11 or later (apt-get install openjdk-17-jre-headless)")
    store, port, workers = bench.folder / "torchserve", bench.port, bench.model.workers
    (store / "m/MAR-INF").mkdir(parents=True, exist_ok=True)
    shutil.copy(APPS / "torchserve_app.py", store / "m/torchserve_app.py")
    manifest = {"runtime": "python", "model": {"modelName": "m", "handler": "torchserve_app.py:handle", "modelVersion": "1.0"}}
    (store / "m/MAR-INF/MANIFEST.json").write_text(json.dumps(manifest))
    model = {
        "defaultVersion": True,
        "marName": "m",
        "minWorkers": workers,
        "maxWorkers": workers,
        "batchSize": 1,
        "maxBatchDelay": 1,
        "responseTimeout": 120,
    }
    names = ("inference_address", "management_address", "metrics_address")
    lines = [f"{name}=http://127.0.0.1:{port + n}" for n, name in enumerate(names)]
    lines += [f"grpc_inference_port={port + 3}", f"grpc_management_port={port + 4}", "disable_token_authorization=true"]
    lines += ["job_queue_size=2000", "vmargs=-Xmx1g", f"models={json.dumps({'m': {'1.0': model}})}"]
    (store / "config.properties").write_text("\n".join(lines) + "\n")
    (store / "log4j2.xml").write_text('<Configuration><Loggers><Root level="error"/></Loggers></Configuration>')
    words = [_program("torchserve", "torchserve"), "--start", "--foreground", "--ncs", "--model-store", str(store), "--models", "m=m"]
    return [*words, "--ts-config", str(store / "config.properties"), "--log-config", str(store / "log4j2.xml")]


def _rayserve(bench: Bench) -> list[str]:
    return [_program("rayserve", "python"), str(APPS / "rayserve_app.py")]


def _pytriton(bench: Bench) -> list[str]:
    return [_program("pytriton", "python"), str(APPS / "pytriton_app.py")]


_BOTH = {"json": INFER, "binary": INFER}
PEERS = {
    peer.name: peer
    for peer in (
        Peer("bare", _BOTH, _bare),
        Peer("slipway", _BOTH, _slipway(), grpc=1),
        Peer("slipway batching", _BOTH, _slipway("--max-batch-size", "32", "--max-delay", "1ms"), grpc=1),
        Peer("triton", _BOTH, _triton, grpc=1),
        Peer("triton batching", _BOTH, partial(_triton, max_batch=32), grpc=1),
        Peer("mlserver", {"json": INFER}, _mlserver, lock=True, grpc=1),
        Peer("kserve", _BOTH, _kserve, lock=True, grpc=1),
        Peer("fastapi", {"plain": "/predict"}, _fastapi, lock=True),
        Peer("torchserve", {"plain": "/predictions/m"}, _torchserve, lock=True),
        Peer("bentoml", {"plain": "/predict"}, _bentoml, lock=True, environment={"BENTOML_DO_NOT_TRACK": "true"}),
        Peer("litserve", {"plain": "/predict"}, _litserve, lock=True),
        Peer("rayserve", {"plain": "/predict"}, _rayserve, lock=True),
        Peer("pytriton", _BOTH, _pytriton, lock=True, grpc=1),
        Peer("pytriton batching", _BOTH, _pytriton, lock=True, grpc=1, environment={"BATCH": "32"}),
    )
}
