"""A queue of keys: each key at most once, never handled twice at the same time, later again after a failure.

The semantics are those of client-go's workqueue: a key added while it is being handled is handled once more afterwards. As in
controller-runtime's priority queue there is a second class: a key whose pods can start already lets others go first with its rest.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque

from slipway.snapshot import Key

FIRST_BACKOFF = 0.5
MAX_BACKOFF = 300.0
REST_SECONDS = 5.0  # how long Services and status wait at most while there is other work
_MAX_DOUBLINGS = 20  # 2**n stays a small number


class KeyQueue:
    """Keys that wait for a pass."""

    def __init__(self) -> None:
        self._waiting: dict[Key, float] = {}  # in the order of their coming
        self._rest: dict[Key, float] = {}  # likewise; never a key that is in the other
        self._active: set[Key] = set()
        self._dirty: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, tuple[float, asyncio.TimerHandle]] = {}
        self._getters: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._rest)

    def is_busy(self) -> bool:
        """Say whether keys wait that nothing was done for yet."""
        return bool(self._waiting)

    def oldest_age(self) -> float:
        """Return the seconds that the key that came first has been waiting."""
        heads = [next(iter(waiting.values())) for waiting in (self._waiting, self._rest) if waiting]
        return asyncio.get_running_loop().time() - min(heads) if heads else 0.0

    def add(self, key: Key) -> None:
        """Let the key be handled soon."""
        if key in self._active:
            self._dirty.add(key)
        elif key not in self._waiting:
            # what became more urgent keeps the time that it has waited for
            self._waiting[key] = self._rest.pop(key, asyncio.get_running_loop().time())
            self._wake()

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

    def _wake(self) -> None:
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(None)
                return

    async def get(self) -> Key:
        """Wait for a key and take it; `done` must follow."""
        while not len(self):
            getter = asyncio.get_running_loop().create_future()
            self._getters.append(getter)
            try:
                await getter
            except asyncio.CancelledError:
                if not getter.cancelled() and len(self):
                    self._wake()  # it was our turn: somebody else takes it
                raise
        is_due = self._rest and asyncio.get_running_loop().time() - next(iter(self._rest.values())) >= REST_SECONDS
        source = self._rest if is_due or not self._waiting else self._waiting
        key = next(iter(source))
        del source[key]
        self._active.add(key)
        return key

    def rest_later(self, key: Key) -> None:
        """Give a key back whose Services and status are left to write, so that others come first."""
        if key not in self._dirty:
            self._rest[key] = asyncio.get_running_loop().time()
            self._wake()
        self._give_back(key)

    def done(self, key: Key) -> None:
        """Give a key back after a pass that went well; what was planned for later is up to the caller again."""
        self._failures.pop(key, None)
        if key in self._timers:
            self._timers.pop(key)[1].cancel()
        self._give_back(key)

    def failed(self, key: Key, *, retry_after: float | None = None, first: float = FIRST_BACKOFF) -> None:
        """Give a key back after a failure: it comes again, later each time, or after the time that the server asked for."""
        count = self._failures[key] = self._failures.get(key, 0) + 1
        jitter = random.uniform(1.0, 1.3)  # noqa: S311 - it spreads load, it hides nothing
        backoff = min(first * 2 ** min(count - 1, _MAX_DOUBLINGS) * jitter, MAX_BACKOFF)
        self.add_after(key, backoff if retry_after is None else retry_after * jitter)
        self._give_back(key)

    def _give_back(self, key: Key) -> None:
        self._active.discard(key)
        if key in self._dirty:
            self._dirty.discard(key)
            self.add(key)
