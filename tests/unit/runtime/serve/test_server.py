"""What the server does to its listening socket, with the kernel."""

from __future__ import annotations

import socket

import pytest

from slipway_runtime.serve.server import take_no_newcomers


def test_who_has_connected_is_taken_and_who_begins_to_is_not():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        with socket.create_connection(address, timeout=5) as early:
            early.sendall(b"hello")
            take_no_newcomers(listener)
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.3)
            early.sendall(b", it is me")
            with listener.accept()[0] as accepted:
                accepted.settimeout(5)
                received = b""
                while len(received) < 15:
                    received += accepted.recv(100)
                assert received == b"hello, it is me"
                accepted.sendall(b"welcome")
                assert early.recv(100) == b"welcome"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=5)
