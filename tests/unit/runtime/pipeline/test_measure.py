"""What a candidate is measured with: batch sizes, and how long that may take."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slipway_runtime.artifact import Signature
from slipway_runtime.candidates import SAMPLES
from slipway_runtime.samples import write_batches
from slipway_runtime.settings import settings_from_environment
from slipway_runtime.validate import measure

SIGNATURE = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 2]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 2]}],
}


@pytest.mark.parametrize(
    ("fixed", "largest", "sizes"),
    [
        (None, None, (1, 8, 32)),
        (None, 1, (1,)),
        (None, 2, (1, 2)),
        (None, 8, (1, 8)),
        (None, 32, (1, 8, 32)),
        (None, 256, (1, 8, 32, 256)),
        (4, None, (4,)),
        (4, 64, (4,)),
    ],
)
def test_batch_sizes(fixed: int | None, largest: int | None, sizes: tuple[int, ...]) -> None:
    assert measure.batch_sizes(fixed, largest) == sizes


class Backend:
    """Takes so many seconds for a call and for each sample, and remembers the sizes."""

    def __init__(self, call: float, sample: float) -> None:
        self.call, self.sample, self.sizes = call, sample, set()

    def infer(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = len(inputs["x"])
        self.sizes.add(rows)
        time.sleep(self.call + rows * self.sample)
        return {"y": inputs["x"]}

    def close(self) -> None:
        pass


def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend: Backend, spec: dict[str, Any]) -> dict[str, Any]:
    settings = settings_from_environment(
        {"SLIPWAY_ARTIFACT_SPEC": json.dumps({"model": {"uri": "pvc://m"}, **spec}), "SLIPWAY_WORK": str(tmp_path)}
    )
    settings.candidates.mkdir()
    write_batches(settings.candidates / SAMPLES, [{"x": np.ones((3, 2), dtype=np.float32)}])
    for name, value in (("_ROUNDS", 3), ("_LATENCY_RUNS", 4), ("_WARM_UP_RUNS", 1), ("_THROUGHPUT_SECONDS", 0.02), ("_LONGEST_CALL", 0.3)):
        monkeypatch.setattr(measure, name, value)
    monkeypatch.setattr(measure, "load_backend", lambda _artifact, _threads: backend)
    built = {"format": "ONNX", "entry": "model.onnx"}
    converted = {"signature": Signature.from_json(SIGNATURE).to_json()}
    return measure.measured(settings, converted, 0, {"target": "ONNX", "precision": "Float32"}, built)


def test_the_batch_with_the_most_samples_a_second_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backend = Backend(call=0.005, sample=0.0)
    found = measured(monkeypatch, tmp_path, backend, {"maxBatchSize": 16})
    assert (backend.sizes, found["batchSize"]) == ({1, 8, 16}, 16)
    assert set(found["throughputs"]) == {"1", "8", "16"}
    assert found["throughput"] == max(found["throughputs"].values())
    assert 0.005 <= found["latencyP50"] <= found["latencyP99"]


def test_a_batch_that_would_take_too_long_is_not_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backend = Backend(call=0.0, sample=0.02)
    found = measured(monkeypatch, tmp_path, backend, {})
    assert (backend.sizes, found["batchSize"] in (1, 8)) == ({1, 8}, True), "32 would take 0.64 s, the limit is 0.3"
