"""Where a model runs: the CUDA GPU that the pod was given, or the CPU. Decided once, when a model is built or loaded."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from slipway_runtime.reasons import Failure

VARIABLE = "SLIPWAY_DEVICE"
LANES = 3  # on a GPU: one batch that is gathered or copied in, one that computes, one that is copied out or split up


def wanted_device(environment: Mapping[str, str], has_gpu: Callable[[], bool]) -> str:
    """Return `cpu` or `cuda`: what the environment says, else the GPU where there is one (a pod sees only those it asked for).

    Args:
        environment: SLIPWAY_DEVICE is `auto` (or absent), `cpu` or `cuda`.
        has_gpu: whether CUDA works here; not asked when the answer is `cpu`.

    Raises:
        Failure: ModelLoadFailed when `cuda` is demanded and not there; InvalidArguments for another word.
    """
    word = environment.get(VARIABLE) or "auto"
    if word not in ("auto", "cpu", "cuda"):
        raise Failure("InvalidArguments", f"{VARIABLE} must be auto, cpu or cuda, got {word!r}")
    if word == "cpu":
        return "cpu"
    if has_gpu():
        return "cuda"
    if word == "cuda":
        raise Failure("ModelLoadFailed", f"{VARIABLE} is cuda, and this pod has no CUDA GPU that works; set spec.accelerator")
    return "cpu"


def may_use_gpu(environment: Mapping[str, str], devices: Path = Path("/dev")) -> bool:
    """Whether a model that is loaded here may come to lie on a GPU; the driver is not asked, so that a fork may follow.

    Args:
        environment: SLIPWAY_DEVICE, as for `wanted_device`.
        devices: the folder in which the driver has a node for each GPU of the pod, such as nvidia0.
    """
    word = environment.get(VARIABLE) or "auto"
    return word == "cuda" or (word == "auto" and any(devices.glob("nvidia[0-9]*")))


def cuda_works() -> bool:
    """Whether CUDA's driver finds a GPU; initializes it, so not before a fork whose child uses the GPU.

    https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__INITIALIZE.html, and group__CUDA__DEVICE.html
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def torch_device() -> str:
    """Return `wanted_device` of this process.

    Not before a fork whose child uses the GPU: to look for one initializes the driver, which a child cannot do again.
    """
    import torch  # noqa: PLC0415 - not in the ONNX-only image

    return wanted_device(os.environ, torch.cuda.is_available)
