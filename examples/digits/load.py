"""Load on an HTTP server over keep-alive connections, and an honest count of what came back.

    python load.py URL --body FILE [--connections 16] [--seconds 60] ...

Standard library only: it runs as it is in a pod of the runtime image. A request that does not end in a whole answer with status 200 is
failed and never repeated. A server that announces `Connection: close` gets a new connection for the next request, as HTTP says; a
connection that breaks without that announcement fails its request.
The last line of the output is one JSON object (see `Counts.report`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

TIMEOUT = 30.0  # seconds for one answer
MAX_ERRORS = 20
REVISION = "x-slipway-revision"


@dataclass(frozen=True)
class Load:
    """What is sent.

    Attributes:
        url: http:// only.
        body: of each POST.
        content_type: of the body.
        connections: that ask at the same time.
        seconds: how long at least.
        requests: how many at least, also after SIGTERM.
        pause: seconds that a connection waits between two requests.
        settle: seconds to go on after a second revision has answered; 0 does not wait for one.
        limit: seconds after which it ends in any case.

    SIGTERM stands for the end of `seconds` and `settle`; requests under way are answered.
    """

    url: str
    body: bytes
    content_type: str = "application/json"
    connections: int = 16
    seconds: float = 60.0
    requests: int = 0
    pause: float = 0.05
    settle: float = 0.0
    limit: float = 300.0


@dataclass
class Counts:
    """What came back."""

    begin: float = field(default_factory=time.monotonic)
    started_at: float = field(default_factory=time.time)
    requests: int = 0
    failed: int = 0
    connections: int = 0
    changed_at: float | None = None
    is_stopped: bool = False
    statuses: Counter[str] = field(default_factory=Counter)
    revisions: Counter[str] = field(default_factory=Counter)
    timeline: dict[int, Counter[str]] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)
    by_second: dict[tuple[int, str], list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.begin

    def add(self, status: str, revision: str, latency: float, error: str = "") -> None:
        """Count one request."""
        self.requests += 1
        self.statuses[status] += 1
        moment = int(self.elapsed)
        second = self.timeline.setdefault(moment, Counter())
        if error:
            self.failed += 1
            second["failed"] += 1
            if len(self.errors) < MAX_ERRORS:
                self.errors.append(f"{self.elapsed:.2f}s {error}")
            return
        self.latencies.append(latency)
        self.by_second.setdefault((moment, revision), []).append(latency)
        self.revisions[revision] += 1
        second[revision] += 1
        if len(self.revisions) > 1 and self.changed_at is None:
            self.changed_at = self.elapsed

    def report(self) -> dict[str, object]:
        """Return the counts; `timeline` maps a second to what answered in it, `p99_ms` to how long the slowest of it took."""
        slowest: dict[str, dict[str, float]] = {}
        for (second, revision), latencies in sorted(self.by_second.items()):
            slowest.setdefault(str(second), {})[revision] = _percentile_ms(latencies, 99)
        return {
            "started_at": round(self.started_at, 3),
            "requests": self.requests,
            "failed": self.failed,
            "connections_opened": self.connections,
            "statuses": dict(self.statuses),
            "revisions": dict(self.revisions),
            "seconds": round(self.elapsed, 1),
            "latency_ms": {f"p{p}": _percentile_ms(self.latencies, p) for p in (50, 99)},
            "errors": self.errors,
            "timeline": {str(second): dict(counts) for second, counts in sorted(self.timeline.items())},
            "p99_ms": slowest,
        }


def _percentile_ms(latencies: list[float], percent: int) -> float:
    ordered = sorted(latencies) or [0.0]
    return round(1000 * ordered[min(len(ordered) * percent // 100, len(ordered) - 1)], 1)


def is_over(load: Load, counts: Counts) -> bool:
    """Say whether a connection may stop."""
    if counts.elapsed >= load.limit:
        return True
    if counts.requests < load.requests:
        return False
    is_settled = not load.settle or (counts.changed_at is not None and counts.elapsed >= counts.changed_at + load.settle)
    return counts.is_stopped or (counts.elapsed >= load.seconds and is_settled)


class Connection:
    """One keep-alive connection."""

    def __init__(self, load: Load, counts: Counts) -> None:
        self._counts = counts
        parts = urlsplit(load.url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        head = [
            f"POST {parts.path or '/'} HTTP/1.1",
            f"Host: {parts.netloc}",
            f"Content-Type: {load.content_type}",
            f"Content-Length: {len(load.body)}",
        ]
        self._request = "\r\n".join([*head, "", ""]).encode() + load.body
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> tuple[int, str]:
        """Send one request and read the whole answer; returns status and revision."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
            self._counts.connections += 1
        reader, writer = self._streams
        writer.write(self._request)
        await writer.drain()
        status, headers = await _head(reader)
        await _body(reader, headers)
        if headers.get("connection", "").lower() == "close":
            await self.close()
        return status, headers.get(REVISION, "none")

    async def close(self) -> None:
        """Close it; the next request opens another."""
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].close()
            try:
                await streams[1].wait_closed()
            except OSError:
                return


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines[1:] if line)}
    return int(lines[0].split(" ", 2)[1]), headers


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers["content-length"]))
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
    return body


async def _work(load: Load, counts: Counts) -> None:
    connection = Connection(load, counts)
    while not is_over(load, counts):
        begin = time.monotonic()
        try:
            status, revision = await asyncio.wait_for(connection.ask(), TIMEOUT)
        except (OSError, ValueError, KeyError, IndexError, EOFError, asyncio.LimitOverrunError) as error:  # TimeoutError is an OSError
            counts.add("error", "", 0.0, f"{type(error).__name__}: {error}")
            await connection.close()
        else:
            counts.add(str(status), revision, time.monotonic() - begin, "" if status == 200 else f"HTTP {status} from {revision}")
        await asyncio.sleep(load.pause)
    await connection.close()


async def run(load: Load) -> Counts:
    """Send the load and return the counts."""
    counts = Counts()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, setattr, counts, "is_stopped", True)
    await asyncio.gather(*(_work(load, counts) for _ in range(load.connections)))
    return counts


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Load over keep-alive connections")
    parser.add_argument("url")
    parser.add_argument("--body", type=Path, required=True)
    parser.add_argument("--content-type", default=Load.content_type)
    parser.add_argument("--connections", type=int, default=Load.connections)
    parser.add_argument("--requests", type=int, default=Load.requests)
    for name in ("seconds", "pause", "settle", "limit"):
        parser.add_argument(f"--{name}", type=float, default=getattr(Load, name))
    values = vars(parser.parse_args())
    load = Load(**{**values, "body": values["body"].read_bytes()})
    print("started", flush=True)
    print(json.dumps(asyncio.run(run(load)).report()), flush=True)


if __name__ == "__main__":
    main()
