"""The protocol over gRPC with Triton's own client, unchanged: unary, streaming, aio; and what a hostile client gets."""

from __future__ import annotations

import queue
import threading
import time

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from integration.ports import free_port
from slipway_runtime.serve import oip
from unit.runtime.serve.artifacts import dtypes_draft, mlp_answer, mlp_draft, sleeper_draft

X = np.random.default_rng(5).standard_normal((3, 64)).astype(np.float32)


def inputs_of(x, name="x"):
    item = triton.InferInput(name, list(x.shape), "FP32")
    item.set_data_from_numpy(x)
    return [item]


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def server(start, port):
    return start(mlp_draft(labels=[f"c{i}" for i in range(10)]), "--grpc-port", str(port)).wait_ready()


@pytest.fixture
def client(server, port):
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield client


def test_infer(client):
    for version in ("", "1", "m-1"):
        outputs = [triton.InferRequestedOutput("y")]
        result = client.infer("m", inputs_of(X), model_version=version, outputs=outputs, request_id="r7", priority=1, timeout=10_000_000)
        np.testing.assert_allclose(result.as_numpy("y"), mlp_answer(X), rtol=1e-3, atol=1e-3)
        response = result.get_response()
        assert (response.id, response.model_name, response.model_version) == ("r7", "m", "m-1")
    best = client.infer("m", inputs_of(X), outputs=[triton.InferRequestedOutput("y", class_count=1)]).as_numpy("y")
    assert [row[0].decode().split(":")[2] for row in best] == [f"c{i}" for i in mlp_answer(X).argmax(1)]


def test_information(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    assert "statistics" in client.get_server_metadata().extensions
    metadata = client.get_model_metadata("m")
    assert (metadata.versions, metadata.inputs[0].datatype, list(metadata.inputs[0].shape)) == (["m-1"], "FP32", [-1, 64])
    config = client.get_model_config("m").config
    assert (config.name, config.input[0].data_type, list(config.output[0].dims)) == ("m", 11, [-1, 10])
    assert client.get_model_repository_index().models[0].state == "READY"
    client.infer("m", inputs_of(X))
    row = client.get_inference_statistics("m").model_stats[0]
    assert (row.inference_count, row.execution_count, row.inference_stats.success.count) == (3, 1, 1)


@pytest.mark.parametrize(
    ("model", "inputs", "code", "words"),
    [
        ("m", inputs_of(X[:, :3].copy()), "INVALID_ARGUMENT", "dimension 1 must be 64"),
        ("m", inputs_of(X, "q"), "INVALID_ARGUMENT", "unknown input 'q'"),
        ("other", inputs_of(X), "NOT_FOUND", "only 'm'"),
    ],
)
def test_refusals(client, model, inputs, code, words):
    with pytest.raises(InferenceServerException, match=words) as caught:
        client.infer(model, inputs)
    assert code in caught.value.status()


def test_async_and_stream(client):
    answers: queue.Queue = queue.Queue()
    client.async_infer("m", inputs_of(X), callback=lambda result, error: answers.put((result, error)))
    result, error = answers.get(timeout=20)
    assert error is None
    np.testing.assert_allclose(result.as_numpy("y"), mlp_answer(X), rtol=1e-3, atol=1e-3)
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for index in range(50):
        client.async_stream_infer("m" if index != 30 else "other", inputs_of(X + np.float32(index)), request_id=str(index))
    for index in range(50):
        result, error = answers.get(timeout=20)
        if index == 30:
            assert "only 'm'" in str(error)
            continue
        assert result.get_response().id == str(index)
        np.testing.assert_allclose(result.as_numpy("y"), mlp_answer(X + np.float32(index)), rtol=1e-3, atol=1e-2)
    client.stop_stream()


async def test_aio(server, port):
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{port}") as client:
        assert await client.is_server_ready()
        result = await client.infer("m", inputs_of(X))
        np.testing.assert_allclose(result.as_numpy("y"), mlp_answer(X), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("raw", [True, False])
def test_every_datatype_raw_but_not_half_raw(start, port, raw):
    draft, arrays = dtypes_draft()
    start(draft, "--grpc-port", str(port)).wait_ready()
    fields = {"BOOL": "bool", "INT64": "int64", "UINT64": "uint64", "FP32": "fp32", "FP64": "fp64", "BYTES": "bytes"}
    request = service_pb2.ModelInferRequest(model_name="m", id="7")
    for name, (datatype, array) in arrays.items():
        item = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        values = [value.encode() if isinstance(value, str) else value for value in array.ravel().tolist()]
        if not raw and datatype != "FP16":
            field = fields.get(datatype, "uint" if datatype.startswith("U") else "int")
            getattr(item.contents, f"{field}_contents").extend(values)
        elif datatype == "BYTES":
            request.raw_input_contents.append(b"".join(len(value).to_bytes(4, "little") + value for value in values))
        else:
            request.raw_input_contents.append(array.tobytes())
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(
            f"/{oip.SERVICE}/ModelInfer", service_pb2.ModelInferRequest.SerializeToString, service_pb2.ModelInferResponse.FromString
        )
        if not raw:
            with pytest.raises(grpc.RpcError, match="raw_input_contents has 1 entries"):
                call(request)
            return
        result = triton.InferResult(call(request))
    for name, (_, array) in arrays.items():
        got = result.as_numpy(f"{name}_out").ravel().tolist()
        assert [value.decode() if isinstance(value, bytes) else value for value in got] == array.ravel().tolist()


def test_contents_are_answered_in_contents(server, port):
    request = service_pb2.ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype="FP32", shape=[3, 64]).contents.fp32_contents.extend(X.ravel().tolist())
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(
            f"/{oip.SERVICE}/ModelInfer", service_pb2.ModelInferRequest.SerializeToString, service_pb2.ModelInferResponse.FromString
        )
        response = call(request)
    assert not response.raw_output_contents
    got = np.reshape(response.outputs[0].contents.fp32_contents, response.outputs[0].shape)
    np.testing.assert_allclose(got, mlp_answer(X), rtol=1e-3, atol=1e-3)


def test_the_messages_have_the_numbers_of_an_independent_client():
    theirs = service_pb2.DESCRIPTOR
    checked = 0
    for name, message in theirs.message_types_by_name.items():
        try:
            own = oip.message(name).DESCRIPTOR
        except KeyError:
            continue
        checked += 1
        for field in own.fields:
            same = message.fields_by_number[field.number]
            assert (same.name, same.type, same.is_repeated) == (field.name, field.type, field.is_repeated), f"{name}.{field.name}"
    assert checked >= 24
    assert {method.name for method in theirs.services_by_name["GRPCInferenceService"].methods} >= {"ModelInfer", "ModelStreamInfer"}


def test_a_damaged_message_and_the_health_service(server, port):
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for method in ("ModelInfer", "ModelMetadata"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/{oip.SERVICE}/{method}")(b"\xff\xff\xff")
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"") == b"\x08\x01"


def test_a_client_that_gives_up_leaves_the_queue_and_a_full_queue_says_so(start, port):
    server = start(sleeper_draft(0.3), "--grpc-port", str(port), "--lanes", "1", "--queue-size", "3").wait_ready()
    one = np.ones((1, 1), np.float32)
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        answers: queue.Queue = queue.Queue()
        for _ in range(12):
            client.async_infer("m", inputs_of(one), callback=lambda result, error: answers.put(error), client_timeout=None)
        errors = [answers.get(timeout=20) for _ in range(12)]
        assert {error.status() for error in errors if error} == {"StatusCode.RESOURCE_EXHAUSTED"}
        assert sum(error is None for error in errors) in (4, 5)
        for _ in range(8):
            with pytest.raises(InferenceServerException, match=r"(?i)deadline"):
                client.infer("m", inputs_of(one), client_timeout=0.02)
        started = time.monotonic()
        client.infer("m", inputs_of(one))
        assert time.monotonic() - started < 3
    assert b"slipway_inflight_requests 0.0" in server.get("/metrics").body


def test_sigterm_ends_with_the_calls_in_flight_answered(start, port):
    server = start(sleeper_draft(1.0), "--grpc-port", str(port), "--drain-seconds", "0.3").wait_ready()
    results: list = []

    def ask():
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            results.append(client.infer("m", inputs_of(np.ones((1, 1), np.float32))).as_numpy("y")[0, 0])

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.5)
    server.terminate()
    thread.join(20)
    assert results == [2.0]
    assert server.wait(20) == 0
