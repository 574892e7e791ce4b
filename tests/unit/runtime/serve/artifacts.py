"""Artifacts for tests of the server: small models and the chain of digests around them, as `publish` and `pull` leave it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IMAGE = {"image": {"mode": "L", "size": [8, 8], "scale": 0.0625, "mean": [0.5], "std": [2.0], "layout": "NCHW"}}
MLP_SIGNATURE = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 64]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 10]}],
}
DIGITS_SIGNATURE = {
    "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}],
    "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
}
SLEEPER = """
import time
import torch

class Sleeper(torch.nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
    def forward(self, x):
        pause = self.seconds if float(x[0, 0]) >= 0 else -float(x[0, 0])
        if pause:
            time.sleep(pause)
        return x * 2

def build(seconds):
    return Sleeper(seconds)
"""
TEXT = """
import time
import torch

class Mean(torch.nn.Module):
    def __init__(self, seconds, is_masked):
        super().__init__()
        self.seconds, self.is_masked = seconds, is_masked
    def forward(self, ids, mask):
        time.sleep(self.seconds)
        weights = mask.float() if self.is_masked else torch.ones(mask.shape)
        return (ids * weights).sum(1) / weights.sum(1), ids.float() * 2

def masked(seconds):
    return Mean(seconds, True)

def plain(seconds):
    return Mean(seconds, False)
"""


@dataclass
class Draft:
    """What `write` turns into an artifact."""

    files: dict[str, bytes]
    config: dict[str, Any] = field(default_factory=dict)
    golden: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None = None


def write(folder: Path, draft: Draft) -> str:
    """Write files, slipway.json and manifest.json; returns the manifest's digest."""
    files = dict(draft.files)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"schemaVersion": 1, "precision": "Float32", "preprocessing": None, "labels": None, "golden": None, **draft.config}
    if draft.golden is not None:
        for name, arrays in zip(("inputs", "outputs"), draft.golden, strict=True):
            np.savez(folder / f"{name}.npz", **arrays)
            files[f"golden/{name}.npz"] = (folder / f"{name}.npz").read_bytes()
        config["golden"] = {"inputs": "golden/inputs.npz", "outputs": "golden/outputs.npz", "maxAbsoluteError": "1e-4"}
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    rows = {path: (len(data), hashlib.sha256(data).hexdigest()) for path, data in files.items()}
    config["files"] = [{"path": path, "sizeBytes": size, "sha256": digest} for path, (size, digest) in rows.items()]
    return _write_manifest(folder, json.dumps(config).encode(), rows)


def _write_manifest(folder: Path, config: bytes, rows: dict[str, tuple[int, str]]) -> str:
    (folder / "slipway.json").write_bytes(config)
    layers = [
        {"digest": f"sha256:{digest}", "size": size, "annotations": {"org.opencontainers.image.title": path}}
        for path, (size, digest) in rows.items()
    ]
    manifest = {
        "schemaVersion": 2,
        "config": {"digest": f"sha256:{hashlib.sha256(config).hexdigest()}", "size": len(config)},
        "layers": layers,
    }
    data = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(data)
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def mlp(hidden: int = 64, *, turned: bool = False) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A random 64-hidden-10 MLP as ONNX bytes, with its two weight matrices."""
    random = np.random.default_rng(1)
    first, second = (random.standard_normal(shape).astype(np.float32) * 0.3 for shape in ((64, hidden), (hidden, 10)))
    second = np.roll(second, 1, axis=1) if turned else second
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    return _onnx(nodes, ("x", ["batch", 64]), ("y", ["batch", 10]), {"w1": first, "w2": second}), first, second


def mlp_answer(x: np.ndarray) -> np.ndarray:
    """What the MLP answers, [batch, 64] -> [batch, 10], by numpy."""
    _, first, second = mlp()
    return np.maximum(x @ first, 0) @ second


def mlp_draft(*, golden_error: float = 0.0, turned: bool = False, **config: Any) -> Draft:
    """The MLP with golden data; `golden_error` is added to the recorded outputs, `turned` takes each class for the next one."""
    model, first, second = mlp(turned=turned)
    x = np.random.default_rng(2).standard_normal((16, 64)).astype(np.float32)
    y = np.maximum(x @ first, 0) @ second + np.float32(golden_error)
    config = {"format": "ONNX", "entry": "model.onnx", "signature": MLP_SIGNATURE, **config}
    return Draft({"model.onnx": model}, config, ({"x": x}, {"y": y}))


def digits_draft(**config: Any) -> Draft:
    """[batch, 1, 8, 8] -> logits: the sum of each of the first ten columns' pixels; takes images."""
    matrix = np.eye(64, 10, dtype=np.float32)
    shape = np.array([-1, 64], np.int64)
    nodes = [helper.make_node("Reshape", ["image", "shape"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])]
    model = _onnx(nodes, ("image", ["batch", 1, 8, 8]), ("logits", ["batch", 10]), {"w": matrix, "shape": shape})
    base = {
        "format": "ONNX",
        "entry": "model.onnx",
        "signature": DIGITS_SIGNATURE,
        "preprocessing": IMAGE,
        "labels": [f"d{i}" for i in range(10)],
    }
    return Draft({"model.onnx": model}, base | config)


def sleeper_draft(seconds: float) -> Draft:
    """An eager PyTorch model that sleeps; a negative first value is the seconds to sleep instead."""
    signature = {
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 1]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 1]}],
    }
    config = {"format": "PyTorch", "entry": "", "entrypoint": "sleeper:build", "arguments": {"seconds": seconds}, "signature": signature}
    return Draft({"sleeper.py": SLEEPER.encode()}, config)


def text_draft(entrypoint: str = "text:masked", seconds: float = 0.0, *, pad: int | None = 0) -> Draft:
    """Numbers of words, of any length -> a mean over those that are masked in (or, `text:plain`, over all), and twice each word."""
    padding = {} if pad is None else {"pad": pad}
    signature = {
        "inputs": [
            {"name": "ids", "dtype": "int64", "shape": ["batch", "words"], **padding},
            {"name": "mask", "dtype": "bool", "shape": ["batch", "words"], **padding},
        ],
        "outputs": [
            {"name": "mean", "dtype": "float32", "shape": ["batch"]},
            {"name": "each", "dtype": "float32", "shape": ["batch", "words"]},
        ],
    }
    config = {"format": "PyTorch", "entry": "", "entrypoint": entrypoint, "arguments": {"seconds": seconds}, "signature": signature}
    return Draft({"text.py": TEXT.encode()}, config)


def dtypes_draft() -> tuple[Draft, dict[str, tuple[str, np.ndarray]]]:
    """A model that returns each input as it is, one of every type onnxruntime can pass; with the protocol's type and data of each."""
    arrays: dict[str, tuple[str, np.ndarray]] = {}
    rows: list[tuple[str, int, np.dtype[Any]]] = [
        ("bool", TensorProto.BOOL, np.dtype(bool)),
        *((name, getattr(TensorProto, name.upper()), np.dtype(name)) for name in ("int8", "int16", "int32", "int64")),
        *((name, getattr(TensorProto, name.upper()), np.dtype(name)) for name in ("uint8", "uint16", "uint32", "uint64")),
        ("float16", TensorProto.FLOAT16, np.dtype(np.float16)),
        ("float32", TensorProto.FLOAT, np.dtype(np.float32)),
        ("float64", TensorProto.DOUBLE, np.dtype(np.float64)),
        ("string", TensorProto.STRING, np.dtype(object)),
    ]
    protocol = {"bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64", "string": "BYTES"}
    for name, _, dtype in rows:
        data = ["", "a", "é" * 40, "b"] if name == "string" else [0, 1, 1, 0] if name == "bool" else [0, 1, 100, 3]
        arrays[name] = protocol.get(name, name.upper()), np.array(data, dtype).reshape(2, 2)
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in arrays]
    sides = [[helper.make_tensor_value_info(f"{name}{suffix}", kind, ["n", 2]) for name, kind, _ in rows] for suffix in ("", "_out")]
    model: onnx.ModelProto = helper.make_model(
        helper.make_graph(nodes, "g", *sides), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    specs = [[{"name": f"{name}{suffix}", "dtype": name, "shape": ["n", 2]} for name, _, _ in rows] for suffix in ("", "_out")]
    config = {"format": "ONNX", "entry": "model.onnx", "signature": {"inputs": specs[0], "outputs": specs[1]}}
    return Draft({"model.onnx": model.SerializeToString()}, config), arrays


def _onnx(nodes: list[Any], source: tuple[str, list[Any]], result: tuple[str, list[Any]], weights: dict[str, np.ndarray]) -> bytes:
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name, shape in (source, result))
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()
