"""Tensors and the signature: data types, conversion from JSON lists, and shape checks. Pure functions on numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from slipway_runtime.artifact import TensorSpec
from slipway_runtime.serve.messages import BadRequest

Array = npt.NDArray[Any]
Tensors = dict[str, Array]

# Signature dtype -> Open Inference Protocol name.
DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}

# By type character, because `dtype.name` is computed in Python at every call; int64 has two characters on Linux.
_BY_CHARACTER = {np.dtype(name).char: datatype for name, datatype in DATATYPES.items()} | {"q": "INT64", "Q": "UINT64"}
_DTYPES = {name: np.dtype(name) for name in DATATYPES}

# The kinds of numpy array (of the JSON data) that each kind of tensor accepts without losing what the client meant.
_ACCEPTED = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}
_KINDS = {"b": "booleans", "u": "integers", "i": "integers", "f": "numbers"}


def datatype_of(array: Array) -> str:
    """The protocol's name for an array's dtype; raises KeyError for one the protocol does not have."""
    return _BY_CHARACTER[array.dtype.char]


def wire_shape(spec: TensorSpec) -> list[int]:
    """The shape as the protocol's metadata has it: named (dynamic) dims are -1."""
    return [dim if isinstance(dim, int) else -1 for dim in spec.shape]


def describe(spec: TensorSpec) -> str:
    """`FP32 [batch, 1, 8, 8]`, for messages."""
    return f"{DATATYPES.get(spec.dtype, spec.dtype)} [{', '.join(map(str, spec.shape))}]"


def array_of(name: str, data: object, dtype: str) -> Array:
    """Convert JSON lists (flat or nested) to an array.

    Args:
        name: the tensor, for messages.
        data: lists of numbers or booleans, or one number; null means NaN in a float tensor.
        dtype: numpy name of the wanted type.

    Raises:
        BadRequest: ragged lists, strings, fractions for integers, or numbers that the type cannot hold.
    """
    target = _DTYPES[dtype]
    try:
        raw = np.array(data)
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"input '{name}': the nested lists are ragged or not numeric") from error
    if raw.dtype == object and target.kind == "f":
        raw = _with_nulls(name, data)
    if raw.size and raw.dtype.kind not in _ACCEPTED[target.kind]:
        raise BadRequest(f"input '{name}': expected {_KINDS[target.kind]} for {DATATYPES[target.name]}, got other values")
    return _cast(name, raw, target)


def _with_nulls(name: str, data: object) -> Array:
    try:
        return np.array(data, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRequest(f"input '{name}': the data must be numbers (null for NaN)") from error


def _cast(name: str, raw: Array, target: np.dtype[Any]) -> Array:
    if target.kind in "iu" and raw.size:
        limits = np.iinfo(target)
        if int(raw.min()) < limits.min or int(raw.max()) > limits.max:
            raise BadRequest(f"input '{name}': expected values of {target.name} from {limits.min} to {limits.max}, got one outside")
    try:
        with np.errstate(over="raise"):
            return raw.astype(target)
    except FloatingPointError as error:
        raise BadRequest(f"input '{name}': a value is too large for {target.name}") from error


def reshaped(name: str, array: Array, shape: object) -> Array:
    """Give flat data its declared shape; nested data must have it already.

    Raises:
        BadRequest: `shape` is no list of positive integers, or the number of values differs.
    """
    if not isinstance(shape, list) or not all(type(dim) is int and dim > 0 for dim in shape):
        raise BadRequest(f"input '{name}': 'shape' must be a list of positive integers, got {shape!r}"[:300])
    if array.ndim > 1 and list(array.shape) != shape:
        raise BadRequest(f"input '{name}': declared shape {shape}, but the data are nested as {list(array.shape)}")
    wanted = 1
    for dim in shape:
        wanted *= dim
    if array.size != wanted:
        raise BadRequest(f"input '{name}': shape {shape} needs {wanted} values, got {array.size}")
    return array.reshape(shape)


def check_inputs(tensors: Mapping[str, Array], specs: Sequence[TensorSpec]) -> None:
    """Check names and shapes against the signature; a named dim must have one size everywhere.

    Raises:
        BadRequest: names the tensor, what was expected and what came.
    """
    if len(tensors) > len(specs) or not all(spec.name in tensors for spec in specs):
        _check_names(tensors, specs)
    sizes: dict[str, int] = {}
    for spec in specs:
        check_shape(spec, tensors[spec.name].shape, sizes)


def _check_names(tensors: Mapping[str, Array], specs: Sequence[TensorSpec]) -> None:
    unknown = tensors.keys() - {spec.name for spec in specs}
    if unknown:
        raise BadRequest(f"unknown input '{min(unknown)}'; expected {', '.join(repr(spec.name) for spec in specs)}")
    missing = next(spec for spec in specs if spec.name not in tensors)
    raise BadRequest(f"input '{missing.name}' is missing; expected {describe(missing)}")


def check_shape(spec: TensorSpec, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    """Check one shape; `sizes` collects the sizes of the named dims seen so far.

    Raises:
        BadRequest: another rank, another fixed size, an empty dim, or a named dim of two sizes.
    """
    if len(shape) != len(spec.shape):
        raise BadRequest(f"input '{spec.name}': expected {describe(spec)}, got shape {list(shape)}")
    for position, (want, got) in enumerate(zip(spec.shape, shape, strict=True)):
        expected = sizes.setdefault(want, got) if isinstance(want, str) else want
        if got != expected or got == 0:
            size = "at least 1" if got == 0 else f"{want} = {expected}" if isinstance(want, str) else str(expected)
            raise BadRequest(
                f"input '{spec.name}': expected {describe(spec)}, got shape {list(shape)} (dimension {position} must be {size})"
            )
