"""PyTorch to an AOTInductor package: machine code compiled here, loaded by the server without Python code of the model or a compiler.

Where this container has a GPU, the package is compiled for it: the operator gives the conversion the accelerator that will serve.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from slipway_runtime.candidates import INT8, UNAVAILABLE
from slipway_runtime.convert import Job
from slipway_runtime.convert.exported import exported
from slipway_runtime.reasons import Failure, first_line, is_out_of_memory
from slipway_runtime.serve.device import torch_device

_ENTRY = "model.pt2"
# The level that every node of a cluster is likely to have; native code of the converter's node would end with SIGILL on an older one.
_MARCH = {"x86_64": "x86-64-v3", "aarch64": "armv8.2-a"}
_SIMD_BITS = {"x86_64": 256, "aarch64": 128}


def build(job: Job) -> dict[str, Any]:
    """Export, compile, and say what to load.

    Raises:
        Failure: as `exported` does; TargetUnavailable without a C++ compiler that links a shared libstdc++; ConversionFailed with the
            compiler's words.
    """
    compiler = usable_compiler(os.environ.get("CXX") or "g++")
    program, _ = exported(job)
    if job.wanted.precision not in INT8 and torch_device() == "cuda":
        program = on_gpu(program)
    machine = platform.machine()
    options: dict[str, Any] = {
        "cpp.cxx": (compiler, compiler),
        "cpp.march": _MARCH.get(machine),
        "cpp.simdlen": _SIMD_BITS.get(machine),
        "compile_threads": 1,  # no pool of processes, which would outlive the limits
        "fx_graph_cache": False,  # nothing of another model in a shared folder
    }
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=str(job.output / _ENTRY), inductor_configs=options)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise Failure("ConversionFailed", f"AOTInductor: {first_line(error)[:600]}") from error
    return {"format": "AOTInductor", "entry": _ENTRY}


def usable_compiler(compiler: str) -> str:
    """Return the compiler if what it links shares libstdc++ with torch.

    A package with a copy of its own finds torch's locale facets by its own numbers, and the process that loads it ends by SIGSEGV in
    std::regex (docs/design/0019-aotinductor.md). A compiler links the archive, without a word, when libstdc++.so is missing or dangling.

    Raises:
        Failure: TargetUnavailable, with what to do.
    """
    if shutil.which(compiler) is None:
        raise Failure(
            UNAVAILABLE, f"AOTInductor compiles C++, and there is no {compiler} in the converter image; use slipway-runtime-torch"
        )
    asked = subprocess.run([compiler, "-print-file-name=libstdc++.so"], capture_output=True, text=True, check=False)
    library = Path(asked.stdout.strip())  # the bare name where there is none
    if not (library.is_absolute() and library.exists()):
        raise Failure(
            UNAVAILABLE,
            f"{compiler} has no shared libstdc++ ({library} does not exist), and a package with its own copy crashes when loaded; "
            "install the libstdc++-dev of this compiler in the converter image, or set CXX to another one",
        )
    return compiler


def on_gpu(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Move a program that was exported on the CPU, where the exporter finds the same dims dynamic for every precision.

    By index, because checks that the program makes compare devices with it; and with its example, which older versions of torch leave.
    """
    moved = import_module("torch.export.passes").move_to_device_pass(program, "cuda:0")
    arguments, named = moved.example_inputs
    moved.example_inputs = (tuple(tensor.to("cuda:0") for tensor in arguments), named)
    return moved
