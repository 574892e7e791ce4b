"""Several processes that serve one model on one port, for models so fast that Python, not the model, is what takes the time.

On a CPU the model is loaded once and proven once; then the process forks, so that the workers share its memory. A GPU's context does not
live through a fork, so there each worker loads a copy of its own. Each worker listens by SO_REUSEPORT, and the kernel deals the
connections out. What a worker has counted lies on a board in shared memory, so that whichever is asked for `/metrics` or its health answers
for all. When one ends, all end: the pod is the unit that starts again.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import orjson

from slipway_runtime.reasons import EXIT_CODES, write_termination
from slipway_runtime.serve.metrics import State

log = logging.getLogger(__name__)

MAX_WORKERS = 64
_HALF = 64 * 1024
_SLOT = 4096 + 2 * _HALF
_PR_SET_PDEATHSIG = 1  # prctl(2)
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


class Board:
    """Shared memory with a place for each worker: written by it alone, read by all. To be made before the fork.

    Attributes:
        workers: how many there are.
    """

    def __init__(self, workers: int) -> None:
        """Make it; all places are empty."""
        self.workers = workers
        self._memory = mmap.mmap(-1, workers * _SLOT)

    def write(self, worker: int, state: State) -> None:
        """Put a worker's state in its place; one that is too long leaves the last one there.

        The halves of a place take turns, and a byte says which is whole: a reader sees half a state only if two are written meanwhile.
        """
        data = orjson.dumps(state)
        if len(data) > _HALF - 8:
            log.warning("the counts of this worker are %d bytes, too many for the board", len(data))
            return
        start = worker * _SLOT
        half = 1 if self._memory[start] == 2 else 2
        begin = start + 4096 + (half - 1) * _HALF
        self._memory[begin : begin + 8 + len(data)] = len(data).to_bytes(8, "little") + data
        self._memory[start] = half

    def others(self, worker: int) -> list[State]:
        """The states of all other workers that have written one."""
        return [state for number in range(self.workers) if number != worker and (state := self._read(number)) is not None]

    def _read(self, worker: int) -> State | None:
        start = worker * _SLOT
        half = self._memory[start]
        if not half:
            return None
        begin = start + 4096 + (half - 1) * _HALF
        size = int.from_bytes(self._memory[begin : begin + 8], "little")
        state: State = orjson.loads(self._memory[begin + 8 : begin + 8 + size])
        return state


@dataclass(frozen=True, slots=True)
class Place:
    """A worker's place on the board."""

    board: Board
    number: int

    def write(self, state: State) -> None:
        """Tell the others."""
        self.board.write(self.number, state)

    def others(self) -> list[State]:
        """What the others told."""
        return self.board.others(self.number)

    def are_others_ready(self) -> bool:
        """Whether all others are there and ready: the kernel deals the connections out, and one is as likely asked as another."""
        states = self.others()
        return len(states) == self.board.workers - 1 and all(state["ready"] for state in states)


def run_workers(count: int, work: Callable[[int], int]) -> int:
    """Fork workers, pass SIGTERM on to them, and end them all when one ends.

    Args:
        count: how many.
        work: what a worker does, given its number; returns its exit code. No thread may run when this is called.

    Returns:
        The first exit code of a worker that was not 0, else 0; for one that was killed that of InternalError, with a termination message.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # they are waited for below, so that none is lost and none interrupts
    running = {_forked(number, work, before) for number in range(count)}
    code, is_ending = 0, False
    while running:
        if signal.sigwait(_SIGNALS) != signal.SIGCHLD:
            is_ending = True
            _end(running)
            continue
        gone = _ended()
        running -= {pid for pid, _ in gone}  # all of them first: who is gone cannot be told to end
        for _, ended in gone:
            if is_ending and ended == 128 + signal.SIGTERM:
                continue  # it was told to end before it could listen to that
            code = code or ended
            if not is_ending:
                log.error("a worker ended with %d; ending the others", ended)
                is_ending = True
                _end(running)
    if code > 128:
        message = f"a worker was killed by {signal.Signals(code - 128).name}; if it was SIGKILL, the container may need more memory"
        write_termination("InternalError", message)
        return EXIT_CODES["InternalError"]
    return code


def _forked(number: int, work: Callable[[int], int], mask: Iterable[int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = EXIT_CODES["InternalError"]
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # outside a container nothing else ends it with its parent
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        code = work(number)
    except Exception:
        log.exception("worker %d failed", number)
    finally:
        logging.shutdown()
        os._exit(code)  # what is to be done at the end of the process is for the one that forked


def _ended() -> list[tuple[int, int]]:
    """Process ids and exit codes of those that have ended by now, as process 1 of a container also of strangers."""
    found: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if not pid:
            return found
        code = os.waitstatus_to_exitcode(status)
        found.append((pid, code if code >= 0 else 128 - code))


def _end(pids: set[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
