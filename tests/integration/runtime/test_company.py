"""A small model and many clients at once: requests that come together share a batch, and each gets its own answer."""

from __future__ import annotations

import json
import queue
import re
import socket

import numpy as np
import pytest
import tritonclient.grpc as triton

from integration.ports import free_port
from unit.runtime.serve.artifacts import mlp_answer, mlp_draft

PIPELINED, ROUNDS = 30, 12


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def server(start, port):
    return start(mlp_draft(), "--grpc-port", str(port), "--max-batch-size", "16").wait_ready()


def batches(server):
    """How many batches the model has run, and the rows of all."""
    text = server.get("/metrics").body.decode()
    return tuple(float(re.search(rf"^slipway_batch_size_{name}\{{?[^ ]* (\S+)$", text, re.MULTILINE)[1]) for name in ("count", "sum"))


def request(x):
    item = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
    body = json.dumps({"inputs": [item]}).encode()
    return b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def answer(stream):
    status = int(stream.readline().split()[1])
    length = 0
    while line := stream.readline().strip():
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return status, json.loads(stream.read(length))


def test_pipelined_requests(server):
    """All that one client has sent is found in one turn of the loop; rows of other numbers and a request that is refused are among them."""
    random = np.random.default_rng(1)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        stream = client.makefile("rb")
        for _ in range(ROUNDS):
            asked = [random.standard_normal((1 + index % 3, 64 if index != 7 else 63)).astype(np.float32) for index in range(PIPELINED)]
            client.sendall(b"".join(map(request, asked)))
            for x in asked:
                status, got = answer(stream)
                if x.shape[1] != 64:
                    assert status == 400, got
                    continue
                assert status == 200, got
                values = np.array(got["outputs"][0]["data"]).reshape(got["outputs"][0]["shape"])
                np.testing.assert_allclose(values, mlp_answer(x), rtol=1e-3, atol=1e-3)
    count, rows = batches(server)
    assert rows == ROUNDS * sum(1 + index % 3 for index in range(PIPELINED) if index != 7)
    assert count < ROUNDS * (PIPELINED - 1)


def test_concurrent_calls(server, port):
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        for _ in range(ROUNDS):
            asked = [np.full((1, 64), index, np.float32) for index in range(PIPELINED)]
            answers: queue.Queue = queue.Queue()
            for index, x in enumerate(asked):
                item = triton.InferInput("x", [1, 64], "FP32")
                item.set_data_from_numpy(x)
                client.async_infer("m", [item], lambda result, error, into=answers: into.put(error or result), request_id=str(index))
            for _ in asked:
                got = answers.get(timeout=30)
                assert isinstance(got, triton.InferResult), got
                x = asked[int(got.get_response().id)]
                np.testing.assert_allclose(got.as_numpy("y"), mlp_answer(x), rtol=1e-3, atol=1e-2)
    assert batches(server)[1] == ROUNDS * PIPELINED


def test_a_client_that_leaves_does_not_take_its_neighbours_with_it(server):
    x = np.ones((1, 64), np.float32)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as stays:
        stream = stays.makefile("rb")
        for _ in range(ROUNDS):
            with socket.create_connection(("127.0.0.1", server.port)) as leaves:
                leaves.sendall(request(x) * PIPELINED)
                stays.sendall(request(x) * PIPELINED)
            for _ in range(PIPELINED):
                assert answer(stream)[0] == 200
    inflight = re.search(r"^slipway_inflight_requests\{?[^ ]* (\S+)$", server.get("/metrics").body.decode(), re.MULTILINE)[1]
    assert float(inflight) == 0
