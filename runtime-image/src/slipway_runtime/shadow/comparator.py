"""The queue of copies and the threads that ask both revisions. What was copied is answered before it is even looked at, and a full queue
drops: nothing that happens here can be felt by a user, except that stable is asked at most `WORKERS` requests at a time more.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from itertools import count
from urllib.parse import urlsplit

from slipway_runtime.shadow.compare import NO_ANSWER, Answer, Finding, Result, compare
from slipway_runtime.shadow.metrics import ShadowMetrics

log = logging.getLogger(__name__)

WORKERS = 4
MAX_WAITING = 256
MAX_WAITING_BYTES = 64 << 20
MAX_ANSWER = 32 << 20
TIMEOUT = 10.0
LOGGED_EVERY = 10.0  # seconds between two lines about answers that differ
JSON_LENGTH = "inference-header-content-length"


@dataclass(frozen=True, slots=True)
class Copied:
    """One request to be asked again: path, body, its type, length of its JSON part when tensors follow, and where it came from."""

    path: str
    body: bytes
    content_type: str = "application/json"
    json_bytes: int | None = None
    source: str = "mirrored"

    def headers(self) -> dict[str, str]:
        """Return its headers, with the one by which the servers count it apart from users' requests."""
        length = {} if self.json_bytes is None else {JSON_LENGTH: str(self.json_bytes)}
        return {"content-type": self.content_type or "application/json", "x-slipway-probe": "shadow", **length}


class Side:
    """One revision; a connection of its own for each thread."""

    def __init__(self, base: str) -> None:
        """`base` is http://host:port."""
        place = urlsplit(base)
        self._connection = HTTPConnection(place.hostname or "", place.port or 80, timeout=TIMEOUT)
        self._is_open = False

    def ask(self, copied: Copied) -> Answer:
        """Ask once; on a connection that was kept and is found closed, once more."""
        for is_last in (not self._is_open, True):
            started = time.perf_counter()
            try:
                return self._ask(copied, started)
            except (OSError, HTTPException) as error:
                self._connection.close()
                self._is_open = False
                if is_last or isinstance(error, TimeoutError):
                    break
        return Answer(NO_ANSWER)

    def _ask(self, copied: Copied, started: float) -> Answer:
        self._connection.request("POST", copied.path, copied.body, copied.headers())
        response = self._connection.getresponse()
        body = response.read(MAX_ANSWER + 1)
        seconds = time.perf_counter() - started
        if len(body) > MAX_ANSWER:
            self._connection.close()
            return Answer(NO_ANSWER)
        self._is_open = not response.will_close
        length = response.getheader(JSON_LENGTH)
        return Answer(response.status, body, int(length) if length and length.isdigit() else None, seconds)


@dataclass(slots=True)
class Comparator:
    """Takes copies, asks both sides, counts.

    Attributes:
        stable, canary: base URLs.
        metrics: gets every finding.
        percent: share of the copies that is compared.
    """

    stable: str
    canary: str
    metrics: ShadowMetrics
    percent: int = 100
    _waiting: queue.Queue[Copied | None] = field(default_factory=lambda: queue.Queue(MAX_WAITING))
    _bytes: int = 0
    _seen: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)
    _turns: count[int] = field(default_factory=count)
    _logged: float = 0.0

    def start(self) -> None:
        """Start the threads."""
        self._threads = [threading.Thread(target=self._work, name=f"compare-{n}", daemon=True) for n in range(WORKERS)]
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float) -> None:
        """Let the threads end what they are at; what still waits is dropped."""
        while not self._waiting.empty():
            self._take()
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join(seconds)

    def waiting(self) -> int:
        """Return how many copies wait."""
        return self._waiting.qsize()

    def offer(self, copied: Copied) -> bool:
        """Take a copy, if it is within the wanted share and there is room; never waits."""
        if copied.source == "mirrored" and not self._is_wanted():
            self.metrics.leave_out()
            return False
        with self._lock:
            has_room = self._bytes + len(copied.body) <= MAX_WAITING_BYTES
            self._bytes += len(copied.body) if has_room else 0
        if has_room:
            try:
                self._waiting.put_nowait(copied)
            except queue.Full:
                self._give_back(copied)
            else:
                return True
        self.metrics.drop()
        return False

    def _is_wanted(self) -> bool:
        """Take every n-th evenly, so that a share is a share of any stretch of time."""
        self._seen += 1
        return self._seen * self.percent // 100 > (self._seen - 1) * self.percent // 100

    def _give_back(self, copied: Copied) -> None:
        with self._lock:
            self._bytes -= len(copied.body)

    def _take(self) -> Copied | None:
        try:
            copied = self._waiting.get_nowait()
        except queue.Empty:
            return None
        if copied is not None:
            self._give_back(copied)
        return copied

    def _work(self) -> None:
        stable, canary = Side(self.stable), Side(self.canary)
        while True:
            copied = self._waiting.get()
            if copied is None:
                return
            try:
                self._compare(copied, stable, canary)
            except Exception:  # one comparison must not end the thread
                log.exception("a comparison failed")
            finally:
                self._give_back(copied)

    def _compare(self, copied: Copied, stable: Side, canary: Side) -> None:
        # Who is asked second finds warm caches, so they take turns.
        if next(self._turns) % 2:
            second = canary.ask(copied)
            first = stable.ask(copied)
        else:
            first, second = stable.ask(copied), canary.ask(copied)
        finding = compare(first, second)
        self.metrics.add(copied.source, finding)
        if finding.result in (Result.DIFFERED, Result.FAILED):
            self._tell(copied, finding)

    def _tell(self, copied: Copied, finding: Finding) -> None:
        """Log what differs now and then; the inputs are users' data and are not told."""
        if time.monotonic() - self._logged > LOGGED_EVERY:
            self._logged = time.monotonic()
            log.warning("%s %s: %s", copied.path, finding.result, finding.why)
