"""Archives with handlers of their own through the whole pipeline: loaded in the sandbox, asked where there is something to ask."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from integration.mar import CLASS, FUNCTION, NET, SCALING, net, packed

NUMBERS = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 3]}],
}
SCORER = {"handler.py": CLASS, "scaling.py": SCALING}


def claimed(pipeline, mar: Path) -> dict:
    origin = pipeline.work / "origin"
    origin.mkdir(parents=True, exist_ok=True)
    shutil.copy(mar, origin / "m.mar")
    return {"uri": "pvc://models/m.mar"}


def pulled(pipeline, got, folder: Path) -> dict:
    command = ["pull", "--repository", pipeline.repository, "--digest", got.message["artifactDigest"], "--output", str(folder)]
    assert pipeline.step(command, {"model": {}}, {}).code == 0
    return json.loads((folder / "slipway.json").read_text())


def requests(texts: list[str]) -> bytes:
    file = io.BytesIO()
    np.savez(file, data=np.array(texts))
    return file.getvalue()


def test_a_handler_that_nobody_can_ask_is_loaded_and_published(pipeline, tmp_path):
    got = pipeline.run({"model": claimed(pipeline, packed(tmp_path / "mar", "handler.py", SCORER))})
    assert (got.reason, got.message["format"]) == ("Published", "TorchServe"), got.log
    row = got.message["candidates"][0]
    assert (row["target"], row["verdict"], "not asked" in row["message"]) == ("None", "Passed", True)
    config = pulled(pipeline, got, tmp_path / "artifact")
    assert config["golden"] is None
    assert {"handler.py", "scaling.py", "MAR-INF/MANIFEST.json", "weights.pt"} <= {row["path"] for row in config["files"]}


def test_sample_requests_are_asked_and_become_golden(pipeline, tmp_path):
    """The answers in the artifact are those that the module itself gives, worked out here."""
    texts = [json.dumps({"x": [float(n), 1.0, -2.0, 0.5]}) for n in range(4)]
    files = SCORER | {"model.yaml": "validation: {data: requests.npz}\n", "requests.npz": requests(texts)}
    got = pipeline.run({"model": claimed(pipeline, packed(tmp_path / "mar", "handler.py", files))})
    assert got.reason == "Published", got.log
    row = got.message["candidates"][0]
    assert (row["message"], row["maxAbsoluteError"]) == ("", "0")
    assert "latencyP50" in row
    pulled(pipeline, got, tmp_path / "artifact")
    with np.load(tmp_path / "artifact/golden/outputs.npz", allow_pickle=False) as file:
        answers = [json.loads(str(text)) for text in file["answer"]]
    import torch  # noqa: PLC0415

    with torch.no_grad():
        want = torch.softmax(net()(torch.tensor([json.loads(text)["x"] for text in texts]) * 0.5), 1)
    last = answers[-1]
    assert last["label"] == ["cat", "dog", "fish"][int(want[-1].argmax())]
    assert last["score"] == pytest.approx(float(want[-1].max()), abs=1e-6)


def test_a_function_with_a_signature_of_numbers_is_compared_like_a_model(pipeline, tmp_path):
    mar = packed(tmp_path / "mar", "handler:handle", {"handler.py": FUNCTION}, eager=False)
    got = pipeline.run({"model": claimed(pipeline, mar), "signature": NUMBERS})
    assert (got.reason, got.message["signature"]) == ("Published", NUMBERS), got.log
    row = got.message["candidates"][0]
    assert (row["maxAbsoluteError"], row["top1AgreementPercent"]) == ("0", "100")


DETECTOR = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.edge = torch.nn.Parameter(torch.ones(1))

    def forward(self, images):
        box = self.edge * torch.tensor([[0.0, 0.0, 5.0, 5.0]])
        return [{"boxes": box, "labels": torch.tensor([1]), "scores": image.mean().view(1)} for image in images]
"""


def test_object_detector_is_served_as_it_is(pipeline, tmp_path):
    got = pipeline.run({"model": claimed(pipeline, packed(tmp_path / "mar", "object_detector", {}, module=DETECTOR))})
    assert (got.reason, got.message["format"]) == ("Published", "TorchServe"), got.log


RANDOM = "import random\n\n\ndef handle(data, context):\n    return None if data is None else [random.random() for _ in data]\n"
SHORT = "def handle(data, context):\n    return None if data is None else [[0.0, 1.0, 2.0]]\n"
TWO = "class A:\n    pass\n\n\nclass B:\n    pass\n"
SOCKET = "import socket\n\n\ndef handle(data, context):\n    socket.create_connection(('127.0.0.1', 1))\n"
ONE_NUMBER = {**NUMBERS, "outputs": [{"name": "y", "dtype": "float64", "shape": ["batch"]}]}


@pytest.mark.parametrize(
    ("case", "signature", "refusal"),
    [
        ((CLASS, "slipway-nobody-has-this>=1\n"), None, ("RequirementMissing", "slipway-nobody-has-this>=1, which is not in the image")),
        ((CLASS, "numpy==1.0  # old\n"), None, ("RequirementMissing", "numpy==1.0, and the image has 2.")),
        ((CLASS, "numpy>=1 and more\n"), None, ("ModelFolderInvalid", "is no requirement")),
        (("import cv2_of_nobody\n" + CLASS, ""), None, ("RequirementMissing", "imports cv2_of_nobody, which is not in the image (")),
        (
            ("import ts.torch_handler.text_handler\n", ""),
            None,
            ("RequirementMissing", "a part of TorchServe that this server does not offer"),
        ),
        (("1 / 0\n", ""), None, ("EntrypointFailed", "ZeroDivisionError")),
        (("x = 1\n", ""), None, ("EntrypointInvalid", "a function handle or one class; its classes: none")),
        ((TWO, ""), None, ("EntrypointInvalid", "its classes: A, B")),
        (("class A:\n    pass\n", ""), None, ("EntrypointInvalid", "has no method initialize")),
        ((SOCKET, ""), None, ("EntrypointFailed", "PermissionError")),
        ((RANDOM, ""), ONE_NUMBER, ("ParityFailed", "the handler is not deterministic")),
        ((SHORT, ""), NUMBERS, ("SignatureMismatch", "returned 1 answers for 16 rows")),
        ((CLASS, ""), NUMBERS, ("SignatureMismatch", "are no float32 for y")),
    ],
)
def test_refused_with_a_reason(pipeline, tmp_path, case, signature, refusal):
    handler, requirements = case
    mar = packed(tmp_path / "mar", "handler.py", {"handler.py": handler, "scaling.py": SCALING}, requirements=requirements)
    spec = {"model": claimed(pipeline, mar)} | ({"signature": signature} if signature else {})
    got = pipeline.run(spec, ("fetch", "convert"))
    assert (got.reason, refusal[1] in got.text) == (refusal[0], True), f"{got.reason}: {got.text}"


def test_what_is_there_is_no_missing_requirement(pipeline, tmp_path):
    wanted = "--index-url https://example.com/simple\n# comment\nNumPy>=1\ntorchserve==0.12.0\npywin32; sys_platform == 'win32'\n"
    mar = packed(tmp_path / "mar", "handler.py", SCORER, requirements=wanted)
    assert (got := pipeline.run({"model": claimed(pipeline, mar)})).reason == "Published", got.text


def test_no_other_target(pipeline, tmp_path):
    mar = packed(tmp_path / "mar", "handler.py", SCORER)
    got = pipeline.run({"model": claimed(pipeline, mar), "conversion": {"candidates": [{"target": "ONNX"}]}}, ("fetch", "convert"))
    assert (got.reason, "take None, which serves it through the handler" in got.text) == ("UnsupportedConversion", True), got.text


def test_the_module_alone_is_converted_when_the_user_names_it(pipeline, tmp_path):
    mar = packed(tmp_path / "mar", "handler.py", SCORER, module=NET)
    model = claimed(pipeline, mar) | {"format": "PyTorch", "entrypoint": "model:Net", "weights": "weights.pt"}
    assert (got := pipeline.run({"model": model, "signature": NUMBERS})).reason == "Published", got.log
