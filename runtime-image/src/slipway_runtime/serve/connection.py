"""One HTTP/1.1 connection: bytes to requests and answers to bytes, in order. Knows nothing of models.

The parser is httptools (llhttp). What it does not do is done here: limits, pipelining order, 100-continue, refusals
that the client can still read, timeouts (by `check`, called every second) and closing without a reset.

A client that keeps its connection sends the same head again and again. A head that llhttp has parsed, and that asks for
nothing special, is remembered by its bytes (`Hub.heads`); when the same bytes come again between two messages, the parser
is left out: equal bytes parse alike.
"""

from __future__ import annotations

import asyncio
import random
import select
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from urllib.parse import unquote

import httptools

from slipway_runtime.serve.incoming import LARGE_BODY_BYTES, LargeBody, Readers, Room
from slipway_runtime.serve.messages import Head, HttpError, Request, Response

MAX_PIPELINED = 32
MAX_HEADER_BYTES = 64 * 1024
# A head comes in one piece or in a few. Whoever sends more of them is read about once a second, or hundreds would have the loop for
# themselves; not all of them at the same time, for the same reason.
MAX_HEAD_PIECES = 4
SLOW_HEAD_SECONDS = 0.5, 1.5
MAX_KNOWN_HEADS = 1024
MAX_KNOWN_HEAD_BYTES = 2048
LINGER_SECONDS = 2.0
DISCARD_SECONDS, DISCARD_BYTES = 0.005, 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may take; seconds and bytes.

    Attributes:
        max_body_bytes: of one request, also when it is unpacked.
        header_seconds: from the first byte of a head, or from connecting, to the end of the head.
        body_seconds: without a byte of a body, or with an answer that is not read.
        message_seconds: from the first byte of a request to its last.
        idle_seconds: from an answer to the next request.
        max_connections: more are refused.
        max_incoming_bytes: of all requests together that have come in part.
    """

    max_body_bytes: int = 32 * 1024 * 1024
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    message_seconds: float = 300.0
    idle_seconds: float = 75.0
    max_connections: int = 4096
    max_incoming_bytes: int = 256 * 1024 * 1024


class Hub:
    """What all connections share: the handler, the limits, the set of connections, and whether the server drains."""

    def __init__(
        self,
        handle: Callable[[Request], None],
        limits: Limits,
        headers: dict[str, str],
        room: Room | None = None,
        readers: Readers | None = None,
    ) -> None:
        """Make the hub.

        Args:
            handle: gets each request, and answers it by its `reply`.
            limits: what one client may take.
            headers: header lines of every answer.
            room: for what has come in part, of all protocols; None: of this one.
            readers: of large bodies; None: the event loop.
        """
        self.handle = handle
        self.limits = limits
        self.room = room or Room(limits.max_incoming_bytes)
        self.readers = readers
        self.connections: set[Connection] = set()
        self.heads: dict[bytes, Head] = {}
        self.draining = False
        self._fixed = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.common = b""
        self.tick()

    def remember(self, data: bytes, head: Head) -> None:
        """Keep what a head was parsed to; clients with ever new heads empty the table from time to time."""
        if len(self.heads) >= MAX_KNOWN_HEADS:
            self.heads.clear()
        self.heads[data] = head

    def tick(self) -> None:
        """Renew the Date header; called every second."""
        self.common = f"{self._fixed}date: {formatdate(usegmt=True)}\r\n".encode("latin-1")

    def check(self, now: float) -> None:
        """Enforce the timeouts of all connections; `now` is the loop's time."""
        for connection in list(self.connections):
            connection.check(now)


def is_infer(path: str) -> bool:
    """Whether requests to a path are read from `Request.buffer` too."""
    return path.startswith("/v2/models/") and path.endswith("/infer")


def is_plain(head: bytes) -> bool:
    """Whether the first empty line ends a parsed head beyond doubt: it starts with a method, and all its lines end in CRLF."""
    lines = head.count(b"\r\n")
    return head[:1].isalpha() and head.count(b"\n") == lines == head.count(b"\r")


def decoded(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Undo a Content-Encoding.

    Raises:
        HttpError: 415 for one that is not gzip, deflate or identity, 400 for damaged data, 413 when there is too much behind it.
    """
    if encoding == "identity":
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise HttpError(
            415, f"Content-Encoding {encoding[:50]!r} is not supported; use gzip, deflate or none", accept_encoding="gzip, deflate"
        )
    stream = zlib.decompressobj(wbits=47)  # 32 + 15: gzip or zlib, by its first bytes
    try:
        plain = stream.decompress(body, max_bytes)
    except zlib.error as error:
        raise HttpError(400, f"the {encoding} body is damaged: {error}") from error
    if stream.unconsumed_tail:
        raise HttpError(413, f"the decoded body is larger than {max_bytes} bytes")
    if not stream.eof:
        raise HttpError(400, f"the {encoding} body is cut off")
    return plain


class Exchange(Request):
    """A request and its place in the order of answers."""

    __slots__ = ("connection", "keep_alive", "linger", "payload")

    def __init__(self, connection: Connection, head: Head, body: bytes) -> None:
        self.head = head
        self.body = body
        self.buffer = None
        self.cancel = None
        self.connection = connection
        self.keep_alive = True
        self.linger = False
        self.payload: Response | None = None

    def reply(self, response: Response) -> None:
        """Answer; only the first answer counts."""
        if self.payload is None:
            self.cancel = None
            self.payload = response
            self.connection.flush()


class Connection(asyncio.Protocol):
    """The protocol object of one client."""

    def __init__(self, hub: Hub, loop: asyncio.AbstractEventLoop) -> None:
        self._hub = hub
        self._loop = loop
        self._pending: deque[Exchange] = deque()
        self._discarding = False
        self._reading_paused = self._is_aside = self._is_slow = False
        self._write_paused_at = 0.0
        self._linger_until = 0.0
        self._known: Head | None = None
        self._candidate = b""
        self._body: list[bytes] = []
        self._body_bytes = self._incoming = 0
        self._in_message = False
        self._in_headers = False
        self._header_bytes = self._head_pieces = 0
        self._message_at = self._data_at = self._idle_at = loop.time()
        self._closing_at = 0.0
        self.served = 0
        self.lost = False

    # --- asyncio.Protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register; refuse one client too many."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._parser = httptools.HttpRequestParser(self)
        self._hub.connections.add(self)
        if len(self._hub.connections) > self._hub.limits.max_connections:
            self._refuse(HttpError(503, "too many connections", retry_after="1"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget everything; queued jobs of this client are cancelled."""
        self.lost = True
        self._let_go()
        pending, self._pending = self._pending, deque()
        for exchange in pending:
            if exchange.cancel is not None:
                exchange.cancel()
        self._hub.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Take the messages whose heads are known, and feed the parser with the rest."""
        self._data_at = self._loop.time()
        if self._discarding:
            return self._discard(len(data))
        while data and not self._discarding:
            if self._known is not None:
                data = self._take_known(self._known, data)
            elif self._in_message:
                return self._feed(data)
            else:
                end = data.find(b"\r\n\r\n") + 4
                head = self._hub.heads.get(data[:end])
                if head is None:
                    self._candidate = data[:end] if 4 < end <= MAX_KNOWN_HEAD_BYTES else b""
                    return self._feed(data)
                data = self._begin_known(head, data, end)
        return None

    def _discard(self, count: int) -> None:
        """Let a refused client that sends much wait before more of it is read and dropped: others have the loop meanwhile."""
        if count >= DISCARD_BYTES and not self._reading_paused and not self._transport.is_closing():
            self._reading_paused = True
            self._transport.pause_reading()
            self._loop.call_later(DISCARD_SECONDS, self._read_on)

    def _begin_known(self, head: Head, data: bytes, end: int) -> bytes:
        """Take a message whose known head ends at `end`; returns what follows it."""
        total = end + head.body_bytes
        if len(data) >= total:
            self._accept(head, data[end:total])
            return data[total:]
        self._in_message = True
        self._message_at = self._data_at
        if head.body_bytes >= LARGE_BODY_BYTES and head.json_bytes is not None and not head.encoding and is_infer(head.path):
            body = LargeBody(self, head)
            self._switch(body)
            body.begin(data[end:])
        else:
            self._known = head
            self._body = [data[end:]]
            self._body_bytes = total - len(data)
            self._hold(len(data) - end)
        return b""

    def _take_known(self, head: Head, data: bytes) -> bytes:
        """Take more of the body of a known head, of which `_body_bytes` are missing; returns what follows it."""
        missing = self._body_bytes
        if len(data) < missing:
            self._body.append(data)
            self._body_bytes = missing - len(data)
            self._hold(len(data))
            return b""
        self._body.append(data[:missing])
        body, self._body = b"".join(self._body), []
        self._known = None
        self._in_message = False
        self._let_go()
        self._accept(head, body)
        return data[missing:]

    def _hold(self, count: int) -> None:
        """So many bytes more are kept of a message that is not complete."""
        self._incoming += count
        room = self._hub.room
        room.taken += count
        if room.is_full():
            self._refuse(room.refusal())

    def _let_go(self) -> None:
        self._hub.room.taken -= self._incoming
        self._incoming = 0

    def _switch(self, protocol: asyncio.BaseProtocol) -> None:
        # Reading is stopped in between, because uvloop looks at the kind of protocol only when it starts.
        self._transport.pause_reading()
        self._transport.set_protocol(protocol)
        self._resume()

    # --- incoming.Owner -------------------------------------------------------------------------------------------

    def take_part(self, count: int) -> bool:
        """More of a large body has come; says whether it is of any use still."""
        self._data_at = self._loop.time()
        if self._discarding:
            self._discard(count)
        else:
            self._hold(count)
        return not self._discarding

    def take_large(self, head: Head, body: memoryview) -> None:
        """A large body is complete."""
        self._switch(self)
        self._in_message = False
        self._let_go()
        exchange = self._enqueue(head, b"")
        exchange.buffer = body
        self._hub.handle(exchange)

    def read_aside(self, target: memoryview, done: Callable[[int, bool], None]) -> None:
        """Let a thread read what comes, if there is one."""
        readers = self._hub.readers
        if readers is not None and not self._transport.is_closing():
            self._is_aside = True
            self._transport.pause_reading()
            readers.read(self._transport.get_extra_info("socket"), target, done)

    def read_on(self, *, has_ended: bool) -> None:
        """The thread is through: read here again."""
        self._is_aside = False
        if has_ended:
            self.eof_received()
            self._transport.close()
        else:
            self._resume()

    # --- messages -------------------------------------------------------------------------------------------------

    def _accept(self, head: Head, body: bytes, *, keep_alive: bool = True) -> None:
        exchange = self._enqueue(head, body)
        exchange.keep_alive = keep_alive
        if head.encoding:
            self._hand_decoded(exchange)
        else:
            self._hub.handle(exchange)

    def _hand_decoded(self, exchange: Exchange) -> None:
        try:
            exchange.body = decoded(exchange.body, exchange.head.encoding, self._hub.limits.max_body_bytes)
        except HttpError as error:
            exchange.reply(error.response())
        else:
            self._hub.handle(exchange)

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            self._refuse(HttpError(400, f"malformed HTTP: {error}"))
            return
        if self._in_headers:
            self._count_header_bytes(len(data))

    def _decline_upgrade(self, rest: bytes) -> None:
        """Go on in HTTP/1.1: an offer to change protocols (Java's client, curl --http2) is declined by just answering.

        The parser stops before the body of such a request, so a new one is given the head again, without the offer.
        """
        head = b""
        if self._framing and not self._discarding:
            method, kind = self._parser.get_method(), self._content_type
            length = b"" if self._json_bytes is None else b"\r\ninference-header-content-length: %d" % self._json_bytes
            kept = ((b"content-encoding", self._encoding), (b"x-slipway-probe", self._probe), (b"x-slipway-experiment", self._experiment))
            length += b"".join(b"\r\n%b: %b" % (name, value.encode("latin-1")) for name, value in kept if value)
            head = b"%b %b HTTP/1.1\r\ncontent-type: %b%b\r\n%b\r\n\r\n" % (method, self._target, kind, length, self._framing)
        self._parser = httptools.HttpRequestParser(self)
        if head or rest:
            self._in_message = False
            self.data_received(head + rest)

    def eof_received(self) -> bool:
        """The client has gone: close, and let queued work for it be skipped (nginx and Go take an end of input so too)."""
        self._closing_at = self._loop.time()
        return False

    def pause_writing(self) -> None:
        """The client does not read its answers: stop reading its requests."""
        self._write_paused_at = self._loop.time()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._write_paused_at = 0.0
        self._resume()

    # --- httptools callbacks --------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Reset the per-message state."""
        self._in_message = self._in_headers = True
        self._header_bytes = self._head_pieces = self._body_bytes = 0
        self._message_at = self._data_at
        self._body = []
        self._target = self._framing = self._content_type = b""
        self._json_bytes: int | None = None
        self._timeout = 0.0
        self._encoding = self._probe = self._experiment = ""
        self._expects_continue = False
        self._remember, self._candidate = self._candidate, b""

    def on_url(self, url: bytes) -> None:
        """The target may come in pieces."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the few headers that matter; the length is compared first because it is cheap."""
        length = len(name)
        if length in _HEADER_LENGTHS:
            take = _HEADERS.get(name.lower())
            if take is not None:
                take(self, value)

    def _take_content_type(self, value: bytes) -> None:
        self._content_type = value

    def _take_encoding(self, value: bytes) -> None:
        self._encoding = value.decode("latin-1").strip().lower()

    def _take_expect(self, value: bytes) -> None:
        self._expects_continue = value.lower() == b"100-continue"

    def _take_content_length(self, value: bytes) -> None:
        self._body_bytes = int(value) if value.isdigit() else 0
        self._framing = b"content-length: " + value

    def _take_transfer_encoding(self, value: bytes) -> None:
        self._framing = b"transfer-encoding: " + value

    def _take_json_bytes(self, value: bytes) -> None:
        self._json_bytes = int(value) if value.isdigit() and len(value) < 16 else -1

    def _take_timeout(self, value: bytes) -> None:
        self._timeout = int(value) / 1000 if value.isdigit() and len(value) < 16 else 0.0

    def _take_probe(self, value: bytes) -> None:
        self._probe = value.decode("latin-1").strip().lower()

    def _take_experiment(self, value: bytes) -> None:
        self._experiment = value.decode("latin-1").strip()

    def on_headers_complete(self) -> None:
        """Refuse a body that is declared too large before it is sent; invite it otherwise."""
        self._in_headers = False
        if self._discarding:
            return
        if self._body_bytes > self._hub.limits.max_body_bytes:
            self._refuse_body()
        elif self._expects_continue and not self._pending:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._body_bytes = 0

    def on_body(self, body: bytes) -> None:
        """Collect the body, chunked or not, within the limit."""
        if self._discarding:
            return
        self._body_bytes += len(body)
        if self._body_bytes > self._hub.limits.max_body_bytes:
            self._refuse_body()
        else:
            self._body.append(body)
            self._hold(len(body))

    def on_message_complete(self) -> None:
        """Hand the request over."""
        if self._framing and self._parser.should_upgrade():
            return
        self._in_message = False
        if self._discarding:
            return
        self._let_go()
        body, self._body = self._body[0] if len(self._body) == 1 else b"".join(self._body), []
        path = self._target.split(b"?", 1)[0].decode("latin-1")
        path = (unquote(path) if "%" in path else path).rstrip("/") or "/"
        kind, method = self._content_type.decode("latin-1"), self._parser.get_method().decode("latin-1")
        head = Head(method, path, kind, self._json_bytes, self._timeout, len(body), self._encoding, self._probe, self._experiment)
        if not self._parser.should_keep_alive():
            self._discarding = True
        elif self._remember and not self._expects_continue and not self._framing.startswith(b"transfer") and is_plain(self._remember):
            self._hub.remember(self._remember, head)
        self._accept(head, body, keep_alive=not self._discarding)

    # --- answers --------------------------------------------------------------------------------------------------

    def _enqueue(self, head: Head, body: bytes) -> Exchange:
        exchange = Exchange(self, head, body)
        self._pending.append(exchange)
        if len(self._pending) >= MAX_PIPELINED and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()
        return exchange

    def flush(self) -> None:
        """Write the answers that are due, in the order of the requests."""
        while self._pending and not self.lost:
            exchange = self._pending[0]
            if exchange.payload is None:
                break
            self._pending.popleft()
            self._write(exchange, exchange.payload)
        if self._reading_paused and len(self._pending) < MAX_PIPELINED:
            self._read_on()

    def _read_on(self) -> None:
        self._reading_paused = False
        self._resume()

    def _resume(self) -> None:
        is_held = self._write_paused_at or self._reading_paused or self._is_aside or self._is_slow
        if not is_held and not self._transport.is_closing():
            self._transport.resume_reading()

    def _write(self, exchange: Exchange, response: Response) -> None:
        # While draining the last answer that is due says close; those before it would cut off requests already here.
        keep_alive = exchange.keep_alive and not (self._hub.draining and not self._pending and not self._in_message)
        common = self._hub.common if keep_alive else self._hub.common + b"connection: close\r\n"
        head = response.head(common)
        self._transport.write(head if exchange.head.method == "HEAD" else head + response.body)
        self._idle_at = self._loop.time()
        self.served += 1
        if not keep_alive:
            self._finish(linger=exchange.linger)

    def _finish(self, *, linger: bool) -> None:
        self._discarding = True
        self._pending.clear()
        if linger and self._transport.can_write_eof():
            # Closing with unread bytes sends a reset, and the client would lose the answer that says why.
            self._transport.write_eof()
            self._linger_until = self._loop.time() + LINGER_SECONDS
        else:
            self._close()

    def _close(self) -> None:
        """Close once all is written; `check` ends it when the client does not read."""
        self._closing_at = self._loop.time()
        self._transport.close()

    def _refuse_body(self) -> None:
        self._refuse(HttpError(413, f"the body is larger than {self._hub.limits.max_body_bytes} bytes"))

    def _refuse(self, error: HttpError) -> None:
        if self._discarding:
            return
        self._discarding = True
        self._in_message = False
        self._body = []
        self._let_go()
        exchange = self._enqueue(Head("", ""), b"")
        exchange.keep_alive, exchange.linger = False, True
        exchange.reply(error.response())

    def _count_header_bytes(self, count: int) -> None:
        self._header_bytes += count
        self._head_pieces += 1
        if self._header_bytes > MAX_HEADER_BYTES:
            self._refuse(HttpError(431, f"the headers are larger than {MAX_HEADER_BYTES} bytes"))
        elif self._head_pieces > MAX_HEAD_PIECES:
            self._is_slow = True
            self._transport.pause_reading()
            self._loop.call_later(random.uniform(*SLOW_HEAD_SECONDS), self._read_slow)  # noqa: S311

    def _read_slow(self) -> None:
        self._is_slow = False
        self._resume()

    # --- time -----------------------------------------------------------------------------------------------------

    def is_busy(self) -> bool:
        """Whether a request is being received or answered."""
        return bool(self._pending) or self._in_message or bool(self._transport.get_write_buffer_size())

    def close_when_idle(self) -> None:
        """Close unless busy; a busy one closes with its answer, because the server drains."""
        # On a loaded machine a request may wait in the kernel: closing then would reset its client.
        if not self.is_busy() and not _has_unread(self._transport.get_extra_info("socket").fileno()):
            self._transport.close()

    def check(self, now: float) -> None:
        """Close or refuse when the client is too slow; `now` is the loop's time."""
        limits = self._hub.limits
        unread_since = self._closing_at or self._write_paused_at
        if unread_since:
            if now - unread_since > limits.body_seconds:
                self._transport.abort()
        elif self._linger_until:
            if now > self._linger_until:
                self._close()
        elif self._in_message:
            if not self._reading_paused:  # else we keep the rest from coming
                self._check_message(now, limits)
        elif not self._pending and now - self._idle_at > (limits.idle_seconds if self.served else limits.header_seconds):
            self._close()

    def _check_message(self, now: float, limits: Limits) -> None:
        age = now - self._message_at
        headers_late = self._in_headers and age > limits.header_seconds
        if headers_late or age > limits.message_seconds or now - self._data_at > limits.body_seconds:
            self._refuse(HttpError(408, "the request took too long to arrive"))


def _has_unread(descriptor: int) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0))


_HEADERS: dict[bytes, Callable[[Connection, bytes], None]] = {
    b"content-encoding": Connection._take_encoding,
    b"content-type": Connection._take_content_type,
    b"content-length": Connection._take_content_length,
    b"expect": Connection._take_expect,
    b"inference-header-content-length": Connection._take_json_bytes,
    b"transfer-encoding": Connection._take_transfer_encoding,
    b"x-envoy-expected-rq-timeout-ms": Connection._take_timeout,
    b"x-slipway-experiment": Connection._take_experiment,
    b"x-slipway-probe": Connection._take_probe,
}
_HEADER_LENGTHS = frozenset(map(len, _HEADERS))
