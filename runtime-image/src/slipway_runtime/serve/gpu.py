"""Memory and use of the pod's GPUs, for the metrics. A thread asks NVML: a driver that hangs must not hold the event loop."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

log = logging.getLogger(__name__)

PERIOD = 1.0  # seconds from one reading to the next
READINGS = 15  # of which a mean is taken: as long as the usual time between two scrapes
STALE = 30.0  # seconds after which a GPU that was not heard of any more is not told about


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, or a MIG slice of one, as the pod sees it.

    Attributes:
        uuid: of NVML, such as GPU-c5d1… or MIG-8f3e….
        used: bytes in use by all processes that share it.
        total: bytes that it has.
        utilization: share of the time in which a kernel ran, from 0 to 1; None for a MIG slice, of which NVML does not know it.
    """

    uuid: str
    used: int
    total: int
    utilization: float | None


def read_gpus(nvml: Any) -> list[Gpu]:
    """Return what NVML says now; the use is that of the driver's last sampling period, a sixth of a second to a second.

    https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html, and group__nvmlMultiInstanceGPU.html

    Args:
        nvml: NVIDIA's module pynvml, initialized.

    Raises:
        nvml.NVMLError: the driver does not answer.
    """
    found = []
    for index in range(nvml.nvmlDeviceGetCount()):
        whole = nvml.nvmlDeviceGetHandleByIndex(index)
        for handle in _slices(nvml, whole) or [whole]:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)  # the second does not count what the driver keeps
            found.append(Gpu(nvml.nvmlDeviceGetUUID(handle), memory.used, memory.total, _utilization(nvml, handle)))
    return found


def _slices(nvml: Any, whole: Any) -> list[Any]:
    """The MIG slices of a GPU that this pod sees; none where the GPU is not divided."""
    handles = []
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(whole)):
        try:
            handles.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, index))
        except (nvml.NVMLError_NotFound, nvml.NVMLError_NoPermission):
            continue  # no slice has this number, or it is another pod's
    return handles


def _utilization(nvml: Any, handle: Any) -> float | None:
    try:
        return float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
    except nvml.NVMLError_NotSupported:
        return None


class GpuWatch:
    """The last reading of each GPU, its use as the mean of the last READINGS."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is read yet."""
        self._clock = clock
        self._now: tuple[Gpu, ...] = ()
        self._at = 0.0
        self._shares: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=READINGS))

    def gpus(self) -> tuple[Gpu, ...]:
        """What was read last; nothing when that is long ago."""
        return self._now if self._clock() - self._at < STALE else ()

    def add(self, reading: list[Gpu]) -> None:
        """Take a reading in."""
        self._now = tuple(replace(gpu, utilization=self._mean(gpu)) for gpu in reading)
        self._at = self._clock()

    def _mean(self, gpu: Gpu) -> float | None:
        if gpu.utilization is None:
            return None
        shares = self._shares[gpu.uuid]
        shares.append(gpu.utilization)
        return sum(shares) / len(shares)

    def start(self) -> None:
        """Read from now on, in a thread of its own; not before a fork. Without NVML it says so and ends."""
        threading.Thread(target=self._run, name="gpus", daemon=True).start()

    def _run(self) -> None:
        try:
            nvml = import_module("pynvml")
            nvml.nvmlInit()
        except Exception as error:  # NVMLError is a class of the module that may be missing
            log.warning("no metrics of the GPU, NVML is not there: %s", error)
            return
        is_known_to_fail = False
        while True:
            try:
                self.add(read_gpus(nvml))
                is_known_to_fail = False
            except nvml.NVMLError as error:
                if not is_known_to_fail:
                    log.warning("NVML does not tell about the GPU: %s", error)
                is_known_to_fail = True
            time.sleep(PERIOD)
