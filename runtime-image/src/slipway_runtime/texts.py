"""Answers in text, compared as what they mean: JSON of the same names and words, with numbers that are near enough. Pure functions."""

from __future__ import annotations

import json
from typing import Any


def numbers_of(text: str | bytes) -> tuple[Any, list[float]]:
    """Return a JSON text without its numbers, and the numbers; a text that is no JSON is one word.

    Booleans are words, not numbers.
    """
    text = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else str(text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text, []
    found: list[float] = []
    return _without(value, found), found


def _without(value: Any, found: list[float]) -> Any:
    if isinstance(value, dict):
        return {key: _without(item, found) for key, item in value.items()}
    if isinstance(value, list):
        return [_without(item, found) for item in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        found.append(float(value))
        return 0.0
    return value
