"""One gRPC connection, without sockets; the client is h2, an implementation of HTTP/2 of its own."""

from __future__ import annotations

import asyncio
import gzip
import random
import zlib

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from slipway_runtime.serve.calls import MAX_CALLS, WINDOW_BYTES, Code, Port, Streaming, Unary, timeout_of
from slipway_runtime.serve.connection import Limits
from unit.runtime.serve.test_connection import Clock, Wire

LIMITS = Limits(max_body_bytes=1000, header_seconds=5, body_seconds=7, message_seconds=30, idle_seconds=20, max_connections=3)
ECHO, LATER, STREAM, BROKEN = b"/s/Echo", b"/s/Later", b"/s/Stream", b"/s/Broken"


class Loop(Clock):
    """A loop that runs what is due soon when it is told to."""

    def __init__(self):
        super().__init__()
        self.due = []

    def call_soon(self, callback):
        self.due.append(callback)

    def turn(self):
        due, self.due = self.due, []
        for callback in due:
            callback()


class Socket(Wire):
    """A transport with a socket that takes options."""

    def get_extra_info(self, name):
        return self

    def setsockopt(self, *_):
        pass


class Echoes:
    """Answers each message of a stream, and notes what it is told."""

    def __init__(self, call):
        self.call, self.got, self.drains = call, [], 0

    def message(self, data):
        self.got.append(data)
        self.call.send(data)

    def end(self):
        self.call.finish()

    def drained(self):
        self.drains += 1


class Service:
    """A port with four methods."""

    def __init__(self, limits=LIMITS):
        self.loop, self.calls, self.streams, self.cancelled = Loop(), [], [], 0
        methods = {
            ECHO: Unary(lambda call, data: call.reply(data)),
            LATER: Unary(self.later),
            STREAM: Streaming(self.stream),
            BROKEN: Unary(lambda call, data: 1 / 0),
        }
        self.port = Port(methods, limits, self.loop)

    def look(self, seconds):
        """Time passes, and once a second somebody looks at the clients."""
        for _ in range(seconds):
            self.port.check(self.loop.now)
            self.loop.now += 1

    def later(self, call, data):
        self.calls.append((call, data))
        call.cancel = self.cancel

    def stream(self, call):
        self.streams.append(Echoes(call))
        call.cancel = self.cancel
        return self.streams[-1]

    def cancel(self):
        self.cancelled += 1


class Client:
    """A client of a service; `answers` are (status of HTTP, headers and trailers, messages) by stream, `resets` its errors."""

    def __init__(self, service, window=None):
        self.service, self.wire = service, Socket()
        self.connection = service.port.connection()
        self.connection.connection_made(self.wire)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        self.h2.initiate_connection()
        if window is not None:
            self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.answers, self.resets, self.is_told_to_go = {}, {}, False

    def ask(self, path=ECHO, data=None, *, end=True, headers=(), method=b"POST", kind=b"application/grpc"):
        stream = self.h2.get_next_available_stream_id()
        head = [(b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", b"x")]
        self.h2.send_headers(stream, [*head, (b"content-type", kind), *headers], end_stream=data is None and end)
        if data is not None:
            self.h2.send_data(stream, data, end_stream=end)
        self.answers[stream] = [None, {}, b""]
        return stream

    def flow(self, size=1 << 30):
        """Carry bytes both ways, to the server in pieces of `size`, until there are none."""
        while data := self.h2.data_to_send():
            for start in range(0, len(data), size):
                self.connection.data_received(data[start : start + size])
            self.read()
        self.read()
        return self

    def read(self):
        self.service.loop.turn()
        data, self.wire.written = self._without_goaway(self.wire.written), b""
        for event in self.h2.receive_data(data) if data else ():
            answer = self.answers.get(getattr(event, "stream_id", None))
            if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                fields = dict(event.headers)
                answer[0] = fields.pop(b":status", answer[0])
                answer[1] |= fields
            elif isinstance(event, h2.events.DataReceived):
                answer[2] += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                self.resets[event.stream_id] = event.error_code

    def _without_goaway(self, data):
        """h2 takes no frame after a GOAWAY, not even of calls that go on (RFC 9113, 6.8)."""
        rest = b""
        while data:
            end = 9 + int.from_bytes(data[:3], "big")
            if data[3] == 7:
                self.is_told_to_go = True
            else:
                rest += data[:end]
            data = data[end:]
        return rest

    def answer(self, stream):
        status, fields, data = self.answers[stream]
        return int(fields.get(b"grpc-status", -1)) if status == b"200" else status, data


def framed(*messages, flag=0):
    return b"".join(bytes([flag]) + len(message).to_bytes(4, "big") + message for message in messages)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 9, 33, 1 << 20])
def test_bytes_may_come_in_any_pieces(size):
    client = Client(Service())
    asked = {client.ask(data=framed(body)): body for body in (b"", b"x", b"y" * 700, b"z" * 1000)}
    client.flow(size)
    assert {stream: client.answer(stream) for stream in asked} == {stream: (0, framed(body)) for stream, body in asked.items()}


def test_calls_take_turns_on_a_connection_and_what_is_answered_in_a_turn_is_one_write():
    service = Service()
    client = Client(service)
    streams = [client.ask(LATER, framed(b"%d" % number)) for number in range(20)]
    client.flow()
    for call, data in reversed(service.calls):
        call.reply(data)
    writes = []
    client.wire.write = writes.append
    service.loop.turn()
    assert len(writes) == 1
    client.wire.written = writes[0]
    client.read()
    assert [client.answer(stream) for stream in streams] == [(0, framed(b"%d" % number)) for number in range(20)]


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"path": b"/s/None"}, Code.UNIMPLEMENTED, "no method /s/None"),
        ({"path": BROKEN}, Code.INTERNAL, "ZeroDivisionError"),
        ({"data": b"\2" + framed(b"x")[1:]}, Code.INTERNAL, "a byte other than 0 or 1"),
        ({"data": framed(b"x" * 1001)}, Code.RESOURCE_EXHAUSTED, "1001 bytes is larger than 1000"),
        ({"data": framed(b"xyz")[:-1]}, Code.INTERNAL, "cut off"),
        ({"data": framed(b"xyz")[:3]}, Code.INTERNAL, "cut off"),
        ({"data": framed(b"x", b"y")}, Code.INTERNAL, "a second one came"),
        ({"data": None}, Code.INTERNAL, "none came"),
        ({"data": framed(b"x", flag=1)}, Code.INTERNAL, "does not say how"),
        ({"data": framed(b"no gzip", flag=1), "headers": [(b"grpc-encoding", b"gzip")]}, Code.INTERNAL, "damaged"),
        ({"data": framed(gzip.compress(b"x" * 1001), flag=1), "headers": [(b"grpc-encoding", b"gzip")]}, Code.RESOURCE_EXHAUSTED, "1000"),
        ({"data": framed(b"x", flag=1), "headers": [(b"grpc-encoding", b"zstd")]}, Code.UNIMPLEMENTED, "zstd"),
    ],
)
def test_refusals(change, status, words):
    client = Client(Service())
    stream = client.ask(**{"data": framed(b"x")} | change)
    good = client.ask(data=framed(b"good"))
    client.flow()
    assert client.answer(stream) == (status, b"")
    assert words in client.answers[stream][1][b"grpc-message"].decode()
    assert client.answer(good) == (0, framed(b"good"))


def test_a_message_in_words_of_any_alphabet_is_encoded_and_retry_after_goes_along():
    service = Service()
    client = Client(service)
    stream = client.ask(LATER, framed(b"x"))
    client.flow()
    service.calls[0][0].fail(Code.UNAVAILABLE, "100 % voll – später\n", {"retry-after": "1"})
    client.read()
    fields = client.answers[stream][1]
    assert fields[b"grpc-message"] == b"100 %25 voll %E2%80%93 sp%C3%A4ter%0A"
    assert fields[b"retry-after"] == b"1"


@pytest.mark.parametrize(("method", "kind", "status"), [(b"GET", b"application/grpc", b"405"), (b"POST", b"application/grpcx", b"415")])
def test_what_is_no_grpc_gets_a_status_of_http(method, kind, status):
    client = Client(Service())
    stream = client.ask(data=framed(b"x"), method=method, kind=kind)
    client.flow()
    assert client.answer(stream) == (status, b"this port speaks gRPC; for HTTP ask the other one\n")


@pytest.mark.parametrize("kind", [b"application/grpc", b"application/grpc+proto", b"application/grpc; charset=x"])
@pytest.mark.parametrize(("encoding", "pack"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
def test_compressed_messages(kind, encoding, pack):
    client = Client(Service())
    stream = client.ask(data=framed(pack(b"x" * 900), flag=1), headers=[(b"grpc-encoding", encoding)], kind=kind)
    assert client.flow().answer(stream) == (0, framed(b"x" * 900))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"1H", 3600.0),
        (b"2M", 120.0),
        (b"3S", 3.0),
        (b"250m", 0.25),
        (b"99999999u", 99.999999),
        (b"10n", 1e-8),
        (b"0m", 1e-9),
        (b"", 0.0),
        (b"5", 0.0),
        (b"m", 0.0),
        (b"-5m", 0.0),
        (b"123456789S", 0.0),
        (b"\xb2S", 0.0),
    ],
)
def test_deadlines(text, seconds):
    assert timeout_of(text) == pytest.approx(seconds)


def test_the_deadline_reaches_the_method():
    service = Service()
    client = Client(service)
    client.ask(LATER, framed(b"x"), headers=[(b"grpc-timeout", b"250m")])
    client.flow()
    assert service.calls[0][0].timeout == pytest.approx(0.25)


@pytest.mark.parametrize("leave", ["reset", "connection", "answered"])
@pytest.mark.parametrize("path", [LATER, STREAM])
def test_who_leaves_is_cancelled_once(path, leave):
    service = Service()
    client = Client(service)
    stream = client.ask(path, framed(b"x"), end=path == LATER)
    client.flow()
    if leave == "reset":
        client.h2.reset_stream(stream)
        client.flow()
    elif leave == "answered":
        (service.calls[0][0].reply(b"") if path == LATER else service.streams[0].call.finish())
        client.flow()
    client.connection.connection_lost(None)
    assert service.cancelled == (leave != "answered")
    assert not service.port.connections
    for call in [call for call, _ in service.calls] + [echoes.call for echoes in service.streams]:
        call.reply(b"too late")
        call.fail(Code.INTERNAL, "too late")
        call.finish()


def test_a_stream_of_messages():
    service = Service()
    client = Client(service)
    stream = client.ask(STREAM, framed(b"a", b"", b"b" * 1000) + framed(b"c")[:2], end=False)
    client.flow()
    client.h2.send_data(stream, framed(b"c")[2:], end_stream=True)
    client.flow()
    assert service.streams[0].got == [b"a", b"", b"b" * 1000, b"c"]
    assert client.answer(stream) == (0, framed(b"a", b"", b"b" * 1000, b"c"))
    assert service.streams[0].drains == 1  # the first time: behind the second came the end


def test_a_stream_that_is_held_fills_its_window_and_stops_no_other():
    service = Service()
    client = Client(service)
    stream = client.ask(STREAM, framed(b"first"), end=False)
    client.flow()
    service.streams[0].call.hold()
    sent = 0
    for _ in range(3000):
        room = client.h2.local_flow_control_window(stream)
        if room < 905:
            break
        client.h2.send_data(stream, framed(b"x" * 900))
        sent += 1
        client.flow()
    assert WINDOW_BYTES // 905 - 2 <= sent <= WINDOW_BYTES // 905
    other = client.ask(data=framed(b"y" * 900))
    assert client.flow().answer(other) == (0, framed(b"y" * 900))
    service.streams[0].call.release()
    client.flow()
    assert client.h2.local_flow_control_window(stream) > WINDOW_BYTES // 2


def test_a_large_answer_waits_for_room_in_the_window_of_the_client():
    service = Service(Limits(max_body_bytes=1 << 20))
    client = Client(service, window=1000).flow()
    stream, body = client.ask(data=framed(bytes(range(256)) * 400)), bytes(range(256)) * 400
    other = client.ask(LATER, framed(b"x"))
    client.flow()
    assert client.answer(stream) == (0, framed(body))
    service.calls[0][0].reply(b"y")
    client.read()
    assert client.answer(other) == (0, framed(b"y"))


def test_a_client_that_does_not_read_is_not_read_from_and_cut_off():
    service = Service()
    client = Client(service)
    client.flow()
    client.connection.pause_writing()
    assert client.wire.paused
    client.connection.resume_writing()
    assert not client.wire.paused
    client.connection.pause_writing()
    service.loop.now += 8
    service.port.check(service.loop.now)
    assert client.wire.aborted


@pytest.mark.parametrize(
    ("sent", "waits", "status"),
    [
        (b"", 8, Code.DEADLINE_EXCEEDED),  # a call without its message
        (framed(b"xyz")[:-1], 8, Code.DEADLINE_EXCEEDED),
        (framed(b"xyz")[:-1], 6, None),
    ],
)
def test_a_message_that_does_not_arrive(sent, waits, status):
    service = Service()
    client = Client(service)
    stream = client.ask(data=sent, end=False)
    client.flow()
    service.port.check(service.loop.now)
    service.loop.now += waits
    service.port.check(service.loop.now)
    client.flow()
    assert client.answer(stream)[0] == status


def test_a_message_that_arrives_drop_by_drop():
    service = Service()
    client = Client(service)
    stream = client.ask(data=framed(b"x" * 900)[:5], end=False)
    for _ in range(40):
        client.flow()
        service.port.check(service.loop.now)
        service.loop.now += 1
        if client.answer(stream)[0] == Code.DEADLINE_EXCEEDED:
            break
        client.h2.send_data(stream, b"x")
    assert client.answer(stream)[0] == Code.DEADLINE_EXCEEDED
    assert service.loop.now - 100 == pytest.approx(LIMITS.message_seconds, abs=3)


def test_a_stream_may_be_silent_but_not_in_the_middle_of_a_message():
    service = Service()
    client = Client(service)
    silent, half = client.ask(STREAM, end=False), client.ask(STREAM, framed(b"abc")[:-1], end=False)
    client.flow()
    service.look(seconds=20)
    client.flow()
    assert list(client.resets) == [half]
    client.h2.send_data(silent, framed(b"x"), end_stream=True)
    assert client.flow().answer(silent) == (0, framed(b"x"))


def test_an_answer_that_nobody_makes_room_for():
    service = Service()
    client = Client(service, window=10).flow()
    stream = client.ask(data=framed(b"x" * 100))
    client.h2.acknowledge_received_data = lambda *_: None
    client.flow()
    service.look(seconds=10)
    client.flow()
    assert list(client.resets) == [stream]


def test_idle_connections_are_told_and_closed_and_those_that_say_nothing_sooner():
    service = Service()
    client, silent, busy = Client(service), Client(service), Client(service)
    client.flow()
    busy.ask(LATER, framed(b"x"))
    busy.flow()
    service.loop.now += 6
    service.port.check(service.loop.now)
    assert (client.wire.closed, silent.wire.closed) == (False, True)
    service.loop.now += 20
    service.port.check(service.loop.now)
    client.read()
    assert client.is_told_to_go
    assert not client.wire.closed
    service.port.check(service.loop.now + 1)
    assert client.wire.closed
    assert not busy.wire.closed


def test_one_client_too_many():
    service = Service()
    clients = [Client(service) for _ in range(4)]
    assert [client.wire.aborted for client in clients] == [False, False, False, True]


def test_who_makes_more_calls_at_a_time_than_it_was_told_is_sent_away():
    service = Service()
    client = Client(service).flow()
    client.h2.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 1 << 20
    client.h2.remote_settings.acknowledge()
    for _ in range(MAX_CALLS + 1):
        client.ask(LATER, framed(b"x"))
    client.flow()
    assert len(service.calls) == MAX_CALLS
    assert client.is_told_to_go
    for call, _ in service.calls:
        call.reply(b"y")
    client.read()
    assert client.wire.closed


def test_headers_that_are_too_large_cost_their_call_only():
    client = Client(Service())
    client.flow()
    client.h2.remote_settings[h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE] = 1 << 30
    large = client.ask(data=framed(b"x"), headers=[(b"x-%d" % number, b"y" * 2000) for number in range(40)])
    try:
        client.flow()
    except h2.exceptions.StreamClosedError:
        client.flow()
    assert large in client.resets
    good = client.ask(data=framed(b"good"))
    assert client.flow().answer(good) == (0, framed(b"good"))


def test_all_that_arrives_together_is_bounded():
    service = Service(Limits(max_body_bytes=100_000, max_incoming_bytes=100_000))
    room = service.port.room
    clients = [Client(service).flow() for _ in range(2)]
    message = framed(b"x" * 60_000)
    streams = [client.ask(data=message[:40_005], end=False) for client in clients]
    for client in clients:
        client.flow()
    assert room.taken == 80_000
    late = clients[1].ask(data=message[:40_005], end=False)
    assert clients[1].flow().answer(late)[0] == Code.UNAVAILABLE
    assert room.taken == 80_000
    for client, stream in zip(clients, streams, strict=True):  # the first has room now that the late one has gone
        client.h2.send_data(stream, message[40_005:], end_stream=True)
        assert client.flow().answer(stream) == (0, message)
    assert room.taken == 0
    for leave in (lambda client, stream: client.h2.reset_stream(stream), lambda client, _: client.connection.connection_lost(None)):
        stream = clients[0].ask(data=message[:40_005], end=False)
        clients[0].flow()
        assert room.taken == 40_000
        leave(clients[0], stream)
        clients[0].flow()
        assert room.taken == 0


def test_whatever_comes_nothing_is_raised_and_the_next_client_is_served():
    service = Service(Limits(max_body_bytes=1000))
    client = Client(service)
    for path in (ECHO, STREAM, LATER):
        client.ask(path, framed(b"abc", b"d" * 50), end=path != STREAM)
    conversation = client.h2.data_to_send()
    for seed in range(3000):
        random_ = random.Random(seed)
        data = bytearray(conversation)
        for _ in range(random_.randint(1, 5)):
            position = random_.randrange(len(data))
            if random_.random() < 0.6:
                data[position] = random_.randrange(256)
            else:
                data[position : position + random_.randrange(9)] = random_.randbytes(random_.randrange(9))
        connection, wire = service.port.connection(), Socket()
        connection.connection_made(wire)
        start = random_.randrange(len(data))
        for piece in (data[:start], data[start:]):
            if not wire.closed:
                connection.data_received(bytes(piece))
        service.loop.turn()
        connection.connection_lost(None)
    good = Client(service)
    stream = good.ask(data=framed(b"good"))
    assert good.flow().answer(stream) == (0, framed(b"good"))
    assert len(service.port.connections) == 2


async def test_leaving_answers_what_is_under_way_and_takes_no_more():
    service = Service()
    loop = asyncio.get_running_loop()
    service.port.loop = loop
    busy, idle = Client(service), Client(service)
    for client in (busy, idle):
        client.flow()
    stream = busy.ask(LATER, framed(b"x"))
    busy.flow()
    drained = loop.create_task(service.port.drain(loop.time() + 60))
    await asyncio.sleep(0.1)
    fresh = busy.ask(LATER, framed(b"y"))
    busy.flow()
    await asyncio.sleep(1.1)
    assert idle.wire.closed
    assert not busy.wire.closed
    for call, data in service.calls:
        call.reply(data)
    await asyncio.sleep(0.05)
    busy.read()
    assert [busy.answer(stream), busy.answer(fresh)] == [(0, framed(b"x")), (0, framed(b"y"))]
    assert busy.is_told_to_go
    assert busy.wire.closed
    for client in (busy, idle):
        client.connection.connection_lost(None)
    await asyncio.wait_for(drained, 30)
