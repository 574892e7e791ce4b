"""The connection, without sockets: what llhttp parsed once and what is remembered of it must mean the same."""

from __future__ import annotations

import asyncio
import gzip
import random
import socket
import zlib

import pytest

from slipway_runtime.serve.connection import MAX_HEAD_PIECES, MAX_KNOWN_HEADS, Connection, Hub, Limits, decoded, is_plain
from slipway_runtime.serve.incoming import LARGE_BODY_BYTES
from slipway_runtime.serve.messages import HttpError, Response


class Wire:
    """A transport that keeps what is written."""

    def __init__(self):
        self.written, self.closed, self.paused, self.aborted, self.unread = b"", False, False, False, 0

    def write(self, data):
        self.written += data

    def close(self):
        self.closed = True

    def abort(self):
        self.closed = self.aborted = True

    def is_closing(self):
        return self.closed

    def can_write_eof(self):
        return False

    def get_write_buffer_size(self):
        return self.unread

    def pause_reading(self):
        self.paused = True

    def resume_reading(self):
        self.paused = False

    def set_protocol(self, protocol):
        self.protocol = protocol


class Buffered(Wire):
    """A transport that hands its bytes over as uvloop does: to the protocol that it has just now, in pieces of some size."""

    def send(self, data, size):
        while data:
            piece, data = data[:size], data[size:]
            while piece:
                if hasattr(self.protocol, "get_buffer"):
                    place = self.protocol.get_buffer(-1)
                    count = min(len(place), len(piece))
                    place[:count], piece = piece[:count], piece[count:]
                    self.protocol.buffer_updated(count)
                else:
                    self.protocol.data_received(piece)
                    piece = b""


class Clock:
    """A loop whose time the test sets."""

    def __init__(self):
        self.now, self.later = 100.0, []

    def time(self):
        return self.now

    def call_later(self, delay, callback, *args):
        self.later.append((delay, callback, args))

    def next(self):
        """What was put off comes, which is one thing."""
        ((_, callback, args),) = self.later
        self.later.clear()
        callback(*args)


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

    def connect(self, kind=Wire, loop=None):
        connection, wire = Connection(self.hub, loop or asyncio.get_running_loop()), kind()
        wire.protocol = connection
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


LIMITS = Limits(header_seconds=2.0, body_seconds=3.0, message_seconds=20.0, idle_seconds=5.0)
SLOW = [
    # what comes first, what comes every second, seconds after which it must be over, what the client is told
    (b"", b"", 2, b""),
    (b"", b"\r\n", 2, b""),
    (b"GET /a HTTP/1.1\r\n", b"x: y\r\n", 2, b"408"),
    (post(b"x" * 99)[:-90], b"", 3, b"408"),
    (post(b"x" * 99)[:-90], b"x", 20, b"408"),
    (post(b"one"), b"", 5, b"200"),
    (post(b"one"), b"\r\n", 5, b"200"),
    (post(b"one") * 2 + post(b"one")[:-1], b"", 3, b"408"),
]


@pytest.mark.parametrize(("first", "every", "seconds", "told"), SLOW)
async def test_slow_clients_are_cut_off_in_time(first, every, seconds, told):
    server, clock = Server(LIMITS), Clock()
    connection, wire = server.connect(loop=clock)
    connection.data_received(first)
    for second in range(1, seconds + 2):
        clock.now = 100.0 + second + 0.1
        server.hub.check(clock.now)
        if wire.closed:
            break
        if every:
            connection.data_received(every)
    assert wire.closed
    assert seconds <= second <= seconds + 1
    assert told in wire.written


@pytest.mark.parametrize("data", [post(b"one"), post(b"one", "Connection: close"), b"nonsense\r\n\r\n"], ids=["idle", "close", "refused"])
async def test_a_client_that_never_reads_its_answer_does_not_keep_the_connection(data):
    """A transport that is closed waits until all is written: with such a client, for ever."""
    server, clock = Server(LIMITS), Clock()
    connection, wire = server.connect(loop=clock)
    wire.unread = 10
    connection.data_received(data)
    for second in range(12):
        clock.now = 100.0 + second
        server.hub.check(clock.now)
    assert wire.aborted


async def test_a_client_that_reads_slowly_gets_all_of_its_last_answer():
    server, clock = Server(LIMITS), Clock()
    connection, wire = server.connect(loop=clock)
    wire.unread = 10
    connection.data_received(post(b"one", "Connection: close"))
    clock.now += 2.9
    server.hub.check(clock.now)
    assert (wire.closed, wire.aborted) == (True, False)


async def test_who_waits_for_us_is_not_slow():
    """Reading stops while too many requests of a client wait: the rest of the next one is then late by our doing."""
    server, clock = Server(LIMITS), Clock()
    server.held = []
    connection, wire = server.connect(loop=clock)
    connection.data_received(post(b"one") * 32 + post(b"one")[:-1])
    clock.now += 10
    server.hub.check(clock.now)
    assert wire.paused
    for request in server.held:
        request.reply(Response(200, b"done"))
    connection.data_received(post(b"one")[-1:])
    server.held[-1].reply(Response(200, b"done"))
    assert wire.written.count(b"HTTP/1.1 200 OK") == 33
    assert b"408" not in wire.written


@pytest.mark.parametrize(
    ("encoding", "data"), [("gzip", gzip.compress(b"x" * 99, mtime=0)), ("deflate", zlib.compress(b"x" * 99)), ("identity", b"x" * 99)]
)
def test_encodings(encoding, data):
    assert decoded(data, encoding, 99) == b"x" * 99


@pytest.mark.parametrize(
    ("encoding", "data", "status"),
    [
        ("br", b"x", 415),
        ("gzip", b"x" * 20, 400),
        ("gzip", gzip.compress(b"x" * 99, mtime=0)[:-4], 400),
        ("gzip", gzip.compress(b"x" * 1_000_000, mtime=0), 413),
    ],
)
def test_encodings_that_are_refused(encoding, data, status):
    with pytest.raises(HttpError) as caught:
        decoded(data, encoding, 99)
    assert caught.value.status == status


async def test_a_drain_closes_no_connection_whose_request_waits_in_the_kernel():
    server = Server()
    here, there = socket.socketpair()
    there.setblocking(False)
    with here:
        _, connection = await asyncio.get_running_loop().connect_accepted_socket(
            lambda: Connection(server.hub, asyncio.get_running_loop()), there
        )
        server.hub.draining = True
        here.sendall(post(b"late"))
        connection.close_when_idle()  # the loop has not read it yet
        while not server.seen:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        answer = here.recv(65536)
        assert b"connection: close\r\n" in answer
        assert answer.endswith(b"late")
        assert here.recv(1) == b""


LARGE = bytes(range(256)) * (LARGE_BODY_BYTES // 256) + b"end"
INFER = {"path": "/v2/models/m/infer"}
BUFFERED = [
    ("an infer request", post(LARGE, "Inference-Header-Content-Length: 9", **INFER), True),
    ("a small one", post(LARGE[:-1000], "Inference-Header-Content-Length: 9", **INFER), False),
    ("JSON", post(LARGE, **INFER), False),
    ("another path", post(LARGE, "Inference-Header-Content-Length: 9", path="/predictions/infer"), False),
    ("compressed", post(gzip.compress(LARGE * 200, 1), "Inference-Header-Content-Length: 9", "Content-Encoding: gzip", **INFER), False),
]


@pytest.mark.parametrize("size", [1 << 20, 65_536, 65_537, 1000])
@pytest.mark.parametrize(("about", "message", "is_buffered"), BUFFERED)
async def test_a_large_body_of_tensors_is_read_where_it_stays(about, message, is_buffered, size):
    server = Server()
    server.held = []
    connection, wire = server.connect(Buffered)
    small = post(b"small")
    for _ in range(3):
        wire.send(message + small, size)
    requests = server.held[::2]
    body = message.partition(b"\r\n\r\n")[2]
    want = gzip.decompress(body) if b"gzip" in message else body
    for number, request in enumerate(requests):
        # The first head is parsed; one read that holds all of a message needs no buffer.
        assert (request.buffer is not None) == (is_buffered and number > 0 and size < len(message)), about
        assert bytes(request.buffer or request.body) == want
    assert [request.body for request in server.held[1::2]] == [b"small"] * 3
    assert wire.protocol is connection
    for request in server.held:
        request.reply(Response(200, b"ok"))
    assert wire.written.count(b"HTTP/1.1 200") == 6


async def test_the_rest_of_a_large_body_that_was_refused_is_dropped():
    server = Server()
    connection, wire = server.connect(Buffered)
    message = BUFFERED[0][1]
    wire.send(message, len(message))
    wire.send(message[:100_000], 50_000)
    assert hasattr(wire.protocol, "get_buffer")
    connection.check(asyncio.get_running_loop().time() + Limits().body_seconds + 1)
    assert b"408" in wire.written
    wire.send(message[100_000:] + message, 50_000)
    assert len(server.seen) == 1


async def test_a_head_in_many_pieces_is_read_now_and_then_only():
    clock = Clock()
    server = Server()
    connection, wire = server.connect(loop=clock)
    head = post(b"").removesuffix(b"\r\n\r\n")
    for number in range(MAX_HEAD_PIECES):
        connection.data_received(head[number : number + 1])
    assert not wire.paused
    connection.data_received(head[MAX_HEAD_PIECES : MAX_HEAD_PIECES + 1])
    assert wire.paused
    clock.next()
    assert not wire.paused
    connection.data_received(head[MAX_HEAD_PIECES + 1 :])
    assert wire.paused
    clock.next()
    connection.data_received(b"\r\n\r\n" + post(b"next"))
    assert not wire.paused
    assert wire.written.count(b"200 OK") == 2
    for number in range(MAX_HEAD_PIECES + 1):
        connection.data_received(head[number : number + 1])
    assert wire.paused
    connection.check(clock.now + Limits().header_seconds + 1)
    assert b"408" in wire.written


async def test_a_refused_client_that_sends_on_is_read_now_and_then_only():
    """Whoever pushes a body through that is too large would have the loop for itself."""
    clock = Clock()
    connection, wire = Server().connect(loop=clock)
    connection.data_received(b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n")
    assert b"413" in wire.written
    wire.closed = False  # a socket is closed for writing only, and its rest is read
    for _ in range(3):
        connection.data_received(b"x" * 250_000)
        assert wire.paused
        ((delay, read_on, _),) = clock.later
        assert 0 < delay < 0.1
        clock.later.clear()
        read_on()
        assert not wire.paused


async def test_a_client_that_leaves_within_a_large_body_is_forgotten():
    server = Server()
    connection, wire = server.connect(Buffered)
    message = BUFFERED[0][1]
    wire.send(message, len(message))
    wire.send(message[:100_000], 50_000)
    assert connection in server.hub.connections
    wire.protocol.connection_lost(None)
    assert connection.lost
    assert not server.hub.connections
