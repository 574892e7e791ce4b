"""onnxruntime, on the CPU, a CUDA GPU or TensorRT. One session serves all lanes: its `run` is thread-safe and releases the GIL."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime

from slipway_runtime.artifact import Artifact
from slipway_runtime.reasons import Failure
from slipway_runtime.serve.device import LANES, VARIABLE, cuda_works, wanted_device
from slipway_runtime.serve.tensors import Array, Tensors

log = logging.getLogger(__name__)

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
TENSORRT_VARIABLE = "SLIPWAY_ONNX_TENSORRT"
# float32 is float32, as on the CPU, where parity was measured; and no search for the fastest convolution: each batch size begins it anew.
# https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#configuration-options
CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}


class OnnxBackend:
    """An onnxruntime session."""

    platform = "onnxruntime_onnx"

    def __init__(self, artifact: Artifact, threads: int) -> None:
        """Load the session.

        Raises:
            Failure: SignatureMismatch, the file's inputs or outputs are not those of the signature; ModelLoadFailed, a GPU was demanded
                that cannot be used.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A spinning pool burns the CPU quota of the lanes beside it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = str(artifact.directory / artifact.entry)
        wanted = providers(os.environ, onnxruntime.get_available_providers(), cuda_works)
        wants_gpu = len(wanted) > 1
        if wants_gpu:
            if TENSORRT in wanted:  # it has no option for TF32, and reads this when it is loaded: microsoft/onnxruntime#26029
                os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
            onnxruntime.preload_dlls()  # CUDA and cuDNN of the packages that torch brings
        self._session = onnxruntime.InferenceSession(path, options, providers=wanted)
        running = self._session.get_providers()
        is_on_gpu = CUDA in running
        if TENSORRT in wanted and TENSORRT not in running:
            message = f"{TENSORRT_VARIABLE} is true, and TensorRT does not load: see the log, and use an image that has it"
            raise Failure("ModelLoadFailed", message)
        if wants_gpu and not is_on_gpu:
            if os.environ.get(VARIABLE) == "cuda":
                raise Failure("ModelLoadFailed", f"{VARIABLE} is cuda, and onnxruntime cannot use it: see the log")
            log.warning("onnxruntime cannot use the GPU; the model runs on the CPU")
        self.lanes = LANES if is_on_gpu else 0
        self._outputs = [spec.name for spec in artifact.signature.outputs]
        _check_names("inputs", {node.name for node in self._session.get_inputs()}, {spec.name for spec in artifact.signature.inputs})
        missing = set(self._outputs) - {node.name for node in self._session.get_outputs()}
        if missing:
            raise Failure("SignatureMismatch", f"the ONNX file has no output {', '.join(sorted(missing))}")

    def infer(self, inputs: Tensors) -> Tensors:
        """Run the session."""
        return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Plain memory."""
        return np.empty(shape, dtype)

    def close(self) -> None:
        """Drop the session."""
        del self._session


def providers(environment: Mapping[str, str], available: Sequence[str], has_gpu: Callable[[], bool]) -> list[Any]:
    """What a session runs on, the first that can run a node: CUDA where this build of onnxruntime has it and the pod a GPU, and the CPU.

    TensorRT comes first where it is asked for: it compiles for minutes when a model is loaded.

    Args:
        environment: SLIPWAY_DEVICE, as for `wanted_device`; SLIPWAY_ONNX_TENSORRT is `true` for TensorRT.
        available: the providers of this build.
        has_gpu: whether CUDA works here; not asked where nothing depends on it.

    Raises:
        Failure: as `wanted_device`; ModelLoadFailed when `cuda`, or TensorRT, is demanded where it is not.
    """
    if CUDA not in available and environment.get(VARIABLE) == "cuda":
        raise Failure("ModelLoadFailed", f"{VARIABLE} is cuda, and this image has onnxruntime's CPU build; use slipway-runtime-torch")
    device = wanted_device(environment, lambda: CUDA in available and has_gpu())
    wants_tensorrt = environment.get(TENSORRT_VARIABLE, "").lower() == "true"
    if wants_tensorrt and (device == "cpu" or TENSORRT not in available):
        message = f"{TENSORRT_VARIABLE} is true, and this pod has no CUDA GPU, or its image onnxruntime's CPU build; set spec.accelerator"
        raise Failure("ModelLoadFailed", message)
    return [*([TENSORRT] if wants_tensorrt else []), (CUDA, dict(CUDA_OPTIONS)), CPU] if device == "cuda" else [CPU]


def _check_names(what: str, found: set[str], wanted: set[str]) -> None:
    if found != wanted:
        raise Failure("SignatureMismatch", f"the ONNX file has the {what} {sorted(found)}, the signature has {sorted(wanted)}")
