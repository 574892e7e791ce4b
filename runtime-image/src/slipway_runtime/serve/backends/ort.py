"""onnxruntime on the CPU. One session serves all lanes: its `run` is thread-safe and releases the GIL."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime

from slipway_runtime.artifact import Artifact
from slipway_runtime.reasons import Failure
from slipway_runtime.serve.tensors import Array, Tensors


class OnnxBackend:
    """An onnxruntime session."""

    platform = "onnxruntime_onnx"
    lanes = 0

    def __init__(self, artifact: Artifact, threads: int) -> None:
        """Load the session.

        Raises:
            Failure: SignatureMismatch, the file's inputs or outputs are not those of the signature.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A spinning pool burns the CPU quota of the lanes beside it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = str(artifact.directory / artifact.entry)
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
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


def _check_names(what: str, found: set[str], wanted: set[str]) -> None:
    if found != wanted:
        raise Failure("SignatureMismatch", f"the ONNX file has the {what} {sorted(found)}, the signature has {sorted(wanted)}")
