"""Chooses the samples for a source: the resource's data, else the folder's, else random ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slipway_runtime.artifact import Signature
from slipway_runtime.candidates import CALIBRATION, LABELS, SAMPLES
from slipway_runtime.modelfile import Model
from slipway_runtime.reasons import Failure
from slipway_runtime.samples import DEFAULT_SAMPLES, Samples, data_samples, random_samples, write_batches
from slipway_runtime.settings import Settings

DEFAULT_CALIBRATION_SAMPLES = 200


def make_samples(settings: Settings, model: Model, signature: Signature) -> Samples:
    """Return the samples, and write them, and the calibration data, for the candidates and for validate.

    Raises:
        Failure: ValidationFailed when the data does not fit.
    """
    count = int(settings.validation.get("samples") or DEFAULT_SAMPLES)
    path = None
    if (settings.validation.get("data") or {}).get("uri"):
        path = _only_npz(settings.validation_folder, "spec.conversion.validation.data.uri")
    elif model.validation_data:
        path = settings.folder / model.validation_data
    samples = data_samples(path, signature, count) if path else random_samples(signature, count)
    write_batches(settings.candidates / SAMPLES, samples.batches)
    if samples.labels is not None:
        np.savez(settings.candidates / LABELS, labels=samples.labels)
    _write_calibration(settings, signature)
    return samples


def _write_calibration(settings: Settings, signature: Signature) -> None:
    calibration = settings.conversion.get("calibration") or {}
    if not calibration:
        return
    path = _only_npz(settings.calibration_folder, "spec.conversion.calibration.uri")
    data = data_samples(path, signature, int(calibration.get("samples") or DEFAULT_CALIBRATION_SAMPLES))
    write_batches(settings.candidates / CALIBRATION, data.batches)


def _only_npz(folder: Path, field: str) -> Path:
    found = sorted(folder.rglob("*.npz"))
    if len(found) != 1:
        raise Failure("ValidationFailed", f"{field} holds {len(found)} .npz files, wanted one")
    return found[0]
