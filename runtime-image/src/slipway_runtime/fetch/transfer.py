"""Downloads that survive broken connections: what was written stays, the next connection goes on behind it. Knows no protocol."""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from slipway_runtime.oci import RETRY_DELAYS
from slipway_runtime.reasons import Failure

log = logging.getLogger("slipway")

PROGRESS_SECONDS = 5.0
_MEBI = 1 << 20


class Broken(Exception):
    """A connection that ended early, or a server that is busy: going on may help."""


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class Progress:
    """Says every few seconds how far a source of one or many files has come: percent, MiB, MiB/s.

    Args:
        what: the source, for the log; holds no credentials.
        total: bytes of all files, or None when the server does not say.
        clock: seconds; tests pass their own.
    """

    def __init__(self, what: str, total: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.what = what
        self.total = total
        self._clock = clock
        self._done = 0
        self._start = self._said = clock()

    def add(self, size: int) -> None:
        """Count bytes, negative ones when a file starts over."""
        self._done += size
        if self._clock() - self._said >= PROGRESS_SECONDS:
            self._said = self._clock()
            log.info("%s", self.line())

    def line(self) -> str:
        """Return how far it is."""
        speed = self._done / _MEBI / max(self._clock() - self._start, 1e-3)
        done = f"{self._done / _MEBI:.1f}"
        if not self.total:
            return f"{self.what}: {done} MiB, {speed:.1f} MiB/s"
        return f"{self.what}: {100 * self._done // self.total} % of {self.total / _MEBI:.1f} MiB, {speed:.1f} MiB/s"


class Transfer:
    """One file that may take several connections; its sha256 runs over the bytes as they are written.

    Attributes:
        size: bytes written so far; the next connection asks for what comes after them.
        version: what the server calls the version (ETag), so that two versions are never mixed.
    """

    def __init__(self, path: Path, limit: int, progress: Progress) -> None:
        self.path = path
        self.size = 0
        self.version: str | None = None
        self._limit = limit
        self._progress = progress
        self._digest: _Hash = hashlib.sha256()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")

    @property
    def sha256(self) -> str:
        """Of what is written, in hex."""
        return self._digest.hexdigest()

    def restart(self) -> None:
        """Forget what was written: the file is another one now, or its server cannot send parts."""
        self._progress.add(-self.size)
        self.size = 0
        self.version = None
        self._digest = hashlib.sha256()
        self.path.write_bytes(b"")

    def expect(self, total: int) -> None:
        """Refuse a file that is too large before it is downloaded.

        Raises:
            Failure: SourceTooLarge.
        """
        if total > self._limit:
            raise Failure("SourceTooLarge", f"the source has {total} bytes, more than {self._limit}")
        if self._progress.total is None:
            self._progress.total = total

    def append(self, chunk: bytes) -> None:
        """Write and hash bytes; raises Failure SourceTooLarge when the server sends more than it may."""
        self.size += len(chunk)
        if self.size > self._limit:
            raise Failure("SourceTooLarge", f"the source has more than {self._limit} bytes")
        self._digest.update(chunk)
        with self.path.open("ab") as file:
            file.write(chunk)
        self._progress.add(len(chunk))


def completed(transfer: Transfer, connect: Callable[[Transfer], None], shown: str) -> Transfer:
    """Connect until the file is complete; as long as bytes come, go on.

    Args:
        transfer: the file.
        connect: makes one connection and appends to the transfer; returns when the file is complete, else raises Broken.
        shown: the file's address without credentials, for messages.

    Raises:
        Failure: SourceUnreachable after several connections without a byte, or what `connect` raises.
    """
    attempt = 0
    while True:
        before = transfer.size
        try:
            connect(transfer)
        except Broken as error:
            attempt = 0 if transfer.size > before else attempt
            if attempt >= len(RETRY_DELAYS):
                raise Failure("SourceUnreachable", f"{shown}: {error}") from error
            log.info("%s: %s; going on from byte %d", shown, error, transfer.size)
            time.sleep(RETRY_DELAYS[attempt] * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            attempt += 1
        else:
            return transfer
