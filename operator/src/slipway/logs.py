"""How the operator logs: text or JSON lines, each with the pass it belongs to."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from typing import Any, Literal

PASS: ContextVar[dict[str, Any] | None] = ContextVar("slipway_pass", default=None)


def _details() -> dict[str, Any]:
    """Return key, generation and reconcile_id of the pass that runs, if one does."""
    return PASS.get() or {}


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        values = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        values |= {name: str(value) for name, value in _details().items()}
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        return json.dumps(values)


class TextFormatter(logging.Formatter):
    """One line of words, and key=value pairs at its end; a traceback follows."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: D102 - the name is logging's
        pairs = "".join(f" {name}={value}" for name, value in _details().items())
        return super().formatMessage(record) + pairs


def set_up(form: Literal["json", "text"]) -> None:
    """Log to stderr; kopf only tells of what went wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
