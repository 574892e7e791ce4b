"""The sender against a real HTTP server on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime

import aiohttp
import pytest
from aiohttp import web

from slipway.analysis import webhook
from slipway.analysis.notification import Notification, key_of, verify
from slipway.analysis.webhook import MAX_WAITING, Webhook

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
STARTED = Notification("Started", datetime(2026, 1, 31, tzinfo=UTC), "default", "digits", "uid-1", "digits-a")


class Receiver:
    """Answers each request with the next of `statuses` (the last one for ever), and keeps what it got."""

    def __init__(self, *statuses: int) -> None:
        self.statuses, self.got = list(statuses), list[tuple[dict[str, str], bytes]]()

    async def handle(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.got.append((headers, await request.read()))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return web.Response(status=status, headers={"Location": "/elsewhere"} if status == 302 else {})


@contextlib.asynccontextmanager
async def sending(receiver: Receiver) -> AsyncIterator[Webhook]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with aiohttp.ClientSession() as session:
        sender = Webhook(session, f"http://127.0.0.1:{runner.addresses[0][1]}/hook?token=t0ken", SECRET)
        task = asyncio.create_task(sender.run())
        try:
            yield sender
        finally:
            task.cancel()
            await asyncio.wait([task])
            await runner.cleanup()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen in 5 s")


@pytest.fixture
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits of the policy are tested as values; here they pass at once."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    monkeypatch.setattr(webhook.asyncio, "sleep", lambda seconds: sleep(0 if seconds >= 1 else seconds))


async def test_what_arrives_is_signed_and_in_order() -> None:
    receiver = Receiver(204)
    async with sending(receiver) as sender:
        for step in (1, 2, 3):
            sender.send(replace(STARTED, moment="Step", step=step))
        await until(lambda: sender.delivered == 3)
    assert [body for _, body in receiver.got] == [replace(STARTED, moment="Step", step=step).body() for step in (1, 2, 3)]
    headers, body = receiver.got[0]
    assert headers["content-type"] == "application/json"
    assert verify(headers, body, key_of(SECRET), time.time())


@pytest.mark.usefixtures("_no_waits")
async def test_it_is_sent_again_with_the_same_id_until_it_is_taken() -> None:
    receiver = Receiver(503, 429, 500, 200)
    async with sending(receiver) as sender:
        sender.send(STARTED)
        await until(lambda: sender.delivered == 1)
    assert len(receiver.got) == 4
    assert {headers["webhook-id"] for headers, _ in receiver.got} == {STARTED.id}
    assert sender.dropped == 0


@pytest.mark.usefixtures("_no_waits")
@pytest.mark.parametrize(("status", "attempts"), [(400, 1), (302, 1), (410, 1), (503, 6)])
async def test_it_is_given_up_and_the_next_one_is_sent(status: int, attempts: int, caplog: pytest.LogCaptureFixture) -> None:
    receiver = Receiver(*[status] * attempts, 200)
    with caplog.at_level(logging.WARNING):
        async with sending(receiver) as sender:
            sender.send(STARTED)
            sender.send(replace(STARTED, moment="Promoted"))
            await until(lambda: sender.delivered == 1)
    assert (sender.dropped, len(receiver.got)) == (1, attempts + 1)
    assert "moment=Started" in caplog.text
    assert "t0ken" not in caplog.text


@pytest.mark.usefixtures("_no_waits")
async def test_nobody_listens() -> None:
    async with aiohttp.ClientSession() as session:
        sender = Webhook(session, "http://127.0.0.1:1/hook", SECRET)
        task = asyncio.create_task(sender.run())
        sender.send(STARTED)
        await until(lambda: sender.dropped == 1)
        task.cancel()
        await asyncio.wait([task])


async def test_what_waits_is_bounded_and_the_oldest_goes() -> None:
    receiver = Receiver(200)
    async with sending(receiver) as sender:
        for step in range(MAX_WAITING + 5):
            sender.send(replace(STARTED, moment="Step", step=step))
        await until(lambda: sender.delivered == MAX_WAITING)
    assert sender.dropped == 5
    assert receiver.got[0][1] == replace(STARTED, moment="Step", step=5).body()


@pytest.mark.parametrize("url", ["ftp://host/", "digits.example.com", "http://", "file:///etc/passwd"])
async def test_a_url_that_is_none_is_refused(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(ValueError, match="http:// or https://"):
            Webhook(session, url, SECRET)
