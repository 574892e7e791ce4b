"""Padding: which requests share a batch, what is filled in, what is cut off, and that only a model that does not mind is padded."""

from __future__ import annotations

import numpy as np
import pytest

from slipway_runtime.artifact import Signature, TensorSpec, open_artifact, padded_dims
from slipway_runtime.modelfile import parse_signature
from slipway_runtime.reasons import Failure
from slipway_runtime.serve.model import LoadOptions, load_model
from slipway_runtime.serve.padding import Joiner, Padding
from unit.runtime.serve.artifacts import text_draft, write

IDS, MASK = TensorSpec("ids", "int64", ("n", "words"), 7), TensorSpec("mask", "bool", ("n", "words"), 0)
EACH, MEAN = TensorSpec("each", "float32", ("n", "words")), TensorSpec("mean", "float32", ("n",))
TEXT = Signature((IDS, MASK), (MEAN, EACH))


def text(rows: int, words: int, start: int = 1) -> dict[str, np.ndarray]:
    ids = np.arange(start, start + rows * words).reshape(rows, words)
    return {"ids": ids, "mask": np.ones((rows, words), bool)}


@pytest.mark.parametrize(
    ("signature", "dims"),
    [
        (TEXT, {"words"}),
        (Signature((TensorSpec("x", "float32", ("n", "words")),), (MEAN,)), set()),
        (Signature((TensorSpec("x", "float32", ("n", "height", 3, "width"), 0),), (MEAN,)), {"height", "width"}),
        (Signature((IDS, MASK, TensorSpec("y", "float32", ("n", "height"))), (MEAN,)), {"words"}),
    ],
    ids=["text", "no pad", "two dimensions", "another varies and is not padded"],
)
def test_what_may_be_padded(signature, dims):
    assert padded_dims(signature) == dims


@pytest.mark.parametrize(
    ("inputs", "output", "words"),
    [
        ([["n", 8]], ["n"], "'x0' has pad, and no named dimension after the first"),
        ([["n"]], ["n"], "'x0' has pad, and no named dimension after the first"),
        ([["n", "words"], {"shape": ["n", "words"], "pad": None}], ["n"], "'x1' needs a pad too: it shares the dimension 'words'"),
        ([["n", "words"]], ["n", "letters"], "'y' cannot be cut back after padding: no input has its dimension 'letters'"),
        ([{"shape": ["n", "words"], "dtype": "uint8", "pad": 256}], ["n"], "pad of 'x0' is 256, which uint8 does not have"),
        ([{"shape": ["n", "words"], "dtype": "int8", "pad": -129}], ["n"], "pad of 'x0' is -129, which int8 does not have"),
        ([{"shape": ["n", "words"], "dtype": "bool", "pad": 2}], ["n"], "pad of 'x0' is 2, which bool does not have"),
        ([{"shape": ["n", "words"], "dtype": "string"}], ["n"], "pad of 'x0' is 0, which string does not have"),
        ([{"shape": ["n", "words"], "dtype": "float16", "pad": 2049}], ["n"], "pad of 'x0' is 2049, which float16 does not have"),
        ([{"shape": ["n", "words"], "dtype": "float32", "pad": -16777217}], ["n"], "pad of 'x0' is -16777217, which float32 does not have"),
    ],
)
def test_padding_that_cannot_be_is_refused_with_the_reason(inputs, output, words):
    rows = [row if isinstance(row, dict) else {"shape": row} for row in inputs]
    specs = [{"name": f"x{number}", "dtype": "float32", "pad": 0, **row} for number, row in enumerate(rows)]
    with pytest.raises(Failure, match="ModelFolderInvalid") as caught:
        parse_signature({"inputs": specs, "outputs": [{"name": "y", "dtype": "float32", "shape": output}]})
    assert words in caught.value.message


def test_a_signature_keeps_its_padding():
    parsed = parse_signature(TEXT.to_json())
    assert parsed == TEXT == Signature.from_json(TEXT.to_json())
    assert [row.get("pad") for row in TEXT.to_json()["inputs"]] == [7, 0]
    assert all("pad" not in row for row in TEXT.to_json()["outputs"])


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [(5, 8, True), (5, 5, True), (4, 5, False), (9, 16, True), (8, 9, False), (1, 1, True), (1, 2, False), (2, 2, True)],
)
def test_lengths_of_the_same_power_of_two_share_a_batch(first, second, together):
    padding = Padding.of(TEXT)
    assert (padding.key(text(1, first)) == padding.key(text(3, second))) is together


def test_only_what_has_a_pad_is_rounded():
    padding = Padding.of(Signature((IDS, MASK, TensorSpec("y", "float32", ("n", "height", 3))), (MEAN,)))
    inputs = text(2, 5) | {"y": np.zeros((2, 5, 3))}
    assert padding.key(inputs) == ((8,), (8,), (5, 3))


def test_shorter_rows_are_filled_up_and_their_answers_cut_back():
    joiner = Joiner(Padding.of(TEXT))
    made = [text(1, 3), text(2, 5, 10), text(1, 4, 30)]
    batch = joiner.joined(made)
    assert batch["ids"].tolist() == [[1, 2, 3, 7, 7], [10, 11, 12, 13, 14], [15, 16, 17, 18, 19], [30, 31, 32, 33, 7]]
    assert batch["mask"].sum(1).tolist() == [3, 5, 5, 4]
    parts = [*joiner.parted({"each": batch["ids"] * 2.0, "mean": batch["ids"][:, 0]}, made)]
    for inputs, outputs in zip(made, parts, strict=True):
        np.testing.assert_array_equal(outputs["each"], inputs["ids"] * 2.0)
        np.testing.assert_array_equal(outputs["mean"], inputs["ids"][:, 0])


def test_two_dimensions_are_filled_up_each_for_itself():
    signature = Signature((TensorSpec("x", "float32", ("n", "h", "w"), -1),), (TensorSpec("y", "float32", ("n", "w", "h")),))
    joiner = Joiner(Padding.of(signature))
    made = [{"x": np.ones((1, 2, 3), np.float32)}, {"x": np.full((1, 3, 2), 2, np.float32)}]
    batch = joiner.joined(made)["x"]
    assert batch.tolist() == [[[1, 1, 1], [1, 1, 1], [-1, -1, -1]], [[2, 2, -1], [2, 2, -1], [2, 2, -1]]]
    for inputs, outputs in zip(made, joiner.parted({"y": batch.transpose(0, 2, 1)}, made), strict=True):
        np.testing.assert_array_equal(outputs["y"], inputs["x"].transpose(0, 2, 1))


@pytest.mark.parametrize(
    ("entrypoint", "pad", "said"),
    [
        ("text:masked", 0, "padding: requests of different words share batches"),
        ("text:plain", 0, "padding is off: output 'mean' of rows of {'words': 7} depends on what it is padded with"),
        ("text:masked", 1, "padding is off: output 'mean'"),
        ("text:masked", None, ""),
    ],
    ids=["masked", "without a mask", "padded with what counts", "not asked for"],
)
def test_only_a_model_that_does_not_mind_is_padded(entrypoint, pad, said, tmp_path_factory, caplog):
    caplog.set_level("INFO")
    folder = tmp_path_factory.getbasetemp() / "text"  # one for all: a process imports its module once
    draft = text_draft(entrypoint, seconds=0.002, pad=pad)
    model = load_model(open_artifact(folder, write(folder, draft)), LoadOptions(max_batch=8))
    assert model.max_batch > 1
    assert (model.padding is not None) is said.startswith("padding:")
    assert said in caplog.text
