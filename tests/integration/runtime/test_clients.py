"""Triton's own Python client, unchanged, against a real server: HTTP, sync and aio."""

from __future__ import annotations

import numpy as np
import pytest
import tritonclient.http.aio as http_aio
from tritonclient import http
from tritonclient.utils import InferenceServerException

from unit.runtime.serve.artifacts import dtypes_draft, mlp_answer, mlp_draft


@pytest.fixture
def server(start):
    return start(mlp_draft(labels=[f"c{i}" for i in range(10)])).wait_ready()


@pytest.fixture
def client(server):
    with http.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


def inputs_of(x, *, binary=True):
    item = http.InferInput("x", list(x.shape), "FP32")
    item.set_data_from_numpy(x, binary_data=binary)
    return [item]


X = np.random.default_rng(5).standard_normal((3, 64)).astype(np.float32)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_infer(client, binary_in, binary_out):
    for _ in range(3):
        outputs = [http.InferRequestedOutput("y", binary_data=binary_out)]
        result = client.infer("m", inputs_of(X, binary=binary_in), outputs=outputs, request_id="r7")
        np.testing.assert_allclose(result.as_numpy("y"), mlp_answer(X), rtol=1e-3, atol=1e-3)
        response = result.get_response()
        assert (response["id"], response["model_name"], response["model_version"]) == ("r7", "m", "m-1")
    np.testing.assert_allclose(client.infer("m", inputs_of(X)).as_numpy("y"), mlp_answer(X), rtol=1e-3, atol=1e-3)


def test_parameters_priority_timeout_and_versions(client):
    for version in ("", "1", "m-1"):
        options = {"model_version": version, "priority": 1, "timeout": 10_000_000, "parameters": {"mine": "x"}, "headers": {"x": "y"}}
        assert client.infer("m", inputs_of(X), **options).as_numpy("y").shape == (3, 10)


def test_classification(client):
    result = client.infer("m", inputs_of(X), outputs=[http.InferRequestedOutput("y", class_count=2)]).as_numpy("y")
    assert result.shape == (3, 2)
    score, index, label = result[0, 0].decode().split(":")
    assert (int(index), label) == (mlp_answer(X)[0].argmax(), f"c{mlp_answer(X)[0].argmax()}")
    assert float(score) == pytest.approx(mlp_answer(X)[0].max(), rel=1e-3)


def test_async_infer(client):
    pending = [client.async_infer("m", inputs_of(X + i)) for i in range(4)]
    for i, one in enumerate(pending):
        np.testing.assert_allclose(one.get_result().as_numpy("y"), mlp_answer(X + np.float32(i)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(client, algorithm):
    result = client.infer("m", inputs_of(X), request_compression_algorithm=algorithm, response_compression_algorithm=algorithm)
    np.testing.assert_allclose(result.as_numpy("y"), mlp_answer(X), rtol=1e-3, atol=1e-3)


def test_information(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    assert client.is_model_ready("m", "m-1")
    assert not client.is_model_ready("other")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("m")["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}]
    config = client.get_model_config("m")
    assert (config["name"], config["input"][0]["data_type"], config["output"][0]["dims"]) == ("m", "TYPE_FP32", [-1, 10])
    assert client.get_model_repository_index() == [{"name": "m", "version": "m-1", "state": "READY", "reason": ""}]
    client.infer("m", inputs_of(X))
    row = client.get_inference_statistics("m")["model_stats"][0]
    assert (row["inference_count"], row["execution_count"], row["inference_stats"]["success"]["count"]) == (3, 1, 1)
    assert row == client.get_inference_statistics()["model_stats"][0]


def test_refusals_are_the_client_s_own_exception(client):
    with pytest.raises(InferenceServerException, match="dimension 1 must be 64"):
        client.infer("m", inputs_of(X[:, :3].copy()))
    with pytest.raises(InferenceServerException, match="this server has only model 'm'"):
        client.infer("other", inputs_of(X))
    with pytest.raises(InferenceServerException, match="unknown output 'q'"):
        client.infer("m", inputs_of(X), outputs=[http.InferRequestedOutput("q")])


def test_every_datatype(start):
    draft, arrays = dtypes_draft()
    server = start(draft).wait_ready()
    with http.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        for binary in (True, False):
            items = []
            for name, (datatype, array) in arrays.items():
                items.append(http.InferInput(name, list(array.shape), datatype))
                items[-1].set_data_from_numpy(array, binary_data=binary or datatype == "FP16")
            for _ in range(2):
                outputs = [
                    http.InferRequestedOutput(f"{name}_out", binary_data=binary or kind[0] == "FP16") for name, kind in arrays.items()
                ]
                result = client.infer("m", items, outputs=outputs)
                for name, (datatype, array) in arrays.items():
                    got = result.as_numpy(f"{name}_out")
                    want = array.astype(str).tolist() if datatype == "BYTES" else array.tolist()
                    decoded = [value.decode() if isinstance(value, bytes) else value for value in got.ravel().tolist()]
                    assert decoded == np.ravel(want).tolist(), (name, binary)


async def test_aio(server):
    async with http_aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        assert await client.is_server_ready()
        assert (await client.get_model_metadata("m"))["versions"] == ["m-1"]
        result = await client.infer("m", inputs_of(X), outputs=[http_aio.InferRequestedOutput("y", binary_data=True)])
        np.testing.assert_allclose(result.as_numpy("y"), mlp_answer(X), rtol=1e-3, atol=1e-3)
        with pytest.raises(InferenceServerException):
            await client.infer("m", inputs_of(X[:, :3].copy()))
