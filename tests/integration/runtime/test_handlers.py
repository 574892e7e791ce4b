"""Archives of TorchServe with handlers of their own, served: TorchServe's API, the Open Inference Protocol, and KServe's v1."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from integration.mar import CLASS, FUNCTION, SCALING, draft_of, net, packed

SCORER = {"handler.py": CLASS, "scaling.py": SCALING}
NUMBERS = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 3]}],
}
X = [[0.0, 1.0, -2.0, 0.5], [3.0, 1.0, -2.0, 0.5], [-9.0, 1.0, 4.0, 0.5]]
JSON = {"content_type": "application/json"}


def scored(x):
    with torch.no_grad():
        shares = torch.softmax(net()(torch.tensor(x) * 0.5), 0)
    return {"label": ["cat", "dog", "fish"][int(shares.argmax())], "score": float(shares.max())}


def is_scored(got, x):
    want = scored(x)
    return got["label"] == want["label"] and got["score"] == pytest.approx(want["score"], abs=1e-6)


@pytest.fixture
def scorer(start, tmp_path):
    return start(draft_of(packed(tmp_path / "mar", "handler.py", SCORER))).wait_ready()


def test_torchserve_api(scorer):
    answer = scorer.ask("POST", "/predictions/m", json.dumps({"x": X[0]}), **JSON)
    assert (answer.status, answer.headers["content-type"], answer.headers["x-handler"]) == (200, "application/json", "m")
    assert is_scored(answer.json, X[0])
    assert is_scored(scorer.ask("POST", "/predictions/m", json.dumps(X[1])).json, X[1])  # no content type: the handler gets bytes
    form = b'--B\r\ncontent-disposition: form-data; name="data"\r\n\r\n%b\r\n--B--\r\n' % json.dumps(X[2]).encode()
    assert is_scored(scorer.ask("POST", "/predictions/m", form, content_type="multipart/form-data; boundary=B").json, X[2])


def test_what_the_handler_refuses_has_its_status(scorer):
    answer = scorer.ask("POST", "/predictions/m", "[1, 2]", **JSON)
    assert (answer.status, "x must have 4 numbers" in answer.json["error"]) == (422, True)
    answer = scorer.ask("POST", "/predictions/m", '{"y": 1}', **JSON)
    assert (answer.status, "KeyError: 'x' (handler.py:" in answer.json["error"]) == (500, True), answer.body
    assert scorer.ask("POST", "/predictions/m", b"--", content_type="multipart/form-data; boundary=B").status == 400
    assert scorer.ask("POST", "/predictions/m", json.dumps(X[0]), **JSON).status == 200


def test_open_inference_protocol_in_text(scorer):
    metadata = scorer.get("/v2/models/m").json
    assert [metadata["inputs"][0][key] for key in ("name", "datatype", "shape")] == ["data", "BYTES", [-1]]
    assert metadata["platform"] == "torchserve_handler"
    item = {"name": "data", "datatype": "BYTES", "shape": [3], "data": [json.dumps({"x": x}) for x in X]}
    output = scorer.ask("POST", "/v2/models/m/infer", json.dumps({"inputs": [item]})).json["outputs"][0]
    assert (output["name"], output["datatype"]) == ("answer", "BYTES")
    assert all(is_scored(json.loads(text), x) for text, x in zip(output["data"], X, strict=True))
    item["data"][1] = "[1]"
    assert scorer.ask("POST", "/v2/models/m/infer", json.dumps({"inputs": [item]})).status == 422


def test_kserve_v1(scorer):
    rows = scorer.ask("POST", "/v1/models/m:predict", json.dumps({"instances": [{"data": {"x": X[0]}}, X[1]]})).json["predictions"]
    assert is_scored(rows[0], X[0])
    assert is_scored(rows[1], X[1])
    assert scorer.ask("POST", "/v1/models/m:predict", "{}").status == 400


def test_the_pages_of_a_handler(scorer):
    """What is offered is described, and every path answers in its own words."""
    assert "BYTES" in scorer.get("/docs").body.decode()
    paths = scorer.get("/openapi.json").json["paths"]
    assert paths["/predictions/m"]["post"]["summary"] == "TorchServe: what the handler answers"
    for path, operations in paths.items():
        for method in operations:
            answer = scorer.ask(method.upper(), path, b"{}" if method == "post" else None)
            assert answer.status in (200, 400) or path.startswith("/predictions"), (path, answer.status, answer.body)


def test_a_function_with_a_signature_of_numbers(start, tmp_path):
    draft = draft_of(packed(tmp_path / "mar", "handler:handle", {"handler.py": FUNCTION}, eager=False), NUMBERS)
    with torch.no_grad():
        want = net()(torch.tensor(X)).numpy()
    draft.golden = ({"x": np.array(X, np.float32)}, {"y": want})
    server = start(draft).wait_ready()
    got = server.infer("m", X).json["outputs"][0]
    np.testing.assert_allclose(np.reshape(got["data"], (3, 3)), want, atol=1e-5)
    np.testing.assert_allclose(server.ask("POST", "/predictions/m", json.dumps(X[0]), **JSON).json, want[0], atol=1e-5)


@pytest.mark.parametrize("golden", [True, False])
def test_golden_requests_are_asked_before_ready(start, tmp_path, golden):
    draft = draft_of(packed(tmp_path / "mar", "handler.py", SCORER))
    texts = np.array([json.dumps({"x": x}) for x in X])
    answers = [scored(x) for x in X]
    answers[2]["label" if golden else "score"] = answers[2]["label"] if golden else answers[2]["score"] + 0.01
    draft.golden = ({"data": texts}, {"answer": np.array(list(map(json.dumps, answers)))})
    server = start(draft)
    if golden:
        server.wait_ready()
        return
    assert server.wait(60) == 63
    assert "golden output 'answer', row 2" in json.loads(server.termination.read_text())["message"]


def test_requests_in_a_batch_each_get_their_own_answer(start, tmp_path):
    handler = "import time\n\n\ndef handle(data, context):\n    if data is None:\n        return None\n    time.sleep(0.05)\n"
    handler += "    return [{'value': row['body'], 'batch': len(data)} for row in data]\n"
    draft = draft_of(packed(tmp_path / "mar", "handler:handle", {"handler.py": handler}))
    server = start(draft, "--lanes", "1", "--max-batch-size", "8", "--max-delay", "5ms").wait_ready()
    with ThreadPoolExecutor(16) as pool:
        rows = list(pool.map(lambda number: server.ask("POST", "/predictions/m", json.dumps(number), **JSON).json, range(48)))
    assert [row["value"] for row in rows] == list(range(48))
    assert max(row["batch"] for row in rows) > 1


def test_a_missing_package_is_the_reason_of_the_pod(start, tmp_path):
    mar = packed(tmp_path / "mar", "handler.py", SCORER, requirements="slipway-nobody-has-this\n")
    server = start(draft_of(mar))
    assert server.wait(60) == 33
    said = json.loads(server.termination.read_text())
    assert (said["reason"], "slipway-nobody-has-this" in said["message"]) == ("RequirementMissing", True)
