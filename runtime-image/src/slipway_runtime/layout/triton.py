"""Triton's model repository: `<model>/config.pbtxt`, `labels.txt` beside it, and `<model>/1/` with the files of the artifact.

https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
https://github.com/triton-inference-server/pytorch_backend (TorchScript: naming of tensors; torch_aoti: AOTInductor packages, from 26.03)
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slipway_runtime.artifact import Artifact, Signature, TensorSpec, takes_batches
from slipway_runtime.layout import Place, link, model_files
from slipway_runtime.reasons import Failure
from slipway_runtime.serve.tensors import DATATYPES

log = logging.getLogger("slipway")

_LABELS = "labels.txt"
_INDEXED = re.compile(r"__(\d+)")


@dataclass(frozen=True, slots=True)
class _Kind:
    """How Triton loads a format.

    Attributes:
        backend: the backend's name.
        platform: what of the backend, "" when it has one kind of model only.
        file: the name that it looks for.
        threads: the parameter for the threads of a call.
    """

    backend: str
    platform: str
    file: str
    threads: str


_KINDS = {
    "ONNX": _Kind("onnxruntime", "", "model.onnx", "intra_op_thread_count"),
    "TorchScript": _Kind("pytorch", "pytorch_libtorch", "model.pt", "INTRA_OP_THREAD_COUNT"),
    "AOTInductor": _Kind("pytorch", "torch_aoti", "model.pt2", "INTRA_OP_THREAD_COUNT"),
}


def write(artifact: Artifact, folder: Path, place: Place) -> None:
    """Fill a model repository with one model.

    Raises:
        Failure: as `config`.
    """
    place = replace(place, labels=artifact.labels if place.labels is None else place.labels)
    text = config(artifact.format, artifact.entry, artifact.signature, place)
    model = folder / place.model_name
    for path in model_files(artifact):
        link(artifact.directory / path, model / "1" / path)
    (model / "config.pbtxt").write_text(text)
    if place.labels:
        (model / _LABELS).write_text("".join(f"{' '.join(label.split())}\n" for label in place.labels))  # one a line


def config(fmt: str, entry: str, signature: Signature, place: Place) -> str:
    """Return config.pbtxt, in protobuf's text format.

    With batching, Triton adds the first dimension itself and refuses requests of more than `max_batch_size` rows; without, all dimensions
    stand in `dims` and a request may have any number of rows, as in our own server. Class names go with any output, as there.

    Args:
        fmt: format of the artifact.
        entry: path of the model's file in it.
        signature: its tensors.
        place: the name, batching, class names, and what the server runs on.

    Raises:
        Failure: InvalidArguments for a format that Triton does not load, a type that it does not have, or names that it would misread.
    """
    kind = _KINDS.get(fmt)
    if kind is None:
        raise Failure(
            "InvalidArguments", f"layout Triton has no place for {fmt}; it takes {', '.join(_KINDS)}. Choose another ServingRuntime"
        )
    if fmt == "TorchScript":
        _check_names(signature)
    is_batched = place.max_batch > 1 and takes_batches(signature)
    if place.max_batch > 1 and not is_batched:
        log.warning("no batching: the tensors of the signature do not all begin with the same named dimension")
    return "\n".join([*_lines(kind, entry, _named(fmt, signature), place, is_batched=is_batched), ""])


def _lines(kind: _Kind, entry: str, signature: Signature, place: Place, *, is_batched: bool) -> Iterator[str]:
    yield f"name: {_quoted(place.model_name)}"
    yield f"backend: {_quoted(kind.backend)}"
    if kind.platform:
        yield f"platform: {_quoted(kind.platform)}"
    if entry != kind.file:
        yield f"default_model_filename: {_quoted(entry)}"
    yield f"max_batch_size: {place.max_batch if is_batched else 0}"
    yield f"input [{_tensors(signature.inputs, is_batched=is_batched)}]"
    named = f" label_filename: {_quoted(_LABELS)}" if place.labels else ""
    yield f"output [{_tensors(signature.outputs, named, is_batched=is_batched)}]"
    yield f"instance_group [{{ kind: {'KIND_GPU' if place.has_gpu else 'KIND_CPU'} count: 1 }}]"
    if is_batched:
        yield f"dynamic_batching {{ max_queue_delay_microseconds: {round(place.max_delay * 1e6)} }}"
    if not place.has_gpu:  # else one thread a core of the node, whatever the limit of the pod
        yield f"parameters {{ key: {_quoted(kind.threads)} value: {{ string_value: {_quoted(str(place.threads))} }} }}"


def _tensors(specs: Sequence[TensorSpec], more: str = "", *, is_batched: bool) -> str:
    return ", ".join(_tensor(spec, spec.shape[1:] if is_batched else spec.shape, more) for spec in specs)


def _tensor(spec: TensorSpec, shape: Iterable[int | str], more: str) -> str:
    datatype = DATATYPES.get(spec.dtype)
    if datatype is None:
        raise Failure("InvalidArguments", f"tensor {spec.name}: Triton has no type for {spec.dtype}")
    dims = [dim if isinstance(dim, int) else -1 for dim in shape]
    # Triton wants at least one dimension; `reshape` says that the model has none.
    empty = "" if dims else " reshape { shape: [] }"
    return (
        f"{{ name: {_quoted(spec.name)} data_type: TYPE_{'STRING' if datatype == 'BYTES' else datatype} "
        f"dims: [{', '.join(map(str, dims or [1]))}]{empty}{more} }}"
    )


def _named(fmt: str, signature: Signature) -> Signature:
    """Return the signature with the names that Triton knows tensors by: an AOTInductor package has positions only."""
    if fmt != "AOTInductor":
        return signature
    sides = (("INPUT", signature.inputs), ("OUTPUT", signature.outputs))
    return Signature(*(tuple(TensorSpec(f"{side}__{n}", spec.dtype, spec.shape) for n, spec in enumerate(specs)) for side, specs in sides))


def _check_names(signature: Signature) -> None:
    """Refuse a name whose `__<n>` says another position than it has: the backend would go by the name."""
    for specs in (signature.inputs, signature.outputs):
        for position, spec in enumerate(specs):
            said = _INDEXED.search(spec.name)
            if said and int(said[1]) != position:
                raise Failure(
                    "InvalidArguments",
                    f"tensor {spec.name}: Triton reads __{said[1]} as the position, which is {position}; choose another name",
                )


def _quoted(text: str) -> str:
    """Return a string of protobuf's text format, which knows JSON's escapes."""
    return json.dumps(text, ensure_ascii=False)
