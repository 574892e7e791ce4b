"""Termination messages stay under the kubelet's limit whatever they hold."""

from __future__ import annotations

import json

import pytest

from slipway_runtime.content_key import content_key
from slipway_runtime.fetch.base import tree_digest
from slipway_runtime.reasons import EXIT_CODES, Failure, write_termination

ROW = {"target": "ONNX", "precision": "Float32", "verdict": "Failed", "reason": "ParityFailed", "message": "m" * 300}


@pytest.mark.parametrize(
    ("message", "data"),
    [
        ("short", {}),
        ("ü" * 9000, {}),
        ("m" * 9000, {"candidates": [ROW] * 8}),
        ("m" * 9000, {"candidates": [ROW] * 99, "signature": {"inputs": ["x" * 3000]}, "tools": {"t": "v" * 4000}}),
    ],
)
def test_termination_is_json_of_at_most_4096_bytes(message, data, tmp_path, monkeypatch):
    path = tmp_path / "log"
    monkeypatch.setenv("SLIPWAY_TERMINATION_LOG", str(path))
    write_termination("ParityFailed", message, **data)
    assert path.stat().st_size <= 4096
    value = json.loads(path.read_text())
    assert value["reason"] == "ParityFailed"
    assert value["message"]


def test_unknown_reason_is_a_bug():
    with pytest.raises(ValueError, match="unknown reason"):
        Failure("Nonsense", "x")


def test_reasons_equal_the_operators():
    from slipway.api import reasons  # noqa: PLC0415

    known = {str(reason): doc.exit_code for reason, doc in reasons.REASONS.items()}
    assert {reason: known.get(reason) for reason in EXIT_CODES} == EXIT_CODES


def test_precisions_equal_the_operators():
    from slipway.api import source  # noqa: PLC0415
    from slipway_runtime.candidates import PRECISIONS  # noqa: PLC0415

    assert PRECISIONS == source.PRECISIONS
    assert set(PRECISIONS) == set(source.Target.__args__)


def test_targets_equal_the_operators():
    from slipway.api import source  # noqa: PLC0415
    from slipway_runtime.candidates import TARGETS  # noqa: PLC0415

    assert {*TARGETS} == {*source.ModelFormat.__args__}
    every = set(source.Target.__args__)
    assert {name: set(row) for name, row in source.TARGETS.items()} == {
        name: set(row) for name, row in TARGETS.items() if set(row) != every and name != "TorchServe"
    }


def test_eight_rows_fit_into_the_termination_message(tmp_path, monkeypatch):
    row = {
        "target": "ExportedProgram",
        "precision": "Int8Dynamic",
        "verdict": "Passed",
        "reason": "Validated",
        "message": "",
        "maxAbsoluteError": "0.00123456",
        "maxRelativeError": "0.00123456",
        "cosine": "0.999987",
        "top1AgreementPercent": "98.4375",
        "accuracyPercent": "98.4375",
        "latencyP50": "0.123ms",
        "latencyP99": "0.456ms",
        "throughput": "123456",
        "loadSeconds": "0.0123",
        "peakMemory": "1234Mi",
        "batchSize": 32,
        "sizeBytes": 123456789,
        "seconds": "123.4",
    }
    failed = row | {"verdict": "Failed", "message": "m" * 300}
    path = tmp_path / "message"
    monkeypatch.setenv("SLIPWAY_TERMINATION_LOG", str(path))
    signature = {"inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 3, 224, 224]}], "outputs": []}
    write_termination(
        "Published", "m" * 100, artifactDigest="d" * 71, tools={f"tool{n}": "1.2.3" for n in range(12)}, signature=signature,
        choice="c" * 160, candidates=[row] * 5 + [row | {"chosen": True}] + [failed] * 2,
    )  # fmt: skip
    assert path.stat().st_size <= 4096
    value = json.loads(path.read_text())
    assert [row["verdict"] for row in value["candidates"]] == ["Passed"] * 6 + ["Failed"] * 2
    assert all(row["latencyP50"] and row["throughput"] and row["maxAbsoluteError"] for row in value["candidates"])
    assert value["candidates"][-1]["message"]
    assert [row.get("chosen", False) for row in value["candidates"]] == [False] * 5 + [True] + [False] * 2
    assert value["choice"]
    assert value["signature"] == signature


def test_content_key_ignores_what_does_not_shape_the_artifact():
    spec = {"model": {"uri": "a", "entrypoint": "m:b"}, "conversion": {"timeout": "1m", "resources": {}}}
    other = {"model": {"uri": "b", "entrypoint": "m:b", "digest": "d", "credentialsSecretRef": {"name": "s"}}}
    assert content_key("d", spec, {}) == content_key("d", other, {})
    assert content_key("d", spec, {}) != content_key("e", spec, {})
    assert content_key("d", spec, {}) != content_key("d", spec, {"torch": "3"})
    assert content_key("d", spec, {}) != content_key("d", spec | {"maxBatchSize": 64}, {})
    assert content_key("d", spec, {}) != content_key("d", {**spec, "accelerator": {"resourceName": "nvidia.com/gpu"}}, {})


def test_tree_digest_is_that_of_the_sorted_lines():
    assert tree_digest([("b", "1"), ("a", "2")]) == tree_digest([("a", "2"), ("b", "1")])
