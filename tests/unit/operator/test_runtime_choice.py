"""Which ServingRuntime serves a model."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from slipway.plan.workload import runtime_for


def runtime(name: str, **priorities: int | None) -> dict[str, Any]:
    """A runtime that claims these formats; None writes no priority, as an object from before the field had."""
    formats = [{"name": fmt} | ({} if priority is None else {"priority": priority}) for fmt, priority in priorities.items()]
    return {"metadata": {"name": name}, "spec": {"image": "i:1", "formats": formats}}


SLIPWAY = runtime("slipway", ONNX=10, TorchScript=10, PyTorch=10)
ROWS: list[tuple[str, str, str | None, tuple[dict[str, Any], ...], str | None]] = [
    # what it shows, format, spec.serving.runtime, runtimes, the chosen one
    ("none at all", "ONNX", None, (), None),
    ("none claims", "PyTorch", None, (runtime("a", ONNX=0),), None),
    ("the only one", "ONNX", None, (runtime("a", ONNX=0), runtime("b", PyTorch=99)), "a"),
    ("the shipped one before any that says nothing", "ONNX", None, (runtime("a", ONNX=0), SLIPWAY, runtime("z", ONNX=0)), "slipway"),
    ("one that says more than the shipped one", "ONNX", None, (SLIPWAY, runtime("mine", ONNX=11)), "mine"),
    ("the priority of that format counts", "PyTorch", None, (SLIPWAY, runtime("mine", ONNX=11, PyTorch=9)), "slipway"),
    ("of equals the first by name", "ONNX", None, (runtime("b", ONNX=5), runtime("a", ONNX=5), runtime("c", ONNX=4)), "a"),
    ("no priority is 0", "ONNX", None, (runtime("b", ONNX=0), runtime("a", ONNX=None), runtime("c", ONNX=0)), "a"),
    ("a name wins over every priority", "ONNX", "a", (SLIPWAY, runtime("a", ONNX=0)), "a"),
    ("a name that is not there", "ONNX", "b", (SLIPWAY,), None),
    ("a name that does not claim the format", "ONNX", "b", (SLIPWAY, runtime("b", PyTorch=99)), None),
]


@pytest.mark.parametrize(("fmt", "wanted", "runtimes", "chosen"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_choice(fmt: str, wanted: str | None, runtimes: tuple[dict[str, Any], ...], chosen: str | None) -> None:
    for order in permutations(runtimes):
        found = runtime_for(fmt, wanted, order)
        assert (found and found["metadata"]["name"]) == chosen
