"""AOTInductor packages: machine code for this CPU or kernels for this kind of GPU, run without Python code of the model or a compiler."""

from __future__ import annotations

import json
import platform
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from slipway_runtime.artifact import Artifact
from slipway_runtime.reasons import Failure
from slipway_runtime.serve.backends.pytorch import TorchBackend, torch_backend
from slipway_runtime.serve.device import torch_device

# Flags of /proc/cpuinfo that code of the converter's level uses (x86-64-v3; see convert/aotinductor_target.py).
_NEEDED = {"x86_64": frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"}), "aarch64": frozenset({"asimd"})}


def aotinductor_backend(artifact: Artifact, threads: int) -> TorchBackend:
    """Load a package on the device that it was compiled for.

    Raises:
        Failure: ModelLoadFailed, with what this CPU lacks (its code would end the process with SIGILL), or when there is no GPU.
    """
    missing = missing_flags(Path("/proc/cpuinfo").read_text(), platform.machine())
    if missing:
        raise Failure("ModelLoadFailed", f"the CPU of this node lacks {', '.join(missing)}, which an AOTInductor model is compiled for")
    path = artifact.directory / artifact.entry
    device = package_device(path)
    if device == "cuda" and torch_device() != "cuda":
        raise Failure("ModelLoadFailed", f"{artifact.entry} is compiled for a CUDA GPU, and this pod has none; set spec.accelerator")
    torch.set_num_threads(threads)
    return torch_backend(Package(path, device), artifact, threads, "pytorch_aotinductor", device)


class Package:
    """A package as a callable of tensors.

    What `torch._inductor.aoti_load_package` does, with torch's own loader, but without importing the compiler (six seconds of CPU), and
    the structure of the outputs is read once instead of at each call (docs/design/0019-aotinductor.md).
    """

    def __init__(self, path: Path, device: str) -> None:
        # On a GPU its own locks would stop a recording; CudaBackend lets one thread at a time launch anyway.
        self._loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", device == "cuda", 1, -1)
        _, outputs = self._loader.get_call_spec()
        self._outputs = pytree.treespec_loads(outputs)

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """Run the model; returns what its `forward` returned."""
        return pytree.tree_unflatten(self._loader.boxed_run(list(inputs)), self._outputs)


def package_device(path: Path) -> str:
    """Return `cuda` or `cpu`, which the compiler wrote into the package's metadata."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith("_metadata.json") and (device := json.loads(archive.read(name)).get("AOTI_DEVICE_KEY")):
                return str(device)
    return "cpu"


def missing_flags(cpuinfo: str, machine: str) -> list[str]:
    """Return the needed features that the first CPU of a /proc/cpuinfo lacks."""
    lines = [line.partition(":")[2].split() for line in cpuinfo.splitlines() if line.lower().startswith(("flags", "features"))]
    return sorted(_NEEDED.get(machine, frozenset()) - set(lines[0] if lines else ()))
