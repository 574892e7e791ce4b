"""Sends notifications, one after the other, in the background: a rollout never waits for a receiver and never fails because of one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import urlsplit

import aiohttp

from slipway.analysis.notification import Notification, headers, key_of, retry_in

LOG = logging.getLogger(__name__)
TIMEOUT = aiohttp.ClientTimeout(total=10, connect=3)
MAX_WAITING = 256


class Webhook:
    """One receiver. `send` only queues; `run` is the task that delivers, in order, until it is cancelled."""

    def __init__(self, session: aiohttp.ClientSession, url: str, secret: str, clock: Callable[[], float] = time.time) -> None:
        """Prepare.

        Args:
            session: shared; stays the caller's.
            url: http or https; TLS is verified and redirects are not followed, because they would carry the body elsewhere.
            secret: as in `notification.key_of`.
            clock: Unix seconds.

        Raises:
            ValueError: The URL is no http(s) URL, or the secret is too short.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("the webhook's URL must begin with http:// or https:// and name a host")
        self._session, self._url, self._host, self._key, self._clock = session, url, parts.hostname, key_of(secret), clock
        self._waiting: deque[Notification] = deque()
        self._wake = asyncio.Event()
        self.delivered = self.dropped = 0

    def send(self, notification: Notification) -> None:
        """Queue; when too many wait, the oldest is given up, because the newest says how things are."""
        if len(self._waiting) >= MAX_WAITING:
            self._drop(self._waiting.popleft(), "too many are waiting")
        self._waiting.append(notification)
        self._wake.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            while self._waiting:
                await self._deliver(self._waiting.popleft())
            self._wake.clear()
            await self._wake.wait()

    async def _deliver(self, notification: Notification) -> None:
        body, attempt = notification.body(), 0
        while True:
            attempt += 1
            status, retry_after, why = await self._attempt(notification.id, body)
            if status is not None and 200 <= status < 300:
                self.delivered += 1
                return
            wait = retry_in(attempt, status, retry_after, datetime.fromtimestamp(self._clock(), UTC))
            if wait is None:
                self._drop(notification, f"{why} after {attempt} attempts")
                return
            await asyncio.sleep(wait)

    async def _attempt(self, message_id: str, body: bytes) -> tuple[int | None, str | None, str]:
        signed = headers(message_id, body, self._key, self._clock())
        try:
            async with self._session.post(self._url, data=body, headers=signed, timeout=TIMEOUT, allow_redirects=False) as answer:
                return answer.status, answer.headers.get("Retry-After"), f"HTTP {answer.status}"
        except (aiohttp.ClientError, TimeoutError) as error:
            return None, None, type(error).__name__

    def _drop(self, notification: Notification, why: str) -> None:
        # The URL may hold a token: only its host is logged.
        self.dropped += 1
        LOG.warning("webhook host=%s id=%s moment=%s given up: %s", self._host, notification.id, notification.moment, why)
