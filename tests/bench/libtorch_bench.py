"""The LibTorch server beside the Python server's TorchScript backend: the same artifact, the same requests, in turn.

    python tests/bench/libtorch_bench.py [--rounds 5] [--seconds 3] [--connections 1 16] [--out FILE]

Each round asks both servers with the same closed-loop client (one process, raw sockets), the order changing from round to round. Printed:
requests a CPU-second of the server (from /proc), requests a second and latency, and the ratio of the two servers with its spread over
the rounds.
The client shares the machine with the server, so requests a second say less than requests a CPU-second. `--out` gets the raw rows as JSONL.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "runtime-image/src")]

import torch  # noqa: E402

from integration.libtorch.drafts import Mlp, scripted, tensor  # noqa: E402
from unit.runtime.serve.artifacts import Draft, write  # noqa: E402

TICK = os.sysconf("SC_CLK_TCK")
PYTHON = (
    "import argparse, sys; from slipway_runtime.serve.main import add_arguments, run;"
    "p = argparse.ArgumentParser(); add_arguments(p); sys.exit(run(p.parse_args()))"
)


class Cnn(torch.nn.Module):
    """[batch, 3, 64, 64] -> [batch, 10]: four convolutions, a few milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 32, 64, 64, 128]
        layers = [
            layer for n, m in pairwise(widths) for layer in (torch.nn.Conv2d(n, m, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
        ]
        self.body = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(128 * 16, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def drafts() -> dict[str, tuple[Draft, list[int]]]:
    """Model by name, and the shape of one request."""
    torch.manual_seed(1)
    random = np.random.default_rng(1)
    weights = [random.standard_normal(shape).astype(np.float32) * 0.1 for shape in ((64, 256), (256, 10))]
    rows = {"mlp": (Mlp(*weights), [64]), "cnn": (Cnn(), [3, 64, 64])}
    return {
        name: (
            Draft(
                {"model.pt": scripted(module)},
                {
                    "format": "TorchScript",
                    "entry": "model.pt",
                    "signature": {
                        "inputs": [tensor("x", "float32", "batch", *shape)],
                        "outputs": [tensor("y", "float32", "batch", 10)],
                    },
                },
            ),
            [1, *shape],
        )
        for name, (module, shape) in rows.items()
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(command: list[str], folder: Path, digest: str, *options: str) -> Iterator[tuple[int, int]]:
    """A ready server: its port and its process id."""
    port = free_port()
    arguments = ["--model-dir", str(folder), "--artifact-digest", digest, "--model-name", "m", "--port", str(port), "--drain-seconds", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "runtime-image/src"), "SLIPWAY_TERMINATION_LOG": os.devnull}
    process = subprocess.Popen([*command, *arguments, *options], env=environment, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                with socket.create_connection(("127.0.0.1", port)) as probe:
                    probe.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: h\r\n\r\n")
                    if b" 200 " in probe.recv(4096):
                        break
            except OSError:
                pass
            time.sleep(0.1)
        else:
            raise SystemExit(f"not ready: {command}")
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(30)


def cpu_seconds(pid: int) -> float:
    """Of all threads of a process, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def memory_mb(pid: int) -> float:
    """Resident set."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def load(port: int, data: bytes, connections: int, seconds: float) -> list[float]:
    """Ask over keep-alive connections, each with one request at a time; the seconds each answer took."""
    selector = selectors.DefaultSelector()
    sent: dict[socket.socket, float] = {}
    parts: dict[socket.socket, bytes] = {}
    for _ in range(connections):
        client = socket.create_connection(("127.0.0.1", port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(client, selectors.EVENT_READ)
        parts[client] = b""
        sent[client] = time.perf_counter()
        client.sendall(data)
    took: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for key, _ in selector.select(1.0):
            client = key.fileobj
            assert isinstance(client, socket.socket)
            parts[client] += client.recv(1 << 18)
            head, found, body = parts[client].partition(b"\r\n\r\n")
            if not found or len(body) < int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
                continue
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"refused: {parts[client][:500]!r}")
            now = time.perf_counter()
            took.append(now - sent[client])
            parts[client] = b""
            sent[client] = now
            client.sendall(data)
    for client in parts:
        client.close()
    return took


def request(shape: list[int], *, binary: bool) -> bytes:
    """One infer request, as bytes."""
    values = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    item: dict[str, object] = {"name": "x", "datatype": "FP32", "shape": shape}
    if binary:
        item["parameters"] = {"binary_data_size": values.nbytes}
        fields = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
        extra, body = f"Inference-Header-Content-Length: {len(fields)}\r\n", fields + values.tobytes()
    else:
        item["data"] = [round(float(value), 6) for value in values.ravel()]
        extra, body = "", json.dumps({"inputs": [item]}).encode()
    return f"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


def measure(port: int, pid: int, data: bytes, connections: int, seconds: float) -> dict[str, float]:
    """One run against one server."""
    load(port, data, connections, 0.3)
    from_cpu, from_time = cpu_seconds(pid), time.perf_counter()
    took = sorted(load(port, data, connections, seconds))
    cpu, wall = cpu_seconds(pid) - from_cpu, time.perf_counter() - from_time
    return {
        "perCpuSecond": len(took) / max(cpu, 1 / TICK),
        "perSecond": len(took) / wall,
        "p50ms": took[len(took) // 2] * 1e3,
        "p99ms": took[int(len(took) * 0.99)] * 1e3,
        "rssMB": memory_mb(pid),
    }


def spread(values: list[float]) -> str:
    """Median, least and largest."""
    return f"{statistics.median(values):9.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--models", nargs="+", default=["mlp", "cnn"])
    parser.add_argument("--binary", action="store_true", help="the binary tensor extension instead of JSON")
    parser.add_argument("--options", nargs="*", default=[], help="further options of the LibTorch server")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    program = subprocess.run([ROOT / "hack/libtorch.sh"], capture_output=True, text=True, check=True).stdout.split()[-1]
    servers = {"libtorch": [program], "python": [sys.executable, "-c", PYTHON]}
    rows: list[dict[str, object]] = []
    for name in args.models:
        draft, shape = drafts()[name]
        data = request(shape, binary=args.binary)
        with tempfile.TemporaryDirectory() as folder:
            digest = write(Path(folder) / "a", draft)
            place = Path(folder) / "a"
            with server(servers["libtorch"], place, digest, *args.options) as one, server(servers["python"], place, digest) as two:
                for connections in args.connections:
                    for turn in range(args.rounds):
                        pairs = [("libtorch", one), ("python", two)]
                        for kind, (port, pid) in pairs if turn % 2 else reversed(pairs):
                            found = measure(port, pid, data, connections, args.seconds)
                            rows.append(
                                {"model": name, "server": kind, "connections": connections, "round": turn, "binary": args.binary, **found}
                            )
                    report(rows, name, connections)
    if args.out:
        args.out.write_text("".join(json.dumps(row) + "\n" for row in rows))


def report(rows: list[dict[str, object]], model: str, connections: int) -> None:
    """Print both servers and the ratio of each round's pair."""
    print(f"{model}, {connections} connections")
    for key, better in (("perCpuSecond", "more"), ("perSecond", "more"), ("p50ms", "less"), ("p99ms", "less"), ("rssMB", "less")):
        found = {
            kind: [float(str(row[key])) for row in rows if (row["model"], row["connections"], row["server"]) == (model, connections, kind)]
            for kind in ("libtorch", "python")
        }
        ratio = [a / b for a, b in zip(found["libtorch"], found["python"], strict=True)]
        print(
            f"  {key:13} libtorch {spread(found['libtorch'])}  python {spread(found['python'])}  ratio {spread(ratio)}, {better} is better",
            flush=True,
        )


if __name__ == "__main__":
    main()
