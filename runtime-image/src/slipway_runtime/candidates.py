"""What convert, validate and publish tell each other about a candidate, and the row of it that the status shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slipway_runtime.reasons import Failure, shortened

CONVERT_REPORT = "convert.json"
VALIDATE_REPORT = "validate.json"
SAMPLES = "samples.npz"
REFERENCE = "reference.npz"
LABELS = "labels.npz"
CALIBRATION = "calibration.npz"
UNAVAILABLE = "TargetUnavailable"
_MAX_ROW_MESSAGE = 300
BUILD_KEYS = ("format", "entry", "entrypoint", "arguments", "weights")  # of a row of convert.json, not of the status


FLOATS = ("Float32", "Float16", "BFloat16")
INT8 = ("Int8Dynamic", "Int8Static")
# What each target can be built in; the CRD says the same in CEL (slipway.api.source), and a test keeps the two equal.
# ONNX has no BFloat16: onnxruntime's CPU kernels lack the type. TorchScript has no int8: its quantizer is no longer kept.
PRECISIONS: dict[str, tuple[str, ...]] = {
    "ONNX": ("Float32", "Float16", *INT8),
    "TorchScript": FLOATS,
    "ExportedProgram": (*FLOATS, *INT8),
    "AOTInductor": (*FLOATS, *INT8),
    "TorchTensorRT": FLOATS,
    "None": ("Float32",),
}
# What can be made of a source; the CRD has the rows that do not list every target, and a test keeps the two equal.
TARGETS: dict[str, tuple[str, ...]] = {
    "PyTorch": tuple(PRECISIONS),
    "ExportedProgram": tuple(PRECISIONS),
    "TorchScript": ("None", "ONNX", "TorchScript"),
    "ONNX": ("None", "ONNX"),
    "TorchServe": ("None",),  # a handler of its own
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A candidate of the spec.

    Attributes:
        target: a key of PRECISIONS.
        precision: one of its values.
        method: of TorchScript, Trace or Script.
    """

    target: str
    precision: str = "Float32"
    method: str = "Trace"

    @property
    def label(self) -> str:
        """Return `ONNX`, `ONNX Int8Static` or `TorchScript Script`, for logs and messages."""
        return " ".join([self.target, *([self.precision] if self.precision != "Float32" else []), *self.extra.values()])

    @property
    def extra(self) -> dict[str, str]:
        """Return what a row says beside target and precision."""
        return {"method": self.method} if self.method != "Trace" else {}


def wanted_candidates(conversion: Mapping[str, Any], source_format: str) -> list[Wanted]:
    """Return the candidates in order of preference; without any, the default of the source's format."""
    rows = conversion.get("candidates") or [{"target": "ONNX" if source_format == "PyTorch" else "None"}]
    return [Wanted(str(row["target"]), str(row.get("precision") or "Float32"), str(row.get("method") or "Trace")) for row in rows]


def candidate_folder(root: Path, number: int, target: str) -> Path:
    """Return the folder of a candidate."""
    return root / f"{number}-{target.lower()}"


def passed_row(target: str, precision: str, reason: str, **numbers: Any) -> dict[str, Any]:
    """Return the row of a candidate that got through this step."""
    return {"target": target, "precision": precision, "verdict": "Passed", "reason": reason, "message": "", **_shown(numbers)}


def failed_row(target: str, precision: str, failure: Failure, **numbers: Any) -> dict[str, Any]:
    """Return the row of a candidate that failed; Unavailable, when image or node lack what it takes, says nothing about the model."""
    message = shortened(failure.message, _MAX_ROW_MESSAGE)
    verdict = "Unavailable" if failure.reason == UNAVAILABLE else "Failed"
    return {"target": target, "precision": precision, "verdict": verdict, "reason": failure.reason, "message": message, **_shown(numbers)}


def summary(rows: list[dict[str, Any]], fallback: str) -> Failure:
    """Return the failure of a container none of whose candidates passed: that of the first, with the rows as `data`."""
    first = rows[0] if rows else {"reason": fallback, "message": "there are no candidates", "target": "", "precision": ""}
    message = first["message"] if len(rows) < 2 else f"{first['target']}: {first['message']} ({len(rows)} candidates failed)"
    return with_rows(Failure(first["reason"], message), rows)


def with_rows(failure: Failure, rows: list[dict[str, Any]]) -> Failure:
    """Attach candidate rows, which the command writes into the termination message."""
    failure.data = {"candidates": rows}
    return failure


def _shown(numbers: Mapping[str, Any]) -> dict[str, Any]:
    # Kubernetes APIs have no floating-point fields: numbers that are not whole travel as strings
    return {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in numbers.items() if value is not None}


def tree_size(folder: Path) -> int:
    """Return the bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def read_report(path: Path) -> dict[str, Any]:
    """Read what an earlier container wrote; raises Failure ValidationFailed when it is not there."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise Failure("ValidationFailed", f"the report of an earlier step, {path.name}, cannot be read: {error}") from error
