"""Malformed requests: whatever comes, the answer is a refusal or a right reading, never another exception."""

from __future__ import annotations

import asyncio
import json
import random

import numpy as np
import pytest

from slipway_runtime.artifact import Signature, TensorSpec
from slipway_runtime.serve import oip
from slipway_runtime.serve.adapters import torchserve_inputs
from slipway_runtime.serve.connection import Connection, Hub, Limits
from slipway_runtime.serve.messages import HttpError, Response
from slipway_runtime.serve.predict import decode_npy, decode_plain, is_npy
from slipway_runtime.serve.protocol import Codec
from slipway_runtime.serve.rpc_codec import RpcCodec
from unit.runtime.serve.test_connection import Wire, post

SIGNATURE = Signature(
    (
        TensorSpec("a", "float32", ("n", 2)),
        TensorSpec("b", "string", ("n",)),
        TensorSpec("c", "bfloat16", ("n",)),
        TensorSpec("d", "bool", ("n",)),
    ),
    (TensorSpec("y", "float32", ("n", 2)),),
)
ONE = Signature(SIGNATURE.inputs[:1], SIGNATURE.outputs)
JSON_ITEMS = [
    {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [1.5, 2]},
    {"name": "b", "shape": [1], "datatype": "BYTES", "data": ["é"]},
    {"name": "c", "shape": [1], "datatype": "BF16", "data": [1]},
    {"name": "d", "shape": [1], "datatype": "BOOL", "data": [True]},
]
RAW = [np.array([1.5, 2], "<f4").tobytes(), b"\x02\0\0\0\xc3\xa9", b"\x80\x3f", b"\x01"]
OUTPUTS = [{"name": "y", "parameters": {"binary_data": True, "classification": 1}}]
ODD = [
    None,
    -1,
    0,
    1 << 70,
    1e400,
    "",
    "x" * 100,
    [],
    [[]],
    {},
    [None],
    [-1],
    [1 << 62, 1 << 62],
    True,
    "FP32",
    float("nan"),
    [0],
    {"a": 1},
]


def mutated_json(value, random_):
    """A JSON value with one part of it replaced, removed or doubled."""
    if random_.random() < 0.25 or not isinstance(value, (dict, list)) or not value:
        return random_.choice(ODD)
    copy = dict(value) if isinstance(value, dict) else list(value)
    key = random_.choice(list(copy)) if isinstance(copy, dict) else random_.randrange(len(copy))
    action = random_.random()
    if action < 0.1:
        del copy[key]
    elif action < 0.2 and isinstance(copy, list):
        copy.append(copy[key])
    else:
        copy[key] = mutated_json(copy[key], random_)
    return copy


def mutated_bytes(data, random_):
    """Bytes with some of them changed, cut or added."""
    data = bytearray(data)
    for _ in range(random_.randint(1, 4)):
        position = random_.randrange(len(data) + 1)
        action = random_.random()
        if action < 0.5 and position < len(data):
            data[position] = random_.randrange(256)
        elif action < 0.75:
            del data[position : position + random_.randint(1, 9)]
        else:
            data[position:position] = random_.randbytes(random_.randint(1, 9))
    return bytes(data)


def is_right(tensors, signature=SIGNATURE):
    return [array.ndim for array in tensors.values()] and all(tensors[spec.name].shape[0] >= 1 for spec in signature.inputs)


def same(one, other):
    """Whether two readings of a request are equal, to the bit."""
    arrays = [
        [
            (name, array.dtype, array.shape, array.tolist() if array.dtype == object else array.tobytes())
            for name, array in asked.inputs.items()
        ]
        for asked in (one, other)
    ]
    return arrays[0] == arrays[1] and (list(one.outputs), one.id, one.timeout, one.priority) == (
        list(other.outputs),
        other.id,
        other.timeout,
        other.priority,
    )


def counted(attempts, attempt):
    """Run `attempt` so often; returns how many were read and how many refused."""
    read = refused = 0
    for index in range(attempts):
        try:
            assert attempt(random.Random(index))
            read += 1
        except HttpError as error:
            assert 400 <= error.status < 500  # noqa: PT017 (any number of them)
            refused += 1
    return read, refused


def test_json():
    codec, value = (
        Codec(SIGNATURE, "m", "r"),
        {"inputs": JSON_ITEMS, "outputs": OUTPUTS, "id": "1", "parameters": {"timeout": 5, "priority": 1}},
    )

    def attempt(random_):
        body = json.dumps(mutated_json(value, random_)).encode()
        return is_right(codec.decode(body if random_.random() < 0.7 else mutated_bytes(body, random_)).inputs)

    read, refused = counted(5_000, attempt)
    assert read > 100 < refused


def test_binary():
    codec = Codec(SIGNATURE, "m", "r")
    items = [{key: value for key, value in item.items() if key != "data"} for item in JSON_ITEMS]
    for item, raw in zip(items, RAW, strict=True):
        item["parameters"] = {"binary_data_size": len(raw)}
    value, raws = {"inputs": items, "outputs": OUTPUTS}, b"".join(RAW)

    def attempt(random_):
        head = json.dumps(mutated_json(value, random_) if random_.random() < 0.6 else value).encode()
        body = head + (mutated_bytes(raws, random_) if random_.random() < 0.6 else raws)
        length = len(head) if random_.random() < 0.9 else random_.choice([0, -1, 1, len(body), len(body) + 1, 1 << 60])
        return is_right(codec.decode(body, length).inputs)

    read, refused = counted(5_000, attempt)
    assert read > 100 < refused


def test_grpc():
    codec, request_type = RpcCodec(Codec(SIGNATURE, "m", "r")), oip.message("ModelInferRequest")
    request = request_type(model_name="m", raw_input_contents=RAW)
    for item in JSON_ITEMS:
        request.inputs.add(name=item["name"], datatype=item["datatype"], shape=item["shape"])
    request.outputs.add(name="y").parameters["classification"].int64_param = 1
    data, damaged = request.SerializeToString(), 0

    def attempt(random_):
        nonlocal damaged
        body = mutated_bytes(data, random_)
        try:
            message = request_type.FromString(body)
        except Exception as error:
            assert type(error).__name__ == "DecodeError"  # noqa: PT017 (counted, not expected)
            damaged += 1
            assert codec.known(body) is None
            return True
        asked, known = RpcCodec(Codec(SIGNATURE, "m", "r")).decode(body, message), codec.known(body)
        codec.decode(body, message)
        assert known is None or same(known, asked)
        return is_right(asked.inputs)

    read, refused = counted(5_000, attempt)
    assert damaged > 100
    assert read - damaged > 100 < refused


@pytest.mark.parametrize(
    "read", [lambda body: decode_npy(body, ONE) if is_npy(body) else decode_plain(body, ONE), lambda body: torchserve_inputs(body, ONE)]
)
def test_plain_bodies_and_npy(read, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((3, 2), np.float32))
    npy = (tmp_path / "x.npy").read_bytes()
    values = [{"instances": [[1, 2]]}, {"inputs": {"a": [[1, 2]]}}, [[1, 2]], {"data": [1, 2]}]

    def attempt(random_):
        plain = json.dumps(mutated_json(random_.choice(values), random_)).encode()
        body = mutated_bytes(npy, random_) if random_.random() < 0.5 else plain
        return is_right(read(body), ONE)

    assert min(counted(3_000, attempt)) > 50


async def test_http():
    """Damaged streams over a connection: an answer or a refusal for each, 4xx and not 5xx, and a table of heads that stays bounded."""
    hub = Hub(lambda request: request.reply(Response(200, b"{}")), Limits(max_body_bytes=10_000), {})
    stream = (
        post(b"one") * 2
        + post(b"two", "Inference-Header-Content-Length: 1")
        + b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
    )
    codes = set()
    for index in range(3_000):
        random_ = random.Random(index)
        connection, wire = Connection(hub, asyncio.get_running_loop()), Wire()
        connection.connection_made(wire)
        data = mutated_bytes(stream, random_)
        cut = random_.randrange(len(data) + 1)
        connection.data_received(data[:cut])
        connection.data_received(data[cut:])
        codes |= {part[:3] for part in wire.written.split(b"HTTP/1.1 ")[1:]}
        connection.connection_lost(None)
    assert {b"200", b"400"} <= codes <= {b"100", b"200", b"400", b"413", b"415", b"431"}
    assert not hub.connections
    assert len(hub.heads) <= 1024
