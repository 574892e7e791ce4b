"""Several processes on one port are one server to all who ask: users, Prometheus, the kubelet."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from integration.ports import free_port
from integration.runtime.conftest import Running
from integration.runtime.test_lifecycle import Client, wait_for
from unit.runtime.serve.artifacts import mlp_draft, sleeper_draft

pytestmark = pytest.mark.fresh


def worker_pids(server: Running) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()]


def cpu_ticks(pid: int) -> int:
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))


AS_ON_A_GPU = "from slipway_runtime.serve import main\nmain.may_use_gpu = lambda environment: True"  # simulated: the model stays on the CPU


@pytest.mark.parametrize("before", ["", AS_ON_A_GPU], ids=["one copy of the model", "a copy each, as on a GPU"])
def test_several_workers_answer_on_one_port_and_are_counted_together(start, before):
    options = ("--workers", "3", "--grpc-port", str(free_port()), "--drain-seconds", "1")
    server = start(mlp_draft(), *options, before=before).wait_ready()
    assert len(worker_pids(server)) == 3
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [1.0] * 64}]}).encode()
    data = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    for _ in range(60):  # each on a connection of its own
        assert server.ask("POST", "/v2/models/m/infer", body).status == 200
    wait_for(
        lambda: all(b'slipway_requests_total{code="200",model="m",revision="m-1"} 60.0' in server.get("/metrics").body for _ in range(12))
    )
    assert {server.get("/v2/models/stats").json["model_stats"][0]["inference_count"] for _ in range(12)} == {60}
    clients = [Client(server.port, data) for _ in range(16)]
    for client in clients:
        client.start()
    time.sleep(1.0)
    busy = [cpu_ticks(pid) for pid in worker_pids(server)]
    assert min(busy) > 5, f"one of the workers had nothing to do: {busy}"
    server.terminate()
    assert server.wait() == 0
    for client in clients:
        client.join(20)
    assert [failure for client in clients for failure in client.failures] == []


def test_when_a_worker_is_killed_the_server_ends_and_says_so(start):
    server = start(mlp_draft(), "--workers", "2", "--drain-seconds", "0").wait_ready()
    os.kill(worker_pids(server)[1], signal.SIGKILL)
    assert server.wait() == 1
    message = json.loads(server.termination.read_text())
    assert message["reason"] == "InternalError"
    assert "a worker was killed by SIGKILL" in message["message"]


def test_a_model_that_no_worker_can_load_is_told_of(start):
    server = start(mlp_draft(), "--workers", "2", damage="model.onnx", before=AS_ON_A_GPU)
    assert server.wait() == 60
    assert json.loads(server.termination.read_text())["reason"] == "ArtifactCorrupt"


@pytest.mark.parametrize("seconds", [0.02, 0.0], ids=["in a lane", "on the event loop"])
def test_a_stuck_worker_is_seen_whichever_is_asked(start, seconds):
    port = free_port()
    options = ("--workers", "2", "--lanes", "1", "--stuck-seconds", "1", "--drain-seconds", "0", "--grpc-port", str(port))
    server = start(sleeper_draft(seconds), *options).wait_ready()

    def is_seen(by_grpc: bool) -> bool:
        if not by_grpc:
            return {server.get(path).status for path in ("/v2/health/live", "/ping")} == {503}
        with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:  # else all share a connection
            return channel.unary_unary("/grpc.health.v1.Health/Check")(b"", wait_for_ready=True) == b"\x08\x02"

    def ask() -> None:
        with suppress(OSError):
            server.infer("m", [[-60.0]])

    threading.Thread(target=ask, daemon=True).start()
    if not server.is_inline:  # one on the event loop ends the process itself
        wait_for(lambda: all(is_seen(by_grpc) for by_grpc in (False, True) for _ in range(8)))
        server.terminate()  # as the kubelet does then
    assert server.wait() == 65
    assert json.loads(server.termination.read_text())["reason"] == "ModelStuck"
