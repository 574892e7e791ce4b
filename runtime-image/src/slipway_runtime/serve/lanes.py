"""FIFO worker lanes: threads that run the model while the event loop goes on serving sockets. They know nothing of requests."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable


class Lanes:
    """A fixed number of worker threads over one queue."""

    def __init__(self, count: int) -> None:
        """Make the lanes; threads start with the first work."""
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._started_at: list[float] = [0.0] * count
        self._threads: list[threading.Thread] = []

    def submit(self, work: Callable[[], None]) -> None:
        """Run `work`, which must not raise, in the next free lane."""
        if not self._threads:
            self._start()
        self._queue.put(work)

    def stuck_seconds(self) -> float:
        """Seconds that the longest running work has taken so far; 0 when none runs."""
        running = [started for started in self._started_at if started]
        return time.perf_counter() - min(running) if running else 0.0

    def close(self, timeout: float) -> bool:
        """Stop the lanes after the queued work.

        Returns:
            False when a lane is still at work after `timeout` seconds.
        """
        for _ in self._threads:
            self._queue.put(None)
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _start(self) -> None:
        for lane in range(len(self._started_at)):
            # Daemons, because a call into native code that never returns must not keep the process alive.
            thread = threading.Thread(target=self._run, args=(lane,), name=f"lane-{lane}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, lane: int) -> None:
        while (work := self._queue.get()) is not None:
            self._started_at[lane] = time.perf_counter()
            try:
                work()
            finally:
                self._started_at[lane] = 0.0
