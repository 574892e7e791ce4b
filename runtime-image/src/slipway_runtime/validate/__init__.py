"""The validate container: loads each candidate as the server would, compares it with the source and measures it. No sockets here either."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from slipway_runtime.artifact import file_sha256
from slipway_runtime.candidates import (
    BUILD_KEYS,
    CONVERT_REPORT,
    SAMPLES,
    VALIDATE_REPORT,
    Wanted,
    candidate_folder,
    failed_row,
    passed_row,
    read_report,
    summary,
)
from slipway_runtime.reasons import Failure, shortened, write_termination
from slipway_runtime.sandbox import Limits, deny_sockets, run_limited
from slipway_runtime.settings import Settings, log, write_json
from slipway_runtime.validate.auction import Entry, choose


def run(settings: Settings) -> None:
    """Validate the candidates, measure those that pass, and choose: by the objective, else the first.

    Raises:
        Failure: the first candidate's, when none passes (with the rows as data).
    """
    if settings.cached.exists():
        write_termination("Validated", "nothing to do: the artifact is in the registry", candidates=[])
        return
    deny_sockets()
    converted = read_report(settings.candidates / CONVERT_REPORT)
    limits = Limits(time.monotonic() + settings.timeout, settings.timeout, "ValidationFailed")
    tried = [_row(settings, converted, limits, number) for number in range(len(converted["candidates"]))]
    rows = [row for row, _ in tried]
    choice = choose([entry for _, entry in tried if entry is not None], settings.conversion.get("objective"))
    if choice is None:
        raise summary(rows, "ValidationFailed")
    log.info("chosen: %s", choice.why)
    rows[choice.number]["chosen"] = True
    folder = candidate_folder(settings.candidates, choice.number, rows[choice.number]["target"])
    built = {key: converted["candidates"][choice.number].get(key) for key in BUILD_KEYS}
    report = {
        "candidates": rows,
        "chosen": choice.number,
        "choice": choice.why,
        "signature": converted["signature"],
        "built": built,
        "files": _hashes(folder),
    }
    write_json(settings.report / VALIDATE_REPORT, report)
    found = "is equal to its source" if (settings.candidates / SAMPLES).exists() else "is its source, loaded and not compared"
    write_termination("Validated", f"{_label(rows[choice.number])} {found}; {choice.why}", candidates=rows)


def _row(settings: Settings, converted: dict[str, Any], limits: Limits, number: int) -> tuple[dict[str, Any], Entry | None]:
    """Return the row for the status, and what the auction needs of a candidate that passed."""
    row = dict(converted["candidates"][number])
    built = {key: row.pop(key) for key in BUILD_KEYS if key in row}
    if row["verdict"] != "Passed":
        return row, None
    extra = {"method": row["method"]} if "method" in row else {}
    numbers: dict[str, Any] = {"sizeBytes": row["sizeBytes"], "seconds": row["seconds"]}
    try:
        task = partial(_called, "gate", "validated", settings, converted, number, row, built)
        result = run_limited(f"validation of the {_label(row)} candidate", task, limits)
        numbers |= result.value["numbers"]
        failure = Failure(result.value["reason"], result.value["message"]) if result.value["reason"] else None
    except Failure as crash:
        failure = crash
    if failure is not None:
        log.error("candidate %d, %s: %s", number, _label(row), failure)
        return failed_row(row["target"], row["precision"], failure, **numbers) | extra, None
    del numbers["worstSample"]  # of use only beside a failure
    log.info("candidate %d, %s: passed, %s (%.1f s)", number, _label(row), result.value["numbers"], result.seconds)
    passed = passed_row(row["target"], row["precision"], "Validated", **numbers) | extra
    if not (settings.candidates / SAMPLES).exists():
        log.warning("candidate %d, %s: %s", number, _label(row), result.value["message"])
        message = shortened(result.value["message"], 200)
        return passed | {"message": message}, Entry(number, _label(row), built["format"], row["precision"], row["sizeBytes"])
    return _measured(settings, converted, limits, number, passed, built)


def _measured(  # noqa: PLR0913, PLR0917
    settings: Settings, converted: dict[str, Any], limits: Limits, number: int, row: dict[str, Any], built: dict[str, Any]
) -> tuple[dict[str, Any], Entry]:
    """Add what was measured to a row; a candidate that cannot be measured has passed all the same, and says why."""
    entry = Entry(number, _label(row), built["format"], row["precision"], row["sizeBytes"])
    try:
        task = partial(_called, "measure", "measured", settings, converted, number, row, built)
        result = run_limited(f"measuring the {_label(row)} candidate", task, limits)
    except Failure as failure:
        log.warning("candidate %d, %s: not measured: %s", number, _label(row), failure)
        return row | {"message": shortened(f"not measured: {failure}", 200)}, entry
    found = result.value
    log.info("candidate %d, %s: %s, peak memory %d MiB (%.1f s)", number, _label(row), found, result.peak_bytes >> 20, result.seconds)
    shown = {
        "latencyP50": f"{found['latencyP50'] * 1000:.3g}ms",
        "latencyP99": f"{found['latencyP99'] * 1000:.3g}ms",
        "throughput": f"{found['throughput']:.0f}" if found["throughput"] >= 100 else f"{found['throughput']:.3g}",
        "batchSize": found["batchSize"],
        "loadSeconds": f"{found['loadSeconds']:.3g}",
        "peakMemory": f"{-(-result.peak_bytes >> 20)}Mi",
    }
    measured = replace(
        entry,
        latency=found["latencyP50"],
        throughput=found["throughput"],
        latency_noise=found["latencyNoise"],
        throughput_noise=found["throughputNoise"],
    )
    return row | shown, measured


def _label(row: dict[str, Any]) -> str:
    return Wanted(row["target"], row["precision"], row.get("method", "Trace")).label


def _called(module: str, function: str, *arguments: Any) -> dict[str, Any]:
    return dict(getattr(import_module(f"slipway_runtime.validate.{module}"), function)(*arguments))


def _hashes(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
