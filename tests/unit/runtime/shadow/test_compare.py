"""How two answers differ: the table of what a pair of answers means, and the numbers that are told besides."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from slipway_runtime.artifact import Signature
from slipway_runtime.shadow.compare import Answer, compare
from slipway_runtime.shadow.golden import requests_of


def infer(values: Any, name: str = "y", datatype: str = "FP32", shape: list[int] | None = None, status: int = 200, **more: Any) -> Answer:
    array = np.asarray(values)
    output = {"name": name, "datatype": datatype, "shape": shape or list(array.shape), "data": array.ravel().tolist()}
    return Answer(status, json.dumps({"model_version": more.pop("version", "1"), "outputs": [output]}).encode(), **more)


def raw(values: Any, header: int | None = None) -> Answer:
    array = np.asarray(values, "<f4")
    size = {"binary_data_size": array.nbytes}
    head = json.dumps({"outputs": [{"name": "y", "datatype": "FP32", "shape": list(array.shape), "parameters": size}]}).encode()
    return Answer(200, head + array.tobytes(), len(head) if header is None else header)


def said(value: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode())


SEVEN, NINE = {"prediction": 7, "probability": 0.9, "revision": "a"}, {"prediction": 9, "probability": 0.9, "revision": "b"}


@pytest.mark.parametrize(
    ("stable", "canary", "result", "why"),
    [
        (infer([[1.0, 2.0]]), infer([[5.0, 9.0]], version="2"), "agreed", ""),
        (infer([[1.0, 2.0]]), infer([[2.0, 1.0]]), "differed", "y: another class in 1 of 1 rows"),
        (infer([[1.0, 2.0], [1.0, 2.0]]), infer([[1.0, 2.0], [2.0, 1.0]]), "differed", "1 of 2 rows"),
        (infer([[1.0, 2.0]]), raw([[1.0, 2.0]]), "agreed", ""),
        (raw([[1.0, 2.0]]), raw([[2.0, 1.0]]), "differed", "another class"),
        (raw([[1.0, 2.0]]), raw([[math.nan, 2.0]]), "differed", "NaN"),
        (
            infer([[1.0, 2.0]]),
            said({"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [None, 2.0]}]}),
            "differed",
            "NaN",
        ),
        (infer([[1.0, 2.0]]), infer([[1.0, 2.0, 3.0]]), "differed", "[1, 3], stable gives [1, 2]"),
        (infer([[1.0, 2.0]]), infer([[1.0, 2.0]], name="z"), "differed", "y is absent"),
        (infer([1.0]), infer([1.009]), "agreed", ""),
        (infer([1.0]), infer([1.02]), "differed", "y has other values"),
        (infer([3], datatype="INT64"), infer([3], datatype="INT64"), "agreed", ""),
        (infer([3], datatype="INT64"), infer([4], datatype="INT64"), "differed", "other values"),
        (infer(["a"], datatype="BYTES"), infer(["b"], datatype="BYTES"), "differed", "other values"),
        (said(SEVEN), said({**SEVEN, "probability": 0.2, "revision": "b"}), "agreed", ""),
        (said(SEVEN), said(NINE), "differed", "prediction"),
        (said({"predictions": [SEVEN, SEVEN]}), said({"predictions": [SEVEN, NINE]}), "differed", "prediction"),
        (said([[0.1, 0.9]]), said([[0.1, 0.9001]]), "agreed", ""),
        (said([[0.1, 0.9]]), said([[0.5, 0.5]]), "differed", "values"),
        (infer([1.0]), infer([1.0], status=500), "failed", "500"),
        (infer([1.0]), said({"error": "input 'x' is missing"}, 400), "failed", "input 'x' is missing"),
        (infer([1.0]), infer([1.0], status=503), "busy", "503"),
        (infer([1.0]), Answer(0), "busy", "0"),
        (infer([1.0], status=400), infer([1.0]), "skipped", "400"),
        (Answer(0), infer([1.0]), "skipped", "0"),
        (Answer(200, b"<html>"), infer([1.0]), "skipped", "not understood"),
        (infer([1.0]), Answer(200, b"<html>"), "differed", "not understood"),
        (infer([1.0]), raw([1.0], header=20), "differed", "not understood"),
        (infer([1.0]), infer([1.0, 2.0], shape=[1]), "differed", "not understood"),
        (said({}), said({}), "skipped", "no values"),
    ],
)
def test_what_a_pair_of_answers_means(stable: Answer, canary: Answer, result: str, why: str) -> None:
    finding = compare(stable, canary)
    assert (str(finding.result), why in finding.why) == (result, True), finding


def test_the_numbers() -> None:
    finding = compare(infer([[10.0, 0.0, -5.0]], seconds=0.010), infer([[11.0, 0.5, -5.0]], seconds=0.025))
    assert (str(finding.result), finding.absolute) == ("agreed", 1.0)
    assert finding.relative == pytest.approx(0.5), "0.5 against a tenth of the largest, not against 0"
    assert finding.latency == pytest.approx(0.015)
    assert compare(infer([3], datatype="INT64"), infer([4], datatype="INT64")).absolute is None
    assert compare(infer([[0.0, 0.0]]), infer([[0.0, 1.0]])).relative == math.inf


def test_golden_inputs_are_one_request_a_row_where_the_batch_is_dynamic() -> None:
    tensors = [{"name": "x", "dtype": "float32", "shape": ["batch", 2]}, {"name": "scale", "dtype": "float64", "shape": []}]
    signature = Signature.from_json({"inputs": tensors, "outputs": tensors[:1]})
    inputs = {"x": np.arange(6, dtype="f4").reshape(3, 2), "scale": np.asarray(2.0)}
    rows = [json.loads(copied.body)["inputs"] for copied in requests_of(inputs, signature, "/v2/models/m/infer")]
    assert [(row[0]["shape"], row[0]["data"], row[1]["shape"], row[1]["data"]) for row in rows] == [
        ([1, 2], [0.0, 1.0], [], [2.0]),
        ([1, 2], [2.0, 3.0], [], [2.0]),
        ([1, 2], [4.0, 5.0], [], [2.0]),
    ]
    tensors[0]["shape"] = [3, 2]
    fixed = Signature.from_json({"inputs": tensors, "outputs": tensors[:1]})
    (whole,) = requests_of(inputs, fixed, "/v2/models/m/infer")
    assert json.loads(whole.body)["inputs"][0]["shape"] == [3, 2]
