"""The connection, without sockets: what llhttp parsed once and what is remembered of it must mean the same."""

from __future__ import annotations

import asyncio
import gzip
import random
import zlib

import pytest

from slipway_runtime.serve.connection import MAX_KNOWN_HEADS, Connection, Hub, Limits, decoded, is_plain
from slipway_runtime.serve.messages import HttpError, Response


class Wire:
    """A transport that keeps what is written."""

    def __init__(self):
        self.written, self.closed, self.paused = b"", False, False

    def write(self, data):
        self.written += data

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed

    def can_write_eof(self):
        return False

    def get_write_buffer_size(self):
        return 0

    def pause_reading(self):
        self.paused = True

    def resume_reading(self):
        self.paused = False


class Server:
    """A hub that answers each request with what it saw of it."""

    def __init__(self, limits=None):
        self.hub = Hub(self.handle, limits or Limits(), {})
        self.seen = []
        self.held = None

    def handle(self, request):
        head = request.head
        self.seen.append((head.method, head.path, head.content_type, head.json_bytes, head.timeout, request.body))
        if self.held is not None:
            self.held.append(request)
        else:
            request.reply(Response(200, request.body))

    def connect(self):
        connection, wire = Connection(self.hub, asyncio.get_running_loop()), Wire()
        connection.connection_made(wire)
        return connection, wire


def post(body, *lines, path="/p", version="1.1"):
    head = [f"POST {path} HTTP/{version}", "Host: h", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


SEQUENCES = [
    [post(b"one")] * 4,
    [post(b"one"), post(b"two"), post(b"three"), post(b"two")],
    [post(b"a", "Inference-Header-Content-Length: 1", "x-envoy-expected-rq-timeout-ms: 1500"), post(b"a")] * 2,
    [b"GET /a?q=1 HTTP/1.1\r\nHost: h\r\n\r\n", post(b"one"), b"GET /a%20b/ HTTP/1.1\r\nHost: h\r\n\r\n"] * 2,
    [post(b""), post(b"")],
    [b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", post(b"one")] * 2,
    [post(b"x" * 5000), post(b"\r\n\r\nPOST /p HTTP/1.1\r\n\r\n")] * 2,
    [b"\r\n\r\n" + post(b"one"), post(b"one"), b"\r\n" + post(b"one")],
]


async def outcome(data, cuts):
    server = Server()
    connection, wire = server.connect()
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        connection.data_received(data[start:end])
    return server.seen, wire.written.count(b"HTTP/1.1 200 OK"), wire.closed


@pytest.mark.parametrize("sequence", SEQUENCES)
async def test_any_cut_of_the_stream_gives_the_same_requests(sequence):
    data, random_ = b"".join(sequence), random.Random(1)
    whole = await outcome(data, [])
    assert whole[1] == len(sequence)
    edges, position = [], 0
    for part in sequence[:-1]:
        position += len(part)
        edges.append(position)
    assert await outcome(data, edges) == whole
    for _ in range(60):
        cuts = sorted({*random_.sample(range(1, len(data)), 4), *random_.sample(edges, len(edges) // 2)})
        assert await outcome(data, cuts) == whole


async def test_a_known_head_leaves_the_parser_out():
    server = Server()
    connection, _ = server.connect()
    connection.data_received(post(b"one"))
    assert len(server.hub.heads) == 1

    def fail(data):
        raise AssertionError(data)

    connection._feed = fail
    connection.data_received(post(b"two") + post(b"six")[:-2])
    connection.data_received(b"ix")
    assert [row[-1] for row in server.seen] == [b"one", b"two", b"six"]


@pytest.mark.parametrize(
    "data",
    [
        post(b"one", "Connection: close"),
        post(b"one", version="1.0"),
        post(b"one", "Expect: 100-continue"),
        b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        post(b"one", "X: " + "y" * 3000),
        post(b"one", "Connection: Upgrade", "Upgrade: h2c"),
        b"nonsense\r\n\r\n",
    ],
)
async def test_a_head_that_asks_for_something_special_is_not_remembered(data):
    server = Server()
    server.connect()[0].data_received(data)
    assert not [head for head in server.hub.heads if b"pgrade" in head or len(head) > 2048 or b"close" in head or b"xpect" in head]
    assert b"\r\n\r\n" not in server.hub.heads
    assert len(server.hub.heads) <= (1 if b"pgrade" in data else 0)


@pytest.mark.parametrize(
    "head", [b"\r\n\r\n", b"\r\nGET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\nA: b\r\n\r\n", b"GET / HTTP/1.1\r\nA: b\rc\r\n\r\n"]
)
def test_a_head_whose_end_is_in_doubt_is_not_plain(head):
    assert not is_plain(head)


async def test_the_table_of_heads_is_bounded():
    server = Server()
    connection, _ = server.connect()
    for index in range(MAX_KNOWN_HEADS + 10):
        connection.data_received(post(b"x", f"Id: {index}"))
    assert len(server.hub.heads) <= MAX_KNOWN_HEADS


async def test_a_client_that_leaves_cancels_what_waits():
    server = Server()
    server.held, cancelled = [], []
    connection, _ = server.connect()
    connection.data_received(post(b"one") + post(b"two"))
    for request in server.held:
        request.cancel = lambda body=request.body: cancelled.append(body)
    connection.connection_lost(None)
    assert cancelled == [b"one", b"two"]


async def test_a_slow_body_of_a_known_head_is_cut_off():
    server = Server(Limits(body_seconds=1.0))
    connection, wire = server.connect()
    connection.data_received(post(b"one"))
    connection.data_received(post(b"one")[:-1])
    connection.check(asyncio.get_running_loop().time() + 1.5)
    assert b"408" in wire.written
    assert wire.closed


@pytest.mark.parametrize(
    ("encoding", "data"), [("gzip", gzip.compress(b"x" * 99)), ("deflate", zlib.compress(b"x" * 99)), ("identity", b"x" * 99)]
)
def test_encodings(encoding, data):
    assert decoded(data, encoding, 99) == b"x" * 99


@pytest.mark.parametrize(
    ("encoding", "data", "status"),
    [
        ("br", b"x", 415),
        ("gzip", b"x" * 20, 400),
        ("gzip", gzip.compress(b"x" * 99)[:-4], 400),
        ("gzip", gzip.compress(b"x" * 1_000_000), 413),
    ],
)
def test_encodings_that_are_refused(encoding, data, status):
    with pytest.raises(HttpError) as caught:
        decoded(data, encoding, 99)
    assert caught.value.status == status
