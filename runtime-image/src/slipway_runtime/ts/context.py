"""The context that TorchServe hands to handlers: the same names, filled with what this server knows (ts/context.py of TorchServe 0.12)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

VERSION = "0.12.0"  # of the TorchServe whose context this is like


class MetricsStub:
    """Takes the numbers that a handler reports and keeps none: the server's own metrics do not depend on model code."""

    def __init__(self) -> None:
        self.request_ids: dict[int, str] | None = None
        self.store: list[Any] = []

    def add_counter(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    add_time = add_size = add_percent = add_error = add_metric = update = add_or_update = add_counter

    def get_metric(self, *_: Any, **__: Any) -> MetricsStub:
        """Return something that takes more numbers."""
        return self

    add_metric_to_cache = get_metric


class RequestProcessor:
    """What is known of a request, and what the handler wants of its answer."""

    def __init__(self, request_header: Mapping[str, str]) -> None:
        self._request_header = dict(request_header)
        self.status: int | None = None
        self.phrase = ""
        self.headers: dict[str, str] = {}

    def get_request_property(self, key: str) -> str | None:
        """Return a header of the request."""
        return self._request_header.get(key)

    def get_request_properties(self) -> dict[str, str]:
        """Return the headers of the request."""
        return self._request_header

    def report_status(self, code: int, reason_phrase: str | None = None) -> None:
        """Set the status of the answer."""
        self.status, self.phrase = int(code), reason_phrase or ""

    def get_response_status_code(self) -> int:
        """Return the status of the answer."""
        return self.status or 200

    def get_response_status_phrase(self) -> str:
        """Return what stands beside the status."""
        return self.phrase

    def add_response_property(self, key: str, value: str) -> None:
        """Set a header of the answer."""
        self.headers[key] = value

    def get_response_headers(self) -> dict[str, str]:
        """Return the headers of the answer."""
        return self.headers

    def get_response_header(self, key: str) -> str | None:
        """Return a header of the answer."""
        return self.headers.get(key)


class Context:
    """What a handler is told about itself and about a call.

    Attributes:
        model_name: of the manifest.
        manifest: MAR-INF/MANIFEST.json.
        system_properties: model_dir, gpu_id (None: the CPU), batch_size, server_name, server_version, limit_max_image_pixels.
        model_yaml_config: of the archive's configFile, or empty.
        metrics: a stub.
        request_ids: by place in the batch; None outside a call.
        request_processor: one for each row of the batch.
    """

    def __init__(self, model_dir: Path, manifest: Mapping[str, Any], config: Mapping[str, Any], batch_size: int) -> None:
        self.model_name = str(manifest["model"].get("modelName") or "model")
        self.manifest = manifest
        self.system_properties: dict[str, Any] = {
            "model_dir": str(model_dir),
            "gpu_id": None,
            "batch_size": batch_size,
            "server_name": "MMS",  # what TorchServe says; handlers that look at it want this
            "server_version": VERSION,
            "limit_max_image_pixels": True,
        }
        self.model_yaml_config = dict(config)
        self.metrics = MetricsStub()
        self.request_ids: dict[int, str] | None = None
        self.request_processor: list[RequestProcessor] = []
        self.stopping_criteria = None

    def begin(self, headers: list[Mapping[str, str]]) -> list[RequestProcessor]:
        """Start a call of as many rows as there are headers."""
        self.request_ids = {index: f"slipway-{index}" for index in range(len(headers))}
        self.metrics.request_ids = self.request_ids
        self.request_processor = [RequestProcessor(row) for row in headers]
        return self.request_processor

    def get_request_id(self, idx: int = 0) -> str | None:
        """Return a name of the row within this call."""
        return None if self.request_ids is None else self.request_ids.get(idx)

    def get_request_header(self, idx: int, key: str) -> str | None:
        """Return a header of a request."""
        return self.request_processor[idx].get_request_property(key)

    def get_all_request_header(self, idx: int) -> dict[str, str]:
        """Return the headers of a request."""
        return self.request_processor[idx].get_request_properties()

    def set_response_content_type(self, idx: int, value: str) -> None:
        """Set the type of an answer."""
        self.set_response_header(idx, "content-type", value)

    def get_response_content_type(self, idx: int) -> str | None:
        """Return the type of an answer."""
        return self.get_response_headers(idx).get("content-type")

    def get_response_headers(self, idx: int) -> dict[str, str]:
        """Return the headers of an answer."""
        return self.request_processor[idx].get_response_headers()

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """Set a header of an answer."""
        self.request_processor[idx].add_response_property(key, value)

    def get_response_status(self, idx: int) -> tuple[int, str]:
        """Return the status of an answer."""
        return self.request_processor[idx].get_response_status_code(), self.request_processor[idx].get_response_status_phrase()

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        """Set the status of an answer."""
        if self.request_processor:
            self.request_processor[idx].report_status(code, phrase)

    def set_all_response_status(self, code: int = 200, phrase: str = "") -> None:
        """Set the status of all answers of the call."""
        for row in self.request_processor:
            row.report_status(code, phrase)
