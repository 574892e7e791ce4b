"""Requests recorded from KServe's and Triton's documentation, each answered with what it documents."""

from __future__ import annotations

import json
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import json_format
from tritonclient.grpc import service_pb2, service_pb2_grpc

from integration.ports import free_port
from integration.runtime.documented import CALLS, EXCHANGES, Call, Exchange


def body_of(exchange: Exchange) -> tuple[bytes, dict[str, str]]:
    """The request's body and headers."""
    head = exchange.request.encode()
    headers = {"Content_Type": exchange.content_type}
    if exchange.tensors:
        headers["Inference_Header_Content_Length"] = str(len(head))
    return head + b"".join(tensor.tobytes() for tensor in exchange.tensors), headers


def data_of(output: dict[str, Any]) -> Any:
    """Numbers as the output's type has them; of a classification the score as a number, for pages leave its zeros out."""
    data = output.get("data")
    if data is None or output["datatype"] in ("INT32", "INT64"):
        return data
    if output["datatype"] == "BYTES":
        return [(float(score), rest) for score, _, rest in (text.partition(":") for text in data)]
    return np.array(data, np.float32).tolist()


def comparable(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer with its numbers as the outputs' types have them."""
    return answer | {"outputs": [output | {"data": data_of(output)} for output in answer["outputs"]]} if "outputs" in answer else answer


def check(exchange: Exchange, body: bytes, json_bytes: str | None, **named: str) -> None:
    """Compare an answer with what the page has; `named` is what it says of itself besides."""
    size = len(body) if json_bytes is None else int(json_bytes)
    assert comparable(json.loads(body[:size])) == comparable(exchange.answer | (named if "outputs" in exchange.answer else {}))
    assert body[size:] == b"".join(array.tobytes() for array in exchange.raw.values())


@pytest.mark.parametrize("exchange", EXCHANGES, ids=str)
def test_http(start, exchange):
    server = start(exchange.draft(), "--revision", exchange.version, name=exchange.model).wait_ready()
    body, headers = body_of(exchange)
    for _ in range(3):  # the first is read with care, the next by what was learned from it
        answer = server.ask("POST", exchange.path.format(model=exchange.model), body, **headers)
        assert answer.status == 200, answer.body
        assert answer.headers["content-type"] == ("application/octet-stream" if exchange.raw else "application/json")
        json_bytes = answer.headers.get("inference-header-content-length")
        check(exchange, answer.body, json_bytes, model_name=exchange.model, model_version=exchange.version)


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_grpc(start, call: Call):
    port = free_port()
    version = call.version or "v1"
    start(call.draft(), "--revision", version, "--grpc-port", str(port), name=call.model).wait_ready()
    request = json_format.ParseDict(call.request, getattr(service_pb2, f"{call.method}Request")())
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), call.method)
        for _ in range(3):
            answer = json_format.MessageToDict(ask(request, timeout=20))
            assert answer.pop("modelVersion", version) == version
            assert answer == {key: value for key, value in call.answer.items() if key != "modelVersion"}
