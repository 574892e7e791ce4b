"""The handler of an archive, loaded and asked: what its copy is compared with. Without a signature or sample requests it is only loaded."""

from __future__ import annotations

from typing import Any

from slipway_runtime.artifact import Signature
from slipway_runtime.candidates import REFERENCE
from slipway_runtime.convert.inputs import make_samples
from slipway_runtime.handler import HandlerError
from slipway_runtime.modelfile import Model
from slipway_runtime.reasons import Failure
from slipway_runtime.samples import Batch, check_finite, check_outputs, with_texts, write_batches
from slipway_runtime.serve.backends.handler import TEXT, HandlerBackend
from slipway_runtime.serve.messages import HttpError
from slipway_runtime.settings import Settings
from slipway_runtime.validate.loaders import as_artifact
from slipway_runtime.validate.parity import Parity

ENTRY = "MAR-INF/MANIFEST.json"


def prepare(settings: Settings, model: Model) -> dict[str, Any]:
    """Load the handler; where there are inputs to ask it, write samples and answers.

    Raises:
        Failure: what loading raises; SignatureMismatch when it does not answer them; ParityFailed when two runs differ.
    """
    signature = model.signature or TEXT
    backend = HandlerBackend(as_artifact(settings.folder, {"format": "TorchServe", "entry": ENTRY}, signature, "Float32"))
    has_data = bool(model.validation_data or (settings.validation.get("data") or {}).get("uri"))
    if not has_data and any(spec.dtype == "string" for spec in signature.inputs):
        return {"signature": signature.to_json()}  # nobody could make up what it would take
    samples = make_samples(settings, model, signature)
    outputs, parity = [], Parity()
    for number, batch in enumerate(samples.batches):
        outputs.append(_asked(backend, batch, signature))
        check_finite(outputs[-1], "the handler", number)
        parity.add(outputs[-1], _asked(backend, batch, signature), 0)
    limit = float(settings.validation.get("maxAbsoluteError") or 1e-3)
    if parity.error > limit:
        raise Failure("ParityFailed", f"the handler is not deterministic: {parity.worst} differs by {parity.error:.3g} between two runs")
    write_batches(settings.candidates / REFERENCE, outputs)
    return {"signature": signature.to_json()}


def _asked(backend: HandlerBackend, batch: Batch, signature: Signature) -> Batch:
    try:
        outputs = backend.infer(dict(batch))
    except (HttpError, HandlerError) as error:
        shapes = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in batch.items())
        raise Failure("SignatureMismatch", f"the handler does not answer {shapes}: {error}") from error
    check_outputs(outputs, batch, signature)
    return with_texts(outputs)
