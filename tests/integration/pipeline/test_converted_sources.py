"""Sources that were converted before: TorchScript files and exported programs, served as they are or converted further."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

CLASSES = 4
SIGNATURE = {
    "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 8]}],
    "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", CLASSES]}],
}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(8, 16)
        self.drop = torch.nn.Dropout(0.5)
        self.last = torch.nn.Linear(16, CLASSES)

    def forward(self, image):
        return self.last(self.drop(torch.relu(self.first(image))))


class Branching(Net):
    def forward(self, image):
        if image.sum() > 0:
            image = image * 2
        return self.last(torch.relu(self.first(image)))


class Two(Net):
    def forward(self, image):
        hidden = self.first(image)
        return {"logits": self.last(hidden), "energy": hidden.square().sum(1)}


def made(kind=Net):
    torch.manual_seed(0)
    return kind().eval()


def program(module, size=2):
    dims = ({0: torch.export.Dim("batch")},) if size > 1 else None
    return torch.export.export(module, (torch.zeros(size, 8),), dynamic_shapes=dims)


def placed(pipeline, name: str, save, **model) -> dict:
    origin = pipeline.work / "origin" / "m"
    origin.mkdir(parents=True)
    save(origin / name)
    return {"uri": "pvc://models/m"} | model


def trace(path: Path) -> None:
    torch.jit.trace(made(), torch.zeros(2, 8)).save(path)


def script(path: Path) -> None:
    torch.jit.script(made(Branching)).save(path)


def export(path: Path, kind=Net, size=2) -> None:
    torch.export.save(program(made(kind), size), path)


def verdicts(got) -> dict[str, tuple[str, str]]:
    return {f"{row['target']} {row['precision']}": (row["verdict"], row["reason"]) for row in got.message["candidates"]}


PASSED = ("Passed", "Validated")


@pytest.mark.parametrize(
    ("name", "save", "format_"),
    [("model.pt", trace, "TorchScript"), ("branch.pt", script, "TorchScript"), ("a.pt2", export, "ExportedProgram")],
)
def test_served_as_it_is(pipeline, tmp_path, name, save, format_):
    """The format is found by the file; the artifact holds the very bytes, and the server answers like the module."""
    got = pipeline.run({"model": placed(pipeline, name, save), "signature": SIGNATURE})
    assert (got.reason, got.message["format"], got.message["precision"]) == ("Published", format_, "Float32"), got.log
    assert got.message["candidates"][0]["maxAbsoluteError"] == "0"
    output = tmp_path / "artifact"
    pulled = pipeline.step(
        ["pull", "--repository", pipeline.repository, "--digest", got.message["artifactDigest"], "--output", str(output)], {"model": {}}, {}
    )
    assert pulled.code == 0, pulled.log
    assert (output / name).read_bytes() == (pipeline.work / "origin" / "m" / name).read_bytes()
    assert json.loads((output / "slipway.json").read_text())["entry"] == name


@pytest.mark.nightly
def test_an_exported_program_becomes_every_target(pipeline):
    targets = ("ONNX", "TorchScript", "ExportedProgram", "AOTInductor")
    candidates = [{"target": target} for target in targets] + [{"target": "ONNX", "precision": "Float16"}]
    candidates += [{"target": "ExportedProgram", "precision": "Float16"}, {"target": "TorchTensorRT"}]
    model = placed(pipeline, "model.pt2", export, format="ExportedProgram")
    got = pipeline.run({"model": model, "signature": SIGNATURE, "conversion": {"candidates": candidates}}, SLIPWAY_TIMEOUT_SECONDS="300")
    assert got.reason == "Published", got.log
    found = verdicts(got)
    assert found.pop("TorchTensorRT Float32") == ("Unavailable", "TargetUnavailable")
    assert set(found.values()) == {PASSED}, got.message["candidates"]


def test_a_torchscript_file_with_control_flow_keeps_it(pipeline):
    """Converted by the exporter of graphs, and compared where both branches are taken: random inputs have sums of both signs."""
    candidates = [{"target": "ONNX"}, {"target": "TorchScript", "precision": "BFloat16"}]
    model = placed(pipeline, "model.pt", script, format="TorchScript")
    got = pipeline.run({"model": model, "signature": SIGNATURE, "conversion": {"candidates": candidates}})
    assert got.reason == "Published", got.log
    assert set(verdicts(got).values()) == {PASSED}, got.message["candidates"]


def test_an_exported_program_says_its_signature_itself(pipeline):
    got = pipeline.run(
        {"model": placed(pipeline, "model.pt2", lambda path: export(path, Two)), "conversion": {"candidates": [{"target": "ONNX"}]}}
    )
    assert got.reason == "Published", got.log
    assert got.message["signature"] == {
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 8]}],
        "outputs": [
            {"name": "logits", "dtype": "float32", "shape": ["batch", CLASSES]},
            {"name": "energy", "dtype": "float32", "shape": ["batch"]},
        ],
    }


def test_a_program_quantized_before_it_came(pipeline):
    """Its operators are not part of torch's usual ones; both convert and validate load it."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e  # noqa: PLC0415
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86  # noqa: PLC0415

    def save(path: Path) -> None:
        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(program(made()).module(), quantizer)
        prepared(torch.randn(2, 8))
        torch.export.save(program(convert_pt2e(prepared)), path)

    got = pipeline.run({"model": placed(pipeline, "model.pt2", save), "signature": SIGNATURE})
    assert (got.reason, got.message["format"]) == ("Published", "ExportedProgram"), got.log


def test_torchscript_over_http(pipeline, web):
    address, folder = web
    trace(folder / "model.pt")
    got = pipeline.run({"model": {"uri": f"{address}/model.pt"}, "signature": SIGNATURE})
    assert (got.reason, got.message["format"]) == ("Published", "TorchScript"), got.log


def weights_only(path: Path) -> None:
    torch.save(made().state_dict(), path)


def package(path: Path) -> None:
    torch._inductor.aoti_compile_and_package(program(made()), package_path=str(path))


@pytest.mark.parametrize(
    ("name", "save", "spec", "refusal"),
    [
        ("model.pt", trace, {}, ("SignatureMissing", "what the TorchScript model takes")),
        ("model.pt", weights_only, {"format": "TorchScript"}, ("ModelFolderInvalid", "a state dict needs an entrypoint")),
        ("model.pt2", trace, {}, ("ModelFolderInvalid", "no archive of torch.export.save")),
        ("model.pt2", lambda path: export(path, size=1), {}, ("SignatureMismatch", "does not accept")),
        ("model.pt", weights_only, {"format": "ExportedProgram"}, ("ModelFolderInvalid", "model.pt2 is not in the model folder")),
        pytest.param("model.pt2", package, {}, ("ModelFolderInvalid", "is an AOTInductor package"), marks=pytest.mark.nightly),
    ],
)
def test_refused_with_a_reason(pipeline, name, save, spec, refusal):
    signature = {} if refusal[0] == "SignatureMissing" else {"signature": SIGNATURE}
    got = pipeline.run({"model": placed(pipeline, name, save, **spec)} | signature, ("fetch", "convert"))
    assert (got.reason, refusal[1] in got.text) == (refusal[0], True), got.text


def test_a_target_that_torchscript_has_not(pipeline):
    spec = {"conversion": {"candidates": [{"target": "AOTInductor"}]}, "signature": SIGNATURE}
    got = pipeline.run({"model": placed(pipeline, "model.pt", trace)} | spec, ("fetch", "convert"))
    assert (got.reason, "None, ONNX, TorchScript can be made" in got.text) == ("UnsupportedConversion", True), got.text


def test_weights_beside_code_are_no_torchscript(pipeline, model_folder, claim):
    """A .pt is only taken for a model when nothing says that it is the weights of code."""
    shutil.copy(model_folder / "model.py", model_folder / "other.py")
    trace(model_folder / "extra.pt")
    got = pipeline.run({"model": claim(model_folder)}, ("fetch", "convert"))
    assert (got.reason, got.message["candidates"][0]["target"]) == ("Converted", "ONNX"), got.log
