"""`slipway-runtime shadow`: listens for copies of requests, and for probes that ask for golden inputs."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from itertools import cycle

import uvloop

from slipway_runtime.oci import access_from_environment
from slipway_runtime.reasons import EXIT_CODES, Failure, write_termination
from slipway_runtime.serve.connection import Connection, Hub, Limits
from slipway_runtime.serve.messages import GOLDEN, HttpError, Request, Response, json_response
from slipway_runtime.serve.metrics import CONTENT_TYPE
from slipway_runtime.shadow.comparator import Comparator, Copied
from slipway_runtime.shadow.golden import fetch
from slipway_runtime.shadow.metrics import ShadowMetrics

log = logging.getLogger(__name__)
RETRY_SECONDS = 15.0
STOP_SECONDS = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `shadow`."""
    parser.add_argument("--model-name", required=True, help="the model's name in paths")
    parser.add_argument("--stable", required=True, help="base URL of the stable revision")
    parser.add_argument("--canary", required=True, help="base URL of the revision that is compared with it")
    parser.add_argument("--stable-revision", required=True, help="label `baseline` of the metrics")
    parser.add_argument("--canary-revision", required=True, help="label `revision` of the metrics")
    parser.add_argument("--percent", type=int, default=100, help="share of the copies that is compared (default: 100)")
    parser.add_argument("--repository", help="host:port/prefix/<namespace> of the artifact with golden inputs")
    parser.add_argument("--digest", help="sha256:… of its manifest; without it probes for golden inputs get 501")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default: all)")  # noqa: S104
    parser.add_argument("--port", type=int, default=8080)


@dataclass(slots=True)
class Front:
    """Answers everybody at once: copies and probes are taken, or dropped."""

    comparator: Comparator
    metrics: ShadowMetrics
    model: str
    golden: tuple[Copied, ...] | None = None  # None: not fetched yet
    _turn: cycle[Copied] | None = field(default=None)

    def handle(self, request: Request) -> None:
        """Answer one request."""
        try:
            request.reply(self._answer(request))
        except HttpError as error:
            request.reply(error.response())

    def _answer(self, request: Request) -> Response:
        head = request.head
        if head.method in ("GET", "HEAD"):
            return self._page(head.path)
        if head.probe == GOLDEN:
            return self._replay()
        is_taken = self.comparator.offer(Copied(head.path, request.body, head.content_type, head.json_bytes))
        return json_response({"taken": is_taken})

    def _page(self, path: str) -> Response:
        if path == "/metrics":
            return Response(200, self.metrics.render(), CONTENT_TYPE)
        if path in ("/v2/health/live", "/v2/health/ready"):
            return json_response({"ready": True})
        raise HttpError(404, "the comparator takes copies of requests (POST), and shows /metrics")

    def _replay(self) -> Response:
        if self.golden is None:
            raise HttpError(503, "the golden inputs are not here yet", retry_after="5")
        if not self.golden:
            raise HttpError(501, "there are no golden inputs to replay")
        if self._turn is None:
            self._turn = cycle(self.golden)
        if not self.comparator.offer(next(self._turn)):
            raise HttpError(429, "too many requests wait to be compared", retry_after="1")
        return json_response({"golden": True})


def run(args: argparse.Namespace) -> int:
    """Compare until SIGTERM; returns 0, or the exit code of the reason."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        uvloop.run(_serve(args))
    except Failure as failure:
        log.error("%s", failure)  # noqa: TRY400 - a finding, not a bug: no traceback
        write_termination(failure.reason, failure.message)
        return EXIT_CODES[failure.reason]
    return 0


async def _serve(args: argparse.Namespace) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    comparators: list[Comparator] = []
    metrics = ShadowMetrics(args.model_name, args.canary_revision, args.stable_revision, lambda: sum(c.waiting() for c in comparators))
    comparator = Comparator(args.stable, args.canary, metrics, args.percent)
    comparators.append(comparator)
    front = Front(comparator, metrics, args.model_name, None if args.digest else ())
    hub = Hub(front.handle, Limits(), {})
    try:
        server = await loop.create_server(lambda: Connection(hub, loop), args.host, args.port)
    except OSError as error:
        raise Failure("InvalidArguments", f"cannot listen on {args.host}:{args.port}: {error}") from error
    comparator.start()
    if args.digest:
        threading.Thread(target=_fetch_golden, args=(args, front), name="golden", daemon=True).start()
    log.info("comparing %s with %s", args.canary_revision, args.stable_revision)
    ticker = loop.create_task(_tick(hub, loop))
    await stop.wait()
    ticker.cancel()
    server.close()
    await loop.run_in_executor(None, comparator.stop, STOP_SECONDS)


async def _tick(hub: Hub, loop: asyncio.AbstractEventLoop) -> None:
    while True:
        await asyncio.sleep(1.0)
        hub.tick()
        hub.check(loop.time())


def _fetch_golden(args: argparse.Namespace, front: Front) -> None:
    """Fetch the golden inputs, again and again while the registry does not answer; copies are compared meanwhile."""
    access = access_from_environment()
    while front.golden is None:
        try:
            front.golden = fetch(args.repository, args.digest, access, f"/v2/models/{args.model_name}/infer")
        except Failure as failure:
            log.warning("no golden inputs yet: %s", failure)
            time.sleep(RETRY_SECONDS)
        except Exception:
            log.exception("no golden inputs")
            front.golden = ()
