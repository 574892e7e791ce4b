"""What convert, validate and publish tell each other about a candidate, and the row of it that the status shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slipway_runtime.reasons import Failure, shortened

CONVERT_REPORT = "convert.json"
VALIDATE_REPORT = "validate.json"
SAMPLES = "samples.npz"
REFERENCE = "reference.npz"
LABELS = "labels.npz"
_MAX_ROW_MESSAGE = 300
BUILD_KEYS = ("format", "entry", "entrypoint", "arguments", "weights")  # of a row of convert.json, not of the status


def wanted_candidates(conversion: Mapping[str, Any], source_format: str) -> list[tuple[str, str]]:
    """Return (target, precision) of the candidates in order of preference; without any, the default of the source's format."""
    rows = conversion.get("candidates") or [{"target": "ONNX" if source_format == "PyTorch" else "None"}]
    return [(str(row["target"]), str(row.get("precision", "Float32"))) for row in rows]


def candidate_folder(root: Path, number: int, target: str) -> Path:
    """Return the folder of a candidate."""
    return root / f"{number}-{target.lower()}"


def passed_row(target: str, precision: str, reason: str, **numbers: Any) -> dict[str, Any]:
    """Return the row of a candidate that got through this step."""
    return {"target": target, "precision": precision, "verdict": "Passed", "reason": reason, "message": "", **_shown(numbers)}


def failed_row(target: str, precision: str, failure: Failure, **numbers: Any) -> dict[str, Any]:
    """Return the row of a candidate that failed."""
    message = shortened(failure.message, _MAX_ROW_MESSAGE)
    return {"target": target, "precision": precision, "verdict": "Failed", "reason": failure.reason, "message": message, **_shown(numbers)}


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
