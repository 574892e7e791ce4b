"""Start, refusal to start, and the end without a lost request."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from unit.runtime.serve.artifacts import mlp_draft, sleeper_draft

pytestmark = pytest.mark.fresh


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
        except OSError:
            pass
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


def test_live_but_not_ready_while_loading(start):
    server = start(sleeper_draft(1.0))
    live = wait_for(lambda: server.get("/v2/health/live"))
    assert live.status == 200
    ready = server.get("/v2/health/ready")
    assert (ready.status, ready.json) == (503, {"ready": False, "reason": "loading"})
    assert server.infer("m", [[1.0]]).status == 503
    server.wait_ready()


@pytest.mark.parametrize(
    ("draft", "options", "code", "reason"),
    [
        (mlp_draft(golden_error=0.5), {}, 63, "GoldenMismatch"),
        (mlp_draft(), {"damage": "model.onnx"}, 60, "ArtifactCorrupt"),
        (mlp_draft(), {"damage": "manifest.json"}, 60, "ArtifactCorrupt"),
        (mlp_draft(), {"labels": ["one"]}, 64, "InvalidArguments"),
        (mlp_draft(entry="golden/inputs.npz"), {}, 62, "ModelLoadFailed"),
    ],
)
def test_a_bad_artifact_is_never_ready(start, draft, options, code, reason):
    server = start(draft, **options)
    assert server.wait(30) == code
    message = json.loads(server.termination.read_text())
    assert message["reason"] == reason
    assert message["message"]


def test_sigterm_while_loading_ends_at_once(start):
    server = start(sleeper_draft(5.0))
    wait_for(lambda: server.get("/v2/health/live"))
    server.terminate()
    started = time.monotonic()
    assert server.wait(10) == 0
    assert time.monotonic() - started < 4


def send(server, value):
    """Ask without waiting for the answer."""
    client = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [value]}]}).encode()
    client.sendall(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    return client


def test_a_fast_model_that_gets_stuck_on_the_event_loop_ends_the_server(start):
    for _ in range(5):  # a busy machine may measure the model as too slow for the event loop
        server = start(sleeper_draft(0.0), "--stuck-seconds", "1").wait_ready()
        if server.is_inline:
            break
    with send(server, -60.0):
        assert server.wait(20) == 65
    assert json.loads(server.termination.read_text())["reason"] == "ModelStuck"


def test_sigterm_while_the_model_is_stuck_says_so(start):
    server = start(sleeper_draft(0.02), "--stuck-seconds", "0.5", "--drain-seconds", "0.1", "--lanes", "1").wait_ready()
    client = send(server, -60.0)
    wait_for(lambda: server.get("/v2/health/live").status == 503)
    server.terminate()
    assert server.wait(20) == 65
    message = json.loads(server.termination.read_text())
    assert message["reason"] == "ModelStuck"
    assert "a call of the model has been running for" in message["message"]
    client.close()


class Client(threading.Thread):
    """Asks over keep-alive connections until new ones are refused; anything else that goes wrong is a failure."""

    def __init__(self, port: int, data: bytes) -> None:
        super().__init__(daemon=True)
        self.port, self.data = port, data
        self.answered = 0
        self.failures: list[str] = []

    def run(self) -> None:
        while True:
            try:
                client = socket.create_connection(("127.0.0.1", self.port), timeout=20)
            except ConnectionRefusedError:
                return
            with client:
                try:
                    while self.ask(client):
                        pass
                except (OSError, AssertionError) as error:
                    self.failures.append(repr(error))

    def ask(self, client: socket.socket) -> bool:
        client.sendall(self.data)
        received = b""
        while b"\r\n\r\n" not in received or len(received) < self.length(received):
            chunk = client.recv(65536)
            assert chunk, f"cut off after {received!r}"
            received += chunk
        assert received.startswith(b"HTTP/1.1 200"), received
        self.answered += 1
        return b"connection: close" not in received

    @staticmethod
    def length(received: bytes) -> int:
        head, _, _ = received.partition(b"\r\n\r\n")
        return len(head) + 4 + int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])


@pytest.mark.parametrize(("draft", "width"), [(mlp_draft(), 64), (sleeper_draft(0.02), 1)], ids=["inline", "lanes"])
def test_sigterm_under_load_loses_no_request(start, draft, width):
    server = start(draft, "--drain-seconds", "1").wait_ready()
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, width], "datatype": "FP32", "data": [1.0] * width}]}).encode()
    data = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    clients = [Client(server.port, data) for _ in range(16)]
    for client in clients:
        client.start()
    time.sleep(1.0)
    server.terminate()
    ready = wait_for(lambda: (answer := server.get("/v2/health/ready")).status == 503 and answer)
    assert (ready.json["reason"], ready.headers["connection"]) == ("draining", "close")
    assert server.wait() == 0
    for client in clients:
        client.join(20)
    assert [failure for client in clients for failure in client.failures] == []
    assert sum(client.answered for client in clients) > 100


def test_requests_in_flight_are_answered_and_idle_connections_closed(start):
    # 0.02 s: a model that is faster than a hand-over would run between two requests, /metrics among them
    server = start(sleeper_draft(0.02), "--drain-seconds", "0.3", "--lanes", "1").wait_ready()
    idle = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    idle.sendall(b"GET /v2 HTTP/1.1\r\nHost: h\r\n\r\n")
    assert idle.recv(65536).startswith(b"HTTP/1.1 200")
    answers = []
    slow = threading.Thread(target=lambda: answers.append(server.infer("m", [[-4.0]])))
    slow.start()
    wait_for(lambda: b"slipway_inflight_requests 1.0" in server.get("/metrics").body)
    server.terminate()
    assert idle.recv(65536) == b""
    slow.join(20)
    assert answers[0].status == 200
    assert answers[0].headers["connection"] == "close"
    assert server.wait(10) == 0
