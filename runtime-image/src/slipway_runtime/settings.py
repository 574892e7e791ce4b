"""What a container of the conversion Job is told by its environment, and the lines it logs. Reads, never writes."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slipway_runtime.reasons import Failure

log = logging.getLogger("slipway")


@dataclass(frozen=True, slots=True)
class Signing:
    """That artifacts are signed.

    Attributes:
        secret: name of the Secret with the keys, for messages.
        folder: where this container has it, or the part of it that it may see; the files need not be there.
    """

    secret: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Settings:
    """The environment of the pipeline's containers, as docs/design/0001-interfaces.md lists it.

    Attributes:
        spec: ModelArtifact.spec.
        repository: `host:port/prefix/<namespace>` that artifacts are published to and looked up in.
        plain_http: registry hosts spoken to without TLS.
        timeout: seconds for convert, and for validate.
        max_source_bytes: limit for the source, packed and unpacked.
        work: holds source, candidates and report.
        origin: where the ConfigMap or the claim is mounted.
        source_credentials: folder of the user's Secret.
        registry_credentials: folder of the registry's Secret.
        signing: None when artifacts are not signed.
    """

    spec: Mapping[str, Any]
    repository: str
    plain_http: tuple[str, ...]
    timeout: float
    max_source_bytes: int
    work: Path
    origin: Path
    source_credentials: Path
    registry_credentials: Path
    signing: Signing | None = None

    @property
    def model(self) -> dict[str, Any]:
        """spec.model."""
        return dict(self.spec["model"])

    @property
    def conversion(self) -> dict[str, Any]:
        """spec.conversion, or nothing."""
        return dict(self.spec.get("conversion") or {})

    @property
    def validation(self) -> dict[str, Any]:
        """spec.conversion.validation, or nothing."""
        return dict(self.conversion.get("validation") or {})

    @property
    def max_batch_size(self) -> int | None:
        """spec.maxBatchSize: the largest batch that the server will form, where the choice depends on it."""
        found = self.spec.get("maxBatchSize")
        return int(found) if found else None

    @property
    def folder(self) -> Path:
        """The model folder that fetch made."""
        return self.work / "source" / "model"

    @property
    def validation_folder(self) -> Path:
        """The folder of the downloaded validation data."""
        return self.work / "source" / ".validation"

    @property
    def calibration_folder(self) -> Path:
        """The folder of the downloaded calibration data."""
        return self.work / "source" / ".calibration"

    @property
    def cached(self) -> Path:
        """The marker that the artifact exists already."""
        return self.work / "source" / ".cached"

    @property
    def candidates(self) -> Path:
        """What convert wrote."""
        return self.work / "candidates"

    @property
    def report(self) -> Path:
        """What fetch and validate tell publish; convert cannot write there."""
        return self.work / "report"


def settings_from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings.

    Raises:
        Failure: InvalidArguments, with the variable that is absent or malformed.
    """
    return Settings(
        spec=_spec(environment.get("SLIPWAY_ARTIFACT_SPEC", "")),
        repository=environment.get("SLIPWAY_REPOSITORY", "").strip("/"),
        plain_http=tuple(host.strip() for host in environment.get("SLIPWAY_PLAIN_HTTP", "").split(",") if host.strip()),
        timeout=_number(environment, "SLIPWAY_TIMEOUT_SECONDS", 600.0),
        max_source_bytes=int(_number(environment, "SLIPWAY_MAX_SOURCE_BYTES", 10 << 30)),
        work=Path(environment.get("SLIPWAY_WORK", "/work")),
        origin=Path(environment.get("SLIPWAY_SOURCE_DIR", "/source")),
        source_credentials=Path(environment.get("SLIPWAY_SOURCE_CREDENTIALS_DIR", "/var/run/slipway/source-credentials")),
        registry_credentials=Path(environment.get("SLIPWAY_REGISTRY_CREDENTIALS_DIR", "/var/run/slipway/registry-credentials")),
        signing=signing_from_environment(environment),
    )


def signing_from_environment(environment: Mapping[str, str] = os.environ) -> Signing | None:
    """Return what the environment says about signing; None when it is off."""
    secret = environment.get("SLIPWAY_SIGNING_SECRET")
    return Signing(secret, Path(environment.get("SLIPWAY_SIGNING_DIR", "/var/run/slipway/signing"))) if secret else None


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s)")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def batching(size: str, delay: str) -> tuple[int, float]:
    """Return the batch limit and the longest wait in seconds.

    Args:
        size: rows, 1 to 4096.
        delay: such as 2ms.

    Raises:
        Failure: InvalidArguments.
    """
    parsed = _DURATION.fullmatch(delay)
    if not size.isdigit() or not 1 <= int(size) <= 4096 or parsed is None:
        raise Failure("InvalidArguments", f"max batch size {size!r} must be 1 to 4096, max delay {delay!r} a duration such as 2ms")
    return int(size), float(parsed[1]) * _UNITS[parsed[2]]


def class_labels(environment: Mapping[str, str]) -> list[str] | None:
    """Return the class names of `spec.serving.labels`; None where it has none.

    Raises:
        Failure: InvalidArguments.
    """
    text = environment.get("SLIPWAY_LABELS")
    if not text:
        return None
    try:
        labels = json.loads(text)
    except ValueError as error:
        raise Failure("InvalidArguments", f"SLIPWAY_LABELS is not JSON: {error}") from error
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise Failure("InvalidArguments", "SLIPWAY_LABELS must be a JSON list of strings")
    return labels


def _spec(text: str) -> Mapping[str, Any]:
    try:
        spec = json.loads(text)
    except ValueError as error:
        raise Failure("InvalidArguments", f"SLIPWAY_ARTIFACT_SPEC is not JSON: {error}") from error
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict) or not isinstance(spec["model"].get("uri"), str):
        raise Failure("InvalidArguments", "SLIPWAY_ARTIFACT_SPEC must be an object with model.uri")
    return spec


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name) or str(default)
    try:
        value = float(text)
    except ValueError as error:
        raise Failure("InvalidArguments", f"{name} must be a number, got {text!r}") from error
    if not value > 0:
        raise Failure("InvalidArguments", f"{name} must be above 0, got {text!r}")
    return value


@contextmanager
def step(text: str) -> Iterator[None]:
    """Log one line when the step ends well, with its seconds; an exception is logged by whoever handles it."""
    start = time.monotonic()
    yield
    log.info("%s (%.1f s)", text, time.monotonic() - start)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True))
    temporary.replace(path)
