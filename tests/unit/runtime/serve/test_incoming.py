"""Requests that arrive: large bodies by a thread, over real sockets, and a bound on what all of them hold."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time

import pytest
import uvloop

from slipway_runtime.serve.connection import Connection, Hub, Limits
from slipway_runtime.serve.incoming import LARGE_BODY_BYTES, MAX_WAITS, Readers, Room, _read
from slipway_runtime.serve.messages import Response
from unit.runtime.serve.test_connection import Buffered, post

SMALL = post(b"small")
LIMITS = Limits(max_incoming_bytes=1 << 20, max_body_bytes=1 << 23)


def infer(body):
    return post(body, "Inference-Header-Content-Length: 9", path="/v2/models/m/infer")


def run(test):
    """On the loop of the server: asyncio's own hands buffers over in another way."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(test)


class Server:
    """Answers with the sum of a body's bytes, over a real socket, and counts how often a thread reads."""

    def __init__(self, readers=2, limits=None):
        self.loop = asyncio.get_running_loop()
        self.readers = Readers(max(1, readers), self.loop)
        self.hub = Hub(self.handle, limits or Limits(), {}, readers=self.readers if readers else None)
        self.asides, self.bodies = 0, []
        self.read, self.readers.read = self.readers.read, self.count

    def count(self, connection, target, done):
        self.asides += 1
        self.read(connection, target, done)

    def handle(self, request):
        body = bytes(request.body if request.buffer is None else request.buffer)
        self.bodies.append(len(body))
        request.reply(Response(200, str(sum(body)).encode()))

    async def __aenter__(self):
        self.server = await self.loop.create_server(lambda: Connection(self.hub, self.loop), "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()
        self.readers.close()

    async def until(self, condition):
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end
            await asyncio.sleep(0.005)


async def read_answer(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)


@pytest.mark.parametrize("readers", [0, 2])
def test_large_bodies_arrive_whole_and_in_order(readers):
    async def client(server, seed):
        random_ = random.Random(seed)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        body = random_.randbytes(4_000_000 + seed)
        for _ in range(6):
            data = infer(body) + SMALL
            for cut in range(0, len(data), size := random_.choice([70_000, 500_000, 5_000_000])):
                writer.write(data[cut : cut + size])
                await writer.drain()
            assert await read_answer(reader) == (200, str(sum(body)).encode())
            assert await read_answer(reader) == (200, str(sum(b"small")).encode())
        writer.close()

    async def test():
        async with Server(readers) as server:
            await asyncio.gather(*(client(server, seed) for seed in range(4)))
            assert (server.asides > 0) == (readers > 0)
            await server.until(lambda: not server.hub.connections)
            assert server.hub.room.taken == 0

    run(test())


async def begin_again(server):
    """A client whose second message has come in part, which a thread reads; also what is left of that message."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    message = infer(bytes(6_000_000))
    writer.write(message)
    await read_answer(reader)
    writer.write(message[:1_500_000])
    await writer.drain()
    await server.until(lambda: server.asides)
    return reader, writer, message[1_500_000:]


def test_a_client_that_leaves_while_a_thread_reads():
    async def test():
        async with Server() as server:
            _, writer, _ = await begin_again(server)
            writer.close()
            await server.until(lambda: not server.hub.connections)
            assert server.bodies == [6_000_000]
            assert server.hub.room.taken == 0

    run(test())


def test_a_body_that_is_refused_while_a_thread_reads():
    async def test():
        async with Server() as server:
            reader, writer, rest = await begin_again(server)
            (connection,) = server.hub.connections
            connection.check(server.loop.time() + Limits().body_seconds + 1)
            writer.write(rest)
            assert (await read_answer(reader))[0] == 408
            assert server.bodies == [6_000_000]

    run(test())


def test_a_thread_leaves_a_client_that_sends_a_byte_now_and_then():
    here, there = socket.socketpair()
    there.setblocking(False)
    with here, there:
        target = memoryview(bytearray(LARGE_BODY_BYTES))
        here.sendall(b"x" * 1000)
        begun = time.monotonic()
        assert _read(os.dup(there.fileno()), target) == (1000, False)
        assert time.monotonic() - begun < 10
        here.sendall(b"rest")
        here.shutdown(socket.SHUT_WR)
        assert _read(os.dup(there.fileno()), target) == (4, True)


def test_a_thread_waits_so_often_only(monkeypatch):
    waits = []

    class Patient:
        def register(self, *_):
            pass

        def poll(self, timeout):
            waits.append(timeout)
            here.send(b"x")
            return [1]

    monkeypatch.setattr("slipway_runtime.serve.incoming.select.poll", Patient)
    here, there = socket.socketpair()
    there.setblocking(False)
    with here, there:
        assert _read(os.dup(there.fileno()), memoryview(bytearray(LARGE_BODY_BYTES))) == (MAX_WAITS, False)
    assert len(waits) == MAX_WAITS


# --- room -------------------------------------------------------------------------------------------------------------


def connect(hub):
    connection, wire = Connection(hub, asyncio.get_running_loop()), Buffered()
    wire.protocol = connection
    connection.connection_made(wire)
    return connection, wire


PART = b"x" * 100_000
BEGINNINGS = {
    "a new head": lambda wire: wire.send(post(bytes(400_000))[:-400_000], 1000),
    "a head that is known": lambda wire: wire.send(post(bytes(400_000)) + post(bytes(400_000))[:-400_000], 1 << 20),
    "a large body": lambda wire: wire.send(infer(bytes(400_000)) + infer(bytes(400_000))[:-400_000], 1 << 20),
    "chunks": lambda wire: wire.send(b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n61A80\r\n", 1000),
}


@pytest.mark.parametrize("kind", BEGINNINGS)
async def test_all_that_arrives_together_is_bounded(kind):
    hub = Hub(lambda request: request.reply(Response(200, b"ok")), LIMITS, {})
    clients = [connect(hub) for _ in range(4)]
    for _, wire in clients:
        BEGINNINGS[kind](wire)
        wire.written = b""
    for _ in range(3):
        for _, wire in clients:
            wire.send(PART, 100_000)
    assert hub.room.taken == 900_000
    refused = [wire for _, wire in clients if b"503" in wire.written]
    assert len(refused) == 1
    assert b"retry-after: 1" in refused[0].written
    for _, wire in clients:  # the others get through: what was refused has made room
        if wire not in refused:
            wire.send(bytes(100_000) + (b"\r\n0\r\n\r\n" if kind == "chunks" else b""), 100_000)
            assert b"200 OK" in wire.written
    assert hub.room.taken == 0


async def test_who_leaves_makes_room():
    hub = Hub(lambda request: request.reply(Response(200, b"ok")), LIMITS, {})
    _, wire = connect(hub)
    BEGINNINGS["a large body"](wire)
    wire.send(PART, 100_000)
    assert hub.room.taken == 100_000
    wire.protocol.connection_lost(None)
    assert hub.room.taken == 0


def test_room():
    room = Room(10)
    room.taken = 10
    assert not room.is_full()
    room.taken = 11
    assert room.is_full()
    assert room.refusal().status == 503
