"""The comparison of a candidate's outputs with the reference: errors, direction, best classes, and which sample is worst."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from slipway_runtime.reasons import Failure
from slipway_runtime.samples import Batch, check_finite
from slipway_runtime.texts import numbers_of
from slipway_runtime.validate.loaders import Runner

# Relative errors are to |reference|, but to no less than this share of the largest of the output: near 0 any error would be infinite.
_RELATIVE_FLOOR = 0.1


@dataclass(slots=True)
class Parity:
    """What the comparison found so far.

    Attributes:
        error: largest absolute difference of any element of any output.
        relative: largest difference relative to the reference; see _RELATIVE_FLOOR.
        scale: largest absolute value of the reference.
        worst_output, worst_sample: where `error` was.
        agreed, ranked: samples with the same best class, and samples that have classes.
        predictions: best class of each sample, by the candidate.
        products: sums of reference*candidate, reference², candidate², over all elements.
    """

    error: float = 0.0
    relative: float = 0.0
    scale: float = 0.0
    worst_output: str = ""
    worst_sample: int = 0
    agreed: int = 0
    ranked: int = 0
    predictions: list[npt.NDArray[np.int64]] = field(default_factory=list)
    products: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def agreement(self) -> float | None:
        """Percent of samples with the same best class, None without classes."""
        return 100.0 * self.agreed / self.ranked if self.ranked else None

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between all outputs of both sides as one vector, None when one of them is zero."""
        dot, left, right = self.products
        return min(1.0, dot / math.sqrt(left * right)) if left and right else None

    @property
    def worst(self) -> str:
        """Where the largest difference was."""
        return f"{self.worst_output} of sample {self.worst_sample}"

    def add(self, want: Batch, got: Batch, offset: int) -> None:
        """Compare one batch; `offset` is the index of its first sample.

        Raises:
            Failure: ParityFailed when shape or dtype differ.
        """
        ranked = False
        for name, reference in want.items():
            array = got.get(name)
            if array is not None and reference.dtype.kind in "US" and array.shape == reference.shape:
                self._add_texts(name, reference, array, offset)
                continue
            if array is None or array.shape != reference.shape or array.dtype != reference.dtype:
                have = "absent" if array is None else f"{array.dtype} {list(array.shape)}"
                raise Failure("ParityFailed", f"{name} is {have}, the source gives {reference.dtype} {list(reference.shape)}")
            self._add_errors(name, reference.astype(np.float64), array.astype(np.float64), offset)
            if not ranked and has_classes(reference):
                ranked = True
                self._add_classes(reference, array)

    def _add_texts(self, name: str, reference: npt.NDArray[Any], array: npt.NDArray[Any], offset: int) -> None:
        """Compare answers in JSON: words must be equal, numbers are counted as errors."""
        for row, (want, got) in enumerate(zip(reference.ravel(), array.ravel(), strict=True)):
            (words, numbers), (own_words, own_numbers) = numbers_of(want), numbers_of(got)
            if not np.isfinite([*numbers, *own_numbers]).all():
                raise Failure("NonFiniteOutputs", f"{name} of sample {offset + row} has NaN or infinity: {str(got)[:80]!r}")
            if words != own_words:
                raise Failure("ParityFailed", f"{name} of sample {offset + row} is {str(got)[:80]!r}, the source gives {str(want)[:80]!r}")
            self._add_errors(name, np.array([numbers]), np.array([own_numbers]), offset + row)

    def _add_errors(self, name: str, reference: npt.NDArray[np.float64], array: npt.NDArray[np.float64], offset: int) -> None:
        difference = np.abs(array - reference)
        largest = float(np.abs(reference).max(initial=0.0))
        worst = float(difference.max(initial=0.0))
        if worst > self.error or not self.worst_output:
            index = np.unravel_index(int(difference.argmax()), difference.shape)[0] if difference.ndim and difference.size else 0
            self.error, self.worst_output, self.worst_sample = worst, name, offset + int(index)
        floor = np.maximum(np.abs(reference), _RELATIVE_FLOOR * largest)
        relative = np.divide(difference, floor, out=np.where(difference > 0, np.inf, 0.0), where=floor > 0)
        self.relative = max(self.relative, float(relative.max(initial=0.0)))
        self.scale = max(self.scale, largest)
        dot, left, right = self.products
        self.products = (
            dot + float(np.sum(reference * array)),
            left + float(np.sum(reference * reference)),
            right + float(np.sum(array * array)),
        )

    def _add_classes(self, reference: npt.NDArray[Any], array: npt.NDArray[Any]) -> None:
        best = array.argmax(axis=1)
        self.predictions.append(best.astype(np.int64))
        self.agreed += int(np.count_nonzero(best == reference.argmax(axis=1)))
        self.ranked += len(best)


def has_classes(array: npt.NDArray[Any]) -> bool:
    """Say whether an output looks like scores of classes: floats of shape [batch, 2 or more]."""
    return array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind == "f"


def compare(runner: Runner, samples: list[Batch], reference: list[Batch]) -> tuple[Parity, list[Batch]]:
    """Run every batch and compare; returns the findings and the candidate's outputs.

    Raises:
        Failure: NonFiniteOutputs, ParityFailed for another shape, ValidationFailed.
    """
    parity, outputs, offset = Parity(), [], 0
    for number, (batch, want) in enumerate(zip(samples, reference, strict=True)):
        got = runner(batch)
        check_finite(got, "the candidate", number)
        parity.add(want, got, offset)
        outputs.append(got)
        offset += batch_length(batch)
    return parity, outputs


def batch_length(batch: Batch) -> int:
    """Return how many samples a batch holds."""
    first = next(iter(batch.values()))
    return len(first) if first.ndim else 1
