"""AOTInductor packages: machine code for this CPU, run without Python code of the model; no compiler is needed to load one."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from slipway_runtime.artifact import Artifact
from slipway_runtime.reasons import Failure
from slipway_runtime.serve.backends.pytorch import TorchBackend

# Flags of /proc/cpuinfo that code of the converter's level uses (x86-64-v3; see convert/aotinductor_target.py).
_NEEDED = {"x86_64": frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"}), "aarch64": frozenset({"asimd"})}


def aotinductor_backend(artifact: Artifact, threads: int) -> TorchBackend:
    """Load a package.

    Raises:
        Failure: ModelLoadFailed, with what this CPU lacks: its code would end the process with SIGILL.
    """
    missing = missing_flags(Path("/proc/cpuinfo").read_text(), platform.machine())
    if missing:
        raise Failure("ModelLoadFailed", f"the CPU of this node lacks {', '.join(missing)}, which an AOTInductor model is compiled for")
    torch.set_num_threads(threads)
    runner = torch._inductor.aoti_load_package(str(artifact.directory / artifact.entry))
    return TorchBackend(runner, artifact, threads, "pytorch_aotinductor")


def missing_flags(cpuinfo: str, machine: str) -> list[str]:
    """Return the needed features that the first CPU of a /proc/cpuinfo lacks."""
    lines = [line.partition(":")[2].split() for line in cpuinfo.splitlines() if line.lower().startswith(("flags", "features"))]
    return sorted(_NEEDED.get(machine, frozenset()) - set(lines[0] if lines else ()))
