"""The validate container: loads each candidate as the server would and compares it with the source. Sockets are denied here too."""

from __future__ import annotations

import time
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from slipway_runtime.artifact import file_sha256
from slipway_runtime.candidates import (
    BUILD_KEYS,
    CONVERT_REPORT,
    VALIDATE_REPORT,
    candidate_folder,
    failed_row,
    passed_row,
    read_report,
    summary,
)
from slipway_runtime.reasons import Failure, write_termination
from slipway_runtime.sandbox import Limits, deny_sockets, run_limited
from slipway_runtime.settings import Settings, log, write_json


def run(settings: Settings) -> None:
    """Validate the candidates and choose the first that passes.

    Raises:
        Failure: the first candidate's, when none passes (with the rows as data).
    """
    if settings.cached.exists():
        write_termination("Validated", "nothing to do: the artifact is in the registry", candidates=[])
        return
    deny_sockets()
    converted = read_report(settings.candidates / CONVERT_REPORT)
    limits = Limits(time.monotonic() + settings.timeout, settings.timeout, "ValidationFailed")
    rows = [_row(settings, converted, limits, number) for number in range(len(converted["candidates"]))]
    chosen = next((number for number, row in enumerate(rows) if row["verdict"] == "Passed"), None)
    if chosen is None:
        raise summary(rows, "ValidationFailed")
    folder = candidate_folder(settings.candidates, chosen, rows[chosen]["target"])
    built = {key: converted["candidates"][chosen].get(key) for key in BUILD_KEYS}
    report = {"candidates": rows, "chosen": chosen, "signature": converted["signature"], "built": built, "files": _hashes(folder)}
    write_json(settings.report / VALIDATE_REPORT, report)
    write_termination("Validated", f"{rows[chosen]['target']} {rows[chosen]['precision']} is equal to its source", candidates=rows)


def _row(settings: Settings, converted: dict[str, Any], limits: Limits, number: int) -> dict[str, Any]:
    row = dict(converted["candidates"][number])
    built = {key: row.pop(key) for key in BUILD_KEYS if key in row}
    if row["verdict"] == "Failed":
        return row
    target, precision = row["target"], row["precision"]
    numbers: dict[str, Any] = {"sizeBytes": row["sizeBytes"], "seconds": row["seconds"]}
    try:
        task = partial(_validated, settings, converted, number, target, built)
        result = run_limited(f"validation of the {target} candidate", task, limits)
        numbers |= result.value["numbers"]
    except Failure as failure:
        log.error("candidate %d, %s: %s", number, target, failure)
        return failed_row(target, precision, failure, **numbers)
    if result.value["reason"]:
        finding = Failure(result.value["reason"], result.value["message"])
        log.error("candidate %d, %s: %s", number, target, finding)
        return failed_row(target, precision, finding, **numbers)
    log.info("candidate %d, %s: equal to its source, %s (%.1f s)", number, target, result.value["numbers"], result.seconds)
    return passed_row(target, precision, "Validated", **numbers)


def _validated(settings: Settings, converted: dict[str, Any], number: int, target: str, built: dict[str, Any]) -> dict[str, Any]:
    return dict(import_module("slipway_runtime.validate.gate").validated(settings, converted, number, target, built))


def _hashes(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
