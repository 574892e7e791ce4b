"""Serving, side by side in one run: CPU seconds per request and latency of our server, against the bare yardstick and Triton.

  python tests/bench/serving_bench.py [--seconds 3] [--rounds 5] [--connections 1,16,64] [--out FILE.jsonl]

Peers take turns within each round, so that a busy machine is busy for all; a row is the median over the rounds, with the
spread. Every peer's answer is held against numpy first. The load generator is `wrk` (one thread). Triton is run where
$TRITON names an installation (bin/tritonserver, backends/onnxruntime); else its row says so.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "runtime-image/src")]

from unit.runtime.serve.artifacts import mlp, mlp_draft, write  # noqa: E402

SERVE = (
    "import argparse, sys; from slipway_runtime.serve.main import add_arguments, run;"
    "p = argparse.ArgumentParser(); add_arguments(p); sys.exit(run(p.parse_args()))"
)
LUA = """wrk.method = "POST"
local f = io.open("{body}", "rb"); wrk.body = f:read("*a"); f:close()
{headers}
done = function(s, l, r) io.write(string.format("RESULT %d %d %d %d %d\\n", s.requests, s.duration, l:percentile(50), l:percentile(99),
  s.errors.status + s.errors.connect + s.errors.read + s.errors.write + s.errors.timeout)) end
"""


class Bench:
    """The model, the bodies and the peers, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        model, first, second = mlp(256)
        draft = mlp_draft()
        draft.files, draft.golden = {"model.onnx": model}, None
        write(folder / "artifact", draft)
        (folder / "triton/m/1").mkdir(parents=True)
        shutil.copy(folder / "artifact/model.onnx", folder / "triton/m/1/model.onnx")
        (folder / "triton/m/config.pbtxt").write_text(TRITON_CONFIG)
        x = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
        self.expected = np.maximum(x @ first, 0) @ second
        item = {"name": "x", "shape": [1, 64], "datatype": "FP32"}
        wanted = {"name": "y", "parameters": {"binary_data": True}}
        binary = {"inputs": [item | {"parameters": {"binary_data_size": x.nbytes}}], "outputs": [wanted]}
        head = json.dumps(binary, separators=(",", ":")).encode()
        plain = json.dumps({"inputs": [item | {"data": [float(f"{value:.6g}") for value in x.ravel()]}]}, separators=(",", ":")).encode()
        self.bodies = {
            "json": (plain, {"Content-Type": "application/json"}),
            "binary": (head + x.tobytes(), {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}),
        }
        for name, (body, headers) in self.bodies.items():
            (folder / f"{name}.body").write_bytes(body)
            lines = "\n".join(f'wrk.headers["{key}"] = "{value}"' for key, value in headers.items())
            (folder / f"{name}.lua").write_text(LUA.replace("{body}", str(folder / f"{name}.body")).replace("{headers}", lines))

    def commands(self) -> dict[str, list[str]]:
        """Peer -> command; PORT is replaced."""
        ours = [sys.executable, "-c", SERVE, "--model-dir", str(self.folder / "artifact"), "--model-name", "m"]
        ours += ["--port", "PORT", "--host", "127.0.0.1"]
        found = {
            "bare": [sys.executable, str(Path(__file__).with_name("bare_server.py")), str(self.folder / "artifact/model.onnx"), "PORT"],
            "slipway": ours,
            "slipway, batching": [*ours, "--max-batch-size", "32", "--max-delay", "1ms"],
        }
        if triton := os.environ.get("TRITON"):
            repository, backends = str(self.folder / "triton"), f"{triton}/backends"
            found["triton"] = [f"{triton}/bin/tritonserver", "--model-repository", repository, "--backend-directory", backends]
            found["triton"] += ["--http-port", "PORT", "--allow-grpc", "false", "--allow-metrics", "false", "--http-address", "127.0.0.1"]
        return found

    @contextmanager
    def running(self, command: list[str]):
        """Start a peer; yields its process id and URL once its answers, in both formats, are right."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "runtime-image/src")}
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen([word.replace("PORT", str(port)) for word in command], env=environment, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}/v2/models/m/infer"
            for name in self.bodies:
                self.check(url, name)
            yield process.pid, url
        finally:
            process.terminate()
            process.wait()

    def check(self, url: str, name: str) -> None:
        """Hold an answer against numpy."""
        body, headers = self.bodies[name]
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:
                    got, length = answer.read(), answer.headers.get("Inference-Header-Content-Length")
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise RuntimeError((self.folder / "log").read_text()[-2000:]) from None
                time.sleep(0.1)
        y = np.frombuffer(got[int(length) :], np.float32) if length else np.array(json.loads(got)["outputs"][0]["data"])
        np.testing.assert_allclose(y.ravel(), self.expected.ravel(), rtol=1e-3, atol=1e-3)

    def load(self, pid: int, url: str, name: str, connections: int, seconds: int) -> dict[str, float]:
        """One measurement."""
        before = cpu_seconds(pid)
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(self.folder / f"{name}.lua"), url]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        used = cpu_seconds(pid) - before
        requests, micros, p50, p99, errors = map(int, re.search(r"RESULT (.*)", text)[1].split())
        if errors or not requests:
            raise RuntimeError(f"{errors} errors of {requests} requests: {text}")
        return {"rps": requests / micros * 1e6, "cpu_us": used / requests * 1e6, "p50_ms": p50 / 1e3, "p99_ms": p99 / 1e3}


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


TRITON_CONFIG = """backend: "onnxruntime"
max_batch_size: 1
input [{ name: "x" data_type: TYPE_FP32 dims: [64] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [10] }]
instance_group [{ kind: KIND_CPU count: 1 }]
parameters { key: "intra_op_thread_count" value: { string_value: "1" } }
"""


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", default="1,16,64")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: it is the load generator (Debian: apt-get install wrk)")
    rows: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for _ in range(args.rounds):
            for peer, command in bench.commands().items():
                with bench.running(command) as (pid, url):
                    for name in bench.bodies:
                        for connections in map(int, args.connections.split(",")):
                            rows.setdefault((peer, name, connections), []).append(bench.load(pid, url, name, connections, args.seconds))
    if args.out:
        lines = [{"peer": key[0], "body": key[1], "connections": key[2], **run} for key, runs in rows.items() for run in runs]
        args.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print("| body | connections | peer | CPU us/request | spread | ratio to bare | requests/s | p50 ms | p99 ms |\n" + "|---" * 9 + "|")
    for (peer, name, connections), runs in sorted(rows.items(), key=lambda row: (row[0][1], row[0][2])):
        cpu = [run["cpu_us"] for run in runs]
        bare = [run["cpu_us"] for run in rows["bare", name, connections]]
        ratios = [one / other for one, other in zip(cpu, bare, strict=True)]
        mid = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        cells = [name, connections, peer, f"{mid['cpu_us']:.1f}", f"{min(cpu):.1f}-{max(cpu):.1f}", ratio, f"{mid['rps']:.0f}"]
        print("|", " | ".join(map(str, [*cells, f"{mid['p50_ms']:.2f}", f"{mid['p99_ms']:.2f}"])), "|")
    if not os.environ.get("TRITON"):
        print("| | | triton | not measured: $TRITON names no installation | | | | | |")


if __name__ == "__main__":
    main()
