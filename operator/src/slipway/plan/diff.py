"""Is an object already as we want it? The question that keeps the operator quiet when nothing changed.

The API server fills in defaults and others may add fields, so "as we want it" means: every field we set is there with our value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

_SUFFIXES: dict[str, Decimal] = {
    "m": Decimal("0.001"),
    **{unit: Decimal(1000**power) for power, unit in enumerate(("k", "M", "G", "T"), start=1)},
    **{unit: Decimal(1024**power) for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti"), start=1)},
}
_LIST_KEYS = ("name", "uid", "mountPath", "containerPort")


def quantity(text: str) -> Decimal | None:
    """Return a Kubernetes quantity such as `500m` or `1Gi` as a number, or None if it is not one.

    Source: kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity.
    """
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        if text.endswith(suffix):
            number, factor = text[: -len(suffix)], _SUFFIXES[suffix]
            break
    else:
        number, factor = text, Decimal(1)
    try:
        return Decimal(number) * factor
    except InvalidOperation:
        return None


def contains(observed: object, desired: object) -> bool:
    """Say whether every field of `desired` is in `observed` with an equal value; what `observed` has besides does not matter."""
    if observed == desired:  # as most parts of an object are, most of the time
        return True
    if isinstance(desired, Mapping):
        return isinstance(observed, Mapping) and all(_has(observed, key, value) for key, value in desired.items())
    if isinstance(desired, Sequence) and not isinstance(desired, str):
        return isinstance(observed, Sequence) and not isinstance(observed, str) and _list_contains(observed, desired)
    return _is_same_quantity(observed, desired)


def _has(observed: Mapping[str, Any], key: str, value: object) -> bool:
    if key in observed:
        return contains(observed[key], value)
    return value in ({}, [], None, False, "")  # the API server drops empty fields


def _list_contains(observed: Sequence[Any], desired: Sequence[Any]) -> bool:
    key = _key_of(desired)
    if key is None:
        return len(observed) == len(desired) and all(map(contains, observed, desired))
    by_key = {item.get(key): item for item in observed if isinstance(item, Mapping)}
    return all(contains(by_key.get(item[key]), item) for item in desired)


def _key_of(items: Sequence[Any]) -> str | None:
    if not items or not all(isinstance(item, Mapping) for item in items):
        return None
    return next((key for key in _LIST_KEYS if all(key in item for item in items)), None)


def _is_same_quantity(observed: object, desired: object) -> bool:
    if isinstance(observed, str) and isinstance(desired, str):
        left, right = quantity(observed), quantity(desired)
        return left is not None and left == right
    return False
