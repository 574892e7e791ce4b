"""Open Inference Protocol: what is accepted, what is refused and with which words, and what is answered."""

from __future__ import annotations

import json

import numpy as np
import pytest

from slipway_runtime.artifact import Signature, TensorSpec
from slipway_runtime.serve.messages import BadRequest
from slipway_runtime.serve.protocol import Codec, InferRequest, Output
from slipway_runtime.serve.tensors import DATATYPES, DTYPES, array_of

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
        ([tensor(data=[True, 2]), B], "input 'a': expected numbers for FP32, got true or false"),
        ([tensor(), tensor("b", "INT64", (1,), [False])], "input 'b': expected integers for INT64"),
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


@pytest.mark.parametrize(
    ("dtype", "data"),
    [("uint64", [5, 2**64 - 1]), ("int64", [2.0, 3]), ("uint8", [[0.0], [255]]), ("int64", [-(2**63), 2**63 - 1]), ("int32", [])],
)
def test_integers_are_exact_however_they_are_written(dtype, data):
    got = array_of("n", data, dtype)
    assert got.dtype == dtype
    assert got.tolist() == data


@pytest.mark.parametrize(
    ("dtype", "data", "words"),
    [
        ("uint64", [5, 2**64], "from 0 to"),
        ("int64", [1.5, 2], "expected integers"),
        ("uint8", [1.0, 256], "from 0 to 255"),
        ("int64", [None, 1], "expected integers"),
        ("int64", [-9.223372036854775808e18, 0], "expected integers"),  # what orjson makes of -2^63 - 1
    ],
)
def test_what_is_no_integer_of_the_type_is_refused(dtype, data, words):
    with pytest.raises(BadRequest, match=words):
        array_of("n", data, dtype)


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


# --- the binary extension, and plans ------------------------------------------------------------------------------


def binary(items, raw, **more):
    """A body with raw tensors, and the length of its JSON part."""
    head = json.dumps({"inputs": items, **more}).encode()
    return head + raw, len(head)


def raw_item(name, datatype, shape, size):
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}


def codec_of(dtype):
    spec = ("batch", 2)
    return Codec(Signature((TensorSpec("x", dtype, spec),), (TensorSpec("y", dtype, spec),)), "m", "r")


@pytest.mark.parametrize("pad", range(8))
@pytest.mark.parametrize("dtype", DATATYPES)
def test_raw_tensors_round_trip_at_any_alignment(dtype, pad):
    codec = codec_of(dtype)
    data = [["", "é"], ["a" * 300, "b"]] if dtype == "string" else [[True, False], [False, True]] if dtype == "bool" else [[0, 1], [2, 3]]
    array = np.array(data, DTYPES[dtype])
    raw = b"".join(len(v.encode()).to_bytes(4, "little") + v.encode() for v in array.flat) if dtype == "string" else array.tobytes()
    parameters = {"binary_data_output": True, "pad": "x" * pad}
    body, length = binary([raw_item("x", DATATYPES[dtype], [2, 2], len(raw))], raw, parameters=parameters)
    for _ in range(3):  # the second and third time by the plan
        asked = codec.decode(body, length)
        assert asked.inputs["x"].dtype == DTYPES[dtype]
        assert asked.inputs["x"].tolist() == array.tolist()
        answer = codec.encode(asked, {"y": asked.inputs["x"]})
        assert answer.body[answer.json_bytes :] == raw
        described = json.loads(answer.body[: answer.json_bytes])["outputs"][0]
        assert described == {"name": "y", "datatype": DATATYPES[dtype], "shape": [2, 2], "parameters": {"binary_data_size": len(raw)}}


def test_a_raw_boolean_is_zero_or_one():
    asked = codec_of("bool").decode(*binary([raw_item("x", "BOOL", [1, 2], 2)], b"\x02\x00"))
    assert asked.inputs["x"].view(np.uint8).tolist() == [[1, 0]]


FP32 = raw_item("x", "FP32", [1, 2], 8)


@pytest.mark.parametrize(
    ("dtype", "body", "length", "words"),
    [
        ("float32", *binary([FP32], b"\0" * 7), "binary_data_size is 8, but only 7 bytes are left"),
        ("float32", *binary([FP32], b"\0" * 9), "1 bytes are left over"),
        ("float32", *binary([raw_item("x", "FP32", [1, 2], 4)], b"\0" * 4), "shape [1, 2] of FP32 needs 8 bytes, got 4"),
        ("float32", *binary([raw_item("x", "FP32", [1, 2], -1)], b""), "a whole number"),
        ("float32", *binary([raw_item("x", "FP32", [1, 10**12], 8)], b"\0" * 8), "needs 4000000000000 bytes"),
        ("string", *binary([raw_item("x", "BYTES", [1, 2], 4)], b"\x05\0\0\0"), "need at least 8 bytes"),
        ("string", *binary([raw_item("x", "BYTES", [1, 2], 8)], b"\x05\0\0\0abcd"), "element 0 claims 5 bytes"),
        ("string", *binary([raw_item("x", "BYTES", [1, 2], 10)], b"\x02\0\0\0\xff\xff\0\0\0\0"), "no UTF-8"),
        ("float32", *binary([FP32 | {"parameters": {"shared_memory_region": "r"}}], b""), "shared memory is not supported"),
        ("float32", *binary([FP32 | {"parameters": 3}], b""), "'parameters' must be an object"),
        ("float32", *binary([FP32], b"\0" * 8, parameters={"timeout": -1}), "'timeout' must be a whole number"),
        ("float32", json.dumps({"inputs": [FP32]}).encode(), None, "needs the header Inference-Header-Content-Length"),
        ("float32", b"{}", 9, "must be a number from 1 to 2"),
        ("float32", b"{}", 0, "must be a number from 1 to 2"),
        ("float32", b"{}", -1, "must be a number from 1 to 2"),
    ],
)
def test_a_wrong_binary_body_is_refused(dtype, body, length, words):
    with pytest.raises(BadRequest) as caught:
        codec_of(dtype).decode(body, length)
    assert words in caught.value.message


def test_a_plan_is_not_used_for_another_length():
    codec = codec_of("float32")
    body, length = binary([FP32], b"\0" * 8)
    codec.decode(body, length)
    with pytest.raises(BadRequest, match="left over"):
        codec.decode(body + b"\0", length)
    with pytest.raises(BadRequest, match="are left"):
        codec.decode(body[:-1], length)


X = TensorSpec("x", "float32", ("batch", 2))


@pytest.mark.parametrize(
    ("template", "fillings"),
    [
        ('{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[DATA]}]}', ["1,2", "3,4", "null,5", "[6,7]", "8", "true,9"]),
        ('{"inputs": [{"data": [DATA], "name": "x", "shape": [1, 2], "datatype": "FP32"}]}', ["1,2", "3,4", '"a",1', "1,2,3"]),
        ('{"id":"7","inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[DATA]}]}', ["1,2", "3,4"]),
        ('{"parameters":{"data":[DATA]},"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[5,6]}]}', ["1,2", "3,4"]),
        ('{"inputs":[{"x\\"data":[DATA],"name":"x","shape":[1,2],"datatype":"FP32","data":[5,6]}]}', ["1,2", "3,4"]),
        ('{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[[DATA],[5,6]]}]}', ["1,2", "3,4", "1"]),
        ('{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[DATA]}],"parameters":{"priority":1}}', ["1,2", "1,,2", ""]),
        ('{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[DATA]}]}', ["1,2", "true,false", "1e300,1", "{},1"]),
        (
            '{"id": "DATA", "inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}',
            ["7", "8", "", "a\\u0041", "é", '7","id":"9'],
        ),
        ('{"id":"DATA","inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}],"id":"6"}', ["7", "6", "8"]),
        ('{"id":"DATA","id":"6","inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}', ["7", "6", "8"]),
        ('{DATA"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}],"id":null}', ["", '"id":"7",', '"id":7,']),
    ],
)
def test_a_plan_means_what_the_whole_body_means(template, fillings):
    bodies = [template.replace("DATA", data) for data in fillings]
    signature = Signature((X,), (TensorSpec("y", "float32", ("batch", 2)),))
    kept = Codec(signature, "m", "r")

    def outcome(codec, body):
        try:
            asked = codec.decode(body.encode())
        except BadRequest as error:
            return error.message.partition(": ")[0]
        return np.nan_to_num(asked.inputs["x"], nan=-1).tolist(), asked.id, asked.priority

    for body in [*bodies, *bodies]:
        assert outcome(kept, body) == outcome(Codec(signature, "m", "r"), body), body


def request_of(array, kind, id_, **more):
    """A body that begins with its id, and the length of its JSON part if it has a raw tensor."""
    item = {"name": "x", "datatype": DATATYPES[array.dtype.name], "shape": list(array.shape)}
    item |= {"parameters": {"binary_data_size": array.nbytes}} if kind == "raw" else {"data": array.astype(float).ravel().tolist()}
    head = json.dumps(({} if id_ is None else {"id": id_}) | {"inputs": [item], **more}).encode()
    return (head + array.tobytes(), len(head)) if kind == "raw" else (head, None)


@pytest.mark.parametrize("named", ["none", "all", "some"])
@pytest.mark.parametrize("answered", ["raw", "json", "both"])
@pytest.mark.parametrize("kind", ["raw", "json"])
@pytest.mark.parametrize("dtype", sorted(set(DATATYPES) - {"bool", "string"}))
def test_requests_of_one_plan_are_read_and_answered_together_as_they_are_alone(dtype, kind, answered, named):
    outputs = TensorSpec("y", dtype, ("batch", 2)), TensorSpec("100%b", dtype, ("batch",))
    codec = Codec(Signature((TensorSpec("x", dtype, ("batch", 2)),), outputs), "m", "r")
    arrays = [np.array([[index, 1], [2, 3]]).astype(DTYPES[dtype]) for index in range(3)]
    ids = {"none": [None] * 3, "all": ["7", "a-much-longer-100%-id", ""], "some": ["7", None, "8"]}[named]
    wanted = [
        {"name": "y", "parameters": {"binary_data": answered != "json"}},
        {"name": "100%b", "parameters": {"binary_data": answered == "raw"}},
    ]
    requests = [request_of(array, kind, id_, outputs=wanted) for array, id_ in zip(arrays, ids, strict=True)]
    assert codec.known(*requests[0]) is None
    alone = [codec.decode(*request) for request in requests]
    known = [codec.known(*request) for request in requests]
    assert {one.plan for one in known} == {known[0].plan}
    assert (known[0].plan.rows, known[0].plan.elements) == (2, 4)
    batch = codec.planned_together(known)["x"]
    assert batch.dtype == DTYPES[dtype]
    assert batch.tolist() == np.concatenate(arrays).tolist()
    made = {"y": batch, "100%b": batch[:, 0]}  # of which one is not contiguous
    parts = [{name: array[start : start + 2] for name, array in made.items()} for start in (0, 2, 4)]
    answers = codec.encode_together(known, made)
    assert answers == [codec.encode(asked, part) for asked, part in zip(alone, parts, strict=True)]
    assert [json.loads(one.body[: one.json_bytes or None]).get("id") for one in answers] == ids


def test_numbers_that_are_null_are_read_together_too():
    codec, body = codec_of("float32"), b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[%b]}]}'
    codec.decode(body % b"1,2")
    known = [codec.known(body % numbers, None) for numbers in (b"1,null", b"3, 4")]
    assert np.nan_to_num(codec.planned_together(known)["x"], nan=-1).tolist() == [[1, -1], [3, 4]]


@pytest.mark.parametrize("odd", [b"[1]", b"[1,2,3]", b"[]", b"[true,1]", b"[[1,2]", b"[1,,2]", b'["]', b'["a",1]', b"[1e300,1]", b"[1,2"])
@pytest.mark.parametrize("is_first", [True, False])
def test_of_requests_of_one_plan_an_odd_one_is_not_read_with_the_others(odd, is_first):
    codec, body = codec_of("float32"), b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'
    codec.decode(body)
    good = codec.known(body, None)
    bad = good._replace(own=odd)
    assert codec.planned_together([good, good]) is not None
    assert codec.planned_together([bad, good] if is_first else [good, bad]) is None
    assert codec.planned_together([bad, bad]) is None


@pytest.mark.parametrize(
    ("wanted", "made"),
    [
        ([{"name": "y", "parameters": {"classification": 1}}, {"name": "z"}], {}),
        ([{"name": "y"}], {"y": np.zeros((1, 2), np.float32)}),
        ([{"name": "y"}], {"y": np.float32(1)}),
        ([{"name": "y"}], {"y": np.array([["a", "b"]] * 2, object)}),
    ],
)
def test_odd_answers_are_not_made_together(wanted, made):
    codec = Codec(TWO, "m", "r")
    items = [raw_item("a", "FP32", [1, 2], 8), raw_item("b", "INT64", [1], 8)]
    body, length = binary(items, b"\0" * 16, outputs=wanted)
    codec.decode(body, length)
    known = [codec.known(body, length)] * 2
    assert codec.planned_together(known)["b"].shape == (2,)
    assert codec.encode_together(known, {"y": np.zeros((2, 2), np.float32), "z": np.zeros(2, np.int64)} | made) is None


def test_plans_are_bounded():
    codec = codec_of("float32")
    for index in range(600):
        codec.decode(*binary([FP32], b"\0" * 8, parameters={"p": index}))
        codec.decode(json.dumps({"inputs": [tensor("x")], "parameters": {"p": index}}).encode())
    assert len(codec._plans) <= 512
    assert len(codec._json_plans) <= 512
