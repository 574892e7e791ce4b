"""What the parity gate finds, and what it lets through, by precision and threshold."""

from __future__ import annotations

import numpy as np
import pytest

from slipway_runtime.reasons import Failure
from slipway_runtime.validate.gate import judged
from slipway_runtime.validate.parity import Parity, compare


def parity(source: np.ndarray, candidate: np.ndarray, size: int = 4) -> Parity:
    """Compare two arrays, `size` samples a batch."""
    samples = [{"x": source[start : start + size]} for start in range(0, len(source), size)]
    answers = iter([{"y": candidate[start : start + size]} for start in range(0, len(source), size)])
    return compare(lambda _batch: next(answers), samples, [{"y": batch["x"]} for batch in samples])[0]


SOURCE = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32) * 10


def changed(index: tuple[int, int], by: float) -> np.ndarray:
    copy = SOURCE.copy()
    copy[index] += by
    return copy


def test_equal_outputs_have_no_error():
    found = parity(SOURCE, SOURCE.copy())
    assert (found.error, found.relative, found.agreement) == (0, 0, 100)
    assert found.cosine == pytest.approx(1)
    assert found.scale == np.abs(SOURCE).max()


@pytest.mark.parametrize("sample", [0, 3, 4, 17, 39])
def test_the_worst_sample_is_counted_over_all_batches(sample):
    found = parity(SOURCE, changed((sample, 2), 0.5))
    assert (found.worst_sample, found.worst) == (sample, f"y of sample {sample}")
    assert found.error == pytest.approx(0.5, rel=1e-4)


def test_the_relative_error_is_to_the_value_or_to_a_tenth_of_the_largest():
    source = np.array([[100.0, 50.0], [0.0, 1.0]])
    assert parity(source, source + np.array([[0, 5], [0, 0]]), 2).relative == pytest.approx(0.1)
    assert parity(source, source + np.array([[0, 0], [5, 0]]), 2).relative == pytest.approx(0.5)
    assert parity(source * 0, source * 0 + 1, 2).relative == np.inf


def test_cosine_of_the_other_direction():
    assert parity(SOURCE, -SOURCE).cosine == pytest.approx(-1)
    assert parity(SOURCE, SOURCE * 0).cosine is None


@pytest.mark.parametrize(
    ("name", "candidate", "precision", "thresholds", "words"),
    [
        ("within", changed((0, 0), 5e-4), "Float32", {}, None),
        ("above", changed((0, 0), 5e-3), "Float32", {}, "y of sample 0 differs by 0.005"),
        ("float16 may differ by 1 % of the largest", changed((0, 0), 0.1), "Float16", {}, None),
        ("float16 not by more", changed((0, 0), 0.5), "Float16", {}, "the limit is 0.2"),
        ("bfloat16 by 5 %", changed((0, 0), 0.5), "BFloat16", {}, None),
        ("int8 by 10 %", changed((0, 0), 1.5), "Int8Static", {}, None),
        ("what the user wrote holds for every precision", changed((0, 0), 5e-3), "Int8Static", {"maxAbsoluteError": "1e-3"}, "0.001"),
        ("and may be wider", changed((3, 0), 1.0), "Float32", {"maxAbsoluteError": "2", "minTop1AgreementPercent": 0}, None),
        ("swapped classes", SOURCE[:, [1, 0, 2, 3, 4]], "Float32", {"maxAbsoluteError": "1e9"}, "best class agrees"),
        ("int8 of another direction", SOURCE[::-1].copy() * 0.05, "Int8Static", {"minTop1AgreementPercent": 0}, "differs|cosine"),
        ("a floor of 0 is a floor", SOURCE[:, ::-1].copy(), "Float32", {"maxAbsoluteError": "1e9", "minTop1AgreementPercent": 0}, None),
    ],
)
def test_judged(name, candidate, precision, thresholds, words):
    finding = judged(parity(SOURCE, candidate), None, thresholds, precision)
    if words is None:
        assert finding is None, (name, finding)
    else:
        assert finding is not None, name
        assert any(word in finding.message for word in words.split("|")), finding.message


def test_cosine_alone_can_fail_int8():
    source = np.full((8, 4), 10.0)
    noisy = source + np.where(np.arange(4) % 2, 0.99, -0.99)  # within 10 %
    assert judged(parity(source, noisy), None, {"minTop1AgreementPercent": 0}, "Int8Static") is None
    small = np.concatenate([source, np.zeros((800, 4)) + 0.1])
    far = np.concatenate([source, np.zeros((800, 4)) - 0.8])
    finding = judged(parity(small, far, 808), None, {"minTop1AgreementPercent": 0}, "Int8Static")
    assert finding is not None
    assert "cosine" in finding.message


def test_an_accuracy_that_misses_its_floor_says_by_how_much():
    finding = judged(parity(SOURCE, SOURCE), 92.5, {"minAccuracyPercent": 95})
    assert finding is not None
    assert "missed by 2.5" in finding.message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite(value):
    bad = SOURCE.copy()
    bad[33, 1] = value
    with pytest.raises(Failure, match="1 of 20 values of y in batch 8") as caught:
        parity(SOURCE, bad)
    assert caught.value.reason == "NonFiniteOutputs"


@pytest.mark.parametrize("candidate", [SOURCE.astype(np.float64), SOURCE[:, :4]], ids=["dtype", "shape"])
def test_another_dtype_or_shape(candidate):
    with pytest.raises(Failure, match="the source gives float32"):
        parity(SOURCE, candidate)
