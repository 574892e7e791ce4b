"""`slipway-runtime serve`: arguments, and the exit code of a run."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import uvloop

from slipway_runtime import settings
from slipway_runtime.artifact import open_artifact
from slipway_runtime.reasons import EXIT_CODES, Failure, write_termination
from slipway_runtime.serve.app import AppOptions
from slipway_runtime.serve.batching import QueueOptions
from slipway_runtime.serve.cgroup import cpu_limit, memory_limit
from slipway_runtime.serve.connection import Limits
from slipway_runtime.serve.device import may_use_gpu
from slipway_runtime.serve.gpu import GpuWatch
from slipway_runtime.serve.model import LoadOptions, Model, load_model
from slipway_runtime.serve.server import Server, ServerOptions, abandon
from slipway_runtime.serve.workers import MAX_WORKERS, Board, Place, run_workers

log = logging.getLogger(__name__)

# Threads that read large bodies take from a model what they give to the event loop, where the CPUs are few.
CPUS_PER_READER, MAX_READERS = 4, 4
# Requests of the largest size that may be arriving at the same time.
INCOMING_BODIES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `serve`."""
    limits, queue = Limits(), QueueOptions()
    parser.add_argument("--model-dir", type=Path, required=True, help="the artifact's folder, as `pull` wrote it")
    parser.add_argument("--artifact-digest", help="the manifest digest that the folder must have (sha256:...)")
    parser.add_argument("--model-name", required=True, help="the model's name in paths")
    parser.add_argument("--revision", default="unknown", help="the revision, reported in answers and metrics")
    parser.add_argument("--host", default="", help="address to listen on (default: all)")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--grpc-port", type=int, default=0, help="port of the protocol over gRPC (default: 0, none)")
    parser.add_argument("--lanes", type=int, default=0, help="worker threads (default: the CPU limit; 3 on a GPU)")
    parser.add_argument(
        "--lone-cpus",
        type=int,
        default=0,
        help="for a call that runs alone, ONNX only; 1 saves memory (default: SLIPWAY_LONE_CPUS, or the CPU limit)",
    )
    parser.add_argument("--workers", type=int, default=0, help="processes on one port, for fast models (default: SLIPWAY_WORKERS, or 1)")
    parser.add_argument("--queue-size", type=int, default=queue.max_requests, help="requests that may wait for a lane; more get 429")
    parser.add_argument(
        "--queue-bytes",
        type=int,
        default=0,
        help="bytes of bodies that may wait; more get 429 (default: 256 MiB, at most a quarter of the memory)",
    )
    parser.add_argument("--max-batch-size", type=int, default=0, help="rows of a batch (default: SLIPWAY_MAX_BATCH_SIZE, or 1: off)")
    parser.add_argument("--max-delay", help="wait for company at most, such as 2ms (default: SLIPWAY_MAX_DELAY or 0)")
    parser.add_argument("--access-log", action="store_true", help="a line of JSON for each answer (or SLIPWAY_ACCESS_LOG=true)")
    parser.add_argument("--max-body-bytes", type=int, default=limits.max_body_bytes, help="larger bodies get 413")
    parser.add_argument("--header-seconds", type=float, default=limits.header_seconds, help="time for a client to send its headers")
    parser.add_argument("--body-seconds", type=float, default=limits.body_seconds, help="time without a byte of a body or of an answer")
    parser.add_argument("--idle-seconds", type=float, default=limits.idle_seconds, help="time an idle connection is kept")
    parser.add_argument("--stuck-seconds", type=float, default=60.0, help="a longer call of the model turns liveness 503")
    parser.add_argument("--drain-seconds", type=float, default=5.0, help="time after SIGTERM that new requests are answered")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM.

    Args:
        args: of `add_arguments`.

    Returns:
        0 after a drain, else the exit code of the reason, which is in the termination message.
    """
    # tensors._narrowed asks for it by overflowing, and answers 400.
    warnings.filterwarnings("ignore", message="overflow encountered in dot")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        workers = worker_count(args, os.environ)
        options, load = _plan(args, os.environ, workers)
        if workers > 1:
            return _run_workers(workers, options, load)
        return _run_server(options, load)
    except Failure as failure:
        return _failed(failure)


def _run_server(options: ServerOptions, load: Callable[[], Model], place: Place | None = None) -> int:
    """Serve in this process; returns the exit code."""
    if may_use_gpu(os.environ):
        watch = GpuWatch()
        watch.start()
        options = replace(options, app=replace(options.app, gpus=watch.gpus))

    async def serve() -> bool:
        return await Server(options, load, place).run()

    try:
        ended = uvloop.run(serve())
    except Failure as failure:
        return _failed(failure)
    if not ended:
        logging.shutdown()
        os._exit(0)
    return 0


def _failed(failure: Failure) -> int:
    if failure.reason == "ModelStuck":
        abandon(failure)
    log.error("%s", failure)
    write_termination(failure.reason, failure.message)
    return EXIT_CODES[failure.reason]


def _run_workers(count: int, options: ServerOptions, load: Callable[[], Model]) -> int:
    """Serve in several processes, which share the model's memory where it is the host's; returns the exit code."""
    board = Board(count)
    if may_use_gpu(os.environ):  # a fork cannot go on with the GPU's context: each worker loads a copy of its own
        return run_workers(count, lambda number: _run_server(options, load, Place(board, number)))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # process 1 of a container has no other way to end while it loads
    try:
        model = load()
    except Exception as error:
        if isinstance(error, Failure):
            raise
        log.exception("loading failed")
        raise Failure("InternalError", f"{type(error).__name__}: {error}"[:1500]) from error
    if model.backend.lanes:
        message = "several workers (--workers, SLIPWAY_WORKERS) met a GPU that has no node /dev/nvidia*; set SLIPWAY_DEVICE=cuda"
        raise Failure("InvalidArguments", message)
    gc.collect()
    gc.freeze()  # a collection that walks over what was loaded would copy it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return run_workers(count, lambda number: _run_server(options, lambda: model, Place(board, number)))


def _plan(args: argparse.Namespace, environment: Mapping[str, str], workers: int) -> tuple[ServerOptions, Callable[[], Model]]:
    """What a server is told, and what loads its model."""
    labels = settings.class_labels(environment)
    cpus = max(1, cpu_limit() // workers)
    lanes = args.lanes if args.lanes > 0 else cpus
    threads = max(1, cpus // lanes) if workers == 1 else 1  # a pool of threads does not live through a fork
    max_batch, max_delay = batching(args, environment)
    alone = min(cpus, lone_cpus(args, environment, cpus)) if workers == 1 else 1
    loading = LoadOptions(args.model_name, args.revision, threads, alone, labels, max_batch, args.lanes)

    def load() -> Model:
        return load_model(open_artifact(args.model_dir, args.artifact_digest), loading)

    is_logging = args.access_log or environment.get("SLIPWAY_ACCESS_LOG", "").lower() == "true"
    largest, memory = args.max_body_bytes, memory_limit()
    waiting = args.queue_bytes or bytes_held(QueueOptions().max_bytes, largest, memory, workers)
    arriving = bytes_held(INCOMING_BODIES * largest, largest, memory, workers)
    queue = QueueOptions(lanes, max_batch, max_delay, args.queue_size, waiting)
    app = AppOptions(args.model_name, args.revision, queue, args.stuck_seconds, is_logging)
    limits = Limits(
        largest,
        args.header_seconds,
        args.body_seconds,
        idle_seconds=args.idle_seconds,
        max_incoming_bytes=arriving,
    )
    readers = min(MAX_READERS, cpus // CPUS_PER_READER)
    return ServerOptions(args.host, args.port, args.grpc_port, args.drain_seconds, limits, app, readers), load


def bytes_held(wished: int, largest: int, memory: int | None, workers: int) -> int:
    """Bytes of requests that may arrive, or wait, at the same time.

    Args:
        wished: where memory does not matter.
        largest: of one request, which always fits.
        memory: of the container; None when there is no limit.
        workers: that share it.
    """
    return wished if memory is None else max(largest, min(wished, memory // (4 * workers)))


def worker_count(args: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Processes that serve, of the arguments or else of the environment.

    Raises:
        Failure: InvalidArguments.
    """
    return _whole("workers (--workers, SLIPWAY_WORKERS)", args.workers or environment.get("SLIPWAY_WORKERS") or 1, MAX_WORKERS)


def lone_cpus(args: argparse.Namespace, environment: Mapping[str, str], limit: int) -> int:
    """CPUs of a call that runs alone, of the arguments or else of the environment, or else the `limit`.

    Raises:
        Failure: InvalidArguments.
    """
    return _whole("CPUs of a lone call (--lone-cpus, SLIPWAY_LONE_CPUS)", args.lone_cpus or environment.get("SLIPWAY_LONE_CPUS") or limit)


def _whole(what: str, value: int | str, most: int = 4096) -> int:
    text = str(value)
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise Failure("InvalidArguments", f"{what} must be from 1 to {most}, got {text!r}")
    return int(text)


def batching(args: argparse.Namespace, environment: Mapping[str, str]) -> tuple[int, float]:
    """The batch limit and the longest wait in seconds, of the arguments or else of the environment.

    Raises:
        Failure: InvalidArguments.
    """
    size = str(args.max_batch_size or environment.get("SLIPWAY_MAX_BATCH_SIZE") or 1)
    delay = args.max_delay or environment.get("SLIPWAY_MAX_DELAY") or "0s"
    return settings.batching(size, delay)
