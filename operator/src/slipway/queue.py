"""A queue of keys: each key at most once, never handled twice at the same time, later again after a failure.

The semantics are those of client-go's workqueue: a key added while it is being handled is handled once more afterwards.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict

from slipway.snapshot import Key

FIRST_BACKOFF = 0.5
MAX_BACKOFF = 300.0


class KeyQueue:
    """Keys that wait for a pass."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Key, float] = OrderedDict()
        self._active: set[Key] = set()
        self._dirty: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, tuple[float, asyncio.TimerHandle]] = {}
        self._wakes = asyncio.Condition()

    def __len__(self) -> int:
        return len(self._waiting)

    def oldest_age(self) -> float:
        """Return the seconds that the key at the head has been waiting."""
        loop = asyncio.get_running_loop()
        return max((loop.time() - at for at in self._waiting.values()), default=0.0)

    def add(self, key: Key) -> None:
        """Let the key be handled soon."""
        if key in self._active:
            self._dirty.add(key)
        elif key not in self._waiting:
            self._waiting[key] = asyncio.get_running_loop().time()
            self._notify()

    def add_after(self, key: Key, seconds: float) -> None:
        """Let the key be handled in some time; the earlier of two such times holds."""
        loop = asyncio.get_running_loop()
        at = loop.time() + seconds
        if key in self._timers:
            if self._timers[key][0] <= at:
                return
            self._timers[key][1].cancel()
        self._timers[key] = (at, loop.call_later(seconds, self._due, key))

    def _due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def _notify(self) -> None:
        async def wake() -> None:
            async with self._wakes:
                self._wakes.notify()

        task = asyncio.get_running_loop().create_task(wake())
        task.add_done_callback(lambda _: None)

    async def get(self) -> Key:
        """Wait for a key and take it; `done` must follow."""
        async with self._wakes:
            while not self._waiting:
                await self._wakes.wait()
            key, _ = self._waiting.popitem(last=False)
            self._active.add(key)
            return key

    def done(self, key: Key, *, failed: bool = False, retry_after: float | None = None) -> None:
        """Give a key back; after a failure it comes again, later each time, or after the time the server asked for."""
        self._active.discard(key)
        if failed:
            count = self._failures[key] = self._failures.get(key, 0) + 1
            jitter = random.uniform(1.0, 1.3)  # noqa: S311 - it spreads load, it hides nothing
            self.add_after(key, retry_after if retry_after is not None else min(FIRST_BACKOFF * 2 ** (count - 1), MAX_BACKOFF) * jitter)
        else:
            self._failures.pop(key, None)
        if key in self._dirty:
            self._dirty.discard(key)
            if not failed:
                self.add(key)
