"""TorchServe's model store, and the handler that goes into it, as its worker calls it."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from slipway_runtime.artifact import open_artifact
from slipway_runtime.layout import Place, lay_out
from slipway_runtime.reasons import Failure
from slipway_runtime.torchserve import described
from unit.runtime.serve.artifacts import Draft, mlp_draft, write

SIGNATURE = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 2]}, {"name": "scale", "dtype": "float32", "shape": ["batch", 1]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 2]}],
}
ONE = {"inputs": SIGNATURE["inputs"][:1], "outputs": SIGNATURE["outputs"]}


class Scaled(torch.nn.Module):
    def forward(self, x, scale):
        return x * scale


class Doubled(torch.nn.Module):
    def forward(self, x):
        return x * 2


def draft(folder: Path, module: torch.nn.Module, signature: dict) -> Draft:
    torch.jit.script(module).save(folder / "m.pt")
    return Draft({"model.pt": (folder / "m.pt").read_bytes()}, {"format": "TorchScript", "entry": "model.pt", "signature": signature})


def laid(folder: Path, source: Draft, place: Place) -> Path:
    write(folder / "artifact", source)
    lay_out(open_artifact(folder / "artifact", None), "TorchServe", folder / "layout", place)
    return folder / "layout"


def unpacked(layout: Path, name: str) -> Path:
    with zipfile.ZipFile(layout / "model-store" / f"{name}.mar") as archive:
        archive.extractall(layout / "unpacked")
    return layout / "unpacked"


def handler_of(folder: Path):
    """The handler of an unpacked archive, and the statuses that it sets."""
    spec = importlib.util.spec_from_file_location("slipway_handler", folder / "slipway_handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    statuses: dict[int, int] = {}
    context = SimpleNamespace(
        system_properties={"model_dir": str(folder), "gpu_id": None},
        manifest=json.loads((folder / "MAR-INF/MANIFEST.json").read_text()),
        model_name="m",
        set_response_status=lambda code, idx: statuses.update({idx: code}),
    )
    handler = module.Handler()
    handler.initialize(context)
    return lambda rows: (handler.handle(rows, context), statuses)


def oip(**tensors):
    rows = [
        {"name": name, "datatype": "FP32", "shape": [len(value), len(value[0])], "data": [one for row in value for one in row]}
        for name, value in tensors.items()
    ]
    return {"id": "a", "inputs": rows}


@pytest.fixture
def two(tmp_path):
    return handler_of(unpacked(laid(tmp_path, draft(tmp_path, Scaled(), SIGNATURE), Place("m")), "m"))


@pytest.fixture
def one(tmp_path):
    return handler_of(unpacked(laid(tmp_path, draft(tmp_path, Doubled(), ONE), Place("m")), "m"))


def test_a_request_of_the_protocol_by_name(two):
    request = oip(scale=[[10.0], [2.0]], x=[[1.0, 2.0], [3.0, 4.0]])
    for body in (request, json.dumps(request).encode()):
        (answer,), statuses = two([{"body": body}])
        wanted = [{"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [10.0, 20.0, 6.0, 8.0]}]
        assert (answer, statuses) == ({"model_name": "m", "outputs": wanted, "id": "a"}, {})


@pytest.mark.parametrize(
    ("body", "answer"),
    [([1.0, 2.0], [2.0, 4.0]), ([[1.0, 2.0]], [2.0, 4.0]), ([[1, 2], [3, 4]], [[2.0, 4.0], [6.0, 8.0]]), ({"data": [1, 2]}, [2.0, 4.0])],
)
def test_plain_lists(one, body, answer):
    assert one([{"body": body}]) == ([answer], {})
    assert one([{"data": json.dumps(body).encode()}]) == ([answer], {})


def test_a_batch_is_one_call_and_a_wrong_row_fails_alone(one):
    answers, statuses = one([{"body": [1.0, 2.0]}, {"body": [1.0]}, {"body": [[3.0, 4.0], [5.0, 6.0]]}, {"body": b"no json"}])
    assert answers[0] == [2.0, 4.0]
    assert answers[2] == [[6.0, 8.0], [10.0, 12.0]]
    assert statuses == {1: 400, 3: 400}
    assert "must have the shape [-1, 2] (-1: any), not [1, 1]" in answers[1]["error"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"datatype": "INT64"}, "must be FP32, not INT64"),
        ({"shape": [3, 2]}, "is not that of 4 values"),
        ({"shape": [4]}, "must have the shape"),
        ({"name": "z"}, "KeyError: 'x'"),
        ({"data": ["a"]}, "Error"),
    ],
)
def test_wrong_tensors(one, change, says):
    request = oip(x=[[1.0, 2.0], [3.0, 4.0]])
    request["inputs"][0] |= change
    (answer,), statuses = one([{"body": request}])
    assert statuses == {0: 400}
    assert says in answer["error"]


def test_several_inputs_must_be_named(two):
    assert two([{"body": [1.0, 2.0]}])[1] == {0: 400}


def properties(layout: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in (layout / "config.properties").read_text().splitlines())


@pytest.mark.parametrize(
    ("place", "signature", "batch", "delay"),
    [
        (Place("m"), ONE, 1, 1),
        (Place("m", max_batch=8, max_delay=0.005), ONE, 8, 5),
        (Place("m", max_batch=8), {**ONE, "outputs": [{"name": "y", "dtype": "float32", "shape": [2]}]}, 1, 1),
    ],
    ids=["no batching", "batching", "a signature without a batch"],
)
def test_properties(tmp_path, place, signature, batch, delay):
    got = properties(laid(tmp_path, draft(tmp_path, Doubled(), signature), place))
    model = json.loads(got["models"])["m"]["1.0"]
    assert (model["batchSize"], model["maxBatchDelay"], model["marName"]) == (batch, delay, "m.mar")
    assert (got["inference_address"], got["metrics_address"]) == ("http://0.0.0.0:8080", "http://0.0.0.0:8082")
    assert got["management_address"].startswith("http://127.0.0.1:"), "whoever reaches it can load code"


def test_the_archive_is_one_that_we_would_take_as_a_source(tmp_path):
    folder = unpacked(laid(tmp_path, draft(tmp_path, Doubled(), ONE), Place("m")), "m")
    assert described(folder) == {"format": "TorchServe"}


def test_a_user_s_own_archive_comes_back_as_it_was(tmp_path):
    files = {"MAR-INF/MANIFEST.json": b'{"model": {"handler": "h.py"}}', "h.py": b"x = 1", "deep/a.txt": b"a"}
    source = Draft(files, {"format": "TorchServe", "entry": "MAR-INF/MANIFEST.json", "signature": ONE})
    folder = unpacked(laid(tmp_path, source, Place("m", max_batch=4)), "m")
    assert {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(Failure, match="no place for ONNX; it takes TorchScript, TorchServe"):
        laid(tmp_path, mlp_draft(), Place("m"))
