"""One gRPC connection: bytes to calls and answers to bytes, by slipway_http2. Knows nothing of models.

What that does not do is done here: which method is asked for, deadlines, compressed messages, timeouts (by `check`, called every
second), back pressure, and closing without losing a call (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).
"""

from __future__ import annotations

import asyncio
import enum
import logging
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

import slipway_http2 as http2

from slipway_runtime.serve.connection import MAX_HEADER_BYTES, Limits, decoded
from slipway_runtime.serve.incoming import Room
from slipway_runtime.serve.messages import HttpError

log = logging.getLogger(__name__)

MAX_CALLS = 1024  # of one connection at the same time
WINDOW_BYTES = 1 << 20
WRITE_BYTES = 256 * 1024
# From telling the clients to go elsewhere to taking no more calls: one that was on its way then is still answered.
FRESH_SECONDS = 1.0
_PREFACE_BYTES = 24 + 9  # the client's magic, and the head of its SETTINGS
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_CANCEL = 8  # error code of HTTP/2
_TEXT = b"application/grpc"
_HEAD = [(b":status", b"200"), (b"content-type", _TEXT)]
_NO_GRPC = b"this port speaks gRPC; for HTTP ask the other one\n"
_GOOD = [(b"grpc-status", b"0")]


class Code(enum.IntEnum):
    """Those of gRPC's status codes that are used here."""

    OK = 0
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class Listener(Protocol):
    """Gets what comes on a stream of messages."""

    def message(self, data: bytes) -> None:
        """The next message."""

    def end(self) -> None:
        """The client sends no more."""

    def drained(self) -> None:
        """All that was sent has gone out."""


@dataclass(frozen=True, slots=True)
class Unary:
    """A method of one message and one answer: `handle` gets the call and the message."""

    handle: Callable[[Call, bytes], None]


@dataclass(frozen=True, slots=True)
class Streaming:
    """A method of many messages and many answers."""

    open: Callable[[Call], Listener]


Methods = Mapping[bytes, Unary | Streaming]


class Call:
    """One call: answered once, or by many messages and an end.

    Attributes:
        stream: its number on the connection.
        began: when it came, of the loop's time.
        is_answered: whether the answer is complete, or nobody waits for it any more.
        timeout: seconds that the client waits; 0 when it does not say.
        cancel: called when the client has left; None when there is nothing to be told.
    """

    __slots__ = ("_connection", "_data", "_encoding", "_listener", "_method", "began", "cancel", "is_answered", "stream", "timeout")

    def __init__(
        self, connection: Connection, stream: int, method: Unary | Streaming, headers: Mapping[bytes, bytes], began: float
    ) -> None:
        self._connection = connection
        self.stream = stream
        self._method = method
        self._data: bytes | None = None
        self._encoding = headers.get(b"grpc-encoding", b"").decode("latin-1")
        self._listener: Listener | None = None
        self.began = began
        self.timeout = timeout_of(headers.get(b"grpc-timeout", b""))
        self.cancel: Callable[[], None] | None = None
        self.is_answered = False
        if isinstance(method, Streaming):
            self._listener = method.open(self)
            connection.session.respond(stream, _HEAD)

    # --- for the method -------------------------------------------------------------------------------------------

    def reply(self, message: bytes) -> None:
        """Answer, and end."""
        if not self.is_answered:
            self.is_answered, self.cancel = True, None
            session, stream = self._connection.session, self.stream
            session.respond(stream, _HEAD)
            session.send_message(stream, message)
            session.finish(stream, _GOOD)
            self._connection.flush()

    def send(self, message: bytes) -> int:
        """One of many answers; returns the bytes that have not gone out yet."""
        session = self._connection.session
        session.send_message(self.stream, message)
        self._connection.flush()
        return session.unsent(self.stream)

    def finish(self) -> None:
        """No more answers."""
        if not self.is_answered:
            self.is_answered, self.cancel = True, None
            self._connection.session.finish(self.stream, _GOOD)
            self._connection.flush()

    def fail(self, code: Code, message: str, headers: Mapping[str, str] | None = None) -> None:
        """End with an error; `headers` go with it."""
        if self.is_answered:
            return
        self.is_answered, self.cancel = True, None
        trailers = _status(code, message) + [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        session = self._connection.session
        if self._listener is None:
            session.refuse(self.stream, _HEAD + trailers)
        else:
            session.finish(self.stream, trailers)
        self._connection.flush()

    def hold(self) -> None:
        """Let no more messages come than are under way."""
        self._connection.session.hold(self.stream)

    def release(self) -> None:
        """Let messages come again."""
        self._connection.session.release(self.stream)
        self._connection.flush()

    # --- for the connection ---------------------------------------------------------------------------------------

    def take(self, data: bytes) -> None:
        """A message has come."""
        if self.is_answered:
            return
        if self._listener is not None:
            self._listener.message(data)
        elif self._data is None:
            self._data = data
        else:
            self.fail(Code.INTERNAL, "this method takes one message; a second one came")

    def take_compressed(self, data: bytes, max_bytes: int) -> None:
        """A compressed message has come, which has `max_bytes` at most behind it."""
        try:
            plain = _unpacked(data, self._encoding, max_bytes)
        except HttpError as error:
            code = {413: Code.RESOURCE_EXHAUSTED, 415: Code.UNIMPLEMENTED}.get(error.status, Code.INTERNAL)
            self.fail(code, error.message, {"grpc-accept-encoding": "identity,deflate,gzip"})
        else:
            self.take(plain)

    def end(self) -> None:
        """The client sends no more."""
        if self.is_answered:
            return
        if self._listener is not None:
            self._listener.end()
        elif self._data is None:
            self.fail(Code.INTERNAL, "this method takes one message; none came")
        elif isinstance(self._method, Unary):
            data, self._data = self._data, None
            self._method.handle(self, data)

    def drained(self) -> None:
        """All that was sent has gone out."""
        if self._listener is not None and not self.is_answered:
            self._listener.drained()

    def leave(self) -> None:
        """The client has left, or has got its answer."""
        self.is_answered = True
        cancel, self.cancel = self.cancel, None
        if cancel is not None:
            cancel()

    @property
    def is_unary(self) -> bool:
        """Whether it takes one message."""
        return self._listener is None


class Port:
    """What all connections share."""

    def __init__(self, methods: Methods, limits: Limits, loop: asyncio.AbstractEventLoop, room: Room | None = None) -> None:
        """Make it.

        Args:
            methods: by path, as in b"/package.Service/Method".
            limits: what one client may take.
            loop: the event loop.
            room: for what has come in part, of all protocols; None: of this one.
        """
        self.room = room or Room(limits.max_incoming_bytes)
        self.methods = methods
        self.limits = limits
        self.loop = loop
        self.connections: set[Connection] = set()
        self.is_leaving = False
        self._is_empty = asyncio.Event()

    def connection(self) -> Connection:
        """The protocol object for a new client."""
        return Connection(self)

    def check(self, now: float) -> None:
        """Enforce the timeouts of all connections; `now` is the loop's time."""
        for connection in list(self.connections):
            connection.check(now)

    def forget(self, connection: Connection) -> None:
        """A client has gone."""
        self.connections.discard(connection)
        if not self.connections:
            self._is_empty.set()

    async def drain(self, deadline: float) -> None:
        """Tell the clients to go elsewhere, answer what is under way, and close; `deadline` is of the loop's time."""
        self.is_leaving = True
        for connection in list(self.connections):
            connection.announce_shutdown()
        await self._empty(min(self.loop.time() + FRESH_SECONDS, deadline))
        for connection in list(self.connections):
            connection.go_away()
        await self._empty(deadline)
        self.abort()

    async def _empty(self, until: float) -> None:
        if self.connections:
            self._is_empty.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_empty.wait(), until - self.loop.time())

    def abort(self) -> None:
        """Cut all clients off."""
        for connection in list(self.connections):
            connection.abort()


class Connection(asyncio.Protocol):
    """The protocol object of one client."""

    def __init__(self, port: Port) -> None:
        limits = port.limits
        self._port = port
        self._loop = port.loop
        self._calls: dict[int, Call] = {}
        self._stalled: dict[int, tuple[int, float]] = {}
        self._received = self._incoming = 0
        self._write_paused_at = 0.0
        self._idle_at = self._loop.time()
        self._will_write = self._is_flush_due = self._is_announced = self._is_going = False
        self.session = http2.Session(limits.max_body_bytes, MAX_CALLS, MAX_HEADER_BYTES, WINDOW_BYTES)

    # --- asyncio.Protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register; refuse one client too many."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        if len(self._port.connections) >= self._port.limits.max_connections:
            self._transport.abort()
            return
        self._port.connections.add(self)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if self._port.is_leaving:
            self.announce_shutdown()
        self._write()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget everything; what is queued for this client is cancelled."""
        self._port.forget(self)
        self._port.room.taken -= self._incoming
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.leave()

    def data_received(self, data: bytes) -> None:
        """Take the messages in `data`, and write at once what is answered at once."""
        self._received += len(data)
        self._will_write = True
        room, session = self._port.room, self.session
        session.max_incoming = room.limit - room.taken + self._incoming
        try:
            session.receive(data)
            self._handle()
        except http2.ProtocolError as error:
            log.debug("not HTTP/2: %s", error)
            self._transport.close()
        finally:
            self._will_write = False
        self._write()

    def eof_received(self) -> bool:
        """The client has gone."""
        return False

    def pause_writing(self) -> None:
        """The client does not read its answers: stop reading its requests."""
        self._write_paused_at = self._loop.time()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._write_paused_at = 0.0
        self._transport.resume_reading()
        self._write()

    # --- events ---------------------------------------------------------------------------------------------------

    def _handle(self) -> None:
        while events := self.session.take_events():
            for kind, stream, value in events:
                if kind == http2.CALL:
                    self._begin(stream, value)
                    continue
                call = self._calls.get(stream)
                if call is None:
                    continue
                try:
                    self._tell(call, kind, value)
                except Exception as error:  # of a method: it costs its call, not the connection
                    log.exception("a call failed")
                    call.fail(Code.INTERNAL, f"{type(error).__name__}: {error}"[:500])
        incoming = self.session.incoming
        self._port.room.taken += incoming - self._incoming
        self._incoming = incoming

    def _tell(self, call: Call, kind: int, value: Any) -> None:
        if kind == http2.MESSAGE:
            call.take(value)
        elif kind == http2.COMPRESSED:
            call.take_compressed(value, self._port.limits.max_body_bytes)
        elif kind == http2.END:
            call.end()
        elif kind == http2.CLOSED:
            self._forget(call)
        elif kind == http2.DRAINED:
            call.drained()
        elif kind == http2.NO_ROOM:
            call.fail(Code.UNAVAILABLE, self._port.room.refusal().message)
        else:
            call.fail(Code.RESOURCE_EXHAUSTED if kind == http2.TOO_LARGE else Code.INTERNAL, value)

    def _begin(self, stream: int, headers: dict[bytes, bytes]) -> None:
        kind = headers.get(b"content-type", b"")
        if headers[b":method"] != b"POST":
            return self.session.refuse(stream, [(b":status", b"405"), (b"allow", b"POST")], _NO_GRPC)
        if kind != _TEXT and not kind.startswith((_TEXT + b"+", _TEXT + b";")):
            return self.session.refuse(stream, [(b":status", b"415")], _NO_GRPC)
        path = headers[b":path"]
        method = self._port.methods.get(path)
        if method is None:
            return self.session.refuse(stream, _HEAD + _status(Code.UNIMPLEMENTED, f"no method {path[:200].decode('latin-1')}"))
        self._calls[stream] = Call(self, stream, method, headers, self._loop.time())
        return None

    def _forget(self, call: Call) -> None:
        del self._calls[call.stream]
        call.leave()
        if not self._calls:
            self._idle_at = self._loop.time()

    # --- out ------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write soon: what is answered in one turn of the loop goes out together, and what events answer once they are through."""
        if not self._will_write and not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        self._is_flush_due = False
        transport = self._transport
        if transport.is_closing():
            return
        self._will_write = True
        try:
            while not self._write_paused_at and (data := self.session.data_to_send(WRITE_BYTES)):
                transport.write(data)
                self._handle()
        finally:
            self._will_write = False
        if self.session.is_over and (self._is_going or not self._is_announced):
            transport.close()

    def announce_shutdown(self) -> None:
        """Tell the client to make new calls elsewhere."""
        self._is_announced = True
        self.session.announce_shutdown()
        self._write()

    def go_away(self) -> None:
        """Take no more calls; close once the last is answered."""
        self._is_going = True
        self.session.go_away()
        self._write()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    # --- time -----------------------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Refuse or close when the client is too slow; `now` is the loop's time."""
        limits = self._port.limits
        if self._write_paused_at:
            if now - self._write_paused_at > limits.body_seconds:
                self.abort()
        elif self._calls:
            self._check_calls(now, limits)
        elif self._received < _PREFACE_BYTES:
            if now - self._idle_at > limits.header_seconds:
                self._transport.close()
        elif self._is_announced and not self._port.is_leaving:
            self.go_away()  # a second after it was told: what was on its way would have come
        elif now - self._idle_at > limits.idle_seconds:
            self.announce_shutdown()

    def _check_calls(self, now: float, limits: Limits) -> None:
        before, self._stalled = self._stalled, {}
        for stream, moved in self.session.waiting_for_peer():
            call = self._calls.get(stream)
            if call is None or not (call.is_unary or moved):
                continue  # a stream of messages may wait for its first as long as it likes
            last, since = before.get(stream, (-1, now))
            since = since if last == moved else now
            self._stalled[stream] = moved, since
            if now - since > limits.body_seconds or (call.is_unary and not call.is_answered and now - call.began > limits.message_seconds):
                self._give_up(stream, call)

    def _give_up(self, stream: int, call: Call) -> None:
        if call.is_answered or not call.is_unary:
            self.session.reset(stream, _CANCEL)
            self.flush()
        else:
            call.fail(Code.DEADLINE_EXCEEDED, "the request took too long to arrive")


def timeout_of(value: bytes) -> float:
    """Seconds of a `grpc-timeout` header, such as 250m; 0 when there is none, or it says nothing.

    A deadline that has passed is one of a nanosecond, because 0 stands for none.
    """
    unit = _SECONDS.get(value[-1:])
    number = value[:-1]
    return max(int(number) * unit, 1e-9) if unit is not None and number.isdigit() and len(number) <= 8 else 0.0


def _unpacked(data: bytes, encoding: str, max_bytes: int) -> bytes:
    if encoding in {"", "identity"}:
        raise HttpError(400, "a message says that it is compressed, and grpc-encoding does not say how")
    return decoded(data, encoding, max_bytes)


def _status(code: Code, message: str) -> list[tuple[bytes, bytes]]:
    return [(b"grpc-status", b"%d" % code), (b"grpc-message", quote(message, safe=_PLAIN).encode())]


_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")  # what grpc-message leaves as it is
