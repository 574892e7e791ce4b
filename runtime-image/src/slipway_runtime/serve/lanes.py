"""FIFO worker lanes: threads that run the model while the event loop goes on serving sockets.

The queue is bounded and first come, first served. There is no timer: a lane that comes free takes the next job at once.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from slipway_runtime.serve.messages import HttpError, Response

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Job:
    """One call to make in a lane.

    Attributes:
        work: makes the answer; may raise HttpError.
        done: gets the answer, in the lane's thread.
        wanted: False when the client has gone; the job is then skipped.
        skipped: called instead of `done` then, in the lane's thread.
        queued_at: seconds of `time.perf_counter`.
    """

    work: Callable[[], Response]
    done: Callable[[Response], None]
    wanted: Callable[[], bool]
    skipped: Callable[[], None]
    queued_at: float = 0.0


def answer_of(work: Callable[[], Response]) -> Response:
    """Run `work`; an HttpError becomes its answer, anything else a logged 500 that says what failed."""
    try:
        return work()
    except HttpError as error:
        return error.response()
    except Exception as error:
        log.exception("the model failed")
        return HttpError(500, f"the model failed: {type(error).__name__}: {error}"[:500]).response()


class Lanes:
    """A fixed number of worker threads over one bounded queue."""

    def __init__(self, count: int, queue_size: int, observe_wait: Callable[[float], None]) -> None:
        """Make the lanes; threads start with the first job.

        Args:
            count: number of threads.
            queue_size: jobs that may wait; one more is refused.
            observe_wait: gets the seconds each job waited.
        """
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._queue_size = queue_size
        self._observe_wait = observe_wait
        self._started_at: list[float] = [0.0] * count
        self._threads: list[threading.Thread] = []
        self._mean_seconds = 0.0

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            HttpError: 429 with Retry-After when the queue is full.
        """
        if self._queue.qsize() >= self._queue_size:
            raise HttpError(429, "the queue of this pod is full; retry later", retry_after=str(self._retry_after()))
        if not self._threads:
            self._start()
        job.queued_at = time.perf_counter()
        self._queue.put(job)

    def stuck_seconds(self) -> float:
        """Seconds that the longest running call has taken so far; 0 when no call runs."""
        running = [started for started in self._started_at if started]
        return time.perf_counter() - min(running) if running else 0.0

    def close(self, timeout: float) -> bool:
        """Stop the lanes after the queued jobs.

        Returns:
            False when a lane is still inside a call after `timeout` seconds.
        """
        for _ in self._threads:
            self._queue.put(None)
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _retry_after(self) -> int:
        seconds = self._mean_seconds * self._queue_size / len(self._started_at)
        return min(60, max(1, math.ceil(seconds)))

    def _start(self) -> None:
        for lane in range(len(self._started_at)):
            # Daemons, because a call into native code that never returns must not keep the process alive.
            thread = threading.Thread(target=self._run, args=(lane,), name=f"lane-{lane}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, lane: int) -> None:
        while (job := self._queue.get()) is not None:
            if job.wanted():
                self._take(lane, job)
            else:
                job.skipped()

    def _take(self, lane: int, job: Job) -> None:
        started = time.perf_counter()
        self._observe_wait(started - job.queued_at)
        self._started_at[lane] = started
        try:
            answer = answer_of(job.work)
        finally:
            self._started_at[lane] = 0.0
        self._mean_seconds += 0.1 * (time.perf_counter() - started - self._mean_seconds)
        job.done(answer)
