"""`slipway-runtime serve`: arguments, and the exit code of a run."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import uvloop

from slipway_runtime import settings
from slipway_runtime.artifact import open_artifact
from slipway_runtime.reasons import EXIT_CODES, Failure, write_termination
from slipway_runtime.serve.app import AppOptions
from slipway_runtime.serve.batching import QueueOptions
from slipway_runtime.serve.connection import Limits
from slipway_runtime.serve.cpu import cpu_limit
from slipway_runtime.serve.model import LoadOptions, Model, load_model
from slipway_runtime.serve.server import Server, ServerOptions, abandon

log = logging.getLogger(__name__)


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
    parser.add_argument("--queue-size", type=int, default=queue.max_requests, help="requests that may wait for a lane; more get 429")
    parser.add_argument("--queue-bytes", type=int, default=queue.max_bytes, help="bytes of bodies that may wait; more get 429")
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
        ended = uvloop.run(_serve(args))
    except Failure as failure:
        if failure.reason == "ModelStuck":
            abandon(failure)
        log.error("%s", failure)  # noqa: TRY400 (a finding, not a bug: no traceback)
        write_termination(failure.reason, failure.message)
        return EXIT_CODES[failure.reason]
    if not ended:
        logging.shutdown()
        os._exit(0)
    return 0


async def _serve(args: argparse.Namespace) -> bool:
    labels = _labels(os.environ.get("SLIPWAY_LABELS"))
    cpus = cpu_limit()
    lanes = args.lanes if args.lanes > 0 else cpus
    max_batch, max_delay = batching(args, os.environ)
    loading = LoadOptions(args.model_name, args.revision, max(1, cpus // lanes), labels, max_batch, args.lanes)

    def load() -> Model:
        return load_model(open_artifact(args.model_dir, args.artifact_digest), loading)

    is_logging = args.access_log or os.environ.get("SLIPWAY_ACCESS_LOG", "").lower() == "true"
    queue = QueueOptions(lanes, max_batch, max_delay, args.queue_size, args.queue_bytes)
    app = AppOptions(args.model_name, args.revision, queue, args.stuck_seconds, is_logging)
    limits = Limits(args.max_body_bytes, args.header_seconds, args.body_seconds, idle_seconds=args.idle_seconds)
    return await Server(ServerOptions(args.host, args.port, args.grpc_port, args.drain_seconds, limits, app), load).run()


def batching(args: argparse.Namespace, environment: Mapping[str, str]) -> tuple[int, float]:
    """The batch limit and the longest wait in seconds, of the arguments or else of the environment.

    Raises:
        Failure: InvalidArguments.
    """
    size = str(args.max_batch_size or environment.get("SLIPWAY_MAX_BATCH_SIZE") or 1)
    delay = args.max_delay or environment.get("SLIPWAY_MAX_DELAY") or "0s"
    return settings.batching(size, delay)


def _labels(text: str | None) -> list[str] | None:
    if not text:
        return None
    try:
        labels = json.loads(text)
    except ValueError as error:
        raise Failure("InvalidArguments", f"SLIPWAY_LABELS is not JSON: {error}") from error
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise Failure("InvalidArguments", "SLIPWAY_LABELS must be a JSON list of strings")
    return labels
