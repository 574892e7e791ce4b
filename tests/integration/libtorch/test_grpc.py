"""gRPC as Triton's client speaks it, and the same client over HTTP with binary tensors."""

from __future__ import annotations

import queue
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import InferenceServerException

from integration.ports import free_port
from unit.runtime.serve.artifacts import mlp_answer, mlp_draft, sleeper_draft

pytestmark = [pytest.mark.nightly]

X = np.random.default_rng(7).standard_normal((3, 64)).astype(np.float32)


@pytest.fixture
def asked(start):
    """A server and a client of its gRPC port."""
    clients = []

    def _asked(draft, *options):
        port = free_port()
        server = start(draft, f"--grpc-port={port}", *options).wait_ready()
        clients.append(over_grpc.InferenceServerClient(f"localhost:{port}"))
        return server, clients[-1]

    yield _asked
    for client in clients:
        client.close()


def grpc_input(array: np.ndarray):
    item = over_grpc.InferInput("x", list(array.shape), "FP32")
    item.set_data_from_numpy(array)
    return [item]


def test_health_and_metadata(asked):
    _, client = asked(mlp_draft())
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    assert client.get_server_metadata().name == "slipway-libtorch"
    found = client.get_model_metadata("m")
    assert (found.name, list(found.versions), found.inputs[0].datatype, list(found.inputs[0].shape)) == ("m", ["m-1"], "FP32", [-1, 64])


def test_infer_is_the_same_by_grpc_and_by_binary_http(asked):
    server, client = asked(mlp_draft())
    result = client.infer("m", grpc_input(X), request_id="7")
    assert result.get_response().id == "7"
    np.testing.assert_allclose(result.as_numpy("y"), mlp_answer(X), rtol=1e-3, atol=1e-3)
    item = over_http.InferInput("x", [3, 64], "FP32")
    item.set_data_from_numpy(X, binary_data=True)
    with over_http.InferenceServerClient(f"localhost:{server.port}") as http:
        answer = http.infer("m", [item], outputs=[over_http.InferRequestedOutput("y", binary_data=True)])
    np.testing.assert_array_equal(answer.as_numpy("y"), result.as_numpy("y"))


@pytest.mark.parametrize(
    ("model", "array", "status", "text"),
    [("q", X, "NOT_FOUND", "only model 'm'"), ("m", X[:, :3], "INVALID_ARGUMENT", "expected FP32 [batch, 64], got shape [3, 3]")],
)
def test_what_does_not_fit_is_refused_with_its_reason(asked, model, array, status, text):
    server, client = asked(mlp_draft())
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, grpc_input(array))
    assert status in str(caught.value)
    assert text in str(caught.value)
    code = "404" if status == "NOT_FOUND" else "400"
    assert f'slipway_requests_total{{code="{code}",model="m",revision="m-1"}} 1.0' in server.get("/metrics").body.decode()


def test_a_stream_answers_in_order_and_outlives_a_bad_request(asked):
    _, client = asked(mlp_draft())
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(5):
        client.async_stream_infer("m", grpc_input(X if number != 2 else X[:, :3]), request_id=str(number))
    found = [answers.get(timeout=20) for _ in range(5)]
    client.stop_stream()
    assert [result.get_response().id if error is None else "bad" for result, error in found] == ["0", "1", "bad", "3", "4"]


def test_a_full_queue_is_resource_exhausted(asked):
    _, client = asked(sleeper_draft(0.3), "--lanes=1", "--queue-size=1")

    def ask(_):
        try:
            return client.infer("m", grpc_input(np.ones((1, 1), np.float32))) and "answered"
        except InferenceServerException as error:
            return error.status()

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(ask, range(6))) == {"answered", "StatusCode.RESOURCE_EXHAUSTED"}


def test_sigterm_answers_the_call_in_flight(asked):
    server, client = asked(sleeper_draft(0.5), "--drain-seconds=0.1")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.infer, "m", grpc_input(np.full((1, 1), -1.5, np.float32)))
        while b"slipway_inflight_requests 1.0" not in server.get("/metrics").body:
            pass
        server.terminate()
        assert answer.result(20).as_numpy("y")[0, 0] == -3.0
    assert server.wait(20) == 0
