"""The parity gate: a candidate's outputs against the reference, by the thresholds of the spec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slipway_runtime.artifact import Signature
from slipway_runtime.candidates import LABELS, REFERENCE, SAMPLES, candidate_folder
from slipway_runtime.reasons import Failure
from slipway_runtime.samples import Batch, check_finite, read_batches, read_npz
from slipway_runtime.settings import Settings
from slipway_runtime.validate.golden import write_golden
from slipway_runtime.validate.loaders import Runner, load

_DEFAULT_ERROR = 1e-3
_DEFAULT_AGREEMENT = 99.0


@dataclass(slots=True)
class Parity:
    """What the comparison found so far.

    Attributes:
        error: largest absolute difference of any element of any output.
        worst: where it was.
        agreed, ranked: samples with the same best class, and samples that have classes.
        predictions: best class of each sample, by the candidate.
    """

    error: float
    worst: str
    agreed: int
    ranked: int
    predictions: list[npt.NDArray[np.int64]]

    @property
    def agreement(self) -> float | None:
        """Percent of samples with the same best class, None without classes."""
        return 100.0 * self.agreed / self.ranked if self.ranked else None

    def add(self, want: Batch, got: Batch, offset: int) -> None:
        """Compare one batch; `offset` is the index of its first sample.

        Raises:
            Failure: ParityFailed when shape or dtype differ.
        """
        ranked = False
        for name, reference in want.items():
            array = got.get(name)
            if array is None or array.shape != reference.shape or array.dtype != reference.dtype:
                have = "absent" if array is None else f"{array.dtype} {list(array.shape)}"
                raise Failure("ParityFailed", f"{name} is {have}, the source gives {reference.dtype} {list(reference.shape)}")
            self._add_error(name, reference, array, offset)
            if not ranked and has_classes(reference):
                ranked = True
                self._add_classes(reference, array)

    def _add_error(self, name: str, reference: npt.NDArray[Any], array: npt.NDArray[Any], offset: int) -> None:
        difference = np.abs(array.astype(np.float64) - reference.astype(np.float64))
        worst = float(difference.max(initial=0.0))
        if worst > self.error or not self.worst:
            index = np.unravel_index(int(difference.argmax()), difference.shape)[0] if difference.ndim and difference.size else 0
            self.error, self.worst = worst, f"{name} of sample {offset + int(index)}"

    def _add_classes(self, reference: npt.NDArray[Any], array: npt.NDArray[Any]) -> None:
        best = array.argmax(axis=1)
        self.predictions.append(best.astype(np.int64))
        self.agreed += int(np.count_nonzero(best == reference.argmax(axis=1)))
        self.ranked += len(best)


def has_classes(array: npt.NDArray[Any]) -> bool:
    """Say whether an output looks like scores of classes: floats of shape [batch, 2 or more]."""
    return array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind == "f"


def validated(settings: Settings, converted: dict[str, Any], number: int, target: str, built: dict[str, Any]) -> dict[str, Any]:
    """Compare a candidate with the reference and record its golden data.

    Returns:
        The numbers of its row, and the reason and message when it does not pass.

    Raises:
        Failure: when it cannot be loaded or run.
    """
    signature = Signature.from_json(converted["signature"])
    runner = load(candidate_folder(settings.candidates, number, target), built, signature)
    samples = read_batches(settings.candidates / SAMPLES)
    parity, outputs = compare(runner, samples, read_batches(settings.candidates / REFERENCE))
    accuracy = _accuracy(settings, parity)
    numbers = {"maxAbsoluteError": parity.error, "top1AgreementPercent": parity.agreement, "accuracyPercent": accuracy}
    finding = judged(parity, accuracy, settings.validation)
    if finding is None:
        write_golden(settings.report / f"golden-{number}", samples, outputs, signature)
    reason, message = (finding.reason, finding.message) if finding else ("", "")
    return {"numbers": numbers, "reason": reason, "message": message}


def compare(runner: Runner, samples: list[Batch], reference: list[Batch]) -> tuple[Parity, list[Batch]]:
    """Run every batch and compare; returns the findings and the candidate's outputs.

    Raises:
        Failure: NonFiniteOutputs, ParityFailed for another shape, ValidationFailed.
    """
    parity = Parity(0.0, "", 0, 0, [])
    outputs, offset = [], 0
    for number, (batch, want) in enumerate(zip(samples, reference, strict=True)):
        got = runner(batch)
        check_finite(got, "the candidate", number)
        parity.add(want, got, offset)
        outputs.append(got)
        first = next(iter(batch.values()))
        offset += len(first) if first.ndim else 1
    return parity, outputs


def judged(parity: Parity, accuracy: float | None, thresholds: dict[str, Any]) -> Failure | None:
    """Return why the candidate does not pass, or None."""
    limit = float(thresholds.get("maxAbsoluteError") or _DEFAULT_ERROR)
    if not parity.error <= limit:
        return Failure("ParityFailed", f"{parity.worst} differs by {parity.error:.3g} from the source, the limit is {limit:g}")
    least = thresholds.get("minTop1AgreementPercent")
    least = _DEFAULT_AGREEMENT if least is None else float(least)
    if parity.agreement is not None and parity.agreement < least:
        return Failure("ParityFailed", f"the best class agrees for {parity.agreement:.4g} % of the samples, the limit is {least:g} %")
    return _judged_accuracy(accuracy, thresholds.get("minAccuracyPercent"))


def _judged_accuracy(accuracy: float | None, wanted: Any) -> Failure | None:
    if wanted is None:
        return None
    if accuracy is None:
        return Failure("ValidationFailed", "minAccuracyPercent needs validation data with labels, and an output of shape [batch, classes]")
    if accuracy < float(wanted):
        return Failure("ValidationFailed", f"{accuracy:.4g} % of the labelled samples are right, the limit is {float(wanted):g} %")
    return None


def _accuracy(settings: Settings, parity: Parity) -> float | None:
    path = settings.candidates / LABELS
    if not path.exists() or not parity.predictions:
        return None
    labels = read_npz(path)["labels"]
    predictions = np.concatenate(parity.predictions)
    return 100.0 * float(np.mean(labels == predictions)) if len(labels) == len(predictions) else None
