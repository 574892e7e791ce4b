from __future__ import annotations

from typing import Any

import pytest

from slipway.plan.ownership import merged_ownership

IMAGE = {"f:image": {}}
CONTAINER = {"f:containers": {'k:{"name":"server"}': {".": {}, **IMAGE}}}


def entry(operation: str, fields: dict[str, Any], manager: str = "slipway", **more: str) -> dict[str, Any]:
    return {"manager": manager, "operation": operation, "fieldsType": "FieldsV1", "fieldsV1": fields, **more}


OTHER = {'k:{"name":"other"}': {".": {}, **IMAGE}}


def labels(*keys: str) -> dict[str, Any]:
    return {"f:metadata": {"f:labels": {f"f:{key}": {} for key in keys}}}


@pytest.mark.parametrize(
    ("managed", "fields"),
    [
        ([entry("Apply", {"f:spec": CONTAINER})], None),
        ([entry("Update", {"f:spec": CONTAINER})], None),
        ([entry("Update", {"f:spec": CONTAINER}), entry("Apply", {"f:spec": CONTAINER})], None),
        (
            [entry("Update", {"f:spec": CONTAINER}), entry("Apply", {"f:spec": {"f:paused": {}, "f:containers": OTHER}})],
            {"f:spec": {"f:paused": {}, "f:containers": OTHER | CONTAINER["f:containers"]}},
        ),
        ([entry("Update", {"f:spec": {"f:replicas": {}}}), entry("Apply", {"f:spec": {"f:paused": {}}})], None),
        ([entry("Update", labels("a", "b")), entry("Apply", labels("a"))], labels("a", "b")),
        ([entry("Update", {"f:metadata": {"f:labels": {".": {}, "f:a": {}}}}), entry("Apply", labels("a"))], None),
        ([entry("Update", labels("b"), "kubectl"), entry("Apply", labels("a"))], None),
        ([entry("Update", labels("b"), subresource="status"), entry("Apply", labels("a"))], None),
    ],
    ids=["applied", "created", "covered", "item left", "field", "label left", "the map itself", "somebody else", "status"],
)
def test_entries_are_merged_when_the_create_holds_what_the_apply_does_not(managed: list[dict[str, Any]], fields: dict[str, Any] | None):
    merged = merged_ownership([entry("Update", {"f:z": {}}, "other"), *managed])
    if fields is None:
        assert merged is None
    else:
        assert merged == [entry("Update", {"f:z": {}}, "other"), entry("Apply", fields)]
