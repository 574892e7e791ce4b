"""Walls around model code: no sockets for this process and all it starts, and a time and memory limit for each task.

Linux only. The seccomp filter is inherited by children and cannot be taken off again.
"""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import re
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slipway_runtime.reasons import Failure, first_line, is_out_of_memory

log = logging.getLogger("slipway")

_CGROUP = Path("/sys/fs/cgroup")
_POLL_SECONDS = 0.05
_MAX_RESULT = 16 << 20
Task = Callable[[], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a task may use.

    Attributes:
        deadline: of time.monotonic().
        timeout: seconds of the whole container, for messages.
        crashed: reason for an end that has no better one.
    """

    deadline: float
    timeout: float
    crashed: str


@dataclass(frozen=True, slots=True)
class Result:
    """What a task returned, the seconds it took and the most memory it held, in bytes."""

    value: dict[str, Any]
    seconds: float
    peak_bytes: int


def deny_sockets() -> None:
    """Make socket() fail with EPERM for every family but AF_UNIX, here and in all children, for good.

    io_uring can open sockets without that system call, so it is denied too.

    Raises:
        OSError, RuntimeError: the filter cannot be loaded; then no model code may run.
    """
    import pyseccomp  # noqa: PLC0415 - loads libseccomp; the other containers do without

    filters = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    filters.add_rule(pyseccomp.ERRNO(errno.EPERM), "socket", pyseccomp.Arg(0, pyseccomp.NE, int(socket.AF_UNIX)))
    filters.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "io_uring_setup")
    filters.load()  # sets no_new_privs as well
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
    except PermissionError:
        return
    raise RuntimeError("the seccomp filter does not hold")


def run_limited(what: str, task: Task, limits: Limits) -> Result:
    """Run a task in a forked process of its own, within the limits.

    Args:
        what: for messages, such as `the ONNX candidate`.
        task: its return value must be JSON.
        limits: time and memory.

    Raises:
        Failure: what the task raised; ConversionTimeout, ConversionOutOfMemory, or `limits.crashed`.
    """
    start = time.monotonic()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(task, writer, limits.crashed)
    os.close(writer)
    try:
        data, status, peak = _Watch(child, reader, what, limits).wait()
    finally:
        os.close(reader)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what the task left behind
    return Result(_value(data, status, what, limits.crashed), time.monotonic() - start, peak)


def _child(task: Task, writer: int, crashed: str) -> None:
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        limit = _memory_limit()
        if limit:  # one huge allocation fails at once; growth is watched from outside
            resource.setrlimit(resource.RLIMIT_DATA, (2 * limit, 2 * limit))
        _send(writer, _answer(task, crashed))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _answer(task: Task, crashed: str) -> dict[str, Any]:
    try:
        return {"value": task()}
    except Failure as failure:
        return {"reason": failure.reason, "message": failure.message}
    except BaseException as error:
        if is_out_of_memory(error):
            return {"reason": "ConversionOutOfMemory", "message": f"out of memory: {first_line(error)}"}
        log.exception("unexpected")
        return {"reason": crashed, "message": first_line(error)}


def _send(writer: int, value: dict[str, Any]) -> None:
    data = json.dumps(value).encode()
    while data:
        data = data[os.write(writer, data) :]


class _Watch:
    """Waits for a child, reads its answer, and kills it at a limit."""

    def __init__(self, child: int, reader: int, what: str, limits: Limits) -> None:
        self._child = child
        self._reader = reader
        self._what = what
        self._limits = limits
        self._data = b""
        os.set_blocking(reader, False)

    def wait(self) -> tuple[bytes, int, int]:
        """Return the answer, the wait status and the peak memory in bytes."""
        memory = _memory_limit()
        while True:
            self._read()
            pid, status, usage = os.wait4(self._child, os.WNOHANG)
            if pid:
                self._read()
                return self._data, status, usage.ru_maxrss * 1024
            if time.monotonic() > self._limits.deadline:
                self._kill()
                raise Failure("ConversionTimeout", f"{self._what} did not end within {self._limits.timeout:g} s")
            if memory and _memory_used(self._child) > memory * 0.95:
                self._kill()
                raise Failure("ConversionOutOfMemory", f"{self._what} needed more than the {memory >> 20} MiB that the container may use")

    def _read(self) -> None:
        select.select([self._reader], [], [], _POLL_SECONDS if not self._data else 0)
        with suppress(BlockingIOError):
            while chunk := os.read(self._reader, 1 << 16):
                self._data += chunk
                if len(self._data) > _MAX_RESULT:
                    raise Failure(self._limits.crashed, f"{self._what} answered with more than {_MAX_RESULT} bytes")
            time.sleep(_POLL_SECONDS / 5)  # at the end of the pipe, select returns at once

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._child, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)


def _value(data: bytes, status: int, what: str, crashed: str) -> dict[str, Any]:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGKILL:
            raise Failure("ConversionOutOfMemory", f"{what} was killed by the kernel, which does so when memory runs out")
        raise Failure(crashed, f"{what} was ended by {signal.Signals(number).name}")
    try:
        answer = json.loads(data)
    except ValueError as error:
        raise Failure(crashed, f"{what} left with exit code {os.WEXITSTATUS(status)} and no answer") from error
    if "reason" in answer:
        raise Failure(answer["reason"], answer["message"])
    return dict(answer["value"])


def _memory_limit() -> int | None:
    text = os.environ.get("SLIPWAY_MEMORY_LIMIT_BYTES") or _cgroup("memory.max")
    return int(text) if text.isdigit() else None


def _memory_used(child: int) -> int:
    if "SLIPWAY_MEMORY_LIMIT_BYTES" not in os.environ:
        found = re.search(r"^anon (\d+)$", _cgroup("memory.stat"), re.MULTILINE)
        return int(found[1]) if found else 0
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{child}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def _cgroup(name: str) -> str:
    try:
        return (_CGROUP / name).read_text().strip()
    except OSError:
        return ""
