"""Chooses the samples for a source: the resource's data, else the folder's, else random ones."""

from __future__ import annotations

import numpy as np

from slipway_runtime.artifact import Signature
from slipway_runtime.candidates import LABELS, SAMPLES
from slipway_runtime.modelfile import Model
from slipway_runtime.reasons import Failure
from slipway_runtime.samples import DEFAULT_SAMPLES, Samples, data_samples, random_samples, write_batches
from slipway_runtime.settings import Settings


def make_samples(settings: Settings, model: Model, signature: Signature) -> Samples:
    """Return the samples, and write them for the candidates and for validate.

    Raises:
        Failure: ValidationFailed when the data does not fit.
    """
    count = int(settings.validation.get("samples") or DEFAULT_SAMPLES)
    path = None
    if (settings.validation.get("data") or {}).get("uri"):
        found = sorted(settings.validation_folder.rglob("*.npz"))
        if len(found) != 1:
            raise Failure("ValidationFailed", f"spec.conversion.validation.data.uri holds {len(found)} .npz files, wanted one")
        path = found[0]
    elif model.validation_data:
        path = settings.folder / model.validation_data
    samples = data_samples(path, signature, count) if path else random_samples(signature, count)
    write_batches(settings.candidates / SAMPLES, samples.batches)
    if samples.labels is not None:
        np.savez(settings.candidates / LABELS, labels=samples.labels)
    return samples
