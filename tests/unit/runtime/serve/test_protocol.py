"""Open Inference Protocol: what is accepted, what is refused and with which words, and what is answered."""

from __future__ import annotations

import json

import numpy as np
import pytest

from slipway_runtime.artifact import Signature, TensorSpec
from slipway_runtime.serve.messages import BadRequest
from slipway_runtime.serve.protocol import Codec, InferRequest, Output
from slipway_runtime.serve.tensors import DATATYPES, DTYPES

TWO = Signature(
    (TensorSpec("a", "float32", ("batch", 2)), TensorSpec("b", "int64", ("batch",))),
    (TensorSpec("y", "float32", ("batch", 2)), TensorSpec("z", "int64", ("batch",))),
)


def tensor(name="a", datatype="FP32", shape=(1, 2), data=(1, 2)):
    return {"name": name, "datatype": datatype, "shape": list(shape), "data": data}


B = tensor("b", "INT64", (1,), [5])


def decode(*inputs, **more):
    return Codec(TWO, "m", "r").decode(json.dumps({"inputs": list(inputs), **more}).encode())


def single(dtype, data, shape):
    signature = Signature((TensorSpec("x", dtype, tuple(shape)),), (TensorSpec("y", dtype, tuple(shape)),))
    item = {"name": "x", "datatype": DATATYPES[dtype], "shape": shape, "data": data}
    return Codec(signature, "m", "r").decode(json.dumps({"inputs": [item]}).encode()).inputs["x"]


@pytest.mark.parametrize("dtype", DATATYPES)
def test_every_datatype_round_trips(dtype):
    data = [True, False] if dtype == "bool" else ["a", "é"] if dtype == "string" else [0, 1]
    array = single(dtype, data, [2])
    assert array.dtype == DTYPES[dtype]
    answer = json.loads(Codec(TWO, "m", "r").encode(InferRequest({}, [Output("y")]), {"y": array}).body)
    assert answer == {
        "model_name": "m",
        "model_version": "r",
        "outputs": [{"name": "y", "datatype": DATATYPES[dtype], "shape": [2], "data": data}],
    }


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]]])
def test_flat_and_nested_data_are_equal(data):
    got = decode(tensor(shape=(2, 2), data=data), tensor("b", "INT64", (2,), [0, 0])).inputs["a"]
    np.testing.assert_array_equal(got, np.array([[1, 2], [3, 4]], np.float32))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([tensor()], "input 'b' is missing; expected INT64 [batch]"),
        ([tensor(), B, tensor("c")], "unknown input 'c'; expected 'a', 'b'"),
        ([tensor(), tensor(), B], "input 'a' is given twice"),
        ([tensor(datatype="FP64"), B], "input 'a': expected datatype FP32, got 'FP64'"),
        ([tensor(shape=(1, 3), data=[1, 2, 3]), B], "input 'a': expected FP32 [batch, 2], got shape [1, 3] (dimension 1 must be 2)"),
        ([tensor(shape=(2,)), B], "input 'a': expected FP32 [batch, 2], got shape [2]"),
        ([tensor(shape=(2, 2), data=[1, 2, 3, 4]), B], "input 'b': expected INT64 [batch], got shape [1] (dimension 0 must be batch = 2)"),
        ([tensor(data=[1, 2, 3]), B], "input 'a': shape [1, 2] needs 2 values, got 3"),
        ([tensor(data=[[1], [2]]), B], "input 'a': declared shape [1, 2], but the data are nested as [2, 1]"),
        ([tensor(data=[[1, 2], [3]]), B], "input 'a': the nested lists are ragged"),
        ([tensor(data=["1", "2"]), B], "input 'a': expected numbers for FP32"),
        ([tensor(data=[{}, 1]), B], "input 'a': the data must be numbers"),
        ([tensor(data=[1e300, 1]), B], "input 'a': a value is too large for float32"),
        ([tensor(shape=(-1, 2)), B], "input 'a': 'shape' must be a list of positive integers"),
        ([tensor(shape=(10**12, 2)), B], "needs 2000000000000 values, got 2"),
        ([tensor(), tensor("b", "INT64", (1,), [1.5])], "input 'b': expected integers for INT64"),
        ([tensor(), tensor("b", "INT64", (1,), [2**63])], "input 'b': expected values of int64"),
        ([tensor(), {"name": "b", "datatype": "INT64", "shape": [1]}], "input 'b': 'data' is missing"),
        ([], "'inputs' must be a list"),
        ([3], "each input must be an object"),
    ],
)
def test_a_refusal_names_the_tensor_and_what_was_expected(inputs, words):
    with pytest.raises(BadRequest) as caught:
        decode(*inputs)
    assert caught.value.status == 400
    assert words in caught.value.message


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"inputs": NaN}', b"\xff"])
def test_a_body_that_is_no_json_object_is_refused(body):
    with pytest.raises(BadRequest, match="the body"):
        Codec(TWO, "m", "r").decode(body)


def test_outputs_are_selected_in_the_order_asked_and_id_and_parameters_pass():
    asked = decode(tensor() | {"parameters": {"p": 1}}, B, outputs=[{"name": "z"}], id="17", parameters={"q": 2})
    assert (asked.outputs, asked.id) == ((Output("z"),), "17")
    answer = json.loads(Codec(TWO, "m", "r").encode(asked, {"y": np.zeros((1, 2), np.float32), "z": np.array([3])}).body)
    assert answer["id"] == "17"
    assert [output["name"] for output in answer["outputs"]] == ["z"]


def test_an_unknown_output_is_refused():
    with pytest.raises(BadRequest, match="unknown output 'q'; this model has 'y', 'z'"):
        decode(tensor(), B, outputs=[{"name": "q"}])


def test_null_is_nan_both_ways():
    assert np.isnan(single("float32", [None, 1], [2])[0])
    array = np.array([np.nan, np.inf, -np.inf, 1], np.float32)
    answer = json.loads(Codec(TWO, "m", "r").encode(InferRequest({}, [Output("y")]), {"y": array}).body)
    assert answer["outputs"][0]["data"] == [None, None, None, 1.0]


def test_outputs_that_are_not_contiguous_keep_their_order():
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    answer = json.loads(Codec(TWO, "m", "r").encode(InferRequest({}, [Output("y")]), {"y": array}).body)
    assert answer["outputs"][0]["data"] == [0, 3, 1, 4, 2, 5]


def test_metadata_writes_dynamic_dims_as_minus_one():
    assert Codec(TWO, "m", "r").metadata("p")["inputs"][0] == {"name": "a", "datatype": "FP32", "shape": [-1, 2]}
