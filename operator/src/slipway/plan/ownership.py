"""Which fields of an object we hold besides those that we apply.

An object is created by a POST, because that alone fails when the name is taken, and changed by server-side apply. The API server keeps
then two entries for us in `metadata.managedFields`; an item that the apply leaves out stays, held by the create. As client-go does
it (k8s.io/client-go/util/csaupgrade), the entries are made one, once there is such an item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slipway import names

Fields = Mapping[str, Any]  # FieldsV1: a tree of f:<field>, k:<keys of a list item>, v:<value of a set>, and "." for the item itself


def merged_ownership(managed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """Return the entries with ours made one, or None when the create holds nothing that the apply does not."""
    ours = [entry for entry in managed if entry.get("manager") == names.FIELD_MANAGER and not entry.get("subresource")]
    created = next((entry for entry in ours if entry.get("operation") == "Update"), None)
    applied = next((entry for entry in ours if entry.get("operation") == "Apply"), None)
    if created is None or applied is None:
        return None
    left = _left(created["fieldsV1"], applied["fieldsV1"])
    if not left:
        return None
    others = [dict(entry) for entry in managed if entry is not created and entry is not applied]
    return [*others, {**applied, "fieldsV1": _union(applied["fieldsV1"], left)}]


def _left(created: Fields, applied: Fields) -> dict[str, Any]:
    """Return the labels, annotations and list items that only the create holds.

    Not the other fields: the create also holds all that the API server filled in, which looks the same as what we sent.
    """
    left: dict[str, Any] = {}
    for key, inner in created.items():
        if key in applied:
            is_map = key in ("f:labels", "f:annotations")
            rest = {k: v for k, v in inner.items() if k not in (*applied[key], ".")} if is_map else _left(inner, applied[key])
            if rest:
                left[key] = rest
        elif key.startswith("k:"):
            left[key] = inner
    return left


def _union(fields: Fields, other: Fields) -> dict[str, Any]:
    return {key: _union(fields.get(key) or {}, other.get(key) or {}) for key in {**fields, **other}}
