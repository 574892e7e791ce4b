"""The helpers of `ts.utils.util` and `ts.handler_utils.timer` that handlers import."""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class PredictionException(Exception):
    """An answer that is an error, with the status that the client gets."""

    def __init__(self, message: str, error_code: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = error_code


def timed(function: F) -> F:
    """Measure nothing: the server measures the whole call."""
    return function


def list_classes_from_module(module: ModuleType, parent_class: type | None = None) -> list[type]:
    """Return the classes that a module itself defines."""
    found = [value for _, value in inspect.getmembers(module, inspect.isclass) if value.__module__ == module.__name__]
    return [value for value in found if parent_class is None or issubclass(value, parent_class)]


def load_label_mapping(mapping_file_path: str) -> dict[str, str] | None:
    """Read index_to_name.json: class number to name, the last of a list; None when there is no such file."""
    path = Path(mapping_file_path)
    if not path.is_file():
        return None
    mapping = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(mapping, dict):
        raise TypeError('index->name JSON mapping should be in "class": "label" format.')
    if isinstance(mapping.get("object_type_names"), list):
        return {str(number): name for number, name in enumerate(mapping["object_type_names"])}
    return {key: name[-1] if isinstance(name, list) else name for key, name in mapping.items()}


def map_class_to_label(
    probs: Sequence[Sequence[float]], mapping: Mapping[str, str] | None = None, lbl_classes: Any = None
) -> list[dict[str, float]]:
    """Return a row of {name: probability} for each row of probabilities."""
    classes = itertools.repeat(range(len(probs[0])), len(probs)) if lbl_classes is None else lbl_classes
    return [
        {(str(number) if mapping is None else mapping[str(number)]): share for number, share in zip(*row, strict=False)}
        for row in zip(classes, probs, strict=False)
    ]
