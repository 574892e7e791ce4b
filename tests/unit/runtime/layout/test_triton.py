"""config.pbtxt from a signature, read back by Triton's own messages."""

from __future__ import annotations

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from slipway_runtime.artifact import Signature, TensorSpec, open_artifact
from slipway_runtime.layout import Place, lay_out
from slipway_runtime.layout.triton import config
from slipway_runtime.reasons import Failure
from slipway_runtime.serve.tensors import DATATYPES
from unit.runtime.serve.artifacts import Draft, mlp_draft, write

X, Y = TensorSpec("x", "float32", ("batch", 64)), TensorSpec("y", "float32", ("batch", 10))
MLP = Signature((X,), (Y,))
TEXT = Signature((TensorSpec("ids", "int64", ("batch", "length")), TensorSpec("mask", "bool", ("batch", "length"))), (Y,))
FIXED = Signature((TensorSpec("x", "float32", (1, 64)),), (TensorSpec("y", "float32", (1, 10)),))
BATCHING = Place("m", max_batch=32, max_delay=0.002)


def read(fmt, signature, place, entry="model.onnx"):
    return text_format.Parse(config(fmt, entry, signature, place), model_config_pb2.ModelConfig())


def shapes(tensors):
    return [(tensor.name, model_config_pb2.DataType.Name(tensor.data_type), list(tensor.dims)) for tensor in tensors]


ROWS = [
    # format, signature, place; inputs, max_batch_size, delay in µs (None: no dynamic batching), kind
    ("ONNX", MLP, Place("m"), ([("x", "TYPE_FP32", [-1, 64])], 0, None, "KIND_CPU")),
    ("ONNX", MLP, BATCHING, ([("x", "TYPE_FP32", [64])], 32, 2000, "KIND_CPU")),
    ("ONNX", MLP, Place("m", max_batch=8, has_gpu=True), ([("x", "TYPE_FP32", [64])], 8, 0, "KIND_GPU")),
    ("ONNX", TEXT, BATCHING, ([("ids", "TYPE_INT64", [-1]), ("mask", "TYPE_BOOL", [-1])], 32, 2000, "KIND_CPU")),
    ("ONNX", FIXED, BATCHING, ([("x", "TYPE_FP32", [1, 64])], 0, None, "KIND_CPU")),
    ("TorchScript", MLP, BATCHING, ([("x", "TYPE_FP32", [64])], 32, 2000, "KIND_CPU")),
    ("AOTInductor", TEXT, Place("m"), ([("INPUT__0", "TYPE_INT64", [-1, -1]), ("INPUT__1", "TYPE_BOOL", [-1, -1])], 0, None, "KIND_CPU")),
]


@pytest.mark.parametrize(("fmt", "signature", "place", "want"), ROWS)
def test_config(fmt, signature, place, want):
    got, (inputs, max_batch, delay, kind) = read(fmt, signature, place), want
    assert (got.name, got.max_batch_size, shapes(got.input)) == ("m", max_batch, inputs)
    assert got.HasField("dynamic_batching") is (delay is not None)
    assert got.dynamic_batching.max_queue_delay_microseconds == (delay or 0)
    (group,) = got.instance_group
    assert (model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind), group.count) == (kind, 1)


def test_outputs_of_a_package_have_positions_for_names():
    assert shapes(read("AOTInductor", MLP, Place("m")).output) == [("OUTPUT__0", "TYPE_FP32", [-1, 10])]


@pytest.mark.parametrize(
    ("fmt", "entry", "backend", "platform", "file"),
    [
        ("ONNX", "model.onnx", "onnxruntime", "", ""),
        ("ONNX", "weights/net.onnx", "onnxruntime", "", "weights/net.onnx"),
        ("TorchScript", "model.pt", "pytorch", "pytorch_libtorch", ""),
        ("AOTInductor", "model.pt2", "pytorch", "torch_aoti", ""),
    ],
)
def test_backend_of_each_format(fmt, entry, backend, platform, file):
    got = read(fmt, MLP, Place("m"), entry)
    assert (got.backend, got.platform, got.default_model_filename) == (backend, platform, file)


@pytest.mark.parametrize("dtype", DATATYPES)
def test_every_type_is_one_of_triton_s(dtype):
    (tensor,) = read("ONNX", Signature((TensorSpec("x", dtype, (2,)),), (Y,)), Place("m")).input
    wanted = "TYPE_STRING" if dtype == "string" else f"TYPE_{DATATYPES[dtype]}"
    assert model_config_pb2.DataType.Name(tensor.data_type) == wanted


def test_a_tensor_of_no_dimension_behind_the_batch():
    (tensor,) = read("ONNX", Signature((TensorSpec("n", "int64", ("batch",)),), (Y,)), BATCHING).input
    assert (list(tensor.dims), tensor.HasField("reshape"), list(tensor.reshape.shape)) == ([1], True, [])


def test_names_with_quotes_and_backslashes_survive():
    (tensor,) = read("ONNX", Signature((TensorSpec('a "b" \\ é', "float32", (1,)),), (Y,)), Place("m")).input
    assert tensor.name == 'a "b" \\ é'


@pytest.mark.parametrize(
    ("threads", "has_gpu", "parameters"), [(3, False, {"INTRA_OP_THREAD_COUNT": "3"}), (3, True, {})], ids=["the pod's CPUs", "accelerator"]
)
def test_threads(threads, has_gpu, parameters):
    got = read("TorchScript", MLP, Place("m", threads=threads, has_gpu=has_gpu)).parameters
    assert {key: value.string_value for key, value in got.items()} == parameters


@pytest.mark.parametrize(
    ("fmt", "signature", "says"),
    [
        ("ExportedProgram", MLP, "no place for ExportedProgram; it takes ONNX, TorchScript, AOTInductor"),
        ("ONNX", Signature((TensorSpec("x", "complex64", (1,)),), (Y,)), "x: Triton has no type for complex64"),
        ("TorchScript", Signature((TensorSpec("x__1", "float32", (1,)),), (Y,)), "x__1: Triton reads __1 as the position, which is 0"),
    ],
)
def test_what_triton_would_misread_is_refused(fmt, signature, says):
    with pytest.raises(Failure, match=says) as caught:
        config(fmt, "model", signature, Place("m"))
    assert caught.value.reason == "InvalidArguments"


def test_repository(tmp_path):
    draft = mlp_draft()
    draft.files |= {"model.onnx.data": b"weights"}
    write(tmp_path / "artifact", draft)
    artifact = open_artifact(tmp_path / "artifact", None)
    for _ in range(2):  # a pod that starts again makes it anew
        lay_out(artifact, "Triton", tmp_path / "layout", Place("digits"))
    files = sorted(str(path.relative_to(tmp_path / "layout")) for path in (tmp_path / "layout").rglob("*") if path.is_file())
    assert files == ["digits/1/model.onnx", "digits/1/model.onnx.data", "digits/config.pbtxt"]
    assert (tmp_path / "layout/digits/1/model.onnx").samefile(tmp_path / "artifact/model.onnx"), "linked, not copied"


@pytest.mark.parametrize(
    ("own", "told", "lines"),
    [
        (["zero", "one\ntwo"], None, "zero\none two\n"),
        (["zero", "one"], ["null", "eins"], "null\neins\n"),
        (None, ["null"], "null\n"),
        (None, None, None),
        (["zero"], [], None),
    ],
    ids=["of the artifact", "of the deployment", "of the deployment only", "none", "none wanted"],
)
def test_labels(tmp_path, own, told, lines):
    write(tmp_path / "artifact", mlp_draft(labels=own))
    lay_out(open_artifact(tmp_path / "artifact", None), "Triton", tmp_path / "layout", Place("digits", labels=told))
    file = tmp_path / "layout/digits/labels.txt"
    assert (file.read_text() if file.exists() else None) == lines
    got = text_format.Parse((tmp_path / "layout/digits/config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert [tensor.label_filename for tensor in got.output] == ["labels.txt" if lines else ""]


def test_a_refused_format_leaves_nothing(tmp_path):
    write(tmp_path / "artifact", Draft({"a.pt2": b"1"}, {"format": "ExportedProgram", "entry": "a.pt2", "signature": MLP.to_json()}))
    with pytest.raises(Failure, match="no place"):
        lay_out(open_artifact(tmp_path / "artifact", None), "Triton", tmp_path / "layout", Place("m"))
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
