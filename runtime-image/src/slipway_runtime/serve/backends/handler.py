"""The handler of an archive of TorchServe: rows of requests to answers; tensors of the protocol are put into rows and back.

A tensor of one input becomes rows `{"data": …}`, one a sample, with the sample as JSON has it (nested lists); several inputs become rows
with their names. Text that is a JSON object or list is given parsed, other text as it is (images: base64, as TorchServe takes them).
Answers become the output tensor; with several outputs an answer is an object of their names; text outputs are JSON.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from slipway_runtime.artifact import Artifact, Signature, TensorSpec
from slipway_runtime.handler import Answer, HandlerError, Row, answer_text, load_handler
from slipway_runtime.serve.cgroup import cpu_limit
from slipway_runtime.serve.messages import HttpError
from slipway_runtime.serve.tensors import DTYPES, Tensors

ROWS = "rows"  # rows as a client of TorchServe sent them, instead of the inputs of the signature
HEADERS = "headers"
ANSWERS = "answers"
# Of a handler without a declared signature: text in, JSON out, so that clients of the protocol reach every handler.
TEXT = Signature((TensorSpec("data", "string", ("batch",)),), (TensorSpec("answer", "string", ("batch",)),))


class HandlerBackend:
    """A handler; one call at a time, as in a worker of TorchServe, with all of the pod's CPUs."""

    platform = "torchserve_handler"
    lanes = 0

    def __init__(self, artifact: Artifact) -> None:
        """Import and initialize the handler; raises Failure as `load_handler` does."""
        torch.set_num_threads(cpu_limit())
        self._handler = load_handler(artifact.directory)
        self._signature = artifact.signature
        self._lock = threading.Lock()

    def infer(self, inputs: Tensors) -> Tensors:
        """Ask the handler: rows of TorchServe's API give `ANSWERS`, tensors of the signature its outputs.

        Raises:
            HttpError: the handler's own error, with the status that it chose.
        """
        try:
            if ROWS in inputs:
                return {ANSWERS: objects(self._called(list(inputs[ROWS]), list(inputs[HEADERS])))}
            return outputs_of(self._called(rows_of(inputs, self._signature), None), self._signature)
        except HandlerError as error:
            raise HttpError(error.status, f"the handler failed: {error}"[:500]) from error

    def _called(self, rows: list[Row], headers: Sequence[Mapping[str, str]] | None) -> list[Answer]:
        with self._lock:
            return self._handler.call(rows, headers)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Plain memory."""
        return np.empty(shape, dtype)

    def close(self) -> None:
        """Drop the handler."""
        del self._handler


def objects(values: Sequence[Any]) -> np.ndarray:
    """A one-dimensional array of Python objects, whatever they are."""
    array = np.empty(len(values), dtype=object)
    array[:] = list(values)
    return array


def rows_of(inputs: Tensors, signature: Signature) -> list[Row]:
    """Put tensors into rows, one a sample."""
    specs = signature.inputs
    name = "data" if len(specs) == 1 else ""
    count = len(inputs[specs[0].name])
    columns = {name or spec.name: [_plain(value) for value in inputs[spec.name]] for spec in specs}
    return [{key: column[row] for key, column in columns.items()} for row in range(count)]


def _plain(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return str(value)
    return value.tolist() if isinstance(value, np.ndarray) else value.item() if isinstance(value, np.generic) else value


def outputs_of(answers: Sequence[Answer], signature: Signature) -> Tensors:
    """Put answers into tensors.

    Raises:
        HandlerError: an answer is an error by its status, lacks an output, or is not what the output holds.
    """
    for answer in answers:
        if answer.told.get_response_status_code() >= 400:
            raise HandlerError(str(answer.value)[:400], answer.told.get_response_status_code())
    specs = signature.outputs
    values = [answer.value for answer in answers]
    if len(specs) == 1:
        return {specs[0].name: _tensor(values, specs[0])}
    for value in values:
        if not isinstance(value, dict) or any(spec.name not in value for spec in specs):
            wanted = ", ".join(spec.name for spec in specs)
            raise HandlerError(f"an answer of the handler is {str(value)[:100]!r}, the signature wants an object of {wanted}")
    return {spec.name: _tensor([value[spec.name] for value in values], spec) for spec in specs}


def _tensor(values: list[Any], spec: TensorSpec) -> np.ndarray:
    if spec.dtype == "string":
        return objects([answer_text(value) for value in values])
    try:
        return np.array(values, dtype=DTYPES[spec.dtype])
    except (ValueError, TypeError, OverflowError) as error:
        raise HandlerError(f"the answers of the handler are no {spec.dtype} for {spec.name}: {error}"[:300]) from error
