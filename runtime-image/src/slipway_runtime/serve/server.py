"""The life of the server: listen early, load in the background, serve, drain without losing a request."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from slipway_runtime.reasons import EXIT_CODES, Failure, write_termination
from slipway_runtime.serve.app import DRAINING, App, AppOptions
from slipway_runtime.serve.connection import Connection, Hub, Limits
from slipway_runtime.serve.incoming import Readers
from slipway_runtime.serve.model import Model
from slipway_runtime.serve.workers import Place

if TYPE_CHECKING:
    from slipway_runtime.serve.calls import Port

log = logging.getLogger(__name__)

BACKLOG = 1024
SO_ATTACH_FILTER = 26  # of Linux (socket(7)), which the standard library does not name
DRAIN_LIMIT_SECONDS = 50.0
# When a call of the model does not return, its clients wait in vain, and the sooner the pod starts again the better.
STUCK_LIMIT_SECONDS = 5.0
# A client that connected just before the listener closed gets this long to send its request.
FRESH_SECONDS = 1.0
# A client whose first packet was taken gets this long to finish connecting.
HANDSHAKE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where to listen (`grpc_port` 0: not at all), how long to drain, in seconds, and how many threads read large bodies."""

    host: str
    port: int
    grpc_port: int
    drain_seconds: float
    limits: Limits
    app: AppOptions
    readers: int = 0


@dataclass(frozen=True, slots=True)
class _Door:
    """A port: what the loop accepts from, a duplicate of its socket, and what makes a new client's protocol object."""

    server: asyncio.Server
    listener: socket.socket
    client: Callable[[], asyncio.BaseProtocol]

    @property
    def number(self) -> int:
        return int(self.listener.getsockname()[1])


class Server:
    """One run of the server, on one event loop."""

    def __init__(self, options: ServerOptions, load: Callable[[], Model], place: Place | None = None) -> None:
        """Make a server.

        Args:
            options: where and how.
            load: runs in a thread, once the socket listens, and may raise Failure.
            place: among the workers that share the port; None when there are no others.
        """
        self._options = options
        self._load = load
        self._loop = asyncio.get_running_loop()
        self._app = App(options.app, self._loop)
        self._is_shared = place is not None
        if place is not None:
            self._app.join(place)
        self._readers = Readers(options.readers, self._loop) if options.readers else None
        self._hub = Hub(self._app.handle, options.limits, {"x-slipway-revision": options.app.revision}, readers=self._readers)
        self._stop: asyncio.Future[Failure | None] = self._loop.create_future()
        self._loading = True

    async def run(self) -> bool:
        """Serve until SIGTERM or SIGINT.

        Returns:
            Whether all threads have ended; if not, a call into native code hangs, and only leaving at once ends the process.

        Raises:
            Failure: what `load` raised; ModelStuck when it was told to end while a call of the model did not.
        """
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(signum, self._end, None)
        door = await self._open(self._options.port, self._connection)
        log.info("listening on port %d", door.number)
        doors = [door]
        self._rpc = self._rpc_port()
        if self._rpc is not None:
            doors.append(await self._open(self._options.grpc_port, self._rpc.connection))
            log.info("gRPC on port %d", doors[-1].number)
        ticker = self._loop.create_task(self._tick())
        threading.Thread(target=self._load_model, name="load", daemon=True).start()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        failure = await self._stop
        if failure is None:
            await self._drain(doors)
        elif self._rpc is not None:
            self._rpc.abort()
        ticker.cancel()
        is_live, why = self._app.is_live()
        if failure is None and not is_live:
            failure = Failure("ModelStuck", why)
        if self._readers is not None:
            self._readers.close()
        ended = self._app.close(timeout=1.0) and not self._loading
        if failure is not None:
            raise failure
        return ended

    async def _open(self, port: int, client: Callable[[], asyncio.BaseProtocol]) -> _Door:
        listener = _listener(self._options.host, port, is_shared=self._is_shared)
        # The duplicate keeps the socket listening while the loop lets go of it, see _take_rest.
        duplicate = listener.dup()
        return _Door(await self._loop.create_server(client, sock=listener), duplicate, client)

    def _rpc_port(self) -> Port | None:
        if not self._options.grpc_port:
            return None
        try:
            from slipway_runtime.serve.rpc import port_of  # noqa: PLC0415 (a pod without gRPC does without protobuf)
        except ImportError as error:
            raise Failure("InvalidArguments", f"--grpc-port needs slipway_http2 (runtime-image/http2): {error}") from error
        return port_of(self._app, self._options.limits, self._loop, self._hub.room)

    def _connection(self) -> Connection:
        return Connection(self._hub, self._loop)

    def _call_soon(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            log.warning("an answer came after the loop had closed")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._hub.tick()
            self._hub.check(self._loop.time())
            if self._rpc is not None:
                self._rpc.check(self._loop.time())
            self._app.tell()

    def _watch(self) -> None:
        """End the process when the event loop does not come back from a call of the model: it can answer nobody, SIGTERM included."""
        limit = self._options.app.stuck_seconds
        while (seconds := self._app.inline_seconds()) <= limit:
            time.sleep(min(1.0, limit / 2))
        abandon(Failure("ModelStuck", f"a call of the model has been running for {seconds:.0f} s"))

    # --- load -----------------------------------------------------------------------------------------------------

    def _load_model(self) -> None:
        try:
            model = self._load()
        except Failure as failure:
            self._call_soon(lambda failure=failure: self._end(failure))  # type: ignore[misc]
        except BaseException as error:
            log.exception("loading failed")
            wrapped = Failure("InternalError", f"{type(error).__name__}: {error}"[:1500])
            self._call_soon(lambda: self._end(wrapped))
        else:
            self._call_soon(lambda: self._install(model))

    def _install(self, model: Model) -> None:
        self._loading = False
        # What loading left behind lives as long as the process; collections during requests need not walk it.
        gc.collect()
        gc.freeze()
        self._app.install(model)
        inline = f"inline up to {model.inline_elements} elements" if model.inline_elements else f"{self._options.app.queue.lanes} lanes"
        log.info("ready: %s %s in %.2f s, %s", model.artifact.format, model.artifact.digest, model.load_seconds, inline)

    def _end(self, failure: Failure | None) -> None:
        self._loading = self._loading and failure is None
        if not self._stop.done():
            self._stop.set_result(failure)

    # --- drain ----------------------------------------------------------------------------------------------------

    async def _drain(self, doors: list[_Door]) -> None:
        """Turn unready, go on answering with `Connection: close`, and end when nobody waits for an answer."""
        log.info("draining: %d connections, %d requests", len(self._hub.connections), self._app.inflight)
        self._app.phase = DRAINING
        self._hub.draining = True
        is_live, _ = self._app.is_live()
        deadline = self._loop.time() + (DRAIN_LIMIT_SECONDS if is_live else self._options.drain_seconds + STUCK_LIMIT_SECONDS)
        # Endpoints, kube-proxy and gateways learn of the unready pod only after a while; until then new clients come.
        if self._app.model is not None:
            await asyncio.sleep(self._options.drain_seconds)
        for door in doors:
            take_no_newcomers(door.listener)
            door.server.close()
        await asyncio.sleep(HANDSHAKE_SECONDS)
        for door in doors:
            await self._take_rest(door)
        await asyncio.gather(self._finish(deadline), self._rpc.drain(deadline) if self._rpc is not None else asyncio.sleep(0))
        self._app.tell()
        log.info("drained: %d connections cut off", len(self._hub.connections))

    async def _take_rest(self, door: _Door) -> None:
        """Accept what the kernel has queued; closing a listener would reset those clients."""
        accepted = []
        door.listener.setblocking(False)
        try:
            while True:
                accepted.append(door.listener.accept()[0])
        except OSError:
            door.listener.close()
        for client in accepted:
            client.setblocking(False)
            await self._loop.connect_accepted_socket(door.client, client)

    async def _finish(self, deadline: float) -> None:
        fresh_until = self._loop.time() + FRESH_SECONDS
        while self._hub.connections and self._loop.time() < deadline:
            is_late = self._loop.time() >= fresh_until
            for connection in list(self._hub.connections):
                if connection.served or is_late:
                    connection.close_when_idle()
            await asyncio.sleep(0.02)


def take_no_newcomers(listener: socket.socket) -> None:
    """Let whoever begins to connect wait, and whoever has begun finish.

    A client that comes between the last look into the queue of a listener and its closing would be reset. Its first packet is not
    taken instead; it sends that again after a second, and is refused then, as are all who come later.
    """
    # As assembled by bpf_asm: "ldb [13]; and #0x12; jne #0x02, taken; ret #0; taken: ret #-1": the flags of TCP are SYN without ACK.
    program = [(0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    with suppress(OSError):  # a kernel that cannot: then it is as likely as two packets in a microsecond
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code)))


def abandon(failure: Failure) -> NoReturn:
    """Say why, and end the process although a call into native code goes on."""
    log.error("%s", failure)
    write_termination(failure.reason, failure.message)
    logging.shutdown()
    os._exit(EXIT_CODES[failure.reason])


def _listener(host: str, port: int, *, is_shared: bool) -> socket.socket:
    is_any = host in ("", "::") and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if is_any or ":" in host else socket.AF_INET
    address = host or ("::" if is_any else "0.0.0.0")  # noqa: S104
    try:
        listener = socket.create_server((address, port), family=family, backlog=BACKLOG, dualstack_ipv6=is_any, reuse_port=is_shared)
    except OSError as error:
        raise Failure("InvalidArguments", f"cannot listen on {address}:{port}: {error}") from error
    listener.setblocking(False)
    return listener
