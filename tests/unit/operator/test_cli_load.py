"""The load generator of the demo counts honestly: announced closes are no failures, broken connections and bad statuses are."""

from __future__ import annotations

import asyncio

import pytest
from examples.digits.load import Load, run

ANSWER = b"HTTP/1.1 %s\r\nx-slipway-revision: %s\r\n%scontent-length: 2\r\n\r\nok"
CLOSE = b"connection: close\r\n"


async def counts_of(answers, **options):
    """Serve the answers in turn (the last one for ever; None breaks the connection) and return what the load counted."""
    left = list(answers)

    async def serve(reader, writer):
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            answer = left.pop(0) if len(left) > 1 else left[0]
            writer.write(answer or b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
            await writer.drain()
            if answer is None or CLOSE in answer:
                break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    values = {"connections": 1, "seconds": 0.15, "pause": 0.005, "limit": 5.0, **options}
    try:
        return await run(Load(f"http://127.0.0.1:{port}/x", b"body", **values))
    finally:
        server.close()


OK = ANSWER % (b"200 OK", b"r1", b"")
CHUNKED = b"HTTP/1.1 200 OK\r\nx-slipway-revision: r2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
CASES = [
    ("good", [OK], 0, {"r1"}),
    ("announced close", [ANSWER % (b"200 OK", b"r1", CLOSE), OK], 0, {"r1"}),
    ("broken", [None, OK], 1, {"r1"}),
    ("status", [ANSWER % (b"503 Busy", b"r1", b""), OK], 1, {"r1"}),
    (
        "chunked",
        [CHUNKED, OK],
        0,
        {"r1", "r2"},
    ),
]


@pytest.mark.parametrize(("answers", "failed", "revisions"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
async def test_counts(answers, failed, revisions):
    counts = await counts_of(answers, seconds=0.0, requests=5)
    assert counts.failed == failed, counts.errors
    assert set(counts.revisions) == revisions
    assert counts.requests == 5
    assert sum(counts.statuses.values()) == counts.requests
    assert sum(sum(row.values()) for row in counts.timeline.values()) == counts.requests
    assert counts.report()["failed"] == failed


async def test_nobody_listens():
    counts = await run(Load("http://127.0.0.1:1/x", b"", connections=2, seconds=0.05, pause=0.01))
    assert counts.requests == counts.failed > 0


async def test_it_goes_on_until_a_second_revision_has_answered_for_a_while():
    counts = await counts_of([*[OK] * 40, ANSWER % (b"200 OK", b"r2", b"")], seconds=0.01, settle=0.1)
    assert counts.revisions["r1"] == 40
    assert counts.changed_at is not None
    assert counts.elapsed >= counts.changed_at + 0.1
