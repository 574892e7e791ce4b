"""The inputs that reference and candidates are both asked: the user's data, or seeded random ones. A list of batches on disk.

Random values, when there is no data: floats are standard normal; integers are 0 or 1, which every embedding table accepts; uint8 is
0..255 as pixels are. Named dims other than the batch get two sizes, and batches the sizes 1, then 16, so that a dim that was frozen
during export shows.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slipway_runtime.artifact import Signature, TensorSpec
from slipway_runtime.reasons import Failure

Array = npt.NDArray[Any]
Batch = dict[str, Array]

DEFAULT_SAMPLES = 64
_BATCH = 16
_SIZES = (32, 48)
_SEED = 20240229
LABELS = "labels"


@dataclass(frozen=True, slots=True)
class Samples:
    """Batches of inputs, and the class of each sample in the order of the batches, when known."""

    batches: list[Batch]
    labels: npt.NDArray[np.int64] | None = None


def with_texts(outputs: Mapping[str, Array]) -> Batch:
    """Return outputs with arrays of Python strings as arrays of numpy's, which can be written and compared."""
    return {name: array.astype(np.str_) if array.dtype == object else array for name, array in outputs.items()}


def random_samples(signature: Signature, count: int) -> Samples:
    """Return seeded random inputs for a signature, the same on every machine.

    Args:
        signature: names, dtypes and shapes.
        count: samples in all; at least one batch of each size is made.
    """
    generator = np.random.default_rng(_SEED)
    batches = []
    for number, size in enumerate(_batch_sizes(batch_size(signature), count)):
        dims = {name: _SIZES[number % len(_SIZES)] for name in _names(signature)} | {batch_name(signature): size}
        batches.append(
            {spec.name: _random(spec, [dims[d] if isinstance(d, str) else d for d in spec.shape], generator) for spec in signature.inputs}
        )
    return Samples(batches)


def data_samples(path: Path, signature: Signature, count: int) -> Samples:
    """Read inputs (and labels) from an npz, arrays named like the inputs, samples along the first axis.

    Raises:
        Failure: ValidationFailed when the file is damaged, or an array is absent or does not fit the signature.
    """
    arrays = read_npz(path)
    first = signature.inputs[0].name
    rows = {spec.name: _fitted(arrays, spec, path.name) for spec in signature.inputs}
    total = min(len(rows[first]), count)
    labels = arrays.get(LABELS) if LABELS not in rows else None
    if labels is not None and (labels.ndim != 1 or len(labels) < total or labels.dtype.kind not in "iu"):
        raise Failure("ValidationFailed", f"{path.name}: labels must be one integer a sample, got {labels.dtype} {list(labels.shape)}")
    batches, start = [], 0
    for size in _batch_sizes(batch_size(signature), total):
        stop = start + size
        if stop > len(rows[first]):
            break
        batches.append(
            {spec.name: rows[spec.name][start:stop] if is_batched(spec, signature) else rows[spec.name] for spec in signature.inputs}
        )
        start = stop
    if not batches:
        raise Failure("ValidationFailed", f"{path.name} holds {len(rows[first])} samples, less than one batch of the signature")
    return Samples(batches, None if labels is None else labels[:start].astype(np.int64))


def batch_name(signature: Signature) -> str:
    """Return the name of the batch dim, or an empty string when it is a fixed number."""
    shape = signature.inputs[0].shape
    return shape[0] if shape and isinstance(shape[0], str) else ""


def batch_size(signature: Signature) -> int | None:
    """Return the fixed size of a batch, None when it is dynamic."""
    shape = signature.inputs[0].shape
    return shape[0] if shape and isinstance(shape[0], int) else None if shape else 1


def is_batched(spec: TensorSpec, signature: Signature) -> bool:
    """Say whether an input's first axis runs over samples."""
    return bool(spec.shape) and spec.shape[0] == signature.inputs[0].shape[0]


def write_batches(path: Path, batches: list[Batch]) -> None:
    """Write batches to one npz: `0007.image` is the array `image` of batch 7."""
    np.savez(path, **{f"{number:04d}.{name}": array for number, batch in enumerate(batches) for name, array in batch.items()})  # type: ignore[arg-type]


def read_batches(path: Path) -> list[Batch]:
    """Read what `write_batches` wrote."""
    found: dict[int, Batch] = {}
    for key, array in read_npz(path).items():
        number, _, name = key.partition(".")
        found.setdefault(int(number), {})[name] = array
    return [found[number] for number in sorted(found)]


def read_npz(path: Path) -> dict[str, Array]:
    """Read an npz without unpickling anything.

    Raises:
        Failure: ValidationFailed when it is damaged or holds objects.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise Failure("ValidationFailed", f"{path.name} is one array, not an npz")
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise Failure("ValidationFailed", f"{path.name} cannot be read: {error}") from error


def check_outputs(outputs: Mapping[str, Array], inputs: Mapping[str, Array], signature: Signature) -> None:
    """Compare dtypes and shapes with what the signature declares.

    Raises:
        Failure: SignatureMismatch, with both sides.
    """
    dims: dict[str, int] = {}
    sides = [(spec, inputs[spec.name]) for spec in signature.inputs] + [(spec, outputs[spec.name]) for spec in signature.outputs]
    for spec, array in sides:
        if ("string" if array.dtype.kind in "OUS" else array.dtype.name) != spec.dtype or not _fits(array.shape, spec.shape, dims):
            got = f"{array.dtype.name} {list(array.shape)}"
            known = ", ".join(f"{name}={size}" for name, size in dims.items())
            raise Failure("SignatureMismatch", f"{spec.name} is {got}, the signature says {shown(spec)} (with {known})")


def check_finite(outputs: Mapping[str, Array], who: str, number: int) -> None:
    """Look for NaN and infinity.

    Raises:
        Failure: NonFiniteOutputs, with output, batch and how many.
    """
    for name, array in outputs.items():
        bad = 0 if array.dtype.kind not in "fc" else int(np.size(array) - np.count_nonzero(np.isfinite(array)))
        if bad:
            raise Failure("NonFiniteOutputs", f"{who} gives NaN or infinity: {bad} of {array.size} values of {name} in batch {number}")


def shown(spec: TensorSpec) -> str:
    """Return `float32 [batch, 10]`, for messages."""
    return f"{spec.dtype} [{', '.join(map(str, spec.shape))}]"


def _fits(got: tuple[int, ...], want: tuple[int | str, ...], dims: dict[str, int]) -> bool:
    if len(got) != len(want):
        return False
    return all(size == (dims.setdefault(dim, size) if isinstance(dim, str) else dim) for size, dim in zip(got, want, strict=True))


def _fitted(arrays: Mapping[str, Array], spec: TensorSpec, name: str) -> Array:
    if spec.name not in arrays:
        raise Failure("ValidationFailed", f"{name} has no array {spec.name!r}; it has {', '.join(sorted(arrays)) or 'none'}")
    array = arrays[spec.name]
    if spec.dtype == "string":
        if array.dtype.kind not in "US" or array.ndim != len(spec.shape):
            raise Failure("ValidationFailed", f"{name}: {spec.name} must be text, {shown(spec)}, got {array.dtype} {list(array.shape)}")
        return array
    fits = array.ndim == len(spec.shape) and all(
        isinstance(d, str) or d == s for d, s in zip(spec.shape[1:], array.shape[1:], strict=False)
    )
    if not fits or not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        raise Failure("ValidationFailed", f"{name}: {spec.name} is {array.dtype} {list(array.shape)}, the signature says {shown(spec)}")
    return array.astype(spec.dtype)


def _names(signature: Signature) -> list[str]:
    return [dim for spec in signature.inputs for dim in spec.shape if isinstance(dim, str)]


def _batch_sizes(fixed: int | None, count: int) -> Iterator[int]:
    left = count
    size = fixed or 1
    while left > 0:
        yield size
        left -= size
        size = fixed or max(min(_BATCH, left), 1)
    if fixed is None and count == 1:
        yield 2  # a second size, so that a frozen batch dim shows


def _random(spec: TensorSpec, shape: list[int], generator: np.random.Generator) -> Array:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return np.asarray(generator.standard_normal(shape)).astype(dtype)
    return np.asarray(generator.integers(0, 256 if dtype == np.uint8 else 2, size=shape)).astype(dtype)
