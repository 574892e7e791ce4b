"""Ports for the servers that tests start."""

from __future__ import annotations

import socket
from contextlib import ExitStack


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Several of them, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def operator_ports() -> dict[str, str]:
    """The environment that gives an operator ports of its own."""
    metrics, health = free_ports(2)
    return {"SLIPWAY_METRICS_PORT": str(metrics), "SLIPWAY_HEALTH_PORT": str(health)}
