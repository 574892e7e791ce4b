"""The messages of ModelInfer: bytes to arrays, arrays to bytes. Knows the signature, not the model.

As over HTTP (`protocol`), what a client sends again and again around its numbers is worked out once: a request whose bytes before its
raw tensors are known costs a comparison and a view, and an answer is its known beginning and the raw outputs behind it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from slipway_runtime.serve import oip
from slipway_runtime.serve.messages import BadRequest
from slipway_runtime.serve.protocol import MAX_PLAN_BYTES, MAX_PLANS, Codec, InferRequest, Output, classification
from slipway_runtime.serve.tensors import (
    DATATYPES,
    DTYPES,
    Array,
    Tensors,
    array_of,
    check_inputs,
    checked_shape,
    datatype_of,
    from_raw,
    reshaped,
    to_raw,
)

_RAW_INPUT = b"\x3a"  # field 7, raw_input_contents of ModelInferRequest: its last one, and so the last in the bytes
_RAW_OUTPUT = b"\x32"  # field 6, raw_output_contents of ModelInferResponse
_STREAMED = b"\x12"  # field 2, infer_response of ModelStreamInferResponse
_ID = b"\x1a"  # field 3 of both
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@dataclass(frozen=True, slots=True)
class _View:
    """A raw tensor of a plan: the bytes before it that must be the same, and where it lies."""

    name: str
    dtype: str
    shape: list[int]
    before: bytes
    start: int
    end: int

    def raw(self, data: bytes) -> bytes | memoryview:
        """Its bytes in a request; a copy only where they are not aligned for their type."""
        is_aligned = self.start % DTYPES[self.dtype].itemsize == 0
        return memoryview(data)[self.start : self.end] if is_aligned else data[self.start : self.end]


@dataclass(frozen=True, slots=True)
class _Plan:
    """A request without its numbers."""

    views: tuple[_View, ...]
    outputs: list[Output]
    timeout: float
    priority: int

    def read(self, data: bytes) -> InferRequest | None:
        """The request with the numbers in `data`, which is as long as the one that this was made of; None when it is another one."""
        inputs, position = {}, 0
        for view in self.views:
            if not data.startswith(view.before, position):
                return None
            inputs[view.name] = from_raw(view.name, view.raw(data), view.dtype, view.shape)
            position = view.end
        return InferRequest(inputs, self.outputs, None, self.timeout, self.priority)


class RpcCodec:
    """Decodes and encodes for one model."""

    def __init__(self, codec: Codec) -> None:
        """Make it.

        Args:
            codec: the signature, and the names in answers.
        """
        self._codec = codec
        self._specs = {spec.name: spec for spec in codec.signature.inputs}
        self._request, self._response = oip.message("ModelInferRequest"), oip.message("ModelInferResponse")
        self._plans: dict[int, list[_Plan]] = {}
        self._heads: dict[tuple[object, ...], bytes] = {}

    def parse(self, data: bytes) -> Any:
        """The message.

        Raises:
            BadRequest: it is none.
        """
        try:
            return self._request.FromString(data)
        except DecodeError as error:
            raise BadRequest(f"the message is no ModelInferRequest: {error}") from error

    # --- decode ---------------------------------------------------------------------------------------------------

    def known(self, data: bytes) -> InferRequest | None:
        """What a request means whose like has been decoded, name and version of the model included; None when it has not."""
        for plan in self._plans.get(len(data), ()):
            asked = plan.read(data)
            if asked is not None:
                return asked
        return None

    def decode(self, data: bytes, request: Any) -> InferRequest:
        """Decode and check a ModelInferRequest that has been parsed from `data`; tensors come raw, or each in its contents.

        Raises:
            BadRequest: names the tensor, what was expected and what came.
        """
        raws, tensors = request.raw_input_contents, {}
        if raws and len(raws) != len(request.inputs):
            raise BadRequest(f"raw_input_contents has {len(raws)} entries for {len(request.inputs)} inputs; give one for each")
        for index, item in enumerate(request.inputs):
            spec = self._specs.get(item.name)
            if spec is None or item.name in tensors:
                problem = "unknown input" if spec is None else "given twice: input"
                raise BadRequest(f"{problem} '{item.name}'; expected {', '.join(map(repr, self._specs))}")
            if item.datatype != DATATYPES[spec.dtype]:
                raise BadRequest(f"input '{item.name}': expected datatype {DATATYPES[spec.dtype]}, got '{item.datatype}'")
            shape = checked_shape(item.name, list(item.shape))
            if "shared_memory_region" in item.parameters:
                raise BadRequest(f"input '{item.name}': shared memory is not supported; send the tensor in the request")
            tensors[item.name] = from_raw(item.name, raws[index], spec.dtype, shape) if raws else _contents(item, spec.dtype, shape)
        check_inputs(tensors, self._codec.signature.inputs)
        timeout, priority = (_whole(request.parameters, name) for name in ("timeout", "priority"))
        asked = InferRequest(tensors, self._wanted(request, is_raw=bool(raws)), request.id or None, timeout / 1e6, priority)
        if raws and asked.id is None:
            self._keep(data, asked)
        return asked

    def _keep(self, data: bytes, asked: InferRequest) -> None:
        """Make a plan, if the raw tensors are the last bytes of the message, as every library for protobuf writes them."""
        views: list[_View] = []
        end = len(data)
        for name, array in reversed(asked.inputs.items()):
            dtype = self._specs[name].dtype
            if dtype == "string":
                return  # its length is not that of its shape
            size = math.prod(array.shape) * DTYPES[dtype].itemsize
            before = _RAW_INPUT + _varint(size)
            start = end - size
            if start < len(before) or data[start - len(before) : start] != before:
                return
            views.append(_View(name, dtype, list(array.shape), before, start, end))
            end = start - len(before)
        if end > MAX_PLAN_BYTES or not self._is_whole(data[:end]):
            return
        first = views.pop()
        views.append(_View(first.name, first.dtype, first.shape, data[: first.start], first.start, first.end))
        if sum(map(len, self._plans.values())) >= MAX_PLANS:
            self._plans.clear()
        plan = _Plan(tuple(reversed(views)), list(asked.outputs), asked.timeout, asked.priority)
        self._plans.setdefault(len(data), []).insert(0, plan)

    def _is_whole(self, head: bytes) -> bool:
        """Whether a field ends here, and none before was a raw tensor: only then the bytes behind it can mean nothing else."""
        try:
            return not self._request.FromString(head).raw_input_contents
        except DecodeError:
            return False

    def _wanted(self, request: Any, *, is_raw: bool) -> list[Output]:
        names = [spec.name for spec in self._codec.signature.outputs]
        if not request.outputs:
            return [Output(name, is_raw) for name in names]
        for item in request.outputs:
            if item.name not in names:
                raise BadRequest(f"unknown output '{item.name}'; this model has {', '.join(map(repr, names))}")
            if "shared_memory_region" in item.parameters:
                raise BadRequest(f"output '{item.name}': shared memory is not supported; take the tensor in the answer")
        return [Output(item.name, is_raw, _whole(item.parameters, "classification")) for item in request.outputs]

    # --- encode ---------------------------------------------------------------------------------------------------

    def encode(self, asked: InferRequest, outputs: Tensors) -> bytes:
        """Make the ModelInferResponse: raw where the request was (or a type has no contents), else in contents."""
        codec = self._codec
        arrays = [
            classification(outputs[output.name], output.classes, codec.labels) if output.classes else outputs[output.name]
            for output in asked.outputs
        ]
        if all(output.binary for output in asked.outputs) or any(datatype_of(array) not in _CONTENTS for array in arrays):
            return self._raw(asked, arrays)
        response = self._response(model_name=codec.model, model_version=codec.revision, id=asked.id or "")
        for output, array in zip(asked.outputs, arrays, strict=True):
            values = array.ravel().tolist()
            if array.dtype.kind in "OUS":
                values = [value if isinstance(value, bytes) else str(value).encode() for value in values]
            datatype = datatype_of(array)
            tensor = response.outputs.add(name=output.name, datatype=datatype, shape=array.shape)
            getattr(tensor.contents, _CONTENTS[datatype]).extend(values)
        serialized: bytes = response.SerializeToString()
        return serialized

    def _raw(self, asked: InferRequest, arrays: list[Array]) -> bytes:
        """The known beginning, the id and the raw outputs: fields may come in any order, and pieces of a message joined are one."""
        parts = [self._head(asked, arrays)]
        if asked.id is not None:
            encoded = asked.id.encode()
            parts += _ID, _varint(len(encoded)), encoded
        for array in arrays:
            raw = to_raw(array)
            parts += _RAW_OUTPUT, _varint(len(raw)), raw
        return b"".join(parts)

    def _head(self, asked: InferRequest, arrays: list[Array]) -> bytes:
        key = tuple((output.name, array.shape, array.dtype.char) for output, array in zip(asked.outputs, arrays, strict=True))
        head = self._heads.get(key)
        if head is None:
            response = self._response(model_name=self._codec.model, model_version=self._codec.revision)
            for output, array in zip(asked.outputs, arrays, strict=True):
                response.outputs.add(name=output.name, datatype=datatype_of(array), shape=array.shape)
            head = response.SerializeToString()
            if len(self._heads) >= MAX_PLANS:
                self._heads.clear()
            self._heads[key] = head
        return head


def streamed(response: bytes) -> bytes:
    """A ModelStreamInferResponse with a ModelInferResponse in it."""
    return _STREAMED + _varint(len(response)) + response


def _varint(number: int) -> bytes:
    """A length as protobuf writes it."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _contents(item: Any, dtype: str, shape: list[int]) -> Array:
    field = _CONTENTS.get(item.datatype)
    if field is None:
        raise BadRequest(f"input '{item.name}': {item.datatype} has no contents in this protocol; send it raw")
    values = list(getattr(item.contents, field))
    if field == "bytes_contents":
        try:
            values = [value.decode() for value in values]
        except UnicodeDecodeError as error:
            raise BadRequest(f"input '{item.name}': an element is no UTF-8") from error
    return reshaped(item.name, array_of(item.name, values, dtype), shape)


def _whole(parameters: Any, name: str) -> int:
    if name not in parameters:
        return 0
    value = parameters[name]
    choice = value.WhichOneof("parameter_choice")
    number = getattr(value, choice) if choice in ("int64_param", "uint64_param") else -1
    if number < 0:
        raise BadRequest(f"parameter '{name}' must be a whole number, not negative")
    return int(number)
