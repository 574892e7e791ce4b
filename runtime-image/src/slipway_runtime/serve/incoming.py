"""Requests that are still arriving: how many bytes of them there may be together, and how large bodies are read.

The kernel writes a large body where it stays: no copy, where pieces would be copied twice. On a pod with CPUs to spare a thread
does that, because copying gigabytes a second out of sockets takes an event loop all of its time (docs/benchmarks/gpu.md).
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

import numpy as np

from slipway_runtime.serve.messages import Head, HttpError

LARGE_BODY_BYTES = 128 * 1024
# A thread is worth its hand-over when so much is still to come from a client that sends at full speed, so much at a time: bodies of
# 4.8 MB gain half, those of 1.2 MB lose a sixth.
ASIDE_BYTES, FULL_SPEED_BYTES = 2 * 1024 * 1024, 64 * 1024
# A client that sends a byte now and then must not keep a thread.
PATIENCE_MS, MAX_WAITS = 2, 64


class Room:
    """The bytes of all requests that have come in part, of all clients together.

    A body that is announced takes no memory before it comes, so what counts is what has come.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0

    def is_full(self) -> bool:
        """Whether whoever sends more of a request is to be refused."""
        return self.taken > self.limit

    def refusal(self) -> HttpError:
        """Ask to come again."""
        return HttpError(503, f"requests that are still arriving hold more than {self.limit} bytes; try again", retry_after="1")


class Readers:
    """Threads that read large bodies."""

    def __init__(self, count: int, loop: asyncio.AbstractEventLoop) -> None:
        """Make `count` of them, which begin when they are first needed."""
        self._loop = loop
        self._threads = ThreadPoolExecutor(count, "body")

    def read(self, connection: socket.socket, target: memoryview, done: Callable[[int, bool], None]) -> None:
        """Read what comes at full speed; on the loop `done` gets how many bytes that were, and whether no more will come."""
        # The duplicate is this thread's own: the loop may close the connection, and its number may be given to another.
        future = self._threads.submit(_read, os.dup(connection.fileno()), target)
        future.add_done_callback(lambda future: self._tell(future, done))

    def _tell(self, future: Future[tuple[int, bool]], done: Callable[[int, bool], None]) -> None:
        with suppress(RuntimeError):  # the loop has closed, and with it the connection
            self._loop.call_soon_threadsafe(done, *future.result())

    def close(self) -> None:
        """Take no more; what is being read ends soon."""
        self._threads.shutdown(wait=False)


def _read(descriptor: int, target: memoryview) -> tuple[int, bool]:
    """Fill `target` until nothing comes for a moment; returns the bytes, and whether the other side has ended."""
    filled = waits = 0
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    try:
        while filled < len(target):
            try:
                count = os.readv(descriptor, [target[filled:]])
            except BlockingIOError:
                waits += 1
                if waits > MAX_WAITS or not poller.poll(PATIENCE_MS):
                    break
                continue
            if not count:
                return filled, True
            filled += count
    except OSError:
        return filled, True
    finally:
        os.close(descriptor)
    return filled, False


class Owner(Protocol):
    """The connection that lends its transport to a large body."""

    lost: bool

    def take_part(self, count: int) -> bool:
        """More has come; says whether it is of any use still."""

    def take_large(self, head: Head, body: memoryview) -> None:
        """The body is complete."""

    def read_aside(self, target: memoryview, done: Callable[[int, bool], None]) -> None:
        """Let a thread read, if there is one, and the loop no more until `done`."""

    def read_on(self, *, has_ended: bool) -> None:
        """The thread is through: the loop reads again, or the client has gone."""

    def eof_received(self) -> bool:
        """As of asyncio.Protocol, and so are the others."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        ...

    def pause_writing(self) -> None:  # noqa: D102
        ...

    def resume_writing(self) -> None:  # noqa: D102
        ...


class LargeBody(asyncio.BufferedProtocol):
    """Has the transport while a large body arrives."""

    def __init__(self, owner: Owner, head: Head) -> None:
        """Make it, for the body of that head."""
        self._owner, self._head = owner, head
        self._buffer, self._filled = np.empty(head.body_bytes, np.uint8).data, 0  # pages that are never written take no memory
        self.eof_received = owner.eof_received  # type: ignore[method-assign]
        self.connection_lost = owner.connection_lost  # type: ignore[method-assign]
        self.pause_writing = owner.pause_writing  # type: ignore[method-assign]
        self.resume_writing = owner.resume_writing  # type: ignore[method-assign]

    def begin(self, data: bytes) -> None:
        """Take what has come with the head."""
        self._buffer[: len(data)] = data
        self.buffer_updated(len(data))

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._buffer[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """So many have come."""
        if self._take(nbytes) and nbytes >= FULL_SPEED_BYTES and len(self._buffer) - self._filled >= ASIDE_BYTES:
            self._owner.read_aside(self._buffer[self._filled :], self._read)

    def _read(self, nbytes: int, has_ended: bool) -> None:
        """A thread has read so many."""
        if not self._owner.lost:
            self._take(nbytes)
            self._owner.read_on(has_ended=has_ended)

    def _take(self, nbytes: int) -> bool:
        """Count what has come; says whether more is wanted."""
        self._filled += nbytes
        if not self._owner.take_part(nbytes):  # a request that was refused: its rest is read and dropped
            self._buffer, self._filled = memoryview(bytearray(FULL_SPEED_BYTES)), 0
        elif self._filled == len(self._buffer):
            self._owner.take_large(self._head, self._buffer)
        else:
            return True
        return False
