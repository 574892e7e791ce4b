"""Serving, side by side: our server, the servers that users would take instead, the least Python that answers, and the bare model.

    make bench-serving          all of it (an hour; on a quiet machine)
    serving_bench.py run        appends rows to docs/benchmarks/serving.jsonl; --peers, --models, --connections, --seconds, --rounds choose
    serving_bench.py report     writes docs/benchmarks/serving.md and serving.svg from it
    --page NAME                 instead of `serving`, for figures of another machine

Peers take turns within each round, so that a busy machine is busy for all. Every answer is held against onnxruntime in this process first;
the load is one thread of `wrk`, or `ghz` for gRPC. A peer that cannot be installed or started, or answers wrongly, is a row that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "runtime-image/src"), str(Path(__file__).parent)]

from serving_models import MODELS, BenchModel  # noqa: E402
from serving_peers import PEERS, AbsentError, Bench, Peer  # noqa: E402

from slipway_runtime.serve import oip  # noqa: E402
from unit.runtime.serve.artifacts import Draft, write  # noqa: E402

PAGES = ROOT / "docs/benchmarks"
CORES = len(os.sched_getaffinity(0))  # of those that this process may use
LIMIT, GRPC = "in-process", "grpc"
START_SECONDS = 300
LUA = """wrk.method = "POST"
local f = io.open("{body}", "rb"); wrk.body = f:read("*a"); f:close()
{headers}
done = function(s, l, r) io.write(string.format("RESULT %d %d %d %d %d\\n", s.requests, s.duration, l:percentile(50), l:percentile(99),
  s.errors.status + s.errors.connect + s.errors.read + s.errors.write + s.errors.timeout)) end
"""
Row = dict[str, Any]


class Load:
    """A model's requests in every form, and what their answer must be."""

    def __init__(self, model: BenchModel, folder: Path) -> None:
        self.model, self.folder = model, folder
        config = {"format": "ONNX", "entry": "model.onnx", "signature": model.signature}
        write(folder / "artifact", Draft({"model.onnx": model.data}, config))
        x = np.random.default_rng(0).standard_normal((1, *model.shape)).astype(np.float32)
        self.sample, self.expected = x, self.session().run(None, {"x": x})[0]
        item = {"name": "x", "shape": list(x.shape), "datatype": "FP32"}
        wanted = {"name": "y", "parameters": {"binary_data": True}}
        head = encoded({"inputs": [item | {"parameters": {"binary_data_size": x.nbytes}}], "outputs": [wanted]})
        values = [float(f"{value:.6g}") for value in x.ravel()]
        self.bodies = {
            "json": (encoded({"inputs": [item | {"data": values}]}), {"Content-Type": "application/json"}),
            "binary": (head + x.tobytes(), {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}),
            "plain": (encoded({"x": np.reshape(values, x.shape).tolist()}), {"Content-Type": "application/json"}),
        }
        for name, (body, headers) in self.bodies.items():
            (folder / f"{name}.body").write_bytes(body)
            lines = "\n".join(f'wrk.headers["{key}"] = "{value}"' for key, value in headers.items())
            (folder / f"{name}.lua").write_text(LUA.replace("{body}", str(folder / f"{name}.body")).replace("{headers}", lines))
        self.asked = oip.message("ModelInferRequest")(model_name="m", raw_input_contents=[x.tobytes()])
        self.asked.inputs.add(name="x", datatype="FP32", shape=x.shape)
        self.asked.outputs.add(name="y")
        (folder / "grpc.body").write_bytes(self.asked.SerializeToString())

    def session(self) -> onnxruntime.InferenceSession:
        """The model in this process, one thread a call."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(self.model.data, options, providers=["CPUExecutionProvider"])

    def limit(self, seconds: float) -> float:
        """Calls a second in this process, with as many threads as a server has workers."""
        session, counts, deadline = self.session(), [], time.perf_counter() + seconds

        def call() -> None:
            count = 0
            while time.perf_counter() < deadline:
                session.run(None, {"x": self.sample})
                count += 1
            counts.append(count)

        threads = [threading.Thread(target=call) for _ in range(self.model.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / seconds

    def check(self, url: str, body: str) -> None:
        """Ask once; raises OSError without an answer, AssertionError for a wrong one."""
        if body == GRPC:
            return self.check_grpc(url)
        data, headers = self.bodies[body]
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as answer:
            got, length = answer.read(), answer.headers.get("Inference-Header-Content-Length")
        if length:
            y = np.frombuffer(got[int(length) :], np.float32)
        else:
            value = json.loads(got)
            y = np.array(
                value["outputs"][0]["data"]
                if isinstance(value, dict) and "outputs" in value
                else value["y"]
                if isinstance(value, dict)
                else value
            )
        np.testing.assert_allclose(y.ravel(), self.expected.ravel(), rtol=1e-2, atol=1e-3)

    def check_grpc(self, address: str) -> None:
        """Ask once over gRPC; raises as `check` does."""
        with grpc.insecure_channel(address) as channel:
            reader = oip.message("ModelInferResponse").FromString
            call = channel.unary_unary(f"/{oip.SERVICE}/ModelInfer", type(self.asked).SerializeToString, reader)
            try:
                answer = call(self.asked, timeout=30, wait_for_ready=True)
            except grpc.RpcError as error:
                raise OSError(str(error)) from error
        values = (
            np.frombuffer(answer.raw_output_contents[0], np.float32)
            if answer.raw_output_contents
            else answer.outputs[0].contents.fp32_contents
        )
        np.testing.assert_allclose(np.ravel(values), self.expected.ravel(), rtol=1e-2, atol=1e-3)


def encoded(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


# --- processes ---------------------------------------------------------------------------------------------------------


def family(root: int) -> list[int]:
    """A process, all of its session, and all below them; Ray's daemons outlive the process that started them."""
    children, found = defaultdict(list), {root: None}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parent, _, session = map(int, (entry / "stat").read_text().rsplit(")", 1)[1].split()[1:4])
                children[parent].append(int(entry.name))
                if session == root:
                    found[int(entry.name)] = None
    queue = list(found)
    for pid in queue:
        queue += [child for child in children[pid] if child not in found]
        found |= dict.fromkeys(children[pid])
    return list(found)


def cpu_seconds(root: int) -> float:
    """User and system time of a process and all below it, those that have ended included."""
    ticks = 0
    for pid in family(root):
        with suppress(OSError):
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mb(root: int) -> float:
    """Memory of a process and all below it; what they share is counted once (PSS)."""
    total = 0
    for pid in family(root):
        with suppress(OSError, AttributeError):
            total += int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[1])
    return total / 1024


def busy_seconds() -> float:
    """CPU time of the whole machine that was not idle."""
    fields = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(peer: Peer, load: Load) -> Iterator[tuple[int, int, float]]:
    """Start a peer; yields its process id, its port, and the seconds until its first right answer.

    Raises:
        AbsentError: it cannot be had, or does not answer rightly in time.
    """
    bench = Bench(load.model, load.folder, free_range())
    command, start, log = peer.command(bench), time.monotonic(), load.folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, env=peer.variables(bench), stdout=stream, stderr=stream, cwd=load.folder, start_new_session=True
        )
    try:
        body, path = next(iter(peer.bodies.items()))
        while True:
            try:
                load.check(f"http://127.0.0.1:{bench.port}{path}", body)
                break
            except OSError as error:
                if process.poll() is not None or time.monotonic() - start > START_SECONDS:
                    last = " ".join(log.read_text(errors="replace").split())[-300:]
                    raise AbsentError(f"no answer ({error}): {last}") from error
            except (AssertionError, ValueError, KeyError, TypeError) as error:
                raise AbsentError(f"a wrong answer: {' '.join(str(error).split())[:200]}") from error
            time.sleep(0.02)
        yield process.pid, bench.port, time.monotonic() - start
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a peer, and what it has started and not ended."""
    below = family(process.pid)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    for pid in {*below, *family(process.pid)}:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def free_range() -> int:
    """A port after which five more are free."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = first.getsockname()[1]
            try:
                for offset in range(1, 6):
                    socket.create_server(("127.0.0.1", port + offset)).close()
            except (OSError, OverflowError):
                continue
            return port


# --- measuring ---------------------------------------------------------------------------------------------------------


def measured(load: Load, process: int, url: str, body: str, connections: int, seconds: int) -> Row:  # noqa: PLR0917
    """One measurement; `foreign` is the share of the machine that others used meanwhile."""
    used, busy, own = cpu_seconds(process), busy_seconds(), os.times()
    requests, micros, p50, p99, errors = (by_ghz if body == GRPC else by_wrk)(load, url, body, connections, seconds)
    used, busy, now = cpu_seconds(process) - used, busy_seconds() - busy, os.times()
    if errors or not requests:
        raise AbsentError(f"{errors} errors of {requests} requests")
    generator = now.children_user + now.children_system - own.children_user - own.children_system
    foreign = max(0.0, busy - used - generator) / (micros / 1e6 * CORES)
    figures = {"rps": requests / micros * 1e6, "p50_ms": p50 / 1e3, "p99_ms": p99 / 1e3, "cpu_us": used / requests * 1e6}
    return {"connections": connections, **{key: round(value, 4) for key, value in figures.items()}, "foreign": round(foreign, 3)}


def by_wrk(load: Load, url: str, body: str, connections: int, seconds: int) -> tuple[int, ...]:
    """Requests, microseconds, p50 and p99 in microseconds, errors."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(load.folder / f"{body}.lua"), url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return tuple(map(int, re.search(r"RESULT (.*)", text)[1].split()))


def by_ghz(load: Load, address: str, body: str, connections: int, seconds: int) -> tuple[int, ...]:
    """The same over gRPC, with 16 connections at most, as gRPC's clients share them."""
    words = [
        "--insecure",
        "--protoset",
        str(oip.DESCRIPTORS),
        "--call",
        f"{oip.SERVICE}.ModelInfer",
        "-B",
        str(load.folder / f"{body}.body"),
    ]
    words += [
        "-c",
        str(connections),
        "--connections",
        str(min(connections, 16)),
        "-z",
        f"{seconds}s",
        "--duration-stop",
        "wait",
        "-O",
        "json",
    ]
    done = json.loads(subprocess.run(["ghz", *words, address], capture_output=True, text=True, check=True).stdout)
    tails = {row["percentage"]: row["latency"] // 1000 for row in done["latencyDistribution"]}
    good = done["statusCodeDistribution"].get("OK", 0)
    return good, done["total"] // 1000, tails[50], tails[99], done["count"] - good


def peer_rows(peer: Peer, load: Load, connections: list[int], seconds: int) -> Iterator[Row]:
    """All measurements of a peer in one round."""
    peer.install()
    with running(peer, load) as (process, port, start):
        urls = {body: f"http://127.0.0.1:{port}{path}" for body, path in peer.bodies.items()}
        for body, url in (urls | ({GRPC: f"127.0.0.1:{port + peer.grpc}"} if peer.grpc else {})).items():
            try:
                load.check(url, body)
                for count in connections:
                    row = measured(load, process, url, body, count, seconds)
                    yield {"body": body, **row, "start_seconds": round(start, 3), "memory_mb": round(memory_mb(process), 1)}
            except (OSError, AssertionError, AbsentError) as error:
                yield {"body": body, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def run(args: argparse.Namespace) -> None:
    """Measure, and append the rows."""
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: it is the load generator (Debian: apt-get install wrk)")
    if shutil.which("ghz") is None:
        sys.exit("ghz is not on the PATH: it is the load generator for gRPC (hack/tools.sh ghz builds it into build/bin)")
    cores = f"{CORES} of {os.cpu_count()}" if os.cpu_count() != CORES else str(CORES)
    machine = f"{cores} cores, {platform.machine()}, Python {platform.python_version()}, onnxruntime {onnxruntime.__version__}"
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    connections = [int(word) for word in args.connections.split(",")]
    with (PAGES / f"{args.page}.jsonl").open("a") as file:

        def keep(row: Row) -> None:
            print(row, flush=True)
            file.write(json.dumps(row) + "\n")
            file.flush()

        for name in args.models.split(","):
            with tempfile.TemporaryDirectory() as folder:
                load = Load(MODELS[name](), Path(folder))
                for number in range(args.rounds):
                    common = {"run": stamp, "machine": machine, "seconds": args.seconds, "round": number, "model": name}
                    keep({**common, "peer": LIMIT, "rps": round(load.limit(args.seconds), 1), "threads": load.model.workers})
                    for peer in [peer for peer in PEERS.values() if not args.peers or peer.name in args.peers.split(",")]:
                        try:
                            for row in peer_rows(peer, load, connections, args.seconds):
                                keep({**common, "peer": peer.name, **row})
                        except AbsentError as error:
                            keep({**common, "peer": peer.name, "error": str(error)})


# --- the page ----------------------------------------------------------------------------------------------------------

Key = tuple[str, str, str, int]  # model, peer, body, connections


class Results:
    """The rows of the newest run of each model, by what they measure."""

    def __init__(self, rows: list[Row]) -> None:
        newest = {row["model"]: row["run"] for row in rows}  # the file is in the order of time
        self.rows = [row for row in rows if row["run"] == newest[row["model"]]]
        self.cells: dict[Key, dict[int, Row]] = defaultdict(dict)
        self.errors: dict[tuple[str, str, str], str] = {}
        self.limits: dict[str, list[float]] = defaultdict(list)
        for row in self.rows:
            if row["peer"] == LIMIT:
                self.limits[row["model"]].append(row["rps"])
            elif "error" in row:
                self.errors[row["model"], row["peer"], row.get("body", "")] = row["error"]
            else:
                self.cells[row["model"], row["peer"], row["body"], row["connections"]][row["round"]] = row

    def figures(self, key: Key, name: str) -> list[float]:
        """A figure of each round."""
        return [row[name] for row in self.cells.get(key, {}).values()]

    def ratios(self, key: Key, to: Key, name: str) -> list[float]:
        """A figure of ours by that of another, round by round: what was busy was busy for both."""
        ours, theirs = self.cells.get(key, {}), self.cells.get(to, {})
        return [ours[number][name] / theirs[number][name] for number in sorted(ours.keys() & theirs.keys()) if theirs[number][name]]


def spread(values: list[float], digits: int = 2) -> str:
    """Median (least to largest), or a dash."""
    if not values:
        return "–"
    middle = f"{statistics.median(values):,.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def targets(results: Results) -> list[list[str]]:
    """The rows of performance.md's A1 to A6: what is to be reached, and what was."""

    plain, batching = "slipway", "slipway batching"

    def figure(model: str, body: str, connections: int, name: str, ours: str = plain) -> list[float]:
        return results.figures((model, ours, body, connections), name)

    def against(  # noqa: PLR0917
        body: str, other: str, theirs: str = "", ours: str = plain, connections: int = 16, name: str = "rps", *, inverse: bool = False
    ) -> list[float]:
        keys = ("mlp", ours, body, connections), ("mlp", other, theirs or body, connections)
        return results.ratios(*(reversed(keys) if inverse else keys), name)

    def tails(ours: str, connections: int) -> list[float]:
        pairs = (figure("resnet18", "binary", connections, name, ours) for name in ("p99_ms", "p50_ms"))
        return [tail / half for tail, half in zip(*pairs, strict=True)]

    gains = [results.ratios(*(("encoder", name, "binary", c) for name in (batching, plain)), "rps") for c in (1, 64)]
    rows: list[tuple[str, str, list[float], float, bool]] = []
    for ours, how in ((plain, ""), (batching, ", batching")):
        quick = figure("mlp", "binary", 16, "rps", ours)
        per_cpu = against("binary", "triton", ours=ours, name="cpu_us", inverse=True)
        rows += [
            ("A1", f"MLP, binary, 16 connections{how}: requests/s, at least 35,000", quick, 35_000, True),
            ("A1", "… of Triton's, at least 1", against("binary", "triton", ours=ours), 1, True),
            ("A1", "… of Triton's with batching, at least 1", against("binary", "triton batching", ours=ours), 1, True),
            ("A1", "… of Triton's per CPU-second, at least 2", per_cpu, 2, True),
            *(
                ("A1", f"… p99 by Triton's, {c} conn., at most 1", against("binary", "triton", "", ours, c, "p99_ms"), 1, False)
                for c in (1, 16, 64)
            ),
            ("A2", f"MLP, JSON, 16 connections{how}: requests/s, at least 30,000", figure("mlp", "json", 16, "rps", ours), 30e3, True),
            ("A2", "… of Triton's, at least 1", against("json", "triton", ours=ours), 1, True),
            ("A1", "… of MLServer's, at least 20", against("json", "mlserver", ours=ours), 20, True),
            ("A1", "… of KServe's, at least 20", against("json", "kserve", ours=ours), 20, True),
            ("A1", "… of TorchServe's, at least 20", against("json", "torchserve", "plain", ours), 20, True),
            ("A1", "… of FastAPI's, at least 12", against("json", "fastapi", "plain", ours), 12, True),
        ]
    rows += [
        ("A3", "MLP, binary, 1 connection: p50 in ms, at most 0.13", figure("mlp", "binary", 1, "p50_ms"), 0.13, False),
        ("A3", "… by Triton's, at most 1.2", against("binary", "triton", connections=1, name="p50_ms"), 1.2, False),
    ]
    for ours, how in ((plain, ""), (batching, ", batching")):
        rates, limits = figure("resnet18", "binary", 16, "rps", ours), results.limits.get("resnet18", [])
        share = [rate / limit for rate, limit in zip(rates, limits, strict=False)]
        triton = results.ratios(*(("resnet18", name, "binary", 16) for name in (ours, ours.replace(plain, "triton"))), "rps")
        rows += [
            ("A4", f"ResNet-18, binary, 16 connections{how}: of the bare rate, at least 0.95", share, 0.95, True),
            ("A4", f"… of Triton's{how and ' with batching'}, at least 1", triton, 1, True),
            ("A4", "… p99 by p50, at most 1.4", tails(ours, 16), 1.4, False),
            ("A4", "… at 64 connections, at most 1.4", tails(ours, 64), 1.4, False),
        ]
    rows += [
        ("A5", "MLP, gRPC, 16 connections: requests/s, at least 7,500", figure("mlp", GRPC, 16, "rps"), 7_500, True),
        *(("A5", f"… of {n}'s, at least 3.5", against(GRPC, n.lower()), 3.5, True) for n in ("MLServer", "KServe", "PyTriton")),
        ("A5", "… of Triton's, at least 1", against(GRPC, "triton"), 1, True),
        ("", "Encoder, binary, 64 connections: batching by none, at least 1.5", gains[1], 1.5, True),
        ("", "… at 1 connection, at least 0.95", gains[0], 0.95, True),
        ("A6", "MLP: seconds from start to first answer, at most 0.6", figure("mlp", "binary", 1, "start_seconds"), 0.6, False),
        ("A6", "MLP: memory in MB, at most 120", figure("mlp", "binary", 1, "memory_mb"), 120, False),
    ]
    return [[number, text, spread(values), verdict(values, bar, at_least=least)] for number, text, values, bar, least in rows]


def verdict(values: list[float], bar: float, *, at_least: bool) -> str:
    """Whether the median reaches the bar."""
    if not values:
        return "not measured"
    middle = statistics.median(values)
    return "reached" if (middle >= bar if at_least else middle <= bar) else "missed"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def peer_table(results: Results, model: str) -> list[str]:
    """A row for each peer, body and number of connections, with our ratio to it."""
    rows = []
    for key in sorted((key for key in results.cells if key[0] == model), key=lambda key: (key[3], list(PEERS).index(key[1]), key[2])):
        _, peer, body, connections = key
        ours = (model, "slipway", body if body != "plain" else "json", connections)
        cells = [spread(results.figures(key, name), digits) for name, digits in (("rps", 0), ("p50_ms", 2), ("p99_ms", 2), ("cpu_us", 1))]
        ratios = [
            "" if peer == "slipway" else spread(results.ratios(ours, key, "rps")),
            "" if peer == "slipway" else spread(results.ratios(key, ours, "cpu_us")),
        ]
        rows.append([str(connections), peer, body, *cells, *ratios])
    rows += [
        ["", peer, body, f"not measured: {error}".replace("|", "/"), *[""] * 5]
        for (of, peer, body), error in results.errors.items()
        if of == model
    ]
    return table(
        [
            "connections",
            "server",
            "body",
            "requests/s",
            "p50 ms",
            "p99 ms",
            "CPU µs/request",
            "our requests/s by theirs",
            "their CPU by ours",
        ],
        rows,
    )


def start_table(results: Results, model: str) -> list[str]:
    """Start and memory of each peer."""
    seen: dict[str, dict[tuple[int, str], float]] = defaultdict(dict)
    memory: dict[str, list[float]] = defaultdict(list)
    for (of, peer, _, _), rows in results.cells.items():
        for row in rows.values() if of == model else ():
            seen[peer][row["round"], "start"] = row["start_seconds"]
            memory[peer].append(row["memory_mb"])
    return table(
        ["server", "start, s", "memory, MB"],
        [[peer, spread(list(seen[peer].values())), f"{max(memory[peer]):,.0f}"] for peer in PEERS if peer in seen],
    )


COLOURS = {"json": "#4477aa", "plain": "#88bbdd", "binary": "#228833", GRPC: "#ccbb44"}
BAR, PANEL, LABEL = 14, 330, 150  # pixels: of a bar with its gap, across a panel, and for the names before it


def chart(results: Results, connections: int) -> str:
    """Requests a second by server and body, a panel a model, as SVG: bars of the median, a line from the least to the largest round."""
    models = [model for model in MODELS if any(key[0] == model and key[3] == connections for key in results.cells)]
    keys = {model: [key for key in results.cells if key[0] == model and key[3] == connections] for model in models}
    height, width = 60 + BAR * max(map(len, keys.values())), 20 + PANEL * len(models)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="11">']
    parts.append('<rect width="100%" height="100%" fill="white"/>')
    for panel, model in enumerate(models):
        left = 10 + panel * PANEL + LABEL
        scale = (PANEL - LABEL - 60) / max(max(results.figures(key, "rps")) for key in keys[model])
        parts.append(_text(left - LABEL, 20, f"{model}: requests/s, {connections} connections", weight="bold"))
        for row, key in enumerate(sorted(keys[model], key=lambda key: -statistics.median(results.figures(key, "rps")))):
            values, y = results.figures(key, "rps"), 30 + row * BAR
            middle = statistics.median(values)
            parts.append(_text(left - 4, y + 9, f"{key[1]}, {key[2]}", anchor="end"))
            parts.append(f'<rect x="{left}" y="{y}" width="{middle * scale:.1f}" height="{BAR - 4}" fill="{COLOURS[key[2]]}"/>')
            ends = f'x1="{left + min(values) * scale:.1f}" x2="{left + max(values) * scale:.1f}"'
            parts.append(f'<line {ends} y1="{y + 5}" y2="{y + 5}" stroke="black"/>')
            parts.append(_text(left + max(values) * scale + 4, y + 9, f"{middle:,.0f}"))
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, words: str, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{words}</text>'


def report(args: argparse.Namespace) -> None:
    """Write the page."""
    page = PAGES / f"{args.page}.md"
    command = (
        "make bench-serving" if args.page == "serving" else f"taskset -c 2,3 python tests/bench/serving_bench.py --page {args.page} run"
    )
    results = Results([json.loads(line) for line in page.with_suffix(".jsonl").read_text().splitlines()])
    first = results.rows[0]
    foreign = [row["foreign"] for row in results.rows if "foreign" in row]
    rounds = len({row["round"] for row in results.rows})
    text = [
        "# Serving, side by side",
        "",
        f"`{command}` ([the script](../../tests/bench/serving_bench.py) says how it is measured; raw figures:",
        f"[{args.page}.jsonl]({args.page}.jsonl)). {first['machine']}; {rounds} round(s), {first['seconds']} s a measurement;",
        "load and server share the cores. Median (least to largest) of the rounds; ratios are those within a round.",
        "All servers run the same ONNX file in onnxruntime with one thread a call; `bare` is the least Python that",
        "answers, without limits, checks or metrics. CPU and memory are those of all processes of a server; memory is",
        "the most after any load.",
        f"Others used up to {max(foreign, default=0):.0%} of the machine meanwhile.",
        "",
        f"![Requests a second of each server with 64 connections]({args.page}.svg)",
        "",
        "## Targets",
        "The bars were set on two quiet cores on which the MLP alone makes 129,000 calls a second, and ResNet-18 713 in two threads; what",
        "the models do alone here stands above their tables. Ratios carry over better than rates.",
        "",
        "The bars come from Triton (C++, onnxruntime backend) with the first two models on those cores: 28,378 requests/s (MLP, binary, 16",
        "connections), 24,386 (JSON), 12,155 (gRPC), p50 at 1 connection 0.11 ms; ResNet-18, two instances: 592 at 64. Where rows of it",
        "stand below, $TRITON named the server of PyTriton's wheel (2.51.0) with the onnxruntime backend built by hand, on the same",
        "onnxruntime. It may use both cores; a worker of ours uses one.",
        "",
        *table(["", "target", "measured", ""], targets(results)),
    ]
    titles = {
        "mlp": "MLP 64 → 256 → 10, one worker",
        "resnet18": "ResNet-18, 3×64×64, two workers",
        "encoder": "Transformer encoder, 6 layers of 64, 8 words, one worker",
    }
    for model in (model for model in titles if model in results.limits):
        bare = f"The model alone in a process, {2 if model == 'resnet18' else 1} thread(s): {spread(results.limits[model], 0)} calls/s."
        text += ["", f"## {titles[model]}", bare, "", *peer_table(results, model), "", *start_table(results, model)]
    page.write_text("\n".join([*text, ""]))
    page.with_suffix(".svg").write_text(chart(results, 64))


def main() -> None:
    """Parse, and do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", default="serving", help="name of the page, and of its rows")
    commands = parser.add_subparsers(required=True)
    measure = commands.add_parser("run", help="measure and append rows")
    measure.add_argument("--seconds", type=int, default=2, help="of one measurement")
    measure.add_argument("--rounds", type=int, default=3)
    measure.add_argument("--connections", default="1,16,64,256")
    measure.add_argument("--models", default=",".join(MODELS))
    measure.add_argument("--peers", default="", help=f"some of {', '.join(PEERS)} (default: all)")
    measure.set_defaults(do=run)
    commands.add_parser("report", help="write the page").set_defaults(do=report)
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
