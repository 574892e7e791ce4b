"""Tensors and the signature: data types, conversion from and to JSON lists and raw bytes, shape checks. Pure functions on numpy arrays.

bfloat16 is ml_dtypes' numpy type; `string` (the protocol's BYTES) is a numpy array of objects, each a str.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
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
    "bfloat16": "BF16",
    "string": "BYTES",
}

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else object if name == "string" else name) for name in DATATYPES
}
# By type character, because `dtype.name` is computed in Python at every call; int64 has two characters on Linux.
_BY_CHARACTER = {DTYPES[name].char: datatype for name, datatype in DATATYPES.items()}
_BY_CHARACTER |= {"q": "INT64", "Q": "UINT64", "U": "BYTES", "S": "BYTES"}
# Raw tensors are little-endian by the protocol, whatever this machine is.
_WIRE = {name: dtype.newbyteorder("<") if dtype.kind in "iuf" else dtype for name, dtype in DTYPES.items()}

# The kinds of numpy array (of the JSON data) that each kind of tensor accepts without losing what the client meant.
_ACCEPTED = {"b": "b", "u": "iu", "i": "iu", "f": "iuf", "V": "iuf"}
_KINDS = {"b": "booleans", "u": "integers", "i": "integers", "f": "numbers", "V": "numbers"}
_LENGTH = struct.Struct("<I")
_EXACT = 2**53
_FEW, _SAFE = 4096, float(np.finfo(np.float32).max) ** 2


def datatype_of(array: Array) -> str:
    """The protocol's name for an array's dtype; raises KeyError for one the protocol does not have."""
    return _BY_CHARACTER[array.dtype.char]


def has_nonfinite(tensors: Tensors) -> bool:
    """Whether a float tensor has NaN or infinite values."""
    for array in tensors.values():
        kind = array.dtype.kind
        if kind == "f" and array.itemsize > 2:
            # A third of the time of isfinite().all(): the squares sum to a finite number, or must be looked at one by one.
            flat = array.ravel()
            if flat.dot(flat) < math.inf:
                continue
        if kind in "fV" and not np.isfinite(array).all():  # V is bfloat16
            return True
    return False


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
    target = DTYPES[dtype]
    if target.kind == "O":
        return _strings(name, data)
    try:
        raw = np.array(data)
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"input '{name}': the nested lists are ragged or not numeric") from error
    kind = target.kind
    if kind == "f" and raw.dtype.char == "d" and target.itemsize >= 4:
        return _narrowed(name, raw, target)
    if kind in "fV" and raw.dtype == object:
        raw = _with_nulls(name, data)
    if kind in "iu" and raw.dtype.kind in ("f", "O"):
        raw = _whole(name, data, target)
    if raw.dtype.kind not in _ACCEPTED[kind] and raw.size:
        raise BadRequest(f"input '{name}': expected {_KINDS[kind]} for {DATATYPES[dtype]}, got other values")
    return _cast(name, raw, target)


def _narrowed(name: str, raw: Array, target: np.dtype[Any]) -> Array:
    """Cast to a float type; raises BadRequest where a number becomes infinite."""
    if raw.dtype.char == "d" and raw.ndim == 1 and raw.size <= _FEW and raw.dot(raw) <= _SAFE:
        # The squares sum to less than float32's largest squared, so that none is too large; errstate costs three times as much.
        return raw.astype(target)
    with np.errstate(over="raise"):
        try:
            return raw.astype(target)
        except FloatingPointError as error:
            raise BadRequest(f"input '{name}': a value is too large for {target.name}") from error


def _with_nulls(name: str, data: object) -> Array:
    try:
        return np.array(data, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRequest(f"input '{name}': the data must be numbers (null for NaN)") from error


def _whole(name: str, data: object, target: np.dtype[Any]) -> Array:
    """Integers that numpy took for floats: some were above 2^63 and some below, or they were written as 1.0.

    A float above 2^53 may be another integer than was meant: the parser reads those beyond 64 bits as floats.
    """
    exact = np.array(data, dtype=object)
    for value in exact.flat:
        if type(value) is not int and not (type(value) is float and value.is_integer() and abs(value) <= _EXACT):
            raise BadRequest(f"input '{name}': expected integers for {DATATYPES[target.name]}, got other values")
        if not np.iinfo(target).min <= value <= np.iinfo(target).max:
            raise BadRequest(_outside(name, target))
    return exact.astype(target)


def _outside(name: str, target: np.dtype[Any]) -> str:
    limits = np.iinfo(target)
    return f"input '{name}': expected values of {target.name} from {limits.min} to {limits.max}, got one outside"


def refuse_booleans(name: str, data: object, dtype: str) -> None:
    """Refuse true and false among numbers, which numpy would count as 1 and 0. Looks at each value.

    Raises:
        BadRequest: there is one.
    """
    if isinstance(data, list):
        for value in data:
            refuse_booleans(name, value, dtype)
    elif isinstance(data, bool):
        raise BadRequest(f"input '{name}': expected {_KINDS[DTYPES[dtype].kind]} for {DATATYPES[dtype]}, got true or false")


def _strings(name: str, data: object) -> Array:
    array = np.array(data if isinstance(data, list) else [data], dtype=object)
    for value in array.flat:
        if not isinstance(value, str):
            raise BadRequest(f"input '{name}': expected strings for BYTES, got other values (or ragged lists)")
    return array


def _cast(name: str, raw: Array, target: np.dtype[Any]) -> Array:
    if target.kind in "iu" and raw.size and (int(raw.min()) < np.iinfo(target).min or int(raw.max()) > np.iinfo(target).max):
        raise BadRequest(_outside(name, target))
    if target.kind == "V":
        with np.errstate(over="ignore"):
            cast = raw.astype(target)
        if np.isinf(cast.astype(np.float32)).any():
            raise BadRequest(f"input '{name}': a value is too large for {target.name}")
        return cast
    return _narrowed(name, raw, target)


def item_bytes(dtype: str) -> int:
    """Bytes of one element on the wire; 0 for `string`, whose elements differ."""
    return 0 if dtype == "string" else DTYPES[dtype].itemsize


def from_raw(name: str, raw: bytes | memoryview, dtype: str, shape: Sequence[int]) -> Array:
    """Read a raw tensor of the binary extension or of gRPC.

    Args:
        name: the tensor, for messages.
        raw: little-endian elements in row-major order; `string`: four bytes of length before each element.
        dtype: of the signature.
        shape: positive integers.

    Returns:
        A read-only view of `raw` where alignment and type allow it, else a copy.

    Raises:
        BadRequest: the number of bytes is not that of the shape, or an element is no UTF-8.
    """
    count = size_of(shape)
    if dtype == "string":
        return _raw_strings(name, bytes(raw), count).reshape(shape)
    wanted = count * DTYPES[dtype].itemsize
    if len(raw) != wanted:
        raise BadRequest(f"input '{name}': shape {list(shape)} of {DATATYPES[dtype]} needs {wanted} bytes, got {len(raw)}")
    if dtype == "bool":
        # Any byte but 0 is true; a numpy bool that holds another byte than 0 and 1 is undefined behaviour.
        booleans: Array = np.frombuffer(raw, np.uint8) != 0
        return booleans.reshape(shape)
    return np.frombuffer(raw, _WIRE[dtype]).astype(DTYPES[dtype], copy=False).reshape(shape)


def _raw_strings(name: str, raw: bytes, count: int) -> Array:
    # Four bytes at least for each: a shape that claims more would only make a large array first.
    if count * 4 > len(raw):
        raise BadRequest(f"input '{name}': {count} elements need at least {count * 4} bytes, got {len(raw)}")
    array, position = np.empty(count, dtype=object), 0
    try:
        for index in range(count):
            (length,) = _LENGTH.unpack_from(raw, position)
            position += 4 + length
            if position > len(raw):
                raise BadRequest(f"input '{name}': element {index} claims {length} bytes, more than there are")
            array[index] = raw[position - length : position].decode()
    except (struct.error, UnicodeDecodeError) as error:
        raise BadRequest(f"input '{name}': element {index} is damaged or no UTF-8: {error}") from error
    if position != len(raw):
        raise BadRequest(f"input '{name}': {len(raw) - position} bytes are left over after {count} elements")
    return array


def to_raw(array: Array) -> bytes:
    """Write an array as a raw tensor: little-endian, row-major."""
    if array.dtype.kind in "OUS":
        return b"".join(_LENGTH.pack(len(value)) + value for value in map(_encoded, array.flat))
    return array.tobytes()


def _encoded(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def to_json(array: Array) -> Any:
    """An array as orjson takes it: flat and contiguous, or a list of strings."""
    kind = array.dtype.kind
    if kind in "OUS":
        return [value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value) for value in array.flat]
    # ravel copies only when the array is not contiguous, which orjson requires.
    return array.astype(np.float32).ravel() if kind == "V" else array.ravel()


def to_lists(array: Array) -> Any:
    """An array as nested lists of what JSON has."""
    if array.dtype.kind in "OUS":
        return _texts(array.tolist())
    return (array.astype(np.float32) if array.dtype.kind == "V" else array).tolist()


def _texts(value: Any) -> Any:
    if isinstance(value, list):
        return [_texts(one) for one in value]
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


def rows_of(inputs: Tensors) -> int:
    """Size of the batch dimension: the first of the first input; 1 for a scalar."""
    for array in inputs.values():
        return array.shape[0] if array.ndim else 1
    return 1


def size_of(shape: Sequence[int]) -> int:
    """Number of elements."""
    count = 1
    for dim in shape:
        count *= dim
    return count


def checked_shape(name: str, shape: object) -> list[int]:
    """Return a shape of positive integers; raises BadRequest for anything else."""
    if not isinstance(shape, list) or not all(type(dim) is int and dim > 0 for dim in shape):
        raise BadRequest(f"input '{name}': 'shape' must be a list of positive integers, got {shape!r}"[:300])
    return shape


def reshaped(name: str, array: Array, shape: object) -> Array:
    """Give flat data its declared shape; nested data must have it already.

    Raises:
        BadRequest: `shape` is no list of positive integers, or the number of values differs.
    """
    shape = checked_shape(name, shape)
    if array.ndim > 1 and list(array.shape) != shape:
        raise BadRequest(f"input '{name}': declared shape {shape}, but the data are nested as {list(array.shape)}")
    wanted = size_of(shape)
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
