"""What this container may use, by its cgroup (v2 or v1): CPUs, where affinity counts, too, and memory."""

from __future__ import annotations

import os
from pathlib import Path

# Version 1 says 2^63, less a page, where there is none.
NO_LIMIT_BYTES = 1 << 60


def cpu_limit(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Whole CPUs to use, at least 1; a fraction of a CPU is left over, because a thread for it would only be throttled."""
    available = len(os.sched_getaffinity(0))
    quota = _quota_v2(cgroup) or _quota_v1(cgroup)
    return max(1, min(available, int(quota)) if quota else available)


def memory_limit(cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of memory to use; None when there is no limit."""
    words = _words(cgroup / "memory.max") or _words(cgroup / "memory" / "memory.limit_in_bytes")
    return int(words[0]) if words and words[0].isdigit() and int(words[0]) < NO_LIMIT_BYTES else None


def memory_used() -> int:
    """Bytes of memory that this process has resident."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _quota_v2(cgroup: Path) -> float | None:
    words = _words(cgroup / "cpu.max")
    if len(words) != 2 or words[0] == "max":
        return None
    return int(words[0]) / int(words[1])


def _quota_v1(cgroup: Path) -> float | None:
    quota, period = _words(cgroup / "cpu" / "cpu.cfs_quota_us"), _words(cgroup / "cpu" / "cpu.cfs_period_us")
    if not quota or not period or int(quota[0]) <= 0:
        return None
    return int(quota[0]) / int(period[0])


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
