"""Plain JSON, images, and the class answer."""

from __future__ import annotations

import io
import json

import numpy as np
import orjson
import pytest
from PIL import Image

from slipway_runtime.artifact import Signature, TensorSpec
from slipway_runtime.reasons import Failure
from slipway_runtime.serve.form import uploaded_images
from slipway_runtime.serve.messages import BadRequest, Head, HttpError, Request
from slipway_runtime.serve.predict import answer, decode_plain, probabilities
from slipway_runtime.serve.preprocess import ImagePreprocessing, image_inputs

ONE = Signature((TensorSpec("x", "float32", ("batch", 2)),), (TensorSpec("y", "float32", ("batch", 3)),))
TWO = Signature((*ONE.inputs, TensorSpec("k", "int64", ("batch",))), ONE.outputs)


def png(pixels, mode):
    file = io.BytesIO()
    Image.fromarray(pixels, mode).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_preprocessing_equals_numpy(layout, mode, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    file = png(pixels if channels == 3 else pixels[..., 0], mode)
    mean, std = [0.1 * (i + 1) for i in range(channels)], [0.5 + i for i in range(channels)]
    image = {"mode": mode, "size": [5, 7], "scale": 0.0625, "mean": mean, "std": std, "layout": layout}
    want = (pixels * 0.0625 - np.array(mean)) / np.array(std)
    got = ImagePreprocessing.parse({"image": image}).tensor(file)
    np.testing.assert_allclose(got, want.transpose(2, 0, 1) if layout == "NCHW" else want, rtol=1e-5, atol=1e-5)


def test_another_size_and_mode_are_converted():
    preprocessing = ImagePreprocessing.parse({"image": {"mode": "L", "size": [4, 6]}})
    got = preprocessing.tensor(png(np.full((20, 30, 3), 255, np.uint8), "RGB"))
    np.testing.assert_allclose(got, np.ones((1, 4, 6)), rtol=1e-6)


@pytest.mark.parametrize(
    "file", [b"no image", b"\x89PNG\r\n\x1a\n", png(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8), "L")[:70]]
)
def test_a_damaged_image_is_refused(file):
    with pytest.raises(BadRequest, match="cannot be read"):
        ImagePreprocessing.parse({"image": {"mode": "L", "size": [8, 8]}}).tensor(file)


@pytest.mark.parametrize(
    "image",
    [{"mode": "L"}, {"size": [8]}, {"size": [8, 8], "mode": "CMYK"}, {"size": [8, 8], "mean": [0, 0]}, {"size": [8, 8], "std": [0]}],
)
def test_wrong_preprocessing_is_refused_at_load(image):
    with pytest.raises(Failure) as caught:
        ImagePreprocessing.parse({"image": image})
    assert caught.value.reason == "ModelLoadFailed"


def test_images_become_a_batch():
    spec = Signature((TensorSpec("i", "float32", ("batch", 1, 2, 2)),), ONE.outputs)
    file = png(np.zeros((2, 2), np.uint8), "L")
    inputs = image_inputs([file, file], ImagePreprocessing("L", (2, 2)), spec)
    assert inputs["i"].shape == (2, 1, 2, 2)


def form(*parts, boundary="B"):
    body = b"".join(b'--B\r\nContent-Disposition: form-data; name="%b"; filename="f"\r\n\r\n%b\r\n' % part for part in parts) + b"--B--\r\n"
    return Request(Head("POST", "/", f"multipart/form-data; boundary={boundary}"), body)


def test_a_form_yields_its_image_fields_in_order():
    assert uploaded_images(form((b"note", b"n"), (b"image", b"\r\none"), (b"image", b"two"))) == [b"\r\none", b"two"]


def test_a_raw_image_is_the_body():
    assert uploaded_images(Request(Head("POST", "/", "image/png"), b"raw")) == [b"raw"]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (form((b"other", b"x")), 400),
        (form((b"image", b"")), 400),
        (Request(Head("POST", "/", "multipart/form-data"), b""), 400),
        (form((b"image", b"x"), boundary="other"), 400),
        (Request(Head("POST", "/", "image/png"), b""), 400),
        (Request(Head("POST", "/", "text/plain"), b"x"), 415),
    ],
)
def test_a_wrong_upload_is_refused(request_, status):
    with pytest.raises(HttpError) as caught:
        uploaded_images(request_)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("body", "signature", "shape"),
    [
        ({"instances": [[1, 2], [3, 4]]}, ONE, (2, 2)),
        ({"inputs": [[1, 2], [3, 4]]}, ONE, (2, 2)),
        ({"inputs": [1, 2]}, ONE, (1, 2)),
        ({"inputs": {"x": [[1, 2]]}}, ONE, (1, 2)),
        ({"instances": [{"x": [1, 2], "k": 1}, {"x": [3, 4], "k": 2}]}, TWO, (2, 2)),
    ],
)
def test_plain_json(body, signature, shape):
    inputs = decode_plain(json.dumps(body).encode(), signature)
    assert inputs["x"].shape == shape
    assert inputs["x"].dtype == np.float32


@pytest.mark.parametrize(
    ("body", "signature", "words"),
    [
        ({}, ONE, "expected {"),
        ({"instances": []}, ONE, "at least one sample"),
        ({"instances": [[1, 2, 3]]}, ONE, "input 'x': expected FP32 [batch, 2], got shape [1, 3]"),
        ({"instances": [[1, 2]]}, TWO, "several inputs"),
        ({"instances": [{"x": [1, 2]}, {"k": 1}]}, TWO, "the same inputs"),
        ({"inputs": {"q": [1]}}, ONE, "unknown input 'q'"),
        ({"inputs": {"x": [[1, 2]]}}, TWO, "input 'k' is missing"),
    ],
)
def test_plain_json_refusals(body, signature, words):
    with pytest.raises(BadRequest) as caught:
        decode_plain(json.dumps(body).encode(), signature)
    assert words in caught.value.message


@pytest.mark.parametrize("body", [{"instances": [[1, False]]}, {"inputs": [[1.0, True], [0, 0]]}, {"inputs": [False, True]}])
def test_true_and_false_are_no_numbers(body):
    with pytest.raises(BadRequest, match="input 'x': expected numbers for FP32, got true or false"):
        decode_plain(json.dumps(body).encode(), ONE)


def test_the_words_true_and_false_may_stand_elsewhere():
    assert decode_plain(json.dumps({"instances": [[1, 2]], "verbose": True, "false": "true"}).encode(), ONE)["x"].tolist() == [[1, 2]]


@pytest.mark.parametrize(
    "array", [np.array([["a", "é"]], object), np.array([[b"a", b"\xff"]], object), np.array([[True]]), np.ones((2, 1), np.float16)]
)
def test_outputs_of_every_type_are_json(array):
    got = answer({"y": np.ones((1, 2, 3), np.float32), "more": array}, "y", [], as_list=True)
    assert orjson.dumps(got, option=orjson.OPT_SERIALIZE_NUMPY)


def test_softmax_and_probabilities_as_they_are():
    scores = np.array([[1.0, 2.0, 3.0]], np.float32)
    np.testing.assert_allclose(probabilities(scores), np.exp(scores) / np.exp(scores).sum(), rtol=1e-6)
    np.testing.assert_allclose(probabilities(scores + 1000), probabilities(scores))
    already = np.array([[0.2, 0.7, 0.1]], np.float32)
    np.testing.assert_allclose(probabilities(already), already)


def test_the_class_answer():
    y = np.array([[0, 5, 0]], np.float32)
    one = answer({"y": y}, "y", ["a", "b", "c"], as_list=False)
    assert (one["prediction"], one["label"]) == (1, "b")
    assert 0.98 < one["probability"] < 1
    assert "predictions" not in one
    assert answer({"y": y}, "y", [], as_list=True)["predictions"] == [{"prediction": 1, "probability": one["probability"]}]
    batch = answer({"y": np.vstack([y, y])}, "y", ["a", "b", "c"], as_list=False)
    assert batch.keys() == {"predictions"}
    assert len(batch["predictions"]) == 2


def test_outputs_that_are_no_classes_are_returned():
    assert answer({"y": np.zeros((1, 1))}, "y", [], as_list=True)["outputs"]["y"].tolist() == [[0.0]]


def test_scores_that_are_not_finite_give_no_prediction():
    with pytest.raises(HttpError) as caught:
        answer({"y": np.array([[np.nan, 1.0]])}, "y", [], as_list=False)
    assert caught.value.status == 500
