"""What the LibTorch server has beside the tests it shares with the Python server."""

from __future__ import annotations

import io
import json
import socket
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from integration.libtorch.drafts import aotinductor_draft, identity_draft, row_counter_draft
from slipway_runtime.serve.preprocess import ImagePreprocessing
from unit.runtime.serve.artifacts import IMAGE, Draft, digits_draft, mlp_answer, mlp_draft

pytestmark = [pytest.mark.nightly]

INFER = "/v2/models/m/infer"


def binary_request(arrays: dict[str, tuple[str, np.ndarray]], **fields) -> tuple[bytes, int]:
    """The body of a binary request and the length of its JSON."""
    inputs = [
        {"name": name, "datatype": wire, "shape": list(array.shape), "parameters": {"binary_data_size": array.nbytes}}
        for name, (wire, array) in arrays.items()
    ]
    head = json.dumps({"inputs": inputs, **fields}).encode()
    return head + b"".join(array.tobytes() for _, array in arrays.values()), len(head)


def ask_binary(server, arrays, **fields):
    body, length = binary_request(arrays, **fields)
    return server.ask("POST", INFER, body, Inference_Header_Content_Length=str(length), content_type="application/octet-stream")


def test_infer_equals_numpy_and_metrics_count_it(start):
    server = start(mlp_draft()).wait_ready()
    x = np.random.default_rng(3).standard_normal((5, 64)).astype(np.float32)
    output = server.infer("m", x.tolist()).json["outputs"][0]
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), mlp_answer(x), rtol=1e-3, atol=1e-3)
    server.infer("m", [[1.0]])
    text = server.get("/metrics").body.decode()
    for line in (
        'slipway_requests_total{code="200",model="m",revision="m-1"} 1.0',
        'slipway_requests_total{code="400",model="m",revision="m-1"} 1.0',
        'slipway_request_duration_seconds_count{model="m",revision="m-1"} 2.0',
        "slipway_inference_duration_seconds_count 1.0",
        "slipway_batch_size_sum 5.0",
        "slipway_inflight_requests 0.0",
        'format="TorchScript",precision="Float32"} 1.0',
    ):
        assert line in text, line
    for name in ("slipway_queue_duration_seconds_bucket", "slipway_model_load_seconds", "process_resident_memory_bytes"):
        assert name in text


def test_answers_that_are_not_finite_are_counted(start):
    server = start(mlp_draft()).wait_ready()
    name = 'slipway_nonfinite_outputs_total{model="m",revision="m-1"}'
    assert f"{name} 0.0" in server.get("/metrics").body.decode()
    for row in ([1.0] * 64, [None] * 64, [3e38] * 64):  # null is NaN
        assert server.infer("m", [row]).status == 200
    assert f"{name} 2.0" in server.get("/metrics").body.decode()


def test_metrics_have_the_names_types_and_buckets_of_the_python_server(start):
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415

    from slipway_runtime.serve.metrics import Metrics  # noqa: PLC0415

    python = Metrics("m", "m-1", lambda: 0)
    python.count(200)
    python.seconds(0.1)
    python.probes.add(200, 0.1)
    python.set_artifact("sha256:0", "ONNX", "Float32")
    server = start(mlp_draft()).wait_ready()
    server.infer("m", [[1.0] * 64])
    assert server.ask("POST", INFER, x_slipway_probe="golden").status == 200

    def shape(text):
        return {
            (family.name, family.type, sample.name, tuple(sorted(sample.labels)), sample.labels.get("le"))
            for family in text_string_to_metric_families(text)
            if family.name.startswith("slipway_")
            for sample in family.samples
        }

    assert shape(server.get("/metrics").body.decode()) == shape(python.render().decode())


@pytest.mark.parametrize(
    ("dtype", "wire", "values"),
    [
        ("bool", "BOOL", [True, False]),
        ("uint8", "UINT8", [0, 255]),
        ("uint16", "UINT16", [0, 65535]),
        ("uint32", "UINT32", [0, 2**32 - 1]),
        ("uint64", "UINT64", [0, 2**64 - 1]),
        ("int8", "INT8", [-128, 127]),
        ("int16", "INT16", [-32768, 32767]),
        ("int32", "INT32", [-(2**31), 2**31 - 1]),
        ("int64", "INT64", [-(2**63), 2**63 - 1]),
        ("float16", "FP16", [0.1, 65504.0, 6e-8, -2.0]),
        ("float32", "FP32", [0.1, 3.4028235e38, 1e-45, -0.0]),
        ("float64", "FP64", [0.1, 1.7976931348623157e308, -1e-300]),
    ],
)
def test_every_type_goes_and_comes_back_in_json_and_in_binary(start, dtype, wire, values):
    server = start(identity_draft(dtype)).wait_ready()
    x = np.array([values], dtype)
    item = {"name": "x", "datatype": wire, "shape": list(x.shape), "data": x.tolist()}
    output = server.ask("POST", INFER, json.dumps({"inputs": [item]})).json["outputs"][0]
    assert (output["datatype"], output["shape"]) == (wire, list(x.shape))
    np.testing.assert_array_equal(np.array(output["data"], dtype), x[0])
    answer = ask_binary(server, {"x": (wire, x)}, parameters={"binary_data_output": True})
    length = int(answer.headers["inference-header-content-length"])
    head = json.loads(answer.body[:length])["outputs"][0]
    assert head["parameters"] == {"binary_data_size": x.nbytes}
    assert "data" not in head
    assert answer.body[length:] == x.tobytes()


def test_bfloat16(start):
    server = start(identity_draft("bfloat16")).wait_ready()
    item = {"name": "x", "datatype": "BF16", "shape": [1, 3], "data": [1.0, -2.5, 3.140625]}
    output = server.ask("POST", INFER, json.dumps({"inputs": [item]})).json["outputs"][0]
    assert (output["datatype"], output["data"]) == ("BF16", [1.0, -2.5, 3.140625])
    raw = b"".join(struct.pack("<f", value)[2:] for value in (1.0, -2.5))
    head = {"name": "x", "datatype": "BF16", "shape": [1, 2], "parameters": {"binary_data_size": 4}}
    body = json.dumps({"inputs": [head], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}).encode()
    answer = server.ask("POST", INFER, body + raw, Inference_Header_Content_Length=str(len(body)))
    assert answer.body.endswith(raw)


def test_binary_inputs_may_be_answered_in_json(start):
    server = start(mlp_draft()).wait_ready()
    x = np.random.default_rng(4).standard_normal((3, 64)).astype(np.float32)
    answer = ask_binary(server, {"x": ("FP32", x)}, id="é").json
    assert answer["id"] == "é"
    np.testing.assert_allclose(np.reshape(answer["outputs"][0]["data"], (3, 10)), mlp_answer(x), rtol=1e-3, atol=1e-3)


X = np.ones((1, 64), np.float32)
FLAT = {"name": "x", "datatype": "FP32", "shape": [1, 64], "data": [1.0] * 64}


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b"", "not JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"inputs": []}', "'inputs' must be a list"),
        ({"inputs": [1]}, "each input must be an object"),
        ({"inputs": [FLAT | {"name": "z"}]}, "unknown input 'z'; expected 'x'"),
        ({"inputs": [FLAT, FLAT]}, "given twice"),
        ({"inputs": [FLAT | {"datatype": "INT8"}]}, "expected datatype FP32, got 'INT8'"),
        ({"inputs": [FLAT | {"shape": [2, 32]}]}, "expected FP32 [batch, 64], got shape [2, 32] (dimension 1 must be 64)"),
        ({"inputs": [FLAT | {"shape": [64]}]}, "got shape [64]"),
        ({"inputs": [FLAT | {"shape": [1, 63]}]}, "needs 63 values, got 64"),
        ({"inputs": [FLAT | {"shape": [-1, 64]}]}, "list of positive integers"),
        ({"inputs": [FLAT | {"shape": "x"}]}, "list of positive integers"),
        ({"inputs": [FLAT | {"shape": [2**62, 2**62]}]}, "needs too many values"),
        ({"inputs": [FLAT | {"data": [[1.0] * 64, [1.0]]}]}, "ragged"),
        ({"inputs": [FLAT | {"data": [1.0] * 63 + [[1.0]]}]}, "ragged"),
        ({"inputs": [FLAT | {"data": ["a"] * 64}]}, "expected numbers"),
        ({"inputs": [FLAT | {"data": [True] * 64}]}, "expected numbers"),
        ({"inputs": [FLAT | {"data": [1e39] * 64}]}, "too large for float32"),
        ({"inputs": [FLAT | {"data": "[" * 3000}]}, "expected numbers"),
        (b'{"inputs": ' + b"[" * 3000, "not JSON"),
        ({"inputs": [FLAT], "id": 3}, "'id' must be a string"),
        ({"inputs": [FLAT], "outputs": [{"name": "q"}]}, "unknown output 'q'"),
        ({"inputs": [FLAT], "outputs": [{"name": "y", "parameters": {"classification": 2}}]}, "classification"),
        ({"inputs": [{k: v for k, v in FLAT.items() if k != "data"}]}, "'data' is missing"),
        ({"inputs": [FLAT | {"parameters": {"binary_data_size": 256}}]}, "ends before its binary_data_size"),
    ],
)
def test_a_request_that_does_not_fit_is_a_400_that_says_why(start_once, body, wanted):
    answer = start_once.ask("POST", INFER, body if isinstance(body, bytes) else json.dumps(body))
    assert (answer.status, wanted in answer.json["error"]) == (400, True), answer.json["error"]


@pytest.mark.parametrize(
    ("length", "size", "extra"), [("x", 256, b""), ("999999", 256, b""), (None, 255, b""), (None, 256, b"!"), ("-1", 256, b"")]
)
def test_malformed_binary_requests(start_once, length, size, extra):
    head = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "parameters": {"binary_data_size": size}}]}).encode()
    answer = start_once.ask("POST", INFER, head + X.tobytes() + extra, Inference_Header_Content_Length=length or str(len(head)))
    assert answer.status == 400
    assert answer.json["error"]


@pytest.fixture(scope="module")
def start_once(program, tmp_path_factory):
    from integration.libtorch.conftest import launch  # noqa: PLC0415

    server = launch(program, tmp_path_factory.mktemp("server"), mlp_draft()).wait_ready()
    yield server
    server.terminate()
    server.process.kill()
    server.wait()


def test_null_is_nan_both_ways(start):
    server = start(identity_draft("float32")).wait_ready()
    item = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [None, 1.0]}
    assert server.ask("POST", INFER, json.dumps({"inputs": [item]})).json["outputs"][0]["data"] == [None, 1.0]
    answer = ask_binary(server, {"x": ("FP32", np.array([[np.nan, np.inf]], np.float32))}, parameters={"binary_data_output": True})
    assert np.isnan(np.frombuffer(answer.body[-8:-4], np.float32)[0])


def test_requests_share_calls_and_get_their_own_rows(start):
    server = start(row_counter_draft(), "--max-batch-size=8", "--max-delay=20ms", "--lanes=1").wait_ready()

    def ask(number: int):
        rows = 1 + number % 3
        item = {"name": "x", "datatype": "FP32", "shape": [rows, 2], "data": [float(number)] * (2 * rows)}
        first, counts = server.ask("POST", INFER, json.dumps({"inputs": [item]})).json["outputs"]
        assert first["data"] == [float(number)] * rows
        assert len(set(counts["data"])) == 1
        return counts["data"][0]

    assert ask(0) == 1
    with ThreadPoolExecutor(16) as pool:
        seen = list(pool.map(ask, range(200)))
    assert max(seen) > 3
    assert max(seen) <= 8


def test_different_shapes_never_share_a_call(start):
    server = start(row_counter_draft(), "--max-batch-size=32", "--max-delay=20ms", "--lanes=1").wait_ready()

    def ask(number: int):
        width = 1 + number % 2
        item = {"name": "x", "datatype": "FP32", "shape": [1, width], "data": [float(number)] * width}
        answer = server.ask("POST", INFER, json.dumps({"inputs": [item]}))
        assert answer.status == 200, answer.body
        return answer.json["outputs"][0]["data"] == [float(number)]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(80)))


def test_one_client_alone_never_waits_for_others(start):
    server = start(row_counter_draft(), "--max-batch-size=8", "--max-delay=5000ms", "--lanes=1").wait_ready()
    for _ in range(3):
        server.infer("m", [[1.0]])
    text = server.get("/metrics").body.decode()
    waited = float(text.split("slipway_queue_duration_seconds_sum ")[1].split("\n")[0])
    assert waited < 5


def test_aotinductor(start, tmp_path):
    server = start(aotinductor_draft(tmp_path)).wait_ready()
    assert server.get("/v2/models/m").json["platform"] == "pytorch_aotinductor"
    x = np.random.default_rng(5).standard_normal((7, 64)).astype(np.float32)
    output = server.infer("m", x.tolist()).json["outputs"][0]
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), mlp_answer(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("mode", "size", "layout"), [("RGB", (5, 7), "NCHW"), ("L", (40, 30), "NHWC"), ("RGB", (16, 16), "NHWC")])
@pytest.mark.parametrize("kind", ["PNG", "palette", "alpha", "gray", "JPEG", "turned", "progressive"])
def test_images_become_the_tensors_of_the_python_server(start, mode, size, layout, kind):
    pixels = np.random.default_rng(6).integers(0, 256, (24, 17, 3), np.uint8)
    picture = Image.fromarray(np.kron(pixels, np.ones((3, 3, 1), np.uint8)))
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    match kind:
        case "palette":
            picture.quantize(64).save(file, "PNG")
        case "alpha":
            picture.putalpha(100)
            picture.save(file, "PNG")
        case "gray":
            picture.convert("L").save(file, "PNG")
        case "JPEG":
            picture.save(file, "JPEG", quality=90)
        case "turned":
            picture.save(file, "JPEG", exif=exif)
        case "progressive":
            picture.convert("L").save(file, "JPEG", progressive=True)
        case _:
            picture.save(file, "PNG")
    image = {"mode": mode, "size": list(size), "mean": [0.4], "std": [0.25], "layout": layout}
    channels = 1 if mode == "L" else 3
    shape = ["batch", channels, *size] if layout == "NCHW" else ["batch", *size, channels]
    tensor = {"name": "x", "dtype": "float32", "shape": shape}
    draft = identity_draft("float32")
    draft.config |= {"preprocessing": {"image": image}, "signature": {"inputs": [tensor], "outputs": [tensor | {"name": "y"}]}}
    server = start(Draft(draft.files, draft.config)).wait_ready()
    answer = server.ask("POST", "/predict", file.getvalue(), content_type="image/png")
    assert answer.status == 200, answer.body
    got = np.array(answer.json["outputs"]["y"], np.float32)[0]
    python = ImagePreprocessing.parse({"image": image})
    assert python is not None
    # libjpeg versions may round differently by one step of 255; PNG is exact.
    step = 1.01 / 255 / 0.25 if file.getvalue().startswith(b"\xff\xd8") else 1e-5
    np.testing.assert_allclose(got, python.tensor(file.getvalue()), atol=step)


@pytest.mark.parametrize("junk", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\x00\x10JFIF", b"GIF89a", b"x"])
def test_broken_images_are_400(start, junk):
    server = start(digits_draft()).wait_ready()
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(file, "PNG")
    for body in (junk, junk + b"\0" * 500, file.getvalue()[:40]):
        assert server.ask("POST", "/predict", body, content_type="image/png").status == 400
    assert server.ask("POST", "/predict", file.getvalue(), content_type="image/png").status == 200
    assert IMAGE["image"]["mode"] == "L"


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--nonsense=1"], 64, "unknown argument --nonsense"),
        (["--lanes=x"], 64, "--lanes 'x'"),
        (["--artifact-digest=sha256:00"], 60, "wanted sha256:00"),
    ],
)
def test_wrong_arguments_end_it_with_a_reason(start, options, code, text):
    server = start(mlp_draft(), *options)
    assert server.wait(30) == code
    assert text in json.loads(server.termination.read_text())["message"]


def test_a_port_that_is_taken(start):
    with socket.create_server(("", 0)) as other:
        server = start(mlp_draft(), f"--port={other.getsockname()[1]}")
        assert server.wait(30) == 64
    assert "cannot listen" in json.loads(server.termination.read_text())["message"]
