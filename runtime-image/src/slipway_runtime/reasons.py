"""How a container of the pipeline or the server tells the operator what happened: a reason, an exit code, a termination message.

The list is the part of `slipway.api.reasons.Reason` that these containers raise; a test keeps the two equal. Nothing here imports torch.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger("slipway")

EXIT_CODES: dict[str, int] = {
    "SourceNotFound": 10,
    "SourceUnreachable": 11,
    "CredentialsRejected": 12,
    "DigestMismatch": 13,
    "SourceTooLarge": 14,
    "ModelFolderInvalid": 15,
    "CredentialsMissing": 16,
    "EntrypointNotFound": 20,
    "EntrypointFailed": 21,
    "EntrypointInvalid": 22,
    "WeightsMismatch": 23,
    "UnsafePickle": 24,
    "SignatureMismatch": 25,
    "UnsupportedOperator": 26,
    "ConversionTimeout": 27,
    "ConversionOutOfMemory": 28,
    "ConversionFailed": 29,
    "UnsupportedConversion": 30,
    "SignatureMissing": 31,
    "TargetUnavailable": 32,
    "RequirementMissing": 33,
    "ParityFailed": 40,
    "NonFiniteOutputs": 41,
    "ValidationFailed": 42,
    "RegistryUnavailable": 50,
    "RegistryRejected": 51,
    "SigningKeyUnusable": 52,
    "ArtifactCorrupt": 60,
    "ArtifactNotFound": 61,
    "ModelLoadFailed": 62,
    "GoldenMismatch": 63,
    "InvalidArguments": 64,
    "ModelStuck": 65,
    "ProvenanceUnverified": 66,
    "InternalError": 1,
    "Fetched": 0,
    "Converted": 0,
    "Validated": 0,
    "Published": 0,
    "CacheHit": 0,
}

MAX_TERMINATION_BYTES = 4096  # the kubelet cuts longer messages, which would leave broken JSON
_SHORTEST_MESSAGE = 200
_ALLOCATION = re.compile(r"(can't allocate memory|not enough memory|out of memory|bad_alloc|Unable to allocate)", re.IGNORECASE)


class Failure(Exception):
    """A finding that ends this container or fails this candidate.

    Attributes:
        reason: a key of EXIT_CODES.
        message: what was found, why, and where; for the user.
    """

    def __init__(self, reason: str, message: str) -> None:
        if reason not in EXIT_CODES:
            raise ValueError(f"unknown reason {reason!r}")
        super().__init__(reason, message)
        self.reason = reason
        self.message = message
        self.data: dict[str, Any] = {}  # further fields of the termination message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    @property
    def exit_code(self) -> int:
        """The exit code of a container that ends with this reason."""
        return EXIT_CODES[self.reason]


def write_termination(reason: str, message: str, **data: Any) -> None:
    """Write the container's termination message, one JSON object of at most 4,096 bytes.

    Args:
        reason: a key of EXIT_CODES.
        message: for the user; cut first when the whole is too long.
        data: further fields; then the rows' messages are cut, then the longest field left (tools, signature, candidates) is dropped.
    """
    path = Path(os.environ.get("SLIPWAY_TERMINATION_LOG", "/dev/termination-log"))
    text = _shrunk({"reason": reason, "message": message, **data})
    try:
        path.write_bytes(text)
    except OSError as error:  # outside a pod there is no such file; the result is in the log and the exit code as well
        log.warning("cannot write the termination message to %s: %s", path, error)


def _encoded(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _fits(value: dict[str, Any]) -> bool:
    return len(_encoded(value)) <= MAX_TERMINATION_BYTES


def _shrunk(value: dict[str, Any]) -> bytes:
    steps: list[Callable[[dict[str, Any]], dict[str, Any]]] = [_short_message(2000), _short_message(600), _short_rows(200), _short_rows(60)]
    for step in steps:
        if _fits(value):
            break
        value = step(value)
    for keys in _ROW_DETAILS:
        if _fits(value):
            break
        value = _slim_rows(keys)({key: item for key, item in value.items() if key != "tools"})
    while not _fits(value):
        droppable = [key for key in ("tools", "signature", "candidates") if key in value]
        if not droppable:
            value = _short_message(_SHORTEST_MESSAGE)({key: value[key] for key in ("reason", "message")})
            break
        value = {key: item for key, item in value.items() if key != droppable[0]}
    return _encoded(value)


# What rows lose first when eight of them do not fit; the artifact's config blob keeps all of it.
_ROW_DETAILS = (("seconds",), ("message",), ("cosine", "batchSize"), ("maxRelativeError", "peakMemory", "loadSeconds"))


def _slim_rows(keys: tuple[str, ...]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def slim(value: dict[str, Any]) -> dict[str, Any]:
        rows = [
            {key: item for key, item in row.items() if key not in keys or (key == "message" and row.get("verdict") != "Passed")}
            for row in value.get("candidates", [])
        ]
        return value | ({"candidates": rows} if rows else {})

    return slim


def shortened(text: str, limit: int) -> str:
    """Return `text` with its middle cut out when it is longer than `limit` characters: causes stand at both ends."""
    if len(text) <= limit:
        return text
    head = limit * 2 // 3
    return f"{text[:head]} … {text[-(limit - head - 3) :]}"


def first_line(error: BaseException) -> str:
    """Return the type and first line of an exception's text, which is what a condition has room for."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip() if lines else ''}".rstrip(": ")


def _short_message(limit: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda value: value | {"message": shortened(str(value["message"]), limit)}


def _short_rows(limit: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def shorten(value: dict[str, Any]) -> dict[str, Any]:
        rows = [row | {"message": shortened(str(row.get("message", "")), limit)} for row in value.get("candidates", [])]
        return value | ({"candidates": rows} if rows else {})

    return shorten


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an exception means that an allocation failed; torch raises RuntimeError for it."""
    return isinstance(error, MemoryError) or bool(_ALLOCATION.search(str(error)))
