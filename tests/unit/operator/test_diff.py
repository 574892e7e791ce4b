"""Rows: what is there, what is wanted, and whether that is enough."""

from __future__ import annotations

from typing import Any

import pytest

from slipway.plan.diff import contains


@pytest.mark.parametrize(
    ("observed", "desired", "want"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 1}, {"b": 1}, False),
        ({}, {"nodeSelector": {}}, True),
        ({"cpu": "500m"}, {"cpu": "0.5"}, True),
        ({"memory": "1Gi"}, {"memory": "1024Mi"}, True),
        ({"memory": "1G"}, {"memory": "1Gi"}, False),
        ({"image": "a:1"}, {"image": "a:2"}, False),
        ([{"name": "a", "x": 1}, {"name": "b"}], [{"name": "b"}], True),
        ([{"name": "a"}], [{"name": "b"}], False),
        (["x", "y"], ["x"], False),
        (["x"], ["x"], True),
        (None, {"a": 1}, False),
        ([{"name": "h", "port": 80, "nodePort": 1}], [{"name": "h", "port": 80}], True),
    ],
)
def test_contains(observed: Any, desired: Any, want: bool) -> None:
    assert contains(observed, desired) is want
