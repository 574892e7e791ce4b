"""What onnxruntime runs on. What is decided is tested everywhere; what runs on a GPU is skipped where there is none."""

from __future__ import annotations

import threading

import numpy as np
import onnxruntime
import pytest

from slipway_runtime.artifact import open_artifact
from slipway_runtime.reasons import Failure
from slipway_runtime.serve.backends.ort import CPU, CUDA, TENSORRT, OnnxBackend, providers
from slipway_runtime.serve.device import LANES, cuda_works
from slipway_runtime.serve.model import LoadOptions, load_model
from unit.runtime.serve.artifacts import mlp_answer, mlp_draft, write

HAS_GPU = CUDA in onnxruntime.get_available_providers() and cuda_works()
GPU = pytest.mark.skipif(not HAS_GPU, reason="there is no CUDA GPU, or onnxruntime's CPU build")
BOTH = (CUDA, CPU)
ALL = (TENSORRT, CUDA, CPU)


def named(chosen):
    """The providers without their options."""
    return [one if isinstance(one, str) else one[0] for one in chosen]


@pytest.mark.parametrize(
    ("word", "available", "has_gpu", "first"),
    [
        (None, BOTH, True, CUDA),
        ("auto", BOTH, True, CUDA),
        ("auto", BOTH, False, CPU),
        ("auto", (CPU,), True, CPU),
        ("cpu", BOTH, True, CPU),
        ("cuda", BOTH, True, CUDA),
    ],
)
def test_where_a_session_runs(word, available, has_gpu, first):
    chosen = providers({} if word is None else {"SLIPWAY_DEVICE": word}, available, lambda: has_gpu)
    assert named(chosen) == ([CUDA, CPU] if first == CUDA else [CPU]), "what a GPU cannot run goes to the CPU"


@pytest.mark.parametrize(
    ("word", "available", "has_gpu", "reason", "words"),
    [
        ("cuda", BOTH, False, "ModelLoadFailed", "no CUDA GPU that works"),
        ("cuda", (CPU,), True, "ModelLoadFailed", "CPU build; use slipway-runtime-torch"),
        ("tpu", BOTH, True, "InvalidArguments", "must be auto, cpu or cuda"),
    ],
)
def test_a_gpu_that_cannot_be_had_is_told(word, available, has_gpu, reason, words):
    with pytest.raises(Failure, match=words) as caught:
        providers({"SLIPWAY_DEVICE": word}, available, lambda: has_gpu)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("environment", "available", "has_gpu", "want"),
    [
        ({"SLIPWAY_ONNX_TENSORRT": "true"}, ALL, True, [TENSORRT, CUDA, CPU]),
        ({"SLIPWAY_ONNX_TENSORRT": "false"}, ALL, True, [CUDA, CPU]),
        ({}, ALL, True, [CUDA, CPU]),
        ({"SLIPWAY_ONNX_TENSORRT": "true"}, ALL, False, None),
        ({"SLIPWAY_ONNX_TENSORRT": "true"}, BOTH, True, None),
        ({"SLIPWAY_ONNX_TENSORRT": "true", "SLIPWAY_DEVICE": "cpu"}, ALL, True, None),
    ],
)
def test_tensorrt_is_for_who_asks_for_it(environment, available, has_gpu, want):
    if want is None:
        with pytest.raises(Failure, match="SLIPWAY_ONNX_TENSORRT is true") as caught:
            providers(environment, available, lambda: has_gpu)
        assert caught.value.reason == "ModelLoadFailed"
        return
    assert named(providers(environment, available, lambda: has_gpu)) == want


def test_tensorrt_that_does_not_load_is_told(tmp_path, monkeypatch):
    """onnxruntime takes the next provider when TensorRT's libraries are not there: here, because this build has none."""
    artifact = open_artifact(tmp_path, write(tmp_path, mlp_draft()))
    monkeypatch.setattr("slipway_runtime.serve.backends.ort.providers", lambda *_: [TENSORRT, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")  # what a user says stays
    with pytest.raises(Failure, match="TensorRT does not load"):
        OnnxBackend(artifact, 1)


def test_the_driver_is_not_asked_where_nothing_depends_on_it():
    for environment, available in (({"SLIPWAY_DEVICE": "cpu"}, BOTH), ({}, (CPU,))):
        assert providers(environment, available, lambda: pytest.fail("asked")) == [CPU]


def test_a_session_that_falls_back_to_the_cpu_says_so(tmp_path, monkeypatch, caplog):
    """onnxruntime takes the next provider when the GPU's libraries do not load: here, because this build has none."""
    artifact = open_artifact(tmp_path, write(tmp_path, mlp_draft()))
    monkeypatch.setattr("slipway_runtime.serve.backends.ort.providers", lambda *_: [CPU, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    assert OnnxBackend(artifact, 1).lanes == 0
    assert "the model runs on the CPU" in caplog.text
    monkeypatch.setenv("SLIPWAY_DEVICE", "cuda")
    with pytest.raises(Failure, match="onnxruntime cannot use it"):
        OnnxBackend(artifact, 1)


@GPU
def test_answers_on_a_gpu_are_those_of_the_cpu(tmp_path):
    model = load_model(open_artifact(tmp_path, write(tmp_path, mlp_draft())), LoadOptions(cpus=4, max_batch=8))
    assert model.backend.lanes == LANES, "it is on the GPU, and no second copy is on the CPU"
    random = np.random.default_rng(0)
    batches = [random.standard_normal((1 + number % 8, 64)).astype(np.float32) for number in range(60)]
    failures: list[float] = []

    def ask(lane: int) -> None:
        for x in batches[lane::LANES]:
            error = float(np.abs(model.backend.infer({"x": x})["y"] - mlp_answer(x)).max())
            if error > 1e-4:  # TF32 would be off by a hundred times as much
                failures.append(error)

    lanes = [threading.Thread(target=ask, args=(lane,)) for lane in range(LANES)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    assert not failures
