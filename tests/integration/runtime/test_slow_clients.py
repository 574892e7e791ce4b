"""Clients that are slow on purpose: each kind is cut off in the time that is stated for it, while others are served."""

from __future__ import annotations

import json
import select
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from integration.runtime.conftest import Running
from integration.runtime.test_protocol import INFER, body_of, post
from unit.runtime.serve.artifacts import mlp_draft

HEADER, BODY, IDLE, TICK = 1.0, 2.0, 3.0, 1.0  # seconds; the server looks at its connections once a second
SLACK = 4.0  # of a busy machine
CLIENTS = 50


@pytest.fixture
def server(start):
    options = ("--header-seconds", str(HEADER), "--body-seconds", str(BODY), "--idle-seconds", str(IDLE))
    return start(mlp_draft(), *options).wait_ready()


def connected(server: Running, receive: int = 0) -> socket.socket:
    client = socket.socket()
    if receive:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    client.connect(("127.0.0.1", server.port))
    return client


def sockets_of(server: Running) -> int:
    """Sockets that the server has open."""
    rows = 0
    for descriptor in Path(f"/proc/{server.process.pid}/fd").iterdir():
        try:
            rows += str(descriptor.readlink()).startswith("socket:")
        except OSError:  # gone meanwhile
            continue
    return rows


def are_gone(server: Running, before: int, seconds: float = SLACK) -> bool:
    """Whether the sockets of all but one client, the good one, are closed in time."""
    deadline = time.monotonic() + seconds
    while sockets_of(server) > before + 1 and time.monotonic() < deadline:
        time.sleep(0.2)
    return sockets_of(server) <= before + 1


@contextmanager
def good_traffic(server: Running) -> Iterator[list[float]]:
    """A client that asks all the time; the seconds of its answers, each of which must be right."""
    seconds: list[float] = []
    failed: list[object] = []
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            start = time.monotonic()
            try:
                status = server.infer("m", [[1.0] * 64]).status
            except OSError as error:
                failed.append(error)
            else:
                seconds.append(time.monotonic() - start)
                failed.extend([status] if status != 200 else [])
            time.sleep(0.02)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield seconds
    finally:
        is_over.set()
        thread.join()
    assert failed == []


def big() -> bytes:
    """A request whose answer does not fit into the buffers of the kernel."""
    rows = 40_000
    head = json.dumps({"inputs": [{"name": "x", "shape": [rows, 64], "datatype": "FP32", "parameters": {"binary_data_size": rows * 256}}]})
    return post(head.encode() + np.ones((rows, 64), np.float32).tobytes(), f"Inference-Header-Content-Length: {len(head)}")


BODY_IN_PART = post(body_of(1.0))[:-10]
KINDS: dict[str, tuple[bytes, bytes, float, bytes]] = {
    # what comes first, what comes every quarter of a second, seconds until it must be over, what the client is told
    "nothing": (b"", b"", HEADER, b""),
    "empty lines": (b"", b"\r\n", HEADER, b""),
    "a head that grows": (b"GET /v2 HTTP/1.1\r\n", b"x: y\r\n", HEADER, b"408"),
    "half a head": (b"GET /v2 HTT", b"", HEADER, b"408"),
    "a body that stops": (BODY_IN_PART, b"", BODY, b"408"),
    "chunks that stop": (f"POST {INFER} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab".encode(), b"", BODY, b"408"),
    "nothing after an answer": (b"GET /v2 HTTP/1.1\r\nHost: h\r\n\r\n", b"", IDLE, b"200"),
    "empty lines after an answer": (b"GET /v2 HTTP/1.1\r\nHost: h\r\n\r\n", b"\r\n", IDLE, b"200"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_slow_senders(server, kind):
    first, every, seconds, told = KINDS[kind]
    before = sockets_of(server)
    clients = [connected(server) for _ in range(CLIENTS)]
    start, received, open_ones = time.monotonic(), {client: b"" for client in clients}, set(clients)
    with good_traffic(server) as took:
        for client in clients:
            client.sendall(first)
        while open_ones and time.monotonic() - start < seconds + 2 * TICK + SLACK + 2:  # after a refusal it reads on for 2 s
            for client in select.select(list(open_ones), [], [], 0.25)[0]:
                try:
                    data = client.recv(65536)
                except ConnectionResetError:
                    data = b""
                received[client] += data
                if not data:
                    open_ones.discard(client)
            for client in open_ones if every else ():
                try:
                    client.sendall(every)
                except OSError:  # it was cut off just now
                    continue
        assert not open_ones, f"{len(open_ones)} of {CLIENTS} were not cut off"
        assert time.monotonic() - start > seconds - 0.1, "cut off before its time"
    assert all(told in text for text in received.values())
    assert statistics.median(took) < 0.5
    for client in clients:
        client.close()
    assert are_gone(server, before)


def reads_nothing(client: socket.socket) -> None:
    client.sendall(big())


def reads_nothing_and_closes_its_side(client: socket.socket) -> None:
    client.sendall(big())
    client.shutdown(socket.SHUT_WR)


def reads_nothing_of_its_last_answer(client: socket.socket) -> None:
    client.sendall(big().replace(b"Host: h", b"Host: h\r\nConnection: close", 1))


@pytest.mark.parametrize("ask", [reads_nothing, reads_nothing_and_closes_its_side, reads_nothing_of_its_last_answer])
def test_clients_that_do_not_read(server, ask: Callable[[socket.socket], None]):
    before = sockets_of(server)
    clients = [connected(server, receive=4096) for _ in range(4)]
    with good_traffic(server) as took:
        for client in clients:
            ask(client)
        if ask is not reads_nothing_and_closes_its_side:  # who has gone may be forgotten before anybody looks
            assert sockets_of(server) >= before + len(clients) - 1
        assert are_gone(server, before, BODY + 2 * TICK + 2 * SLACK)
    assert statistics.median(took) < 0.5
    for client in clients:
        client.close()


def test_a_client_that_reads_slowly_gets_all(server):
    with closing(connected(server, receive=4096)) as client:
        client.sendall(big())
        received, start = b"", time.monotonic()
        head = b""
        while b"\r\n\r\n" not in received:
            received += client.recv(65536)
        head, _, rest = received.partition(b"\r\n\r\n")
        length = int(next(line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")))
        while len(rest) < length:
            rest += client.recv(1 << 20)
            if time.monotonic() - start < BODY - 1:
                time.sleep(0.05)
        assert len(rest) == length


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (post(body_of(1.0)), b"HTTP/1.1 200"),  # all is said: it is answered
        (b"GET /v2 HTTP/1.1\r\nHos", b""),
        (BODY_IN_PART, b""),
        (post(body_of(1.0)) + BODY_IN_PART, b"HTTP/1.1 200"),
    ],
    ids=["after the request", "within a head", "within a body", "within the second"],
)
def test_half_closed_sockets_are_closed_at_once(server, data, answer):
    start = time.monotonic()
    received = server.raw(data, end=True)
    if not received and not server.is_inline:
        answer = b""  # who leaves while its request is in a lane, as on a busy machine, goes without
    assert received.startswith(answer)
    assert received.count(b"HTTP/1.1") == bool(answer)
    assert time.monotonic() - start < HEADER + SLACK
