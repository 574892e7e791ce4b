"""Handlers of TorchServe: requirements, rows, answers, and answers in text compared."""

from __future__ import annotations

import json

import numpy as np
import pytest

from slipway_runtime.artifact import Signature, TensorSpec
from slipway_runtime.handler import Answer, HandlerError, check_requirements
from slipway_runtime.reasons import Failure
from slipway_runtime.serve.backends.handler import TEXT, outputs_of, rows_of
from slipway_runtime.texts import numbers_of
from slipway_runtime.validate.parity import Parity

MANIFEST = {"model": {"requirementsFile": "requirements.txt"}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("numpy\n# comment\n\n-r other.txt\n--index-url https://x/y\n", ""),
        ("NumPy >= 1.0 ; python_version > '3'\n", ""),
        ("numpy==999 ; sys_platform == 'win32'\n", ""),
        ("torchserve==0.1\ntorch_model_archiver\n", ""),
        ("numpy==1.0 --hash=sha256:00\n", "numpy==1.0, and the image has"),
        ("slipway_nobody[extra]<2\n", "slipway_nobody[extra]<2, which is not in the image"),
        ("one_of_nobody\ntwo-of-nobody\n", "one_of_nobody, which is not in the image; two-of-nobody, which"),
        ("pkg @ https://host/pkg.whl\n", "pkg @ https://host/pkg.whl, which is not in the image"),
    ],
)
def test_requirements(tmp_path, text, words):
    (tmp_path / "requirements.txt").write_text(text)
    if not words:
        check_requirements(tmp_path, MANIFEST)
        return
    with pytest.raises(Failure) as found:
        check_requirements(tmp_path, MANIFEST)
    assert (found.value.reason, words in found.value.message) == ("RequirementMissing", True), found.value.message


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ('{"a": [1, 2.5], "b": "x", "c": true}', ({"a": [0.0, 0.0], "b": "x", "c": True}, [1.0, 2.5])),
        ("plain", ("plain", [])),
        ("-3", (0.0, [-3.0])),
        (b"[null]", ([None], [])),
        ("[" * 100_000, ("[" * 100_000, [])),
    ],
)
def test_numbers_of_a_text(text, want):
    assert numbers_of(text) == want


def test_texts_are_compared_by_words_and_numbers():
    want = {"answer": np.array(['{"label": "a", "score": 0.5}', '{"label": "b", "score": 0.25}'])}
    near = {"answer": np.array(['{"score": 0.5, "label": "a"}', '{"label": "b", "score": 0.375}'], dtype=object)}
    parity = Parity()
    parity.add(want, near, 10)
    assert (parity.error, parity.worst) == (0.125, "answer of sample 11")
    for text, reason in (('{"label": "c", "score": 0.25}', "ParityFailed"), ('{"label": "b", "score": NaN}', "NonFiniteOutputs")):
        other = {"answer": np.array([near["answer"][0], text], dtype=object)}
        with pytest.raises(Failure) as found:
            Parity().add(want, other, 0)
        assert found.value.reason == reason


TWO = Signature(
    (TensorSpec("a", "float32", ("batch", 2)), TensorSpec("b", "int64", ("batch",))),
    (TensorSpec("y", "float32", ("batch", 2)), TensorSpec("s", "string", ("batch",))),
)


def test_rows():
    assert rows_of({"data": np.array(['{"x": [1]}', "aGk=", "[broken"], dtype=object)}, TEXT) == [
        {"data": {"x": [1]}}, {"data": "aGk="}, {"data": "[broken"},
    ]  # fmt: skip
    got = rows_of({"a": np.ones((2, 2), np.float32), "b": np.array([3, 4])}, TWO)
    assert got == [{"a": [1.0, 1.0], "b": 3}, {"a": [1.0, 1.0], "b": 4}]
    assert json.dumps(got)


def test_outputs():
    got = outputs_of([Answer({"y": [1, 2], "s": {"k": 1}}), Answer({"y": [3, 4], "s": "text"})], TWO)
    np.testing.assert_array_equal(got["y"], np.array([[1, 2], [3, 4]], np.float32))
    assert got["s"].tolist() == ['{"k": 1}', "text"]
    refused = Answer("no")
    refused.told.report_status(404, "gone")
    for answers, words in (
        ([Answer({"y": [1, 2]})], "wants an object of y, s"),
        ([Answer({"y": ["a", "b"], "s": ""})], "are no float32 for y"),
        ([Answer({"y": [1, 2], "s": object()})], "neither text nor JSON"),
        ([refused], "no"),
    ):
        with pytest.raises(HandlerError, match=words) as found:
            outputs_of(answers, TWO)
        assert found.value.status == (404 if answers == [refused] else 500)
