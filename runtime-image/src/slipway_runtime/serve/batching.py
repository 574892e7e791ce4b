"""The queue in front of the model: what waits, what is refused, and which requests go into the model together.

Work-conserving: a lane that comes free takes what waits, up to its share and the batch limit, at once. The one exception is a wait of at
most `max_delay` while fewer rows wait than the load of the last moments lets expect (`target_rows`); with one client that
expectation is one row, so that a lone client never waits. Requests of different shapes never share a batch, but where they may
be padded (padding.py). All of it runs on the event loop; only `_run` is in a lane.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from slipway_runtime.serve.lanes import Lanes
from slipway_runtime.serve.messages import HttpError
from slipway_runtime.serve.metrics import Metrics
from slipway_runtime.serve.padding import Joiner
from slipway_runtime.serve.tensors import Tensors, has_nonfinite

log = logging.getLogger(__name__)

Key = tuple[tuple[int, ...], ...]
DEFAULT_PRIORITY = 1 << 31  # parameter `priority`: 0 means default, and 1 is the highest
SMOOTHING = 0.2


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """Limits of the queue and of a batch.

    Attributes:
        lanes: batches that run at the same time.
        max_batch: rows of a batch at most; 1 turns batching off.
        max_delay: seconds that a request may wait for company while a lane is free.
        max_requests: requests that may wait.
        max_bytes: sum of their bodies.
        is_shared: whether the lanes share what is in the house, as those that each have a core do; lanes of one device take all they can.
    """

    lanes: int = 1
    max_batch: int = 1
    max_delay: float = 0.0
    max_requests: int = 256
    max_bytes: int = 256 * 1024 * 1024
    is_shared: bool = True


class Loop(Protocol):
    """What is needed of the event loop."""

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Any: ...  # noqa: D102
    def call_soon(self, callback: Callable[..., object], *args: Any) -> Any: ...  # noqa: D102
    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> Any: ...  # noqa: D102


@dataclass(slots=True, eq=False)
class Job:
    """One request in the queue.

    Attributes:
        done: gets the outputs or the error, on the event loop, once; not after `Batcher.cancel`.
        inputs: the arrays, or what makes them in the lane (an image to decode); may raise HttpError.
        rows: size of the batch dimension.
        key: what requests of one batch have in common, of `Batcher.key_of`.
        size: bytes of the body.
        deadline: of `time.perf_counter`; the job is answered 504 when it is still queued then.
        priority: smaller comes first.
        is_probe: whether its answer is counted apart from users' answers.
    """

    done: Callable[[Tensors | None, HttpError | None], None]
    inputs: Tensors | Callable[[], Tensors]
    rows: int = 1
    key: Key = ()
    size: int = 0
    deadline: float = math.inf
    priority: int = DEFAULT_PRIORITY
    is_probe: bool = False
    queued_at: float = 0.0
    timer: Any = None
    is_queued: bool = False


def target_rows(expected: float, running: int, max_batch: int) -> int:
    """Rows worth waiting for: those expected to be in the house, less those in the model already; at least 1.

    Args:
        expected: smoothed number of rows queued or running.
        running: rows in the model now.
        max_batch: rows of the next batch at most.
    """
    return max(1, min(max_batch, round(expected) - running))


def fair_rows(in_house: float, options: QueueOptions) -> int:
    """Rows of the next batch at most: a lane's share of all that are queued or running, where lanes share them.

    Else sizes that differ once stay so: of 16 clients 12 wait for a batch of 12 in one lane again and again, and 4 for one of 4.

    Args:
        in_house: rows that are queued or running, or are expected to be.
        options: of the queue.
    """
    share = round(in_house / options.lanes) if options.is_shared else options.max_batch
    return max(1, min(options.max_batch, share))


def useful_batch(seconds: Sequence[tuple[int, float]], max_batch: int) -> int:
    """The batch size up to which larger batches pay: the smallest whose time per row is within 3 % of the best.

    Args:
        seconds: (batch size, seconds of one call), ascending; empty when nothing was measured.
        max_batch: the limit that was asked for, returned when nothing was measured.
    """
    if not seconds:
        return max_batch
    best = min(time_ / size for size, time_ in seconds)
    return next(size for size, time_ in seconds if time_ / size <= best * 1.03)


@dataclass(slots=True)
class _Queue:
    """Jobs of one priority and key, oldest first, and their rows."""

    priority: int
    jobs: deque[Job] = field(default_factory=deque)
    rows: int = 0


@dataclass(frozen=True, slots=True)
class _Ran:
    """What came of a batch: an outcome for each job, seconds in the model, and whether a probe asked for each one that is not finite."""

    outcomes: list[Tensors | HttpError]
    seconds: float
    nonfinite: list[bool]


def model_error(error: Exception) -> HttpError:
    """A logged 500 that says what failed; an HttpError is itself."""
    if isinstance(error, HttpError):
        return error
    log.error("the model failed", exc_info=error)
    return HttpError(500, f"the model failed: {type(error).__name__}: {error}"[:500])


class Batcher:
    """The bounded queue over the lanes."""

    def __init__(
        self,
        infer: Callable[[Tensors], Tensors],
        options: QueueOptions,
        loop: Loop,
        metrics: Metrics,
        joiner: Joiner | None = None,
    ) -> None:
        """Make the queue; `infer` and the joiner (default: one that never pads) are called in the lanes."""
        self.options = options
        self.lanes = Lanes(options.lanes)
        self._infer, self._joiner = infer, joiner or Joiner()
        self._loop = loop
        self._metrics = metrics
        self._queues: dict[tuple[int, Key], _Queue] = {}
        self._free = options.lanes
        self._timer: Any = None
        self._requests = self._bytes = self._rows = self._running_rows = 0
        self._expected = 1.0
        self._seconds_per_row = 0.0

    # --- in -------------------------------------------------------------------------------------------------------

    def key_of(self, inputs: Tensors | Callable[[], Tensors]) -> Key:
        """What requests of one batch have in common; inputs that are yet to be made share it with one another."""
        return self._joiner.key(inputs) if isinstance(inputs, dict) else ()

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            HttpError: 429 when the queue is full, 503 when the deadline cannot be met; both with Retry-After.
        """
        options = self.options
        if self._requests >= options.max_requests or (self._requests and self._bytes + job.size > options.max_bytes):
            raise HttpError(429, "the queue of this pod is full; retry later", retry_after=self._retry_after())
        job.queued_at = now = time.perf_counter()
        if now + self.expected_wait() > job.deadline:
            raise HttpError(503, "this request cannot be answered within its deadline; retry later", retry_after=self._retry_after())
        key = job.priority, job.key
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(job.priority)
        queue.jobs.append(job)
        self._count(queue, job, 1)
        job.is_queued = True
        if job.deadline != math.inf:
            job.timer = self._loop.call_later(job.deadline - now, self._expire, job)
        if self._free:
            self._dispatch()

    def cancel(self, job: Job) -> None:
        """Take a job out of the queue, because its client has gone; one in the model already runs on and is not answered."""
        self._leave(job)
        job.done = _nobody

    def expected_wait(self) -> float:
        """Seconds that a request queued now would wait for a lane."""
        return self._seconds_per_row * self._rows / self.options.lanes

    def close(self, timeout: float) -> bool:
        """Stop the lanes; see `Lanes.close`."""
        return self.lanes.close(timeout)

    def _retry_after(self) -> str:
        return str(min(60, max(1, math.ceil(self.expected_wait()))))

    def _count(self, queue: _Queue, job: Job, sign: int) -> None:
        self._requests += sign
        self._bytes += sign * job.size
        self._rows += sign * job.rows
        queue.rows += sign * job.rows

    def _leave(self, job: Job) -> None:
        if not job.is_queued:
            return
        key = job.priority, job.key
        queue = self._queues[key]
        queue.jobs.remove(job)
        self._left(queue, job)
        if not queue.jobs:
            del self._queues[key]

    def _left(self, queue: _Queue, job: Job) -> None:
        job.is_queued = False
        self._count(queue, job, -1)
        if job.timer is not None:
            job.timer.cancel()
            job.timer = None

    def _expire(self, job: Job) -> None:
        if job.is_queued:
            self._leave(job)
            job.done(None, HttpError(504, "the deadline passed while the request waited for the model"))

    # --- out ------------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Give the free lanes what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._free and self._queues:
            key, queue = min(self._queues.items(), key=_order) if len(self._queues) > 1 else next(iter(self._queues.items()))
            wait = self._wait_seconds(queue)
            if wait > 0:
                self._timer = self._loop.call_later(wait, self._dispatch)
                return
            batch, rows = self._take(queue, self._fair_rows())
            if not queue.jobs:
                del self._queues[key]
            self._expected += SMOOTHING * (self._rows + rows + self._running_rows - self._expected)
            self._free -= 1
            self._running_rows += rows
            self.lanes.submit(lambda batch=batch, rows=rows: self._run(batch, rows))  # type: ignore[misc]

    def _wait_seconds(self, queue: _Queue) -> float:
        options = self.options
        if options.max_batch == 1 or not options.max_delay:
            return 0.0
        if queue.rows >= target_rows(self._expected, self._running_rows, self._fair_rows()):
            return 0.0
        return queue.jobs[0].queued_at + options.max_delay - time.perf_counter()

    def _fair_rows(self) -> int:
        return fair_rows(max(self._expected, self._rows + self._running_rows), self.options)

    def _take(self, queue: _Queue, limit: int) -> tuple[list[Job], int]:
        batch: list[Job] = []
        rows, now = 0, time.perf_counter()
        while queue.jobs and (not batch or rows + queue.jobs[0].rows <= limit):
            job = queue.jobs.popleft()
            self._left(queue, job)
            self._metrics.queue(now - job.queued_at)
            batch.append(job)
            rows += job.rows
        return batch, rows

    def _run(self, batch: list[Job], rows: int) -> None:
        """In the lane: make the inputs, run the model once (or, when that fails, for each job by itself), hand the outcome back."""
        ran = self._ran(batch)
        try:
            self._loop.call_soon_threadsafe(self._finish, batch, rows, ran)
        except RuntimeError:
            log.warning("an answer came after the loop had closed")

    def run_here(self, batch: list[Job], rows: int) -> float:
        """Run jobs that are not queued on the event loop, and answer them; returns the seconds in the model."""
        ran = self._ran(batch)
        self._answer(batch, rows, ran)
        return ran.seconds

    def _ran(self, batch: list[Job]) -> _Ran:
        started = time.perf_counter()
        outcomes, whole = self._outcomes(batch)
        seconds = time.perf_counter() - started
        if whole is not None and not has_nonfinite(whole):  # less work than to ask its parts
            return _Ran(outcomes, seconds, [])
        pairs = zip(batch, outcomes, strict=True)
        return _Ran(outcomes, seconds, [job.is_probe for job, outcome in pairs if isinstance(outcome, dict) and has_nonfinite(outcome)])

    def _outcomes(self, batch: list[Job]) -> tuple[list[Tensors | HttpError], Tensors | None]:
        """The outcome of each job, and the outputs of which all are parts, where it was one call."""
        outcomes: list[Tensors | HttpError] = [_made(job) for job in batch]
        good = [(index, made) for index, made in enumerate(outcomes) if isinstance(made, dict)]
        if not good:
            return outcomes, None
        whole: Tensors | None = None
        try:
            parts, whole = self._together([made for _, made in good])
        except Exception as error:
            parts = [model_error(error)] if len(good) == 1 else [self._alone(made) for _, made in good]
        for (index, _), part in zip(good, parts, strict=True):
            outcomes[index] = part
        return outcomes, whole

    def _together(self, made: list[Tensors]) -> tuple[list[Tensors | HttpError], Tensors]:
        if len(made) == 1:
            outputs = self._infer(made[0])
            return [outputs], outputs
        outputs = self._infer(self._joiner.joined(made))
        return [*self._joiner.parted(outputs, made)], outputs

    def _alone(self, inputs: Tensors) -> Tensors | HttpError:
        # One request that the model cannot bear must not fail those that happened to come beside it.
        try:
            return self._infer(inputs)
        except Exception as error:
            return model_error(error)

    def _finish(self, batch: list[Job], rows: int, ran: _Ran) -> None:
        self._free += 1
        self._running_rows -= rows
        self._seconds_per_row += SMOOTHING * (ran.seconds / rows - self._seconds_per_row)
        if self._queues:
            self._dispatch()
        self._answer(batch, rows, ran)

    def _answer(self, batch: list[Job], rows: int, ran: _Ran) -> None:
        self._metrics.inference(ran.seconds)
        self._metrics.batch(rows)
        if ran.nonfinite:
            probes = sum(ran.nonfinite)
            self._metrics.nonfinite(len(ran.nonfinite) - probes)
            self._metrics.probes.nonfinite.add(probes)
        for job, outcome in zip(batch, ran.outcomes, strict=True):
            if isinstance(outcome, HttpError):
                job.done(None, outcome)
            else:
                job.done(outcome, None)


def _made(job: Job) -> Tensors | HttpError:
    if not callable(job.inputs):
        return job.inputs
    try:
        return job.inputs()
    except Exception as error:
        return model_error(error)


def _order(item: tuple[tuple[int, Key], _Queue]) -> tuple[int, float]:
    return item[1].priority, item[1].jobs[0].queued_at


def _nobody(outputs: Tensors | None, error: HttpError | None) -> None:
    """The client of this job has gone."""
