"""The operator's process: settings, connection, election, workers, probes, and kopf's loop around them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

import kopf
import uvloop
import yaml
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from slipway.apply import apply_shipped
from slipway.cluster import ApiError, Cluster
from slipway.handlers import configure, register
from slipway.leader import Leader
from slipway.queue import KeyQueue
from slipway.resync import Resync
from slipway.settings import Settings
from slipway.store import Store
from slipway.worker import Worker

LOG = logging.getLogger("slipway")
SHIPPED_RETRY_SECONDS = 3.0


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        values = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        return json.dumps(values)


def main() -> None:
    """Run until told to stop."""
    settings = Settings()
    _set_up_logging(settings)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(run(settings))


def _set_up_logging(settings: Settings) -> None:
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else text)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


async def run(settings: Settings) -> None:
    """Run the operator in this event loop."""
    cluster = await Cluster.connect(qps=settings.qps, burst=settings.burst)
    store, queue = Store(), KeyQueue()
    identity = f"{socket.gethostname()}_{os.getpid()}"
    leader = Leader(cluster, settings.namespace, settings.lease_name, identity)
    resync = Resync(cluster, store, queue.add, settings.namespaces, settings.resync_seconds)
    registry, ready = kopf.OperatorRegistry(), asyncio.Event()
    register(registry, store, queue)

    @kopf.on.startup(registry=registry)
    async def startup(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure(settings)

    @kopf.on.login(registry=registry)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    runners = [await _serve(settings, resync, ready)]
    tasks = [asyncio.create_task(leader.run()), asyncio.create_task(resync.run())]
    tasks += [asyncio.create_task(Worker(cluster, store, queue, leader, settings.config()).run()) for _ in range(settings.workers)]
    tasks.append(asyncio.create_task(_apply_shipped(cluster, leader, settings)))
    try:
        await kopf.operator(
            registry=registry,
            standalone=True,
            clusterwide=not settings.namespaces,
            namespaces=settings.namespaces,
            ready_flag=ready,
            # else kopf asks for the name of the user, which uid 65532 does not have; its type for it is private
            identity=leader.identity,  # type: ignore[arg-type]
        )
    finally:
        for task in tasks:
            task.cancel()
        await leader.release()
        for runner in runners:
            await runner.cleanup()
        await cluster.close()


async def _apply_shipped(cluster: Cluster, leader: Leader, settings: Settings) -> None:
    """Apply the shipped ServingRuntimes once this replica leads; a failure is tried again until it works."""
    if not settings.serving_runtimes:
        return
    text = await asyncio.to_thread(Path(settings.serving_runtimes).read_text)
    manifests = [manifest for manifest in yaml.safe_load_all(text) if manifest]
    while True:
        await leader.elected.wait()
        try:
            await apply_shipped(cluster, manifests, settings.cluster_role)
        except ApiError as error:
            LOG.warning("ServingRuntimes not applied yet: %s", error.message)
            await asyncio.sleep(SHIPPED_RETRY_SECONDS)
        else:
            return


async def _serve(settings: Settings, resync: Resync, ready: asyncio.Event) -> web.AppRunner:
    """Serve /metrics on one port, /healthz and /readyz on the other."""

    async def metrics_page(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(_: web.Request) -> web.Response:
        stale = resync.stale()
        return web.Response(status=500 if stale else 200, text=f"the watch is stale: {', '.join(stale)}" if stale else "ok")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(status=200 if ready.is_set() else 503, text="ok" if ready.is_set() else "starting")

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics_page), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    for port in {settings.metrics_port, settings.health_port}:
        await web.TCPSite(runner, None, port).start()
    return runner


if __name__ == "__main__":
    main()
