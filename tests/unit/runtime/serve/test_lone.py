"""A call that runs alone has all CPUs, others one each: when, and whether it is worth its memory."""

from __future__ import annotations

import threading
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest

from slipway_runtime.artifact import open_artifact
from slipway_runtime.reasons import Failure
from slipway_runtime.serve import model as loading
from slipway_runtime.serve.backends.lone import LoneBackend
from slipway_runtime.serve.main import lone_cpus
from slipway_runtime.serve.model import LoadOptions, load_model
from unit.runtime.serve.artifacts import Draft, mlp_draft, write

MIB = 1 << 20


@dataclass
class Engine:
    """A backend that says that it was asked, and answers when it may."""

    may_answer: threading.Event = field(default_factory=threading.Event)
    asked: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    calls: int = 0
    is_closed: bool = False
    error: Exception | None = None
    platform: str = "engine"
    lanes: int = 0

    def infer(self, inputs):
        self.calls += 1
        self.asked.release()
        assert self.may_answer.wait(20)
        if self.error is not None:
            raise self.error
        return inputs

    def empty(self, shape, dtype):
        return np.empty(shape, dtype)

    def close(self):
        self.is_closed = True


def test_a_call_is_wide_when_no_other_runs():
    narrow, wide = Engine(), Engine()
    backend = LoneBackend(narrow, wide)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(backend.infer, {})
        assert wide.asked.acquire(timeout=20)
        others = [pool.submit(backend.infer, {}) for _ in range(2)]
        assert all(narrow.asked.acquire(timeout=20) for _ in others)
        wide.may_answer.set()
        first.result(20)
        beside = pool.submit(backend.infer, {})  # the wide one has ended, but the others run
        assert narrow.asked.acquire(timeout=20)
        narrow.may_answer.set()
        for one in (*others, beside):
            one.result(20)
    assert (narrow.calls, wide.calls) == (3, 1)
    backend.infer({})  # those before it had company: this may be a moment between them
    assert (narrow.calls, wide.calls) == (4, 1)
    for _ in range(2):
        backend.infer({})
    assert (narrow.calls, wide.calls) == (4, 3)


def test_a_call_that_raises_is_over():
    narrow, wide = Engine(), Engine(error=ValueError("odd"))
    wide.may_answer.set()
    backend = LoneBackend(narrow, wide)
    for _ in range(2):
        with pytest.raises(ValueError, match="odd"):
            backend.infer({})
    assert (narrow.calls, wide.calls) == (0, 2)


def test_it_is_what_its_narrow_half_is_and_closes_both():
    narrow, wide = Engine(platform="onnxruntime_onnx", lanes=3), Engine()
    backend = LoneBackend(narrow, wide)
    assert (backend.platform, backend.lanes, backend.empty((2, 3), np.dtype(np.int8)).shape) == ("onnxruntime_onnx", 3, (2, 3))
    backend.close()
    assert narrow.is_closed
    assert wide.is_closed


@pytest.mark.parametrize(
    ("cpus", "seconds", "memory", "broken", "is_wide"),
    [
        (4, {1: 0.010, 4: 0.004}, None, None, True),
        (4, {1: 0.010, 4: 0.004}, 1024 * MIB, None, True),
        (4, {1: 0.010, 4: 0.009}, None, None, False),
        (4, {1: 0.0009, 4: 0.0001}, None, None, False),
        (4, {1: 0.010, 4: 0.004}, 0, None, False),
        (4, {1: 0.010, 4: 0.004}, None, "load", False),
        (4, {1: 0.010, 4: 0.004}, None, "golden", False),
        (1, {1: 0.010}, None, None, False),
    ],
    ids=[
        "quicker",
        "quicker, and there is memory",
        "hardly quicker",
        "too short",
        "no memory",
        "does not load",
        "answers otherwise",
        "one CPU",
    ],
)
def test_when_a_model_is_loaded_twice(tmp_path, monkeypatch, *, cpus, seconds, memory, broken, is_wide):
    """How long a call takes is made up; the model is real, and so are its golden outputs."""
    threads_of: dict[int, int] = {}
    load, check = loading.load_backend, loading.check_golden

    def load_backend(artifact, threads):
        if threads > 1 and broken == "load":
            raise Failure("ModelLoadFailed", "no room")
        backend = load(artifact, threads)
        threads_of[id(backend)] = threads
        return backend

    def check_golden(backend, artifact):
        if threads_of[id(backend)] > 1 and broken == "golden":
            raise Failure("GoldenMismatch", "other digits")
        check(backend, artifact)

    monkeypatch.setattr(loading, "load_backend", load_backend)
    monkeypatch.setattr(loading, "check_golden", check_golden)
    monkeypatch.setattr(loading, "_warm_up", lambda backend, sample, enough=0.0: [seconds[threads_of[id(backend)]]])
    monkeypatch.setattr(loading, "memory_limit", lambda: memory)
    monkeypatch.setattr(loading, "memory_used", lambda: 100 * MIB)
    model = load_model(open_artifact(tmp_path, write(tmp_path, mlp_draft())), LoadOptions(cpus=cpus))
    assert isinstance(model.backend, LoneBackend) is is_wide
    assert model.backend.infer({"x": np.zeros((3, 64), np.float32)})["y"].shape == (3, 10)


@pytest.mark.parametrize(
    ("argument", "variable", "cpus"),
    [(0, None, 4), (1, None, 1), (0, "1", 1), (2, "3", 2), (0, "", 4), (-1, None, None), (0, "all", None), (0, "0", None)],
)
def test_how_many_cpus_a_lone_call_has(argument, variable, cpus):
    args, environment = Namespace(lone_cpus=argument), {} if variable is None else {"SLIPWAY_LONE_CPUS": variable}
    if cpus is None:
        with pytest.raises(Failure, match="InvalidArguments: CPUs of a lone call"):
            lone_cpus(args, environment, 4)
    else:
        assert lone_cpus(args, environment, 4) == cpus


@pytest.mark.parametrize(
    ("took", "enough", "calls"),
    [([3, 3, 3], 0, 20), ([9, 3, 2], 2, 3), ([1, 1, 1], 2, 1), ([9, 9, 9], 2, 20)],
    ids=["as often as said", "one that is quick enough ends it", "the first may be", "a busy machine has more than one chance"],
)
def test_calls_go_on_until_one_is_quick_enough(monkeypatch, took, enough, calls):
    seconds = iter([*took, *([took[-1]] * 20)])
    monkeypatch.setattr(loading, "_timed", lambda backend, sample: next(seconds))
    assert len(loading._warm_up(Engine(), {}, enough)) == calls


def test_torch_s_threads_are_the_process_s(tmp_path, monkeypatch):
    """A second module with other threads would change those of the first."""
    code = "import torch\n\nclass Twice(torch.nn.Module):\n    def forward(self, x):\n        return x * 2\n"
    specs = [{"name": name, "dtype": "float32", "shape": ["batch", 1]} for name in ("x", "y")]
    config = {"format": "PyTorch", "entry": "", "entrypoint": "twice:Twice", "signature": {"inputs": specs[:1], "outputs": specs[1:]}}
    monkeypatch.setattr(loading, "_warm_up", lambda backend, sample, enough=0.0: [0.1])
    digest = write(tmp_path, Draft({"twice.py": code.encode()}, config))
    assert not isinstance(load_model(open_artifact(tmp_path, digest), LoadOptions(cpus=4)).backend, LoneBackend)
