"""Models on a GPU: every target in every precision, the bare torch loop, the server's backend, and the server, from one set of artifacts.

    python tests/bench/gpu_bench.py build   --work FOLDER     # convert with the project's own targets, compare with the CPU in float32
    python tests/bench/gpu_bench.py measure --work FOLDER     # in the process: latency, throughput by batch size, memory
    python tests/bench/gpu_bench.py serve   --work FOLDER     # the server over the loopback interface, beside the bare loop
    python tests/bench/gpu_bench.py report  --work FOLDER     # docs/benchmarks/gpu/*.jsonl -> tables and plot

Each step appends to FOLDER/raw/STEP.jsonl; what is there already is not done again. Without a GPU nothing is measured, unless
SLIPWAY_DEVICE=cpu says that the script itself is to be tried. A candidate is built, compared and measured in a process of its own, so that
one that dies is a row.

The bare loop is what one would write without a server: torch.from_numpy(x).to("cuda"), call, .cpu(), on one thread and the default stream.
`device` is the same without the copies: the inputs lie on the GPU, and nobody waits for a single call.
"""

# ruff: noqa: PLC0415 - each step imports what it needs in the process that needs it, and none of them torch before a fork
from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import queue
import re
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [os.environ.get("BENCH_SOURCE") or str(ROOT / "runtime-image/src"), str(ROOT / "tests"), str(ROOT / "tests/bench")]

import gpu_models  # noqa: E402

PRECISIONS = {"Float32": "float32", "Float16": "float16", "BFloat16": "bfloat16"}
TARGETS = ("TorchScript", "ExportedProgram", "AOTInductor", "Compile")
SIZES = (1, 2, 4, 8, 16, 32, 64)
FEW_SIZES = (1, 8, 32)  # of the precisions that are not in the plot
SAMPLES = 32
VARIANTS: dict[str, tuple[dict[str, str], str]] = {  # environment of the server, and its maxDelay
    "now": ({}, "2ms"),
    "no graphs": ({"SLIPWAY_CUDA_GRAPHS": "false"}, "2ms"),
    "no delay": ({}, "0s"),
    **{f"{count} workers": ({"SLIPWAY_WORKERS": str(count)}, "2ms") for count in (2, 3, 4)},
    "before": ({}, "2ms"),
}
CHILD_SECONDS = {"_copies": 60, "_reference": 300, "_build": 600, "_measure": 150}
SERVER = (
    "import argparse, sys; from slipway_runtime.serve.main import add_arguments, run;"
    "p = argparse.ArgumentParser(); add_arguments(p); sys.exit(run(p.parse_args()))"
)


@dataclass(frozen=True)
class Candidate:
    """A model, a target (Compile: the source with torch.compile in the server) and a precision."""

    model: str
    target: str
    precision: str

    @property
    def name(self) -> str:
        return f"{self.model}.{self.target}.{self.precision}"

    @property
    def environment(self) -> dict[str, str]:
        return {"SLIPWAY_TORCH_COMPILE": "true"} if self.target == "Compile" else {}


class Log:
    """Rows of a step, on disk as soon as they are known."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._lock = path, threading.Lock()

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def add(self, **row: Any) -> None:
        with self._lock, self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row)[:400], flush=True)


def in_process(task: Callable[[], dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Run a task as the pipeline does: in a fork of its own that never shares a GPU context; a death is a message."""
    from slipway_runtime.reasons import Failure
    from slipway_runtime.sandbox import Limits, run_limited

    try:
        result = run_limited("the candidate", task, Limits(time.monotonic() + seconds, seconds, "ConversionFailed"))
    except Failure as failure:
        return {"failed": f"{failure.reason}: {failure.message}"[:500]}
    return {**result.value, "wall": round(result.seconds, 1)}


# --- build ------------------------------------------------------------------------------------------------------------


def settings_of(folder: Path, model: str) -> Any:
    """A work folder as fetch leaves it."""
    from slipway_runtime.settings import settings_from_environment

    source = folder / model / "source/model"
    source.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(gpu_models.__file__, source / "model.py")
    spec = {
        "model": {"uri": "pvc://bench/model", "format": "PyTorch", "entrypoint": "model:build", "arguments": {"name": model}},
        "signature": gpu_models.signature(model),
        "conversion": {"validation": {"samples": SAMPLES}},
    }
    made = settings_from_environment({"SLIPWAY_ARTIFACT_SPEC": json.dumps(spec), "SLIPWAY_WORK": str(folder / model)})
    made.candidates.mkdir(parents=True, exist_ok=True)
    return made


def reference(folder: Path, model: str) -> dict[str, Any]:
    """The outputs of the source in eager float32 on the CPU, by the pipeline's own step."""
    import torch

    from slipway_runtime.convert import pytorch_reference
    from slipway_runtime.modelfile import read_model

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 4))
    settings = settings_of(folder, model)
    return dict(pytorch_reference.prepare(settings, read_model(settings.folder, settings.spec)))


def built(folder: Path, candidate: Candidate) -> dict[str, Any]:
    """Convert with the project's target; Compile is the target None of a source that computes in the precision."""
    from dataclasses import replace
    from importlib import import_module

    from slipway_runtime.candidates import CALIBRATION, SAMPLES, Wanted
    from slipway_runtime.convert import Job
    from slipway_runtime.modelfile import read_model

    settings = settings_of(folder, candidate.model)
    output = folder / "candidates" / candidate.name
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    model = read_model(settings.folder, settings.spec)
    target = {"Compile": "none", "ExportedProgram": "exported"}.get(candidate.target, candidate.target.lower())
    if target == "none":
        model = replace(model, arguments={"name": candidate.model, "dtype": PRECISIONS[candidate.precision]})
    wanted = Wanted("None" if target == "none" else candidate.target, candidate.precision)
    job = Job(
        settings.folder, model, model.signature, settings.candidates / SAMPLES, output, wanted, settings.candidates / CALIBRATION, "MinMax"
    )
    started = time.perf_counter()
    without_new_options()
    found = dict(import_module(f"slipway_runtime.convert.{target}_target").build(job))
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    return {"built": found, "buildSeconds": round(time.perf_counter() - started, 1), "sizeBytes": size}


def without_new_options() -> None:
    """A torch older than the project's (2.13) does not know cpp.march: compile for this machine's own CPU, which is what will run it."""
    import torch

    known, compiled = torch._inductor.config.cpp, torch._inductor.aoti_compile_and_package
    if not hasattr(known, "march"):

        def compile_and_package(*args: Any, inductor_configs: dict[str, Any], **options: Any) -> Any:
            kept = {key: value for key, value in inductor_configs.items() if key != "cpp.march"}
            return compiled(*args, inductor_configs=kept, **options)

        torch._inductor.aoti_compile_and_package = compile_and_package


def compared(folder: Path, candidate: Candidate, found: dict[str, Any]) -> dict[str, Any]:
    """Load with the server's backend on the GPU, hold against the CPU's float32 outputs by the pipeline's gate, write the artifact."""
    from slipway_runtime.artifact import Signature
    from slipway_runtime.candidates import REFERENCE, SAMPLES
    from slipway_runtime.samples import read_batches
    from slipway_runtime.validate.gate import judged
    from slipway_runtime.validate.golden import write_golden
    from slipway_runtime.validate.loaders import load
    from slipway_runtime.validate.parity import compare

    settings = settings_of(folder, candidate.model)
    signature = Signature.from_json(gpu_models.signature(candidate.model))
    output = folder / "candidates" / candidate.name
    samples = read_batches(settings.candidates / SAMPLES)
    os.environ |= candidate.environment
    runner = load(output, found, signature, candidate.precision)
    parity, outputs = compare(runner, samples, read_batches(settings.candidates / REFERENCE))
    failure = judged(parity, None, {"minTop1AgreementPercent": 0}, candidate.precision)  # random weights: classes are told apart by nothing
    write_golden(output, samples, outputs, signature, candidate.precision)
    write_artifact(output, candidate, found)
    numbers = {"error": parity.error, "relative": parity.relative, "cosine": parity.cosine, "top1": parity.agreement, "scale": parity.scale}
    return numbers | {"verdict": "Passed" if failure is None else failure.message}


def write_artifact(output: Path, candidate: Candidate, found: dict[str, Any]) -> None:
    """The manifest and slipway.json around the candidate's files, as publish and pull would leave them."""
    from unit.runtime.serve.artifacts import Draft, write

    golden = json.loads((output / "golden.json").read_text())
    files = {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()}
    paths = {"inputs": "golden/inputs.npz", "outputs": "golden/outputs.npz"}
    config = {**found, "precision": candidate.precision, "signature": gpu_models.signature(candidate.model), "golden": {**paths, **golden}}
    write(output, Draft(files, config))


def build(args: argparse.Namespace) -> None:
    """All candidates, several at a time: what compiles needs CPUs, not the GPU."""
    log = Log(args.work / "raw/build.jsonl")
    done = {(row["model"], row["target"], row["precision"]) for row in log.rows()}
    with ThreadPoolExecutor(args.jobs) as pool:
        references = {model: pool.submit(child, "_reference", args.work, model) for model in args.models}
        for model, future in references.items():
            if "failed" in future.result():
                raise SystemExit(f"{model}: {future.result()}")

        def one(candidate: Candidate) -> None:
            log.add(**vars(candidate), **child("_build", args.work, *vars(candidate).values()))

        list(pool.map(one, [c for c in candidates(args) if tuple(vars(c).values()) not in done]))


def child(step: str, *words: object, source: str = "", **environment: str) -> dict[str, Any]:
    """Run a step of this script in a fresh interpreter; its last line is the answer."""
    command = [sys.executable, __file__, step, *map(str, words)]
    known = os.environ | environment | ({"BENCH_SOURCE": source} if source else {})
    try:
        run = subprocess.run(command, env=known, capture_output=True, text=True, check=False, timeout=CHILD_SECONDS[step])
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {CHILD_SECONDS[step]} s"}
    try:
        return dict(json.loads(run.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        return {"failed": f"exit code {run.returncode}: {run.stderr[-600:]}"}


def build_one(folder: Path, candidate: Candidate) -> dict[str, Any]:
    """Build in one process, compare in another."""
    import torch  # noqa: F401 - once, before the forks; it does not touch the GPU

    found = in_process(lambda: built(folder, candidate), 570)
    if "failed" in found:
        return found
    return found | in_process(lambda: compared(folder, candidate, found["built"]), 570)


# --- measure ----------------------------------------------------------------------------------------------------------


def inputs_of(model: str, rows: int, count: int = 4) -> list[np.ndarray]:
    """Several batches of random inputs: one alone would stay in caches."""
    dtype, shape, _ = gpu_models.SIGNATURES[model]
    random = np.random.default_rng(rows)
    whole = (rows, *shape[1:])
    if dtype == "float32":
        return [random.standard_normal(whole, np.float32) for _ in range(count)]
    return [random.integers(0, 255 if dtype == "uint8" else gpu_models.TOKENS, whole, dtype) for _ in range(count)]


def loaded(folder: Path, candidate: Candidate) -> tuple[Any, float]:
    """The server's backend for an artifact, and the seconds it took."""
    import torch  # noqa: F401 - not part of the load time

    from slipway_runtime.artifact import open_artifact
    from slipway_runtime.serve.backends import load_backend

    os.environ |= candidate.environment
    artifact = open_artifact(folder / "candidates" / candidate.name, None)
    started = time.perf_counter()
    return load_backend(artifact, 1), time.perf_counter() - started


def calls(call: Callable[[Any], object], batches: list[Any], seconds: float, wait: Callable[[], object] = lambda: None) -> list[float]:
    """Seconds of each call, or, with `wait`, the mean of a run that ends by waiting for the GPU, three times over."""
    for batch in batches:
        call(batch)
    wait()
    took: list[float] = []
    if wait.__name__ != "<lambda>":
        for _ in range(3):
            started, count = time.perf_counter(), 0
            while time.perf_counter() - started < seconds / 3:
                for batch in batches:
                    call(batch)
                count += len(batches)
                if count % 32 == 0:
                    wait()
            wait()
            took.append((time.perf_counter() - started) / count)
        return took
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for batch in batches:
            started = time.perf_counter()
            call(batch)
            took.append(time.perf_counter() - started)
    return took


def ways(backend: Any) -> dict[str, Callable[[np.ndarray], object]]:
    """The ways to ask a loaded model: the bare loop, and the backend without and with graphs."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def bare(x: np.ndarray) -> object:
        with torch.inference_mode():
            answer = backend._module(torch.from_numpy(x).to(device))
            return (answer if isinstance(answer, torch.Tensor) else answer[0]).cpu().numpy()

    def asked(x: np.ndarray) -> object:
        return backend.infer({"x": x})

    return {"bare": bare, "plain": without_graphs(backend, asked), "graphs": asked}


def without_graphs(backend: Any, call: Callable[[np.ndarray], object]) -> Callable[[np.ndarray], object]:
    def plain(x: np.ndarray) -> object:
        kind, backend._kind = getattr(backend, "_kind", ""), "none"
        try:
            return call(x)
        finally:
            backend._kind = kind

    return plain


def measure_one(folder: Path, candidate: Candidate, seconds: float) -> dict[str, Any]:
    """Latency of one row, rows a second by batch size, and memory, all in milliseconds, rows and MiB."""
    import torch

    has_gpu = torch.cuda.is_available()
    backend, load_seconds = loaded(folder, candidate)
    found: dict[str, Any] = {"loadSeconds": round(load_seconds, 2), "rows": {}, "latency": {}}
    base = memory() if has_gpu else 0
    for size in SIZES if candidate.precision == "Float16" else FEW_SIZES:
        batches = inputs_of(candidate.model, size)
        for name, call in ways(backend).items():
            for _ in range(4):  # compiles, profiles, records
                call(batches[0])
            took = calls(call, batches, seconds * (3 if size == 1 else 1))
            found["rows"].setdefault(name, {})[size] = round(size / statistics.median(took), 1)
            if size == 1:
                found["latency"][name] = [round(1e3 * float(np.percentile(took, q)), 4) for q in (50, 99)]
        if has_gpu:
            found["rows"].setdefault("device", {})[size] = round(size / statistics.median(on_device(backend, batches, seconds)), 1)
    found["lanes"] = {size: round(side_by_side(backend, candidate.model, size, seconds * 3), 1) for size in (32, 64)}
    found["graphs"] = len(getattr(backend, "_graphs", ()))
    found["replayMs"] = {shapes[0][0]: replay_ms(backend, graph) for shapes, graph in getattr(backend, "_graphs", {}).items()}
    if has_gpu:
        found |= {"memoryMiB": memory(), "loadedMiB": base, "peakTensorsMiB": torch.cuda.max_memory_allocated() >> 20}
        found["device"] = torch.cuda.get_device_name()
    return found


def replay_ms(backend: Any, graph: Any) -> float:
    """Milliseconds of the arithmetic alone: a graph replayed 50 times, by the GPU's own clock."""
    import torch

    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(backend._compute):
        begin.record()
        for _ in range(50):
            graph.graph.replay()
        end.record()
    end.synchronize()
    return round(begin.elapsed_time(end) / 50, 4)


def copies() -> dict[str, Any]:
    """Milliseconds that 32 images, and one, take from the host to the GPU, and 32 within the host."""
    import torch

    image = inputs_of("resnet18", 32, 1)[0]
    pageable, locked, device = torch.from_numpy(image), torch.from_numpy(image).pin_memory(), torch.empty(image.shape, device="cuda")
    small, little = torch.from_numpy(image[:1].copy()), torch.from_numpy(image[:1]).pin_memory()

    def waited(copy: Callable[[], object]) -> float:
        took = []
        for _ in range(40):
            started = time.perf_counter()
            copy()
            torch.cuda.synchronize()
            took.append(1e3 * (time.perf_counter() - started))
        return round(statistics.median(took), 4)

    torch.set_num_threads(1)
    return {
        "MB": round(image.nbytes / 1e6, 1),
        "pageableMs": waited(lambda: device.copy_(pageable)),
        "lockedMs": waited(lambda: device.copy_(locked, non_blocking=True)),
        "hostToLockedMs": waited(lambda: locked.copy_(pageable)),
        "onePageableMs": waited(lambda: device[:1].copy_(small)),
        "oneLockedMs": waited(lambda: device[:1].copy_(little, non_blocking=True)),
    }


def on_device(backend: Any, batches: list[np.ndarray], seconds: float) -> list[float]:
    import torch

    staged = [torch.from_numpy(batch).cuda() for batch in batches]
    with torch.inference_mode():
        return calls(backend._module, staged, seconds, torch.cuda.synchronize)


def side_by_side(backend: Any, model: str, size: int, seconds: float) -> float:
    """Rows a second of the backend's lanes without a server: each gathers a batch of rows, as the batcher does, and asks."""
    rows = [row for batch in inputs_of(model, size) for row in np.split(batch, size)]
    counts: list[int] = []
    end = time.perf_counter() + seconds

    def lane() -> None:
        count = 0
        while time.perf_counter() < end:
            batch = backend.empty((size, *rows[0].shape[1:]), rows[0].dtype)
            np.concatenate(rows[count % 4 * size : (count % 4 + 1) * size], out=batch)
            backend.infer({"x": batch})
            count += 1
        counts.append(count)

    started, lanes = time.perf_counter(), backend.lanes or 2
    with ThreadPoolExecutor(lanes) as pool:
        list(pool.map(lambda _: lane(), range(lanes)))  # raises what a lane raised
    return sum(counts) * size / (time.perf_counter() - started)


def memory() -> int:
    """MiB in use on the GPU, by the driver, contexts and libraries included."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return int(total - free) >> 20


def measure(args: argparse.Namespace) -> None:
    """One candidate after the other: they must not share the GPU."""
    log = Log(args.work / "raw/measure.jsonl")
    done = {(row["model"], row["target"], row["precision"]) for row in log.rows() if "failed" not in row}
    if not done:
        log.add(model="copies", target="", precision="", **child("_copies", args.work))
    for candidate in candidates(args):
        if tuple(vars(candidate).values()) not in done:
            log.add(**vars(candidate), **child("_measure", args.work, *vars(candidate).values(), args.seconds))


# --- serve ------------------------------------------------------------------------------------------------------------


@contextmanager
def server(folder: Path, candidate: Candidate, options: list[str], source: str, environment: dict[str, str]) -> Iterator[tuple[int, int]]:
    """A ready server: its port and process id."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    known = os.environ | candidate.environment | environment | {"PYTHONPATH": source, "SLIPWAY_TERMINATION_LOG": os.devnull}
    known["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
    command = [sys.executable, "-c", SERVER, "--model-dir", str(folder / "candidates" / candidate.name), "--model-name", "m"]
    command += ["--port", str(port), "--host", "127.0.0.1", "--drain-seconds", "0", *options]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=known, stderr=log, stdout=log)
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((folder / "server.log").read_text()[-800:]) from None
                time.sleep(0.1)
        yield port, process.pid
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def request(model: str, row: np.ndarray) -> bytes:
    """One infer request with the binary extension, as bytes."""
    dtype = {"float32": "FP32", "uint8": "UINT8", "int64": "INT64"}[gpu_models.SIGNATURES[model][0]]
    item = {"name": "x", "datatype": dtype, "shape": list(row.shape), "parameters": {"binary_data_size": row.nbytes}}
    fields = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    head = f"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: {len(fields) + row.nbytes}\r\n"
    return f"{head}Inference-Header-Content-Length: {len(fields)}\r\n\r\n".encode() + fields + row.tobytes()


class Client:
    """A closed loop over one keep-alive connection, without a thread of its own."""

    def __init__(self, port: int, data: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self._data, self._unsent, self._answer, self.took = data, memoryview(b""), b"", list[float]()

    def begin(self) -> int:
        """Ask; returns what to wait for next."""
        self._started, self._unsent, self._answer = time.perf_counter(), memoryview(self._data), b""
        return self.send()

    def send(self) -> int:
        """Send on, as much as the kernel takes; returns what to wait for next."""
        with suppress(BlockingIOError):
            while self._unsent:
                self._unsent = self._unsent[self.socket.send(self._unsent) :]
        return select.EPOLLOUT if self._unsent else select.EPOLLIN

    def receive(self) -> bool:
        """Read on; whether the answer is whole. RuntimeError when it is none to go on with."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise RuntimeError("the server closed the connection")
        self._answer += data
        head, end, body = self._answer.partition(b"\r\n\r\n")
        if not end or len(body) < int(re.search(rb"\r\ncontent-length: (\d+)", head.lower())[1]):
            return False
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(self._answer[:300])
        self.took.append(time.perf_counter() - self._started)
        return True


def clients(port: int, bodies: list[bytes], connections: int, seconds: float, results: Any) -> None:
    """One client process with several connections, on one thread."""
    poll, found = select.epoll(), {}
    for number in range(connections):
        client = Client(port, bodies[number % len(bodies)])
        found[client.socket.fileno()] = client
        poll.register(client.socket, client.begin())
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for fd, event in poll.poll(0.1):
            client = found[fd]
            if event & select.EPOLLOUT:
                poll.modify(fd, client.send())
            elif client.receive():
                poll.modify(fd, client.begin())
    results.put([took for client in found.values() for took in client.took])


def load(port: int, model: str, connections: int, seconds: float, rows: int = 1) -> dict[str, float]:
    """Closed-loop load by several processes, `rows` in a request: rows a second, p50 and p99 of requests in ms."""
    bodies = [request(model, part) for part in inputs_of(model, rows, 4 if rows > 1 else 8)]
    count = min(connections, max(1, (os.cpu_count() or 2) // 2 - 1))
    results: Any = multiprocessing.get_context("fork").Queue()
    shares = [connections // count + (n < connections % count) for n in range(count)]
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=clients, args=(port, bodies, share, seconds, results)) for share in shares]
    for worker in workers:
        worker.start()
    took = sorted(one for _ in workers for one in results.get(timeout=seconds + 60))
    for worker in workers:
        worker.join()
    p50, p99 = (1e3 * took[int(len(took) * q)] for q in (0.5, 0.99))
    return {"perSecond": round(rows * len(took) / seconds, 1), "p50ms": round(p50, 3), "p99ms": round(p99, 3)}


def counters(port: int, pid: int) -> tuple[float, ...]:
    """Rows, batches, CPU seconds of the server, and those of its event loops (the main threads), so far."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    names = ("slipway_batch_size_sum", "slipway_batch_size_count", "process_cpu_seconds_total")
    found = [float(re.search(rf"^{name}(?:{{.*?}})? (\S+)$", text, re.MULTILINE)[1]) for name in names]
    ticks = 0
    for loop in (pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())):
        fields = Path(f"/proc/{loop}/task/{loop}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return (*found, ticks / os.sysconf("SC_CLK_TCK"))


def used_memory() -> int | None:
    """MiB in use on the GPU, all processes, by the driver."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0])


def serve(args: argparse.Namespace) -> None:
    """The server with batching and many connections, and with one; the variants in turn."""
    log = Log(args.work / "raw/serve.jsonl")
    for candidate in candidates(args):
        for variant in args.variants:
            environment, delay = VARIANTS[variant]
            source = str(args.before if variant == "before" else ROOT / "runtime-image/src")
            row = {**vars(candidate), "variant": variant, "maxBatch": args.max_batch}
            started = time.monotonic()
            options = [
                "--max-batch-size",
                str(args.max_batch),
                "--max-delay",
                delay,
                "--queue-size",
                "1024",
                "--max-body-bytes",
                "134217728",
            ]
            try:
                with server(args.work, candidate, options, source, environment) as (port, pid):
                    ready = round(time.monotonic() - started, 1)
                    for shape in args.loads:
                        connections, size = map(int, shape.split("x"))
                        load(port, candidate.model, connections, 0.5, size)
                        before = counters(port, pid)
                        found = load(port, candidate.model, connections, args.seconds, size)
                        rows, batches, cpu, loop = (after - was for after, was in zip(counters(port, pid), before, strict=True))
                        found |= {"batch": round(rows / max(1, batches), 2), "cpu": round(cpu / args.seconds, 2)}
                        found["loopCpu"] = round(loop / args.seconds, 2)
                        log.add(**row, connections=connections, rows=size, readySeconds=ready, memoryMiB=used_memory(), **found)
            except (RuntimeError, OSError, queue.Empty) as error:
                log.add(**row, failed=str(error)[-500:])


# --- command line -----------------------------------------------------------------------------------------------------


def candidates(args: argparse.Namespace) -> list[Candidate]:
    """The chosen ones, in the order of the arguments."""
    return [Candidate(model, target, precision) for model in args.models for target in args.targets for precision in args.precisions]


def inner(words: list[str]) -> None:
    """The steps that run in a fresh interpreter; prints the answer as one line of JSON."""
    step, folder = words[0], Path(words[1])
    if step == "_reference":
        answer = in_process(lambda: reference(folder, words[2]), 570)
    elif step == "_copies":
        answer = copies()
    elif step == "_build":
        answer = build_one(folder, Candidate(*words[2:5]))
    else:
        answer = measure_one(folder, Candidate(*words[2:5]), float(words[5]))
    print("\n" + json.dumps(answer))


def main() -> None:
    if sys.argv[1:] and sys.argv[1].startswith("_"):
        return inner(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", choices=["build", "measure", "serve"], default=["build", "measure", "serve"])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "gpu-bench")
    parser.add_argument("--models", nargs="+", default=list(gpu_models.SIGNATURES))
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS))
    parser.add_argument("--seconds", type=float, default=0.3, help="of one measurement; the server's: --load-seconds")
    parser.add_argument("--load-seconds", type=float, default=4.0)
    parser.add_argument("--loads", nargs="+", default=["1x1", "96x1", "6x32"], help="connections x rows of a request")
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--variants", nargs="+", default=["now"], choices=[*VARIANTS])
    parser.add_argument("--before", type=Path, help="sources of an older slipway_runtime, for the variant `before`")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) // 2), help="candidates that are built at a time")
    args = parser.parse_args()
    if "before" in args.variants and args.before is None:
        parser.error("--variants before needs --before FOLDER")
    if shutil.which("nvidia-smi") is None and os.environ.get("SLIPWAY_DEVICE") != "cpu":
        print("no NVIDIA GPU here: nothing is measured; docs/benchmarks/gpu.md has the figures")
        return None
    for step in args.steps:
        if step == "serve":
            args.seconds = args.load_seconds
        {"build": build, "measure": measure, "serve": serve}[step](args)
    return None


if __name__ == "__main__":
    main()
