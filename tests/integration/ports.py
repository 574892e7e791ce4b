"""Ports for the servers that tests start."""

from __future__ import annotations

import fcntl
import socket
import tempfile
from pathlib import Path

# Below the ports that the kernel gives to clients and to whoever binds port 0 (net.ipv4.ip_local_port_range begins at 32768).
FIRST, LAST = 10_000, 29_999


def free_port() -> int:
    """A port of loopback that nobody listens on, and that no other test on this machine is given soon."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Several of them, all different.

    They are handed out one after the other, by a file that all test processes share. What the kernel picks for port 0 may be given to
    another worker before the server of the first listens; as our servers bind with SO_REUSEPORT, both would then listen on it.
    """
    found: list[int] = []
    with (Path(tempfile.gettempdir()) / "slipway-ports").open("a+", encoding="ascii") as shared:
        fcntl.flock(shared, fcntl.LOCK_EX)
        shared.seek(0)
        port = int(shared.read() or LAST)
        for _ in range(LAST - FIRST + 1):
            if len(found) == count:
                break
            port = port + 1 if port < LAST else FIRST
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            found.append(port)
        shared.truncate(0)
        shared.write(str(port))
    assert len(found) == count, "no port of loopback is free"
    return found


def operator_ports() -> dict[str, str]:
    """The environment that gives an operator ports of its own."""
    metrics, health = free_ports(2)
    return {"SLIPWAY_METRICS_PORT": str(metrics), "SLIPWAY_HEALTH_PORT": str(health)}
