"""TorchServe's and KServe's v1 paths, .npy bodies, batching and the access log, as a client meets them."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from unit.runtime.serve.artifacts import digits_draft, dtypes_draft, mlp_answer, mlp_draft, sleeper_draft, text_draft

X = np.random.default_rng(5).standard_normal((3, 64)).astype(np.float32)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture
def server(start):
    return start(mlp_draft()).wait_ready()


def test_kserve_v1(server):
    for body in ({"instances": X.tolist()}, {"inputs": X.tolist()}, {"instances": [{"x": row} for row in X.tolist()]}):
        answer = server.ask("POST", "/v1/models/m:predict", json.dumps(body))
        np.testing.assert_allclose(answer.json["predictions"], mlp_answer(X), rtol=1e-3, atol=1e-3)
    assert server.get("/v1/models").json == {"models": ["m"]}
    assert server.get("/v1/models/m").json == {"name": "m", "ready": True}
    assert server.ask("POST", "/v1/models/m:predict", b"{}").status == 400
    assert server.ask("POST", "/v1/models/other:predict", b"{}").status == 404


def test_kserve_v1_with_several_outputs_answers_rows(start):
    draft, arrays = dtypes_draft()
    server = start(draft).wait_ready()
    instances = [{name: array[row].tolist() for name, (_, array) in arrays.items()} for row in range(2)]
    rows = server.ask("POST", "/v1/models/m:predict", json.dumps({"instances": instances})).json["predictions"]
    assert rows == [{f"{name}_out": value for name, value in instance.items()} for instance in instances]


@pytest.mark.parametrize("array", [X, X[0], X.astype(np.float64), np.asfortranarray(X)])
def test_npy(server, array):
    answer = server.ask("POST", "/v2/models/m/predict", npy(array), content_type="application/x-npy").json
    want = mlp_answer(np.atleast_2d(array))
    assert [row["prediction"] for row in answer["predictions"]] == want.argmax(1).tolist()


HUGE = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}" + b" " * 50 + b"\n"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (npy(X)[:-1], "are not those of float32"),
        (npy(X)[:40], "cannot be read"),
        (npy(np.array([{}], object)), "holds objects"),
        (npy(X[:, :5].copy()), "dimension 1 must be 64"),
        (npy(np.array(["a"] * 64)), "expected numbers"),
        (
            b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}" + b" " * 50 + b"\n",
            "are not those of",
        ),
    ],
)
def test_a_wrong_npy_is_refused(server, body, words):
    answer = server.ask("POST", "/predict", body)
    assert (answer.status, words in answer.json["error"]) == (400, True), answer.json


def test_torchserve(start, server):
    for body in (X.tolist(), {"data": X.tolist()}, {"instances": X.tolist()}):
        answer = server.ask("POST", "/predictions/m", json.dumps(body), content_type="application/json")
        np.testing.assert_allclose(answer.json, mlp_answer(X), rtol=1e-3, atol=1e-3)
    one = server.ask("POST", "/predictions/m", json.dumps(X[0].tolist())).json
    np.testing.assert_allclose(one, mlp_answer(X[:1])[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(server.ask("POST", "/predictions/m", npy(X)).json, mlp_answer(X), rtol=1e-3, atol=1e-3)
    assert server.get("/ping").json == {"status": "Healthy"}
    for body in (b"junk", b"{}", b'"text"', b"[[1]]"):
        assert server.ask("POST", "/predictions/m", body).status == 400, body
    images = start(digits_draft()).wait_ready()
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0, 3] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    form = b'--B\r\ncontent-disposition: form-data; name="data"; filename="a.png"\r\n\r\n%b\r\n--B--\r\n' % file.getvalue()
    for body, kind in (
        (form, "multipart/form-data; boundary=B"),
        (file.getvalue(), "image/png"),
        (file.getvalue(), "application/octet-stream"),
    ):
        answer = images.ask("POST", "/predictions/m", body, content_type=kind).json
        assert (len(answer), next(iter(answer))) == (5, "d3")
        assert answer["d3"] > 0.9


def test_concurrent_requests_are_batched_and_each_gets_its_own_rows(start):
    server = start(sleeper_draft(0.05), "--lanes", "1", "--max-batch-size", "16", "--max-delay", "5ms").wait_ready()
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda i: server.infer("m", [[float(i)]] * (1 + i % 3)).json["outputs"][0]["data"], range(96)))
    assert answers == [[2.0 * i] * (1 + i % 3) for i in range(96)]
    text = server.get("/metrics").body.decode()
    calls = float(text.partition("slipway_batch_size_count ")[2].split()[0])
    rows = float(text.partition("slipway_batch_size_sum ")[2].split()[0])
    assert rows == sum(1 + i % 3 for i in range(96))
    assert calls < 60
    config = server.get("/v2/models/m/config").json
    assert config["dynamic_batching"] == {"max_queue_delay_microseconds": 5000}


def test_texts_of_different_lengths_share_a_batch_and_are_answered_as_if_alone(start):
    server = start(text_draft(seconds=0.05), "--lanes", "1", "--max-batch-size", "16", "--max-delay", "5ms").wait_ready()

    def asked(number: int) -> list[list[float]]:
        words = 5 + number % 4  # rounded up to 8
        kinds = (("ids", "INT64", [number + word for word in range(words)]), ("mask", "BOOL", [True] * (words - 1) + [False]))
        body = {"inputs": [{"name": name, "shape": [1, words], "datatype": kind, "data": data} for name, kind, data in kinds]}
        outputs = server.ask("POST", "/v2/models/m/infer", json.dumps(body)).json["outputs"]
        assert outputs[1]["shape"] == [1, words]
        return [output["data"] for output in outputs]

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(asked, range(96)))
    assert answers == [[[i + (3 + i % 4) / 2], [2.0 * (i + word) for word in range(5 + i % 4)]] for i in range(96)]
    assert float(server.get("/metrics").body.decode().partition("slipway_batch_size_count ")[2].split()[0]) < 40


def test_one_request_that_fails_in_a_batch_fails_alone(start):
    server = start(sleeper_draft(0.1), "--lanes", "1", "--max-batch-size", "16").wait_ready()
    with ThreadPoolExecutor(16) as pool:
        codes = list(pool.map(lambda i: server.infer("m", [[1.0] if i != 7 else [-1e30]]).status, range(16)))
    assert [index for index, code in enumerate(codes) if code != 200] in ([], [7])


def test_a_deadline_of_the_request_is_kept(start):
    server = start(sleeper_draft(0.5), "--lanes", "1").wait_ready()
    item = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
    late = json.dumps({"inputs": [item], "parameters": {"timeout": 100_000}})
    with ThreadPoolExecutor(4) as pool:
        busy = pool.submit(server.infer, "m", [[1.0]])
        while b"slipway_inflight_requests 1.0" not in server.get("/metrics").body:
            pass
        by_parameter = pool.submit(server.ask, "POST", "/v2/models/m/infer", late)
        plain = json.dumps({"inputs": [item]})
        by_header = pool.submit(server.ask, "POST", "/v2/models/m/infer", plain, x_envoy_expected_rq_timeout_ms="100")
        assert (by_parameter.result().status, by_header.result().status, busy.result().status) == (504, 504, 200)


def test_the_access_log_is_off_by_default_and_structured(start):
    for options, expected in (((), []), (("--access-log",), [("/v2/models/m/infer", 200), ("/v2/models/m/infer", 400)])):
        server = start(mlp_draft(), "--drain-seconds", "0", *options).wait_ready()
        server.infer("m", X.tolist())
        server.infer("m", [[1.0]])
        # A line is written after the answer that it is about; the end of the process comes after both.
        server.terminate()
        assert server.wait() == 0
        rows = [json.loads(line[line.index("{") :]) for line in server.log.read_text().splitlines() if "slipway_runtime.access" in line]
        assert [(row["path"], row["status"]) for row in rows] == expected


@pytest.mark.parametrize("options", [("--max-delay", "2"), ("--max-batch-size", "5000"), ("--max-batch-size", "-1")])
def test_wrong_batching_is_refused(start, options):
    assert start(mlp_draft(), *options).wait(20) == 64


def test_every_documented_path_answers(server):
    paths = server.get("/openapi.json").json["paths"]
    assert len(paths) >= 15
    for path, operations in paths.items():
        for method in operations:
            answer = server.ask(method.upper(), path, b"{}" if method == "post" else None)
            assert answer.status in (200, 400), (path, answer.status)
    page = server.get("/docs").body.decode()
    assert "/v1/models/m:predict" in page
    assert "/predictions/m" in page
