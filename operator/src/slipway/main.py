"""The operator's process: settings, connection, election, workers, probes, and kopf's loop around them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from pathlib import Path
from typing import Any

import aiohttp
import kopf
import uvloop
import yaml
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from slipway import logs, metrics
from slipway.analysis.notification import Notification
from slipway.analysis.sources import PrometheusSource
from slipway.analysis.webhook import Webhook
from slipway.analyst import Analyst
from slipway.apply import apply_shipped
from slipway.cluster import ApiError, Cluster, is_kubeconfig_named
from slipway.collector import Collector, Terms
from slipway.handlers import configure, register
from slipway.inventory import Inventory
from slipway.leader import Leader
from slipway.queue import KeyQueue
from slipway.registry import Registry
from slipway.resync import Resync
from slipway.settings import Settings
from slipway.store import Store
from slipway.worker import Worker

LOG = logging.getLogger("slipway")
NOT_FOUND = 404
WATCH_SECONDS = 0.2  # before watching anew; short, as a signal is heard only while kopf runs
SHIPPED_SECONDS = 3.0  # between looks at the shipped ServingRuntimes; one that finds nothing missing costs no request


def main() -> None:
    """Run until told to stop."""
    settings = Settings()
    logs.set_up(settings.log_format)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(run(settings))


async def run(settings: Settings) -> None:
    """Run the operator in this event loop until a signal comes, or one of its parts ends, which none may do by itself."""
    cluster = await Cluster.connect(qps=settings.qps, burst=settings.burst)
    session = aiohttp.ClientSession()
    webhook = _webhook(settings, session)
    config = settings.config()
    store, queue = Store(config), KeyQueue()
    leader = Leader(cluster, settings.namespace, settings.lease_name, f"{socket.gethostname()}_{os.getpid()}")
    resync = Resync(cluster, store, queue.add, settings.namespaces, settings.resync_seconds)
    inventory, ready = Inventory(cluster, store), asyncio.Event()
    analyst = _analyst(settings, session, store, queue, leader)
    runner = await _serve(settings, resync, queue, leader, ready)
    collector = _collector(settings, session, cluster, store, leader)
    parts = [leader.run(), resync.run(), collector.run(), _apply_shipped(cluster, store, leader, settings)]
    notify = webhook.send if webhook is not None else _nobody
    parts += [Worker(cluster, store, queue, leader, config, inventory, analyst, notify).run() for _ in range(settings.workers)]
    parts += [webhook.run()] if webhook is not None else []
    tasks = [asyncio.create_task(part) for part in parts]
    watch = asyncio.create_task(_watch(settings, store, queue, resync, leader.identity, ready))
    try:
        ended, _ = await asyncio.wait([watch, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
    finally:
        for task in (watch, *tasks):
            task.cancel()
        await asyncio.gather(watch, *tasks, return_exceptions=True)
        await analyst.close()
        await leader.release()
        await runner.cleanup()
        await cluster.close()
        await session.close()


def _webhook(settings: Settings, session: aiohttp.ClientSession) -> Webhook | None:
    """The receiver of notifications, if there is one; a wrong URL or secret ends the operator with a message."""
    url = settings.webhook_url.get_secret_value()
    return Webhook(session, url, settings.webhook_secret.get_secret_value()) if url else None


def _nobody(_: Notification) -> None:
    """Nobody wants to be told."""


def _analyst(settings: Settings, session: aiohttp.ClientSession, store: Store, queue: KeyQueue, leader: Leader) -> Analyst:
    address = settings.prometheus_address
    return Analyst(
        store,
        session,
        add=queue.add,
        is_leader=leader.is_leader,
        prometheus=PrometheusSource(session, address) if address else None,
        asks_pods=settings.analysis_source == "Pods",
    )


def _collector(settings: Settings, session: aiohttp.ClientSession, cluster: Cluster, store: Store, leader: Leader) -> Collector:
    host = settings.registry.partition("/")[0]
    credentials = Path(settings.registry_credentials) if settings.registry_credentials else None
    registry = Registry(session, host, is_plain=host in settings.config().plain_http, credentials=credentials)
    return Collector(cluster, store, registry, Terms.of(settings), leader)


async def _watch(  # noqa: PLR0913, PLR0917 - what kopf is connected to
    settings: Settings, store: Store, queue: KeyQueue, resync: Resync, identity: str, ready: asyncio.Event
) -> None:
    """Run kopf, and begin anew when a kind that it watches is gone: a 404 ends it when that comes before the news of the deletion."""
    while True:
        await resync.find_keda()
        try:
            return await _kopf(settings, store, queue, identity, ready)
        except Exception as error:
            if getattr(error, "status", None) != NOT_FOUND:  # the type is private
                raise
            LOG.warning("a watched kind is gone (%s); watching anew", error)
            await asyncio.sleep(WATCH_SECONDS)


async def _kopf(settings: Settings, store: Store, queue: KeyQueue, identity: str, ready: asyncio.Event) -> None:
    registry = kopf.OperatorRegistry()
    register(registry, store, queue)

    @kopf.on.startup(registry=registry)
    async def startup(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure(settings)

    @kopf.on.login(registry=registry)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        if is_kubeconfig_named():
            return kopf.login_with_kubeconfig(**kwargs)
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    await kopf.operator(
        registry=registry,
        standalone=True,
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
        ready_flag=ready,
        # else kopf asks for the name of the user, which uid 65532 does not have; its type for it is private
        identity=identity,  # type: ignore[arg-type]
    )


async def _apply_shipped(cluster: Cluster, store: Store, leader: Leader, settings: Settings) -> None:
    """Keep the shipped ServingRuntimes as the chart has them, while this replica leads; a failure is tried again."""
    if not settings.serving_runtimes:
        await asyncio.Event().wait()  # a part of the operator does not end
    text = await asyncio.to_thread(Path(settings.serving_runtimes).read_text)
    manifests = [manifest for manifest in yaml.safe_load_all(text) if manifest]
    while True:
        await leader.elected.wait()
        try:
            await apply_shipped(cluster, store, manifests, settings.cluster_role)
        except ApiError as error:
            LOG.warning("ServingRuntimes not applied yet: %s", error.message)
        await asyncio.sleep(SHIPPED_SECONDS)


async def _serve(settings: Settings, resync: Resync, queue: KeyQueue, leader: Leader, ready: asyncio.Event) -> web.AppRunner:
    """Serve /metrics on one port, /healthz and /readyz on the other."""

    async def metrics_page(_: web.Request) -> web.Response:
        resync.tell_ages()
        is_leader = leader.is_leader()  # with a follower keys wait for its turn, which is no backlog
        metrics.QUEUE_DEPTH.set(len(queue) if is_leader else 0)
        metrics.QUEUE_OLDEST.set(queue.oldest_age() if is_leader else 0)
        return web.Response(body=metrics.page(is_leader=is_leader), headers={"Content-Type": CONTENT_TYPE_LATEST})

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
