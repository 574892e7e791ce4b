"""The convert container: runs the user's code, without sockets and credentials, to build every candidate and the eager reference."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from slipway_runtime.artifact import Signature
from slipway_runtime.candidates import (
    BUILD_KEYS,
    CALIBRATION,
    CONVERT_REPORT,
    PRECISIONS,
    SAMPLES,
    TARGETS,
    Wanted,
    candidate_folder,
    failed_row,
    passed_row,
    summary,
    tree_size,
    wanted_candidates,
)
from slipway_runtime.modelfile import Model, parse_signature, read_model
from slipway_runtime.reasons import Failure, write_termination
from slipway_runtime.sandbox import Limits, deny_sockets, run_limited
from slipway_runtime.settings import Settings, log, step, write_json

# target -> module with build(job) -> dict; imported in the process that needs it
_FROM_TORCH = {
    "ONNX": "slipway_runtime.convert.onnx_target",
    "TorchScript": "slipway_runtime.convert.torchscript_target",
    "ExportedProgram": "slipway_runtime.convert.exported_target",
    "AOTInductor": "slipway_runtime.convert.aotinductor_target",
    "TorchTensorRT": "slipway_runtime.convert.tensorrt_target",
    "None": "slipway_runtime.convert.none_target",
}
# … for other sources, where another module does it
_FROM_OTHERS = {
    ("ONNX", "ONNX"): "slipway_runtime.convert.onnx_source_target",
    ("TorchScript", "ONNX"): "slipway_runtime.convert.torchscript_onnx_target",
}
_REFERENCES = {"ONNX": "onnx", "TorchServe": "handler"}


@dataclass(frozen=True, slots=True)
class Job:
    """What a builder works on.

    Attributes:
        source: the model folder, read-only.
        model: what the folder and the resource say.
        signature: declared, or derived from an ONNX model.
        samples: npz of input batches.
        output: an empty folder for the candidate's files.
        wanted: precision and method.
        calibration: npz of batches for Int8Static, absent without spec.conversion.calibration.
        calibration_method: MinMax, Entropy or Percentile.
    """

    source: Path
    model: Model
    signature: Signature
    samples: Path
    output: Path
    wanted: Wanted
    calibration: Path
    calibration_method: str


def run(settings: Settings) -> None:
    """Build the candidates.

    Raises:
        Failure: when the source itself cannot be used, or every candidate failed (then with the rows as data).
    """
    if settings.cached.exists():
        write_termination("Converted", "nothing to do: the artifact is in the registry", candidates=[])
        return
    deny_sockets()
    model = read_model(settings.folder, settings.spec)
    wanted = wanted_candidates(settings.conversion, model.format)
    if model.signature is None and model.format in ("PyTorch", "TorchScript"):
        raise Failure("SignatureMissing", f"neither spec.signature nor model.yaml says what the {model.format} model takes and gives")
    limits = Limits(time.monotonic() + settings.timeout, settings.timeout, "ConversionFailed")
    _empty(settings.candidates)
    import_module("onnx" if model.format == "ONNX" else "torch")  # once, before the forks; holds no code of the user
    signature = _reference(settings, model, limits)
    rows = [_row(settings, model, signature, limits, number) for number in range(len(wanted))]
    write_json(settings.candidates / CONVERT_REPORT, {"candidates": rows, "signature": signature.to_json(), "format": model.format})
    if all(row["verdict"] != "Passed" for row in rows):
        raise summary(rows, "ConversionFailed")
    built = sum(row["verdict"] == "Passed" for row in rows)
    shown = [{key: value for key, value in row.items() if key not in BUILD_KEYS} for row in rows]
    write_termination("Converted", f"built {built} of {len(rows)} candidates", candidates=shown)


def _empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _reference(settings: Settings, model: Model, limits: Limits) -> Signature:
    module = f"slipway_runtime.convert.{_REFERENCES.get(model.format, 'pytorch')}_reference"
    with step("computed the reference outputs of the source model"):
        result = run_limited("the source model", lambda: import_module(module).prepare(settings, model), limits)
    log.info("reference: peak memory %d MiB", result.peak_bytes >> 20)
    return parse_signature(result.value["signature"])


def _row(settings: Settings, model: Model, signature: Signature, limits: Limits, number: int) -> dict[str, Any]:
    wanted = wanted_candidates(settings.conversion, model.format)[number]
    output = candidate_folder(settings.candidates, number, wanted.target)
    output.mkdir()
    start = time.monotonic()
    try:
        builder = _builder(model.format, wanted)
        task = partial(_build, builder, _job(settings, model, signature, wanted, output))
        result = run_limited(f"the {wanted.label} candidate", task, limits)
    except Failure as failure:
        log.error("candidate %d, %s: %s (%.1f s)", number, wanted.label, failure, time.monotonic() - start)
        shutil.rmtree(output)
        return failed_row(wanted.target, wanted.precision, failure, seconds=round(time.monotonic() - start, 1)) | wanted.extra
    size = tree_size(output)
    log.info("candidate %d, %s: %d bytes, peak memory %d MiB (%.1f s)", number, wanted.label, size, result.peak_bytes >> 20, result.seconds)
    row = passed_row(wanted.target, wanted.precision, "Converted", sizeBytes=size, seconds=round(result.seconds, 1))
    return row | wanted.extra | result.value


def _job(settings: Settings, model: Model, signature: Signature, wanted: Wanted, output: Path) -> Job:
    method = str((settings.conversion.get("calibration") or {}).get("method") or "MinMax")
    folder = settings.candidates
    return Job(settings.folder, model, signature, folder / SAMPLES, output, wanted, folder / CALIBRATION, method)


def _build(builder: str, job: Job) -> dict[str, Any]:
    return dict(import_module(builder).build(job))


def _builder(source_format: str, wanted: Wanted) -> str:
    targets = TARGETS[source_format]
    if wanted.target not in targets:
        text = f"a {source_format} model cannot be converted to {wanted.target}; {', '.join(targets)} can be made"
        if source_format == "TorchServe":
            text = (
                f"an archive with a handler of its own is not converted to {wanted.target}, since the handler may do anything; take None, "
                "which serves it through the handler, or name the module alone with format PyTorch, entrypoint and weights"
            )
        raise Failure("UnsupportedConversion", text)
    if wanted.precision not in PRECISIONS[wanted.target]:
        known = ", ".join(PRECISIONS[wanted.target])
        raise Failure("UnsupportedConversion", f"{wanted.target} is not built in {wanted.precision}; its precisions are {known}")
    return _FROM_OTHERS.get((source_format, wanted.target)) or _FROM_TORCH[wanted.target]
