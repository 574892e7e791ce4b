"""Archives made by torch-model-archiver itself, through the whole pipeline."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from slipway_runtime.serve.preprocess import ImagePreprocessing

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 7, stride=8)
        self.drop = torch.nn.Dropout(0.5)
        self.fc = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.drop(torch.relu(self.conv(x)).mean((2, 3))))
"""
LABELS = {"0": ["n01", "cat"], "1": ["n02", "dog"], "2": "fish"}
SIGNATURE = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 3, 32, 32]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 3]}],
}


def net():
    torch.manual_seed(0)
    scope: dict = {}
    exec(NET, scope)
    return scope["Net"]().eval()


def archive(folder: Path, handler: str, *options: str, eager: bool = True, net_text: str = NET) -> Path:
    """Run torch-model-archiver as its users do; returns the .mar."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(net_text)
    (folder / "index_to_name.json").write_text(json.dumps(LABELS))
    if eager:
        torch.save(net().state_dict(), folder / "weights.pt")
    else:
        torch.jit.trace(net(), torch.zeros(2, 3, 32, 32)).save(folder / "weights.pt")
    command = [str(Path(sys.executable).with_name("torch-model-archiver")), "--model-name", "m", "--version", "1.0", "--force"]
    command += ["--serialized-file", "weights.pt", "--handler", handler, "--extra-files", "index_to_name.json", "--export-path", "out"]
    (folder / "out").mkdir(exist_ok=True)
    model_file = ["--model-file", "model.py"] if eager else []
    subprocess.run([*command, *model_file, *options], check=True, cwd=folder, capture_output=True, timeout=120)
    return folder / "out" / "m.mar"


def claimed(pipeline, mar: Path) -> dict:
    origin = pipeline.work / "origin"
    origin.mkdir(parents=True, exist_ok=True)
    shutil.copy(mar, origin / "m.mar")
    return {"uri": "pvc://models/m.mar"}


def test_image_classifier_is_converted_with_its_preprocessing_and_labels(pipeline, tmp_path):
    mar = archive(tmp_path / "mar", "image_classifier")
    got = pipeline.run({"model": claimed(pipeline, mar) | {"format": "TorchServe"}})
    assert (got.reason, got.message["format"]) == ("Published", "ONNX"), got.log
    assert got.message["candidates"][0]["verdict"] == "Passed"
    assert pipeline.run({"model": claimed(pipeline, mar)}, ("fetch",)).message["cached"] is False  # format is part of the key


def test_what_is_served_says_what_the_archive_said(pipeline, tmp_path):
    mar = archive(tmp_path / "mar", "image_classifier")
    assert pipeline.run({"model": claimed(pipeline, mar)}).reason == "Published"
    output = tmp_path / "artifact"
    digest = pipeline.outcomes[-1].message["artifactDigest"]
    pulled = pipeline.step(["pull", "--repository", pipeline.repository, "--digest", digest, "--output", str(output)], {"model": {}}, {})
    assert pulled.code == 0, pulled.log
    config = json.loads((output / "slipway.json").read_text())
    assert config["labels"] == ["cat", "dog", "fish"]
    assert config["preprocessing"]["image"]["resize"] == 256
    assert config["preprocessing"]["image"]["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize("size", [(640, 480), (333, 517), (256, 256), (100, 230), (224, 1000)])
def test_preprocessing_is_that_of_image_classifier(tmp_path, size):
    """Against the transform of ts.torch_handler.image_classifier, written out with torch and Pillow's own operations."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    image.save(tmp_path / "x.png")
    width, height = size
    scaled = (256, int(256 * height / width)) if width <= height else (int(256 * width / height), 256)
    resized = image.resize(scaled, Image.Resampling.BILINEAR)
    left, top = round((scaled[0] - 224) / 2), round((scaled[1] - 224) / 2)
    pixels = torch.from_numpy(np.asarray(resized)[top : top + 224, left : left + 224].copy()).permute(2, 0, 1).float().div(255)
    want = (pixels - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    row = {"mode": "RGB", "resize": 256, "size": [224, 224], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    preprocessing = ImagePreprocessing.parse({"image": row})
    assert preprocessing is not None
    assert np.abs(preprocessing.tensor((tmp_path / "x.png").read_bytes()) - want.numpy()).max() < 1e-5


def test_torchscript_archive(pipeline, tmp_path):
    mar = archive(tmp_path / "mar", "base_handler", eager=False)
    spec = {"model": claimed(pipeline, mar), "signature": SIGNATURE, "conversion": {"candidates": [{"target": "TorchScript"}]}}
    got = pipeline.run(spec)
    assert (got.reason, got.message["format"]) == ("Published", "TorchScript"), got.log


def test_model_yaml_as_an_extra_file_overrides(pipeline, tmp_path):
    folder = tmp_path / "mar"
    folder.mkdir()
    (folder / "model.yaml").write_text(json.dumps({"signature": SIGNATURE, "labels": ["a", "b", "c"]}))
    mar = archive(folder, "base_handler", "--extra-files", "model.yaml,index_to_name.json")
    got = pipeline.run({"model": claimed(pipeline, mar)})
    assert (got.reason, got.message["signature"]) == ("Published", SIGNATURE), got.log


@pytest.mark.parametrize(
    ("handler", "net_text", "refusal"),
    [
        ("base_handler", NET, ("SignatureMissing", "neither spec.signature nor model.yaml")),
        ("image_classifier", NET + "\nclass Other: pass\n", ("ModelFolderInvalid", "must define one class")),
        ("image_classifier", "class Net(:", ("ModelFolderInvalid", "is not Python")),
        ("image_classifier", NET.replace("4, 3)", "4, 5)"), ("WeightsMismatch", "fc.weight")),
    ],
)
def test_refused_with_a_reason(pipeline, tmp_path, handler, net_text, refusal):
    mar = archive(tmp_path / "mar", handler, net_text=net_text)
    got = pipeline.run({"model": claimed(pipeline, mar)})
    assert (got.reason, refusal[1] in got.text) == (refusal[0], True), got.log


def test_torchserve_without_an_archive(pipeline, claim, model_folder):
    got = pipeline.run({"model": claim(model_folder) | {"format": "TorchServe"}}, ("fetch", "convert"))
    assert (got.reason, "MANIFEST" in got.text) == ("ModelFolderInvalid", True)
