"""What a client meets on the wire: paths, codes, headers, order, limits."""

from __future__ import annotations

import io
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from unit.runtime.serve.artifacts import digits_draft, mlp, mlp_draft, sleeper_draft

INFER = "/v2/models/m/infer"


def post(body: bytes, *headers: str, path: str = INFER) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: h", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def body_of(value: float, count: int = 1, width: int = 64) -> bytes:
    return json.dumps(
        {"id": str(value), "inputs": [{"name": "x", "shape": [count, width], "datatype": "FP32", "data": [value] * (count * width)}]}
    ).encode()


@pytest.fixture
def server(start):
    return start(mlp_draft()).wait_ready()


def test_paths_and_codes(server):
    rows = [
        ("GET", "/v2", 200),
        ("GET", "/v2/health/live", 200),
        ("GET", "/v2/health/ready", 200),
        ("GET", "/v2/models/m", 200),
        ("GET", "/v2/models/m/", 200),
        ("GET", "/v2/models/%6d", 200),
        ("GET", "/v2/models/m/ready", 200),
        ("GET", "/v2/models/m/versions/m-1", 200),
        ("GET", "/v2/models/m/versions/m-1/ready", 200),
        ("GET", "/v2/models/m/versions/2", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/docs", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/metrics?x=1", 200),
        ("GET", "/", 404),
        ("HEAD", "/v2/health/live", 200),
        ("GET", INFER, 405),
        ("POST", "/v2", 405),
        ("POST", INFER, 400),
        ("POST", "/predict", 400),
    ]
    for method, path, status in rows:
        answer = server.ask(method, path)
        assert answer.status == status, (method, path)
        assert answer.headers["x-slipway-revision"] == "m-1"
        assert status < 400 or answer.json["error"], path
        assert method != "HEAD" or answer.body == b""
    assert server.ask("GET", INFER).headers["allow"] == "POST"


def test_infer_equals_numpy_and_metrics_count_it(server):
    x = np.random.default_rng(3).standard_normal((5, 64)).astype(np.float32)
    _, first, second = mlp()
    output = server.infer("m", x.tolist()).json["outputs"][0]
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), np.maximum(x @ first, 0) @ second, rtol=1e-3, atol=1e-3)
    server.infer("m", [[1.0]])
    text = server.get("/metrics").body.decode()
    for line in (
        'slipway_requests_total{code="200",model="m",revision="m-1"} 1.0',
        'slipway_requests_total{code="400",model="m",revision="m-1"} 1.0',
        'slipway_request_duration_seconds_count{model="m",revision="m-1"} 2.0',
        "slipway_inference_duration_seconds_count 1.0",
        "slipway_batch_size_sum 5.0",
        "slipway_inflight_requests 0.0",
        'format="ONNX",precision="Float32"} 1.0',
    ):
        assert line in text, line
    for name in ("slipway_queue_duration_seconds_bucket", "slipway_model_load_seconds"):
        assert name in text


# What every server exports (design 8), with the labels that its own text has.
SERVING = {
    "slipway_requests_total": {"model", "revision", "code"},
    "slipway_nonfinite_outputs_total": {"model", "revision"},
    **{f"slipway_request_duration_seconds_{part}": {"model", "revision"} for part in ("sum", "count")},
    "slipway_request_duration_seconds_bucket": {"model", "revision", "le"},
    **{
        f"slipway_{name}_{part}": set()
        for name in ("queue_duration_seconds", "inference_duration_seconds", "batch_size")
        for part in ("sum", "count")
    },
    **{f"slipway_{name}_bucket": {"le"} for name in ("queue_duration_seconds", "inference_duration_seconds", "batch_size")},
    "slipway_inflight_requests": set(),
    "slipway_model_load_seconds": set(),
    "slipway_artifact_info": {"digest", "format", "precision"},
}


def test_metrics_are_those_of_the_design(start):
    server = start(mlp_draft()).wait_ready()
    assert server.infer("m", [[1.0] * 64]).status == 200
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(server.get("/metrics").body.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    assert {name: found.get(name) for name in SERVING} == SERVING


def test_pipelined_answers_keep_the_order_of_the_requests(start):
    server = start(sleeper_draft(0.02), "--lanes", "4").wait_ready()
    requests = [post(body_of(value, width=1)) for value in (-0.3, 0.0, -0.1)] + [post(body_of(0.0, width=1), "Connection: close")]
    received = server.raw(b"".join(requests), end=False)
    assert received.count(b"HTTP/1.1 200 OK") == 4
    order = [received.index(b'"data":[' + value) for value in (b"-0.6", b"-0.2")]
    assert order == sorted(order)


def test_chunked_body_and_expect_continue(server):
    body = body_of(1.0)
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:10], body[10:])) + b"0\r\n\r\n"
    lines = ["Host: h", "Transfer-Encoding: chunked", "Expect: 100-continue", "Connection: close"]
    head = "\r\n".join([f"POST {INFER} HTTP/1.1", *lines]).encode() + b"\r\n\r\n"
    received = server.raw(head + chunks, end=False)
    assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


def test_an_offer_to_upgrade_is_declined_by_answering(server):
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAAA")
    # Who closes earlier goes without the answer when the model runs in a lane, as on a busy machine.
    last = b"GET /v2 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    assert server.raw(post(body_of(1.0), *offer) + last, end=False).count(b"HTTP/1.1 200 OK") == 2
    get = "\r\n".join(["GET /v2 HTTP/1.1", "Host: h", *offer]).encode() + b"\r\n\r\n"
    assert server.raw(get + post(body_of(1.0), "Connection: close"), end=False).count(b"HTTP/1.1 200 OK") == 2


def test_limits(start):
    server = start(mlp_draft(), "--max-body-bytes", "1000", "--header-seconds", "1").wait_ready()
    assert server.raw(post(b"x" * 2000), end=False).startswith(b"HTTP/1.1 413")
    chunked = f"POST {INFER} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + b"7d0\r\n" + b"x" * 2000
    assert server.raw(chunked, end=False).startswith(b"HTTP/1.1 413")
    assert server.raw(b"GET /v2 HTTP/1.1\r\nx: " + b"y" * 70_000, end=False).startswith(b"HTTP/1.1 431")
    assert server.raw(b"nonsense\r\n\r\n", end=False).startswith(b"HTTP/1.1 400")
    started = time.monotonic()
    assert server.raw(b"GET /v2 HTTP/1.1\r\nHos", end=False).startswith(b"HTTP/1.1 408")
    assert server.raw(b"", end=False) == b""
    assert time.monotonic() - started < 12


def test_http_1_0_and_connection_close_end_the_connection(server):
    assert b"connection: close" in server.raw(b"GET /v2 HTTP/1.0\r\n\r\n", end=False)
    assert b"connection: close" in server.raw(b"GET /v2 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", end=False)


def test_a_large_body_in_pieces(server):
    count = 4000
    data = post(body_of(1.0, count))
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        for start in range(0, len(data), 50_000):
            client.sendall(data[start : start + 50_000])
        assert client.recv(65536).startswith(b"HTTP/1.1 200 OK")


def test_images_and_labels(start):
    server = start(digits_draft(), labels=[f"e{i}" for i in range(10)]).wait_ready()
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0, 3] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    form = (
        b'--B\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\ncontent-type: image/png\r\n\r\n%b\r\n--B--\r\n'
        % file.getvalue()
    )
    uploads = [(form, "multipart/form-data; boundary=B"), (file.getvalue(), "image/png")]
    for path in ("/predict", "/v2/models/m/predict"):
        for body, kind in uploads:
            answer = server.ask("POST", path, body, content_type=kind).json
            assert (answer["prediction"], answer["label"], answer["model"], answer["revision"]) == (3, "e3", "m", "m-1")
            assert 0.9 < answer["probability"] <= 1
    batch = server.ask("POST", "/predict", json.dumps({"instances": np.zeros((2, 1, 8, 8)).tolist()})).json
    assert [row["label"] for row in batch["predictions"]] == ["e0", "e0"]
    assert server.ask("POST", "/predict", b"junk", content_type="image/png").status == 400


def test_a_full_queue_answers_429_and_recovers(start):
    server = start(sleeper_draft(0.5), "--lanes", "1", "--queue-size", "2").wait_ready()
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: server.infer("m", [[1.0]]), range(10)))
    codes = [answer.status for answer in answers]
    assert set(codes) == {200, 429}
    assert codes.count(200) in (3, 4)
    refused = next(answer for answer in answers if answer.status == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert server.infer("m", [[1.0]]).status == 200


def test_jobs_of_clients_that_left_are_skipped(start):
    server = start(sleeper_draft(0.3), "--lanes", "1").wait_ready()
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(post(body_of(1.0, width=1)))
            time.sleep(0.01)
    started = time.monotonic()
    assert server.infer("m", [[1.0]]).status == 200
    assert time.monotonic() - started < 2
    assert b"slipway_inflight_requests 0.0" in server.get("/metrics").body


def test_a_model_that_raises_is_a_500_that_says_so(start):
    server = start(sleeper_draft(0.0)).wait_ready()
    answer = server.infer("m", [[float("-1e30")]])
    assert answer.status == 500
    assert "the model failed" in answer.json["error"]


def test_liveness_notices_a_stuck_model(start):
    server = start(sleeper_draft(0.02), "--stuck-seconds", "0.5", "--lanes", "1").wait_ready()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(server.infer, "m", [[-4.0]])
        while (answer := server.get("/v2/health/live")).status == 200:
            assert not slow.done()
        assert answer.status == 503
        assert "running" in answer.json["reason"]
    assert server.get("/v2/health/live").status == 200
