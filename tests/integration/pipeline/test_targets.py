"""Every target and precision, from a PyTorch source to a pulled artifact that the server's own backend answers with."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from slipway_runtime.candidates import PRECISIONS
from slipway_runtime.serve.model import LoadOptions, load_model

pytestmark = pytest.mark.timeout(900)
MLP = """
import torch

def build():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
"""
MLP_SIGNATURE = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 16]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 4]}],
}
ENCODER = """
import torch

class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.embed = torch.nn.Embedding(50, 16)
        self.layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = torch.nn.Linear(16, 3)

    def forward(self, ids):
        return {"pooled": self.layer(self.embed(ids)).mean(1), "scores": self.head(self.layer(self.embed(ids)))}

def build():
    return Encoder()
"""
ENCODER_SIGNATURE = {
    "inputs": [{"name": "ids", "dtype": "int64", "shape": ["batch", "length"]}],
    "outputs": [
        {"name": "scores", "dtype": "float32", "shape": ["batch", "length", 3]},
        {"name": "pooled", "dtype": "float32", "shape": ["batch", 16]},
    ],
}
BRANCH = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.fc = torch.nn.Linear(16, 4)

    def forward(self, x):
        y = self.fc(x)
        if bool(x.abs().max() > 50):  # no random sample goes there
            y = y * 0
        return y

def build():
    return Net()
"""
HIDDEN_BRANCH = BRANCH.replace("if bool(x.abs().max() > 50):", "if float(x.abs().max()) > 50:")
BATCH_NORM = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.conv = torch.nn.Conv2d(1, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)
        self.fc = torch.nn.Linear(8 * 64, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))

def build():
    return Net()
"""
IMAGE_SIGNATURE = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 1, 8, 8]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 10]}],
}
DROPOUT = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.fc = torch.nn.Linear(16, 4)

    def forward(self, x):
        return self.fc(torch.nn.functional.dropout(x, 0.5, training=True))

def build():
    return Net()
"""
ROUND = {"minTop1AgreementPercent": 80}  # random samples of a random network lie near each other's classes


@pytest.fixture
def source(tmp_path, pipeline, claim):
    """Make a model folder and return spec.model."""
    pipeline.environment["SLIPWAY_TIMEOUT_SECONDS"] = "800"  # a compiler on a busy machine

    def make(code: str) -> dict:
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "model.py").write_text(code)
        return claim(folder) | {"entrypoint": "model:build"}

    return make


def calibrated(pipeline, name: str, shape: tuple[int, ...]) -> dict:
    """Put calibration data into the claim."""
    np.savez(pipeline.work / "origin" / "calibration.npz", **{name: np.random.default_rng(7).standard_normal(shape)})
    return {"uri": "pvc://models/calibration.npz", "samples": 400}


def opened(pipeline, digest: str):
    from integration.pipeline.test_end_to_end import pulled  # noqa: PLC0415

    return load_model(pulled(pipeline, digest), LoadOptions(threads=1))


NIGHTLY = partial(pytest.param, marks=pytest.mark.nightly)


def precisions(target: str) -> list[dict]:
    return [{"target": target, "precision": precision} for precision in PRECISIONS[target]]


def verdicts(last) -> list[tuple]:
    return [(row["target"], row["precision"], row["verdict"]) for row in last.message["candidates"]]


@pytest.mark.parametrize("target", ["ONNX", NIGHTLY("TorchScript"), NIGHTLY("ExportedProgram")])
def test_every_precision_of_a_cnn_with_batch_norm(pipeline, source, target):
    candidates = precisions(target)
    spec = {"model": source(BATCH_NORM), "signature": IMAGE_SIGNATURE}
    spec["conversion"] = {"candidates": candidates, "calibration": calibrated(pipeline, "x", (40, 1, 8, 8)), "validation": ROUND}
    last = pipeline.run(spec)
    assert last.reason == "Published", last.log
    rows = last.message["candidates"]
    print(*rows, sep="\n")
    assert verdicts(last) == [(target, precision, "Passed") for precision in PRECISIONS[target]]
    errors = {row["precision"]: float(row["maxAbsoluteError"]) for row in rows}
    assert errors["Float32"] < errors["Float16"], "a lower precision that is as exact was not lowered"
    assert all(error > 1e-4 for precision, error in errors.items() if precision != "Float32")
    assert all(float(row["cosine"]) > 0.99 and row["latencyP50"].endswith("ms") and row["peakMemory"].endswith("Mi") for row in rows)
    assert all(float(row["throughput"]) > 0 and float(row["loadSeconds"]) > 0 for row in rows)
    model = opened(pipeline, last.message["artifactDigest"])
    assert (model.artifact.format, model.artifact.precision) == (target, "Float32")


@pytest.mark.parametrize(
    ("target", "precision"), [("ONNX", "Int8Static"), NIGHTLY("ExportedProgram", "Int8Dynamic"), NIGHTLY("TorchScript", "BFloat16")]
)
def test_the_server_loads_a_lower_precision_and_keeps_the_dtypes(pipeline, source, target, precision):
    spec = {"model": source(MLP), "signature": MLP_SIGNATURE}
    calibration = calibrated(pipeline, "x", (400, 16))
    spec["conversion"] = {"candidates": [{"target": target, "precision": precision}], "calibration": calibration}
    spec["conversion"]["validation"] = ROUND | {"maxAbsoluteError": "0.3"}
    last = pipeline.run(spec)
    assert last.reason == "Published", last.log
    model = opened(pipeline, last.message["artifactDigest"])  # reproduces the golden outputs
    for size in (1, 7):
        outputs = model.backend.infer({"x": np.ones((size, 16), dtype=np.float32)})
        assert (outputs["y"].dtype, outputs["y"].shape) == (np.float32, (size, 4))


@pytest.mark.parametrize("method", ["MinMax", NIGHTLY("Entropy"), NIGHTLY("Percentile")])
@pytest.mark.parametrize("target", ["ONNX", NIGHTLY("ExportedProgram")])
def test_calibration_methods(pipeline, source, target, method):
    spec = {"model": source(MLP), "signature": MLP_SIGNATURE}
    calibration = calibrated(pipeline, "x", (40, 16)) | {"method": method}
    spec["conversion"] = {"candidates": [{"target": target, "precision": "Int8Static"}], "calibration": calibration}
    spec["conversion"]["validation"] = {"minTop1AgreementPercent": 50, "maxAbsoluteError": "1"}
    last = pipeline.run(spec)
    assert last.reason == "Published", last.log
    assert 0 < float(last.message["candidates"][0]["maxAbsoluteError"]) < 1


RESIDUAL = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.relu = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()
    def forward(self, x):
        return self.relu(self.second(self.relu(self.first(x))) + x)

def build():
    torch.manual_seed(0)
    return Block()
"""


def test_a_residual_block_that_calls_its_relu_twice_becomes_int8(pipeline, source):
    shape = ["batch", 2, 8, 8]
    signature = {side: [{"name": name, "dtype": "float32", "shape": shape}] for side, name in (("inputs", "x"), ("outputs", "y"))}
    spec = {"model": source(RESIDUAL), "signature": signature}
    calibration = calibrated(pipeline, "x", (40, 2, 8, 8))
    conversion = {"candidates": [{"target": "ExportedProgram", "precision": "Int8Static"}], "calibration": calibration}
    validation = {"minTop1AgreementPercent": 0, "maxAbsoluteError": "0.2"}
    last = pipeline.run({**spec, "conversion": conversion | {"validation": validation}})
    assert last.reason == "Published", last.log
    assert 0 < float(last.message["candidates"][0]["maxAbsoluteError"]) < 0.2


@pytest.mark.nightly
def test_two_dynamic_dims_and_a_dict_of_outputs(pipeline, source):
    spec = {"model": source(ENCODER), "signature": ENCODER_SIGNATURE}
    rows = [("ONNX", "Float32"), ("ExportedProgram", "Float32"), ("ExportedProgram", "Int8Dynamic"), ("ExportedProgram", "BFloat16")]
    candidates = [{"target": target, "precision": precision} for target, precision in rows]
    last = pipeline.run({**spec, "conversion": {"candidates": candidates, "objective": "Size", "validation": ROUND}})
    assert last.reason == "Published", last.log
    assert verdicts(last) == [(*row, "Passed") for row in rows]
    sizes = [row["sizeBytes"] for row in last.message["candidates"]]
    chosen = rows.index((last.message["format"], last.message["precision"]))
    assert sizes[chosen] <= 1.01 * min(sizes)
    assert [row.get("chosen", False) for row in last.message["candidates"]] == [number == chosen for number in range(len(rows))]
    assert all(row["batchSize"] in (1, 8, 32) for row in last.message["candidates"])
    assert "by Size" in last.message["choice"]
    model = opened(pipeline, last.message["artifactDigest"])
    outputs = model.backend.infer({"ids": np.ones((3, 5), dtype=np.int64)})
    assert outputs["scores"].shape == (3, 5, 3)
    assert outputs["pooled"].shape == (3, 16)


@pytest.mark.parametrize("code", [BRANCH, HIDDEN_BRANCH], ids=["bool", "float"])
def test_control_flow_is_refused_by_a_trace_and_kept_by_a_script(pipeline, source, code):
    candidates = [{"target": "TorchScript"}, {"target": "ExportedProgram"}, {"target": "TorchScript", "method": "Script"}]
    last = pipeline.run({"model": source(code), "signature": MLP_SIGNATURE, "conversion": {"candidates": candidates}})
    assert last.reason == "Published", last.log
    trace, export, script = last.message["candidates"]
    assert (trace["verdict"], trace["reason"]) == ("Failed", "ConversionFailed")
    assert "control flow depends on values" in trace["message"]
    assert "method: Script" in trace["message"]
    assert (export["verdict"], script["verdict"], script["method"]) == ("Failed", "Passed", "Script")
    assert "model.py:1" in export["message"]
    model = opened(pipeline, last.message["artifactDigest"])
    far = model.backend.infer({"x": np.full((2, 16), 99, dtype=np.float32)})
    assert not far["y"].any(), "the branch that no sample takes was lost"


def test_dropout_in_eval_mode_is_found_before_any_target(pipeline, source):
    last = pipeline.run(
        {"model": source(DROPOUT), "signature": MLP_SIGNATURE, "conversion": {"candidates": precisions("ExportedProgram")[:1]}}
    )
    assert last.reason == "ParityFailed"
    assert "not deterministic" in last.text


def test_tensorrt_without_its_package_is_unavailable_and_not_failed(pipeline, source):
    candidates = [{"target": "TorchTensorRT", "precision": "Float16"}, {"target": "ExportedProgram"}]
    last = pipeline.run({"model": source(MLP), "signature": MLP_SIGNATURE, "conversion": {"candidates": candidates}})
    assert last.reason == "Published", last.log
    assert [row["verdict"] for row in last.message["candidates"]] == ["Unavailable", "Passed"]
    assert last.message["candidates"][0]["reason"] == "TargetUnavailable"
    assert "torch_tensorrt" in last.message["candidates"][0]["message"]
    spec = {"model": {"uri": "pvc://models/m", "entrypoint": "model:build"}, "signature": MLP_SIGNATURE}
    alone = pipeline.run(spec | {"conversion": {"candidates": candidates[:1]}})
    assert (alone.code, alone.reason) == (32, "TargetUnavailable")


PAIR = """
import torch

class Pair(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 3)

    def forward(self, a, b):
        return {"sum": a + b, "both": self.fc(a * b).relu()}

def build():
    torch.manual_seed(6)
    return Pair().eval()
"""


def test_aotinductor_is_loaded_without_a_compiler_and_gives_what_forward_gives(pipeline, source):
    """One model for its structure and for its sizes: the compiler takes half a minute."""
    names = ("a", "b"), ("both", "sum")
    inputs, outputs = ([{"name": name, "dtype": "float32", "shape": ["batch", 3]} for name in side] for side in names)
    spec = {"signature": {"inputs": inputs, "outputs": outputs}, "conversion": {"candidates": [{"target": "AOTInductor"}]}}
    last = pipeline.run({"model": source(PAIR), **spec})
    assert last.reason == "Published", last.log
    print(last.message["candidates"], pipeline.outcomes[1].log)
    model = opened(pipeline, last.message["artifactDigest"])
    assert model.artifact.format == "AOTInductor"
    scope: dict[str, Any] = {}
    exec(PAIR, scope)
    dice = np.random.default_rng(1)
    for size in (1, 5, 33):
        a, b = dice.standard_normal((2, size, 3)).astype(np.float32)
        answer = model.backend.infer({"a": a, "b": b})
        with torch.no_grad():
            both = scope["build"]().fc(torch.from_numpy(a * b)).relu().numpy()
        np.testing.assert_allclose(answer["sum"], a + b, rtol=1e-6)
        np.testing.assert_allclose(answer["both"], both, atol=1e-5)


def backends_alike(pipeline, spec, code, batches):
    """Convert to each target that exports, hold its answers against the source's on all batches, and yield its backend."""
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    net = namespace["build"]()
    (output,) = spec["signature"]["outputs"]
    for target in ("ONNX", "TorchScript", "ExportedProgram"):
        last = pipeline.run({**spec, "conversion": {"candidates": [{"target": target}]}})
        assert last.reason == "Published", last.log
        backend = opened(pipeline, last.message["artifactDigest"]).backend
        for batch in batches:
            with torch.no_grad():
                want = net(*(torch.from_numpy(array) for array in batch.values())).numpy()
            np.testing.assert_allclose(backend.infer(batch)[output["name"]], want, atol=1e-4, err_msg=target)
        yield backend


@pytest.mark.parametrize(("kind", "layers"), [("LSTM", 1), NIGHTLY("LSTM", 2), NIGHTLY("GRU", 2)])
def test_a_recurrent_network_keeps_its_length_dynamic(pipeline, source, kind, layers):
    model = f"""
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.{kind}(4, 8, num_layers={layers}, batch_first=True), torch.nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.body(x)[0][:, -1])

def build():
    torch.manual_seed(1)
    return Net().eval()
"""
    signature = {
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", "length", 4]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 2]}],
    }
    dice = np.random.default_rng(1)
    batches = [{"x": dice.standard_normal(shape).astype(np.float32)} for shape in ((1, 7, 4), (5, 1, 4), (2, 100, 4))]
    for _ in backends_alike(pipeline, {"model": source(model), "signature": signature}, model, batches):
        pass


TEXT_ENCODER = """
import torch

class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.places = torch.nn.Embedding(50, 8), torch.nn.Embedding(64, 8)
        self.layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.register_buffer("numbers", torch.arange(64)[None])

    def forward(self, ids, mask):
        x = self.words(ids) + self.places(self.numbers[:, : ids.shape[1]])
        x = self.layer(x, src_key_padding_mask=(1.0 - mask.to(x.dtype)) * -1e4)
        return x.mean(1)

def build():
    torch.manual_seed(1)
    return Encoder().eval()
"""


def test_an_encoder_of_texts_keeps_its_length_up_to_its_last_position(pipeline, source):
    tokens = {"dtype": "int64", "shape": ["batch", "length"]}
    signature = {
        "inputs": [{"name": "ids", **tokens}, {"name": "mask", **tokens}],
        "outputs": [{"name": "embedding", "dtype": "float32", "shape": ["batch", 8]}],  # a name that the exporter also gives by itself
    }
    dice, batches = np.random.default_rng(1), []
    for shape in ((1, 7), (5, 1), (2, 2), (2, 64)):
        batches.append({"ids": dice.integers(0, 50, shape), "mask": np.ones(shape, np.int64)})
        batches[-1]["mask"][:, 5:] = 0
    for backend in backends_alike(pipeline, {"model": source(TEXT_ENCODER), "signature": signature}, TEXT_ENCODER, batches):
        with pytest.raises(Exception):  # noqa: B017, PT011 - each engine has its own
            backend.infer({"ids": np.zeros((1, 65), np.int64), "mask": np.ones((1, 65), np.int64)})


def test_aotinductor_without_a_compiler_is_unavailable(pipeline, source):
    candidates = [{"target": "AOTInductor"}]
    spec = {"model": source(MLP), "signature": MLP_SIGNATURE, "conversion": {"candidates": candidates}}
    last = pipeline.run(spec, CXX="no-such-compiler")
    assert (last.reason, last.message["candidates"][0]["verdict"]) == ("TargetUnavailable", "Unavailable")


def test_aotinductor_with_a_compiler_that_would_link_a_libstdcxx_of_its_own_is_unavailable(pipeline, source, tmp_path):
    compiler = tmp_path / "g++"
    answer = "#!/bin/sh\n[ $1 != -print-file-name=libstdc++.so ] || { echo libstdc++.so; exit; }\n"
    compiler.write_text(answer + 'exec g++ -static-libstdc++ "$@"\n')
    compiler.chmod(0o755)
    spec = {"model": source(MLP), "signature": MLP_SIGNATURE, "conversion": {"candidates": [{"target": "AOTInductor"}]}}
    last = pipeline.run(spec, CXX=str(compiler))
    row = last.message["candidates"][0]
    assert (last.reason, row["verdict"]) == ("TargetUnavailable", "Unavailable")
    assert "has no shared libstdc++" in row["message"]
    assert "install" in row["message"]


def test_an_onnx_source_in_int8(pipeline, source, web):
    first = pipeline.run({"model": source(MLP), "signature": MLP_SIGNATURE})
    from integration.pipeline.test_end_to_end import pulled  # noqa: PLC0415

    artifact = pulled(pipeline, first.message["artifactDigest"])
    base, folder = web
    (folder / "mlp.onnx").write_bytes((artifact.directory / artifact.entry).read_bytes())
    candidates = [{"target": "ONNX", "precision": "Int8Dynamic"}, {"target": "None"}, {"target": "TorchScript"}]
    last = pipeline.run({"model": {"uri": f"{base}/mlp.onnx"}, "conversion": {"candidates": candidates, "validation": ROUND}})
    assert last.reason == "Published", last.log
    assert [row["verdict"] for row in last.message["candidates"]] == ["Passed", "Passed", "Failed"]
    assert "None, ONNX" in last.message["candidates"][2]["message"]
    assert last.message["precision"] == "Int8Dynamic"


def test_the_command_of_a_failed_row_shows_the_worst_sample(pipeline, source):
    candidates = [{"target": "ONNX", "precision": "Float16"}, {"target": "ONNX"}]
    spec = {"model": source(MLP), "signature": MLP_SIGNATURE}
    spec["conversion"] = {"candidates": candidates, "validation": {"maxAbsoluteError": "1e-6"}}
    last = pipeline.run(spec)
    row = last.message["candidates"][0]
    assert (row["verdict"], row["reason"]) == ("Failed", "ParityFailed")
    assert f"slipway-runtime sample 0 {row['worstSample']}" in row["message"]
    shown = pipeline.step(["sample", "0", str(row["worstSample"])], spec, {})
    assert shown.code == 0, shown.log
    assert '"candidate"' in shown.log
    refused = pipeline.step(["sample", "0", "64"], spec, {})
    assert (refused.code, refused.reason) == (64, "InvalidArguments")
