"""What the metrics say of GPUs. There is none here: NVML is simulated, under the names that NVIDIA's own module has."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from slipway_runtime.serve import gpu
from slipway_runtime.serve.device import may_use_gpu
from slipway_runtime.serve.gpu import Gpu, GpuWatch, read_gpus
from slipway_runtime.serve.metrics import Metrics

GIB = 1 << 30


class SimulatedNvml:
    """GPUs, each with the numbers of its slices (None: not divided) and a use in percent."""

    NVMLError = pynvml.NVMLError
    NVMLError_NotFound = pynvml.NVMLError_NotFound
    NVMLError_NoPermission = pynvml.NVMLError_NoPermission
    NVMLError_NotSupported = pynvml.NVMLError_NotSupported
    nvmlMemory_v2 = pynvml.nvmlMemory_v2

    def __init__(self, *gpus: tuple[dict[int, str] | None, int]) -> None:
        self.gpus = gpus

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        return SimpleNamespace(uuid=f"GPU-{index}", slices=self.gpus[index][0], use=self.gpus[index][1])

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any) -> int:
        return 0 if handle.slices is None else 4

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: int) -> Any:
        word = handle.slices.get(index)
        if word is None:
            raise pynvml.NVMLError_NotFound
        if word == "not ours":
            raise pynvml.NVMLError_NoPermission
        return SimpleNamespace(uuid=word, slices=None, use=None)

    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int) -> Any:
        assert version == pynvml.nvmlMemory_v2
        if handle.slices is not None:
            raise pynvml.NVMLError_NoPermission  # the whole of a divided GPU is nobody's
        return SimpleNamespace(used=3 * GIB, total=80 * GIB)

    def nvmlDeviceGetUUID(self, handle: Any) -> str:
        return handle.uuid

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
        if handle.use is None:
            raise pynvml.NVMLError_NotSupported
        return SimpleNamespace(gpu=handle.use)


def row(uuid: str, utilization: float | None) -> Gpu:
    return Gpu(uuid, 3 * GIB, 80 * GIB, utilization)


@pytest.mark.parametrize(
    ("gpus", "want"),
    [
        ([], []),
        ([(None, 37)], [row("GPU-0", 0.37)]),
        ([(None, 0), (None, 100)], [row("GPU-0", 0.0), row("GPU-1", 1.0)]),
        ([({1: "MIG-a", 2: "not ours", 3: "MIG-b"}, 50)], [row("MIG-a", None), row("MIG-b", None)]),
    ],
    ids=["none", "one", "two", "slices"],
)
def test_read(gpus, want):
    assert read_gpus(SimulatedNvml(*gpus)) == want


def test_the_names_are_those_of_the_real_module():
    for name in (name for name in vars(SimulatedNvml) if name.startswith(("nvml", "NVML"))):
        assert hasattr(pynvml, name), name


def test_use_is_a_mean_and_what_is_old_is_not_told():
    now = [100.0]
    watch = GpuWatch(lambda: now[0])
    assert watch.gpus() == ()
    watch.add([row("GPU-0", 1.0), row("MIG-a", None)])
    watch.add([row("GPU-0", 0.0), row("MIG-a", None)])
    assert watch.gpus() == (row("GPU-0", 0.5), row("MIG-a", None))
    for _ in range(gpu.READINGS):
        watch.add([row("GPU-0", 0.0)])
    assert watch.gpus() == (row("GPU-0", 0.0),)
    now[0] += gpu.STALE
    assert watch.gpus() == ()


def test_metrics():
    def scrape(*gpus: Gpu) -> list[str]:
        lines = Metrics("m", "r", lambda: 0, lambda: gpus).render().decode().splitlines()
        return [line for line in lines if line.startswith("slipway_gpu")]

    assert scrape() == []
    assert scrape(row("GPU-0", 0.25), row("MIG-a", None)) == [
        'slipway_gpu_utilization_ratio{gpu="GPU-0"} 0.25',
        'slipway_gpu_memory_used_bytes{gpu="GPU-0"} 3.221225472e+09',
        'slipway_gpu_memory_used_bytes{gpu="MIG-a"} 3.221225472e+09',
        'slipway_gpu_memory_total_bytes{gpu="GPU-0"} 8.589934592e+10',
        'slipway_gpu_memory_total_bytes{gpu="MIG-a"} 8.589934592e+10',
    ]


def test_a_driver_that_fails_is_asked_again_and_named_once(monkeypatch, caplog):
    """The thread's loop: its pause is replaced, and ends it after the last answer."""
    answers = [pynvml.NVMLError(999), pynvml.NVMLError(999), [row("GPU-0", 1.0)]]
    pauses = iter([None, None, SystemExit()])

    def read(_: Any) -> list[Gpu]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def pause(_: float) -> None:
        if end := next(pauses):
            raise end

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(gpu, "read_gpus", read)
    monkeypatch.setattr(gpu.time, "sleep", pause)
    watch = GpuWatch()
    with caplog.at_level(logging.WARNING), pytest.raises(SystemExit):
        watch._run()
    assert [record.message for record in caplog.records] == ["NVML does not tell about the GPU: Unknown Error"]
    assert watch.gpus() == (row("GPU-0", 1.0),)


def test_without_nvml_the_thread_ends_and_says_why(caplog, monkeypatch):
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: (_ for _ in ()).throw(pynvml.NVMLError_LibraryNotFound()))
    watch = GpuWatch()
    watch._run()
    assert "no metrics of the GPU, NVML is not there: NVML Shared Library Not Found" in caplog.text
    assert watch.gpus() == ()


@pytest.mark.skipif(not may_use_gpu({}), reason="there is no CUDA GPU")
def test_a_real_gpu():
    pynvml.nvmlInit()
    for found in read_gpus(pynvml):
        assert found.uuid.startswith(("GPU-", "MIG-"))
        assert 0 <= found.used < found.total > GIB
        assert found.utilization is None or 0 <= found.utilization <= 1
