"""Calls too short for a hand-over to a lane: requests that the event loop finds in one turn go into the model together.

A call of a small model costs mostly what any call costs, and with many clients the loop finds many requests whenever it looks.
No request waits for another that is yet to come: a batch runs when the loop has taken what was there. Putting a call off to then
costs some microseconds, which a lone client would pay for nothing: calls are put off only while turns find company, and two turns
in `PROBE_CALLS` calls to see whether they would.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from slipway_runtime.serve.batching import Loop

PROBE_CALLS = 64
LONE_TURNS = 16


class Shared(Protocol):
    """What may share a batch with others of the same key, and its rows."""

    @property
    def key(self) -> Hashable: ...  # noqa: D102
    @property
    def rows(self) -> int: ...  # noqa: D102


One = TypeVar("One", bound=Shared)


def batches(jobs: Iterable[One], max_batch: int) -> Iterator[tuple[list[One], int]]:
    """Jobs that may share a batch, in their order, and their rows.

    Args:
        jobs: oldest first.
        max_batch: rows of a batch at most; a job of more has one for itself.
    """
    open_: dict[Hashable, tuple[list[One], int]] = {}
    for job in jobs:
        batch, rows = open_.get(job.key) or ([], 0)
        if batch and rows + job.rows > max_batch:
            yield batch, rows
            batch, rows = [], 0
        batch.append(job)
        open_[job.key] = batch, rows + job.rows
    yield from open_.values()


class Turn(Generic[One]):
    """What the event loop has found in this turn."""

    def __init__(self, run: Callable[[list[One], int], None], max_batch: int, loop: Loop) -> None:
        """Make it; `run` gets each batch and its rows, and answers its jobs."""
        self._run, self._max_batch, self._loop = run, max_batch, loop
        self._jobs: list[One] = []
        self._calls, self._lone_turns = 0, LONE_TURNS

    def takes(self) -> bool:
        """Whether the next call is better put off to the end of the turn than run at once."""
        if self._lone_turns >= LONE_TURNS and not self._jobs:
            self._calls += 1
            if self._calls % PROBE_CALLS:
                return False
            self._lone_turns = LONE_TURNS - 2  # this turn, of which most may be over, and the next
        return True

    def add(self, job: One) -> None:
        """Put a call off to the end of the turn."""
        if not self._jobs:
            self._loop.call_soon(self._end)
        self._jobs.append(job)

    def _end(self) -> None:
        jobs, self._jobs = self._jobs, []
        self._lone_turns = 0 if len(jobs) > 1 else self._lone_turns + 1
        for batch, rows in batches(jobs, self._max_batch):
            self._run(batch, rows)
