"""The parity gate: whether a candidate's outputs are near enough to the reference, by the thresholds of the spec."""

from __future__ import annotations

from typing import Any

import numpy as np

from slipway_runtime.artifact import Signature
from slipway_runtime.candidates import LABELS, REFERENCE, SAMPLES, candidate_folder
from slipway_runtime.reasons import Failure
from slipway_runtime.samples import read_batches, read_npz
from slipway_runtime.settings import Settings
from slipway_runtime.validate.golden import write_golden
from slipway_runtime.validate.loaders import load
from slipway_runtime.validate.parity import Parity, compare

NOT_COMPARED = "loaded, not asked: sample requests would be needed (validation.data: an .npz whose array `data` holds texts)"
_DEFAULT_ERROR = 1e-3
_DEFAULT_AGREEMENT = 99.0
# Without maxAbsoluteError, a lower precision may differ by this share of the source's largest output, and its outputs must point where the
# source's do. An error of 1e-3 is below what these precisions resolve as soon as an output exceeds 1.
_DEFAULT_SHARES = {"Float16": 0.01, "BFloat16": 0.05, "Int8Dynamic": 0.1, "Int8Static": 0.1}
_DEFAULT_COSINE = 0.99


def validated(settings: Settings, converted: dict[str, Any], number: int, row: dict[str, Any], built: dict[str, Any]) -> dict[str, Any]:
    """Compare a candidate with the reference and record its golden data.

    Returns:
        The numbers of its row, and the reason and message when it does not pass.

    Raises:
        Failure: when it cannot be loaded or run.
    """
    signature = Signature.from_json(converted["signature"])
    runner = load(candidate_folder(settings.candidates, number, row["target"]), built, signature, row["precision"])
    if not (settings.candidates / SAMPLES).exists():  # a handler that nobody gave inputs for
        return {"numbers": {"worstSample": None}, "reason": "", "message": NOT_COMPARED}
    samples = read_batches(settings.candidates / SAMPLES)
    parity, outputs = compare(runner, samples, read_batches(settings.candidates / REFERENCE))
    accuracy = _accuracy(settings, parity)
    numbers = {
        "maxAbsoluteError": parity.error,
        "maxRelativeError": parity.relative,
        "cosine": parity.cosine,
        "top1AgreementPercent": parity.agreement,
        "accuracyPercent": accuracy,
        "worstSample": parity.worst_sample,
    }
    finding = judged(parity, accuracy, settings.validation, row["precision"])
    if finding is None:
        write_golden(settings.report / f"golden-{number}", samples, outputs, signature, row["precision"])
        return {"numbers": numbers, "reason": "", "message": ""}
    again = f"to see it: slipway-runtime sample {number} {parity.worst_sample}"
    return {"numbers": numbers, "reason": finding.reason, "message": f"{finding.message}; {again}"}


def judged(parity: Parity, accuracy: float | None, thresholds: dict[str, Any], precision: str = "Float32") -> Failure | None:
    """Return why the candidate does not pass, or None."""
    return (
        _judged_error(parity, thresholds.get("maxAbsoluteError"), precision)
        or _judged_agreement(parity, thresholds.get("minTop1AgreementPercent"))
        or _judged_accuracy(accuracy, thresholds.get("minAccuracyPercent"))
    )


def _judged_error(parity: Parity, wanted: Any, precision: str) -> Failure | None:
    share = _DEFAULT_SHARES.get(precision)
    limit = float(wanted) if wanted else _DEFAULT_ERROR if share is None else max(_DEFAULT_ERROR, share * parity.scale)
    if not parity.error <= limit:
        return Failure("ParityFailed", f"{parity.worst} differs by {parity.error:.3g} from the source, the limit is {limit:g}")
    if not wanted and share is not None and parity.cosine is not None and parity.cosine < _DEFAULT_COSINE:
        return Failure(
            "ParityFailed", f"the cosine with the outputs of the source is {parity.cosine:.4f}, the limit is {_DEFAULT_COSINE:g}"
        )
    return None


def _judged_agreement(parity: Parity, wanted: Any) -> Failure | None:
    least = _DEFAULT_AGREEMENT if wanted is None else float(wanted)
    if parity.agreement is not None and parity.agreement < least:
        return Failure("ParityFailed", f"the best class agrees for {parity.agreement:.4g} % of the samples, the limit is {least:g} %")
    return None


def _judged_accuracy(accuracy: float | None, wanted: Any) -> Failure | None:
    if wanted is None:
        return None
    if accuracy is None:
        return Failure("ValidationFailed", "minAccuracyPercent needs validation data with labels, and an output of shape [batch, classes]")
    if accuracy < float(wanted):
        missed = f", missed by {float(wanted) - accuracy:.3g}"
        return Failure("ValidationFailed", f"{accuracy:.4g} % of the labelled samples are right, the limit is {float(wanted):g} %{missed}")
    return None


def _accuracy(settings: Settings, parity: Parity) -> float | None:
    path = settings.candidates / LABELS
    if not path.exists() or not parity.predictions:
        return None
    labels = read_npz(path)["labels"]
    predictions = np.concatenate(parity.predictions)
    return 100.0 * float(np.mean(labels == predictions)) if len(labels) == len(predictions) else None
