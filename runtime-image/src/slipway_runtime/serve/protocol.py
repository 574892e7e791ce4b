"""Open Inference Protocol v2 over HTTP: JSON or binary body -> arrays, arrays -> answer. Knows the signature, not the model.

A client sends the same JSON around its numbers again and again. What it means is worked out once and kept as a plan under
those very bytes, in a bounded table; a request that matches one costs a lookup and a view on its tensors. Equal bytes have
equal meaning, so a plan needs no invalidation. An id that the JSON begins with (KServe's client sends another each time) is not
part of them. Requests of one plan that share a batch are read together and answered together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import orjson

from slipway_runtime.artifact import Signature, TensorSpec
from slipway_runtime.serve.messages import BadRequest, Response
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
    item_bytes,
    refuse_booleans,
    reshaped,
    rows_of,
    to_json,
    to_raw,
    wire_shape,
)

OCTETS = "application/octet-stream"
MAX_PLANS = 512
MAX_PLAN_BYTES = 4096
_DATA = b'"data"'
_ID = re.compile(rb'{"id"\s*:\s*"([ !#-\[\]-~]*)"\s*,\s*')  # a text without escapes
_ID_KEY = b'"id"'


@dataclass(frozen=True, slots=True)
class Output:
    """An output the client wants: its name, whether as raw bytes, and for Triton's classification extension the top classes wanted."""

    name: str
    binary: bool = False
    classes: int = 0


@dataclass(slots=True)
class InferRequest:
    """A decoded infer request.

    Attributes:
        inputs: an array for each input of the signature, of its dtype and a shape that fits.
        outputs: what the client wants, in its order.
        id: the client's request id, to be returned.
        timeout: seconds the client will wait, 0 when it does not say (parameter `timeout`, microseconds, as Triton has it).
        priority: 0 is the default, else 1 is the highest (parameter `priority`, as Triton has it).
    """

    inputs: Tensors
    outputs: Sequence[Output]
    id: str | None = None
    timeout: float = 0.0
    priority: int = 0


@dataclass(frozen=True, slots=True)
class _View:
    """Where a tensor of a plan lies behind the JSON part."""

    name: str
    dtype: str
    start: int
    end: int
    shape: Sequence[int]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A request without its numbers; two are equal when they are the same object.

    Attributes:
        views: where its tensors lie. JSON has one, of which `end` is the number of elements.
        raw_bytes: of the tensors behind the JSON part; 0 for JSON.
        outputs: as of `InferRequest`, and so `timeout` and `priority`.
        rows: size of the batch dimension.
        elements: of all inputs together.
        takes_id: whether an id may come before it: it has none of its own.
    """

    views: tuple[_View, ...]
    raw_bytes: int
    outputs: Sequence[Output]
    timeout: float
    priority: int
    rows: int
    elements: int
    takes_id: bool

    @classmethod
    def of(cls, views: Sequence[_View], raw_bytes: int, asked: InferRequest, *, takes_id: bool) -> Plan:
        """The plan of a request that was decoded."""
        rows, elements = rows_of(asked.inputs), sum(array.size for array in asked.inputs.values())
        return cls(tuple(views), raw_bytes, asked.outputs, asked.timeout, asked.priority, rows, elements, takes_id)

    def fits(self, own_id: str | None) -> bool:
        """Whether the plan holds for a request that begins with this id, or with none."""
        return own_id is None or self.takes_id


class Known(NamedTuple):
    """A request whose JSON has come before.

    Attributes:
        plan: what it means.
        own: of JSON the text of its numbers, else the whole body.
        start: where raw tensors begin in that.
        id: the client's, None when there is none.
    """

    plan: Plan
    own: bytes | memoryview
    start: int
    id: str | None


def json_value(body: bytes) -> Any:
    """Parse JSON.

    Raises:
        BadRequest: not JSON (NaN and Infinity are not JSON either).
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error


def json_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        BadRequest: not JSON, or not an object.
    """
    value = json_value(body)
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object")
    return value


@dataclass(slots=True)
class Codec:
    """Decodes and encodes for one model.

    Attributes:
        signature: of the model; inputs are converted to its dtypes.
        model: the name in answers.
        revision: the version in answers.
        labels: class names, for the classification extension.
    """

    signature: Signature
    model: str
    revision: str
    labels: Sequence[str] = ()
    _specs: dict[str, TensorSpec] = field(init=False)
    _outputs: tuple[Output, ...] = field(init=False)
    _plans: dict[bytes, Plan] = field(init=False, default_factory=dict)
    _json_plans: dict[tuple[bytes, bytes], Plan] = field(init=False, default_factory=dict)
    _prefix: bytes = field(init=False)
    _heads: dict[tuple[str, tuple[int, ...], str], bytes] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Index the signature."""
        self._specs = {spec.name: spec for spec in self.signature.inputs}
        self._outputs = tuple(Output(spec.name) for spec in self.signature.outputs)
        self._prefix = b'{"model_name":%b,"model_version":%b,' % (orjson.dumps(self.model), orjson.dumps(self.revision))

    # --- decode ---------------------------------------------------------------------------------------------------

    def decode(self, body: bytes | memoryview, json_bytes: int | None = None) -> InferRequest:
        """Decode and check an infer request; parameters that are not known have no effect.

        Args:
            body: JSON, or JSON followed by raw tensors.
            json_bytes: length of the JSON part, None when it is all.

        Raises:
            BadRequest: names the tensor, what was expected and what came.
        """
        known = self.known(body, json_bytes)
        asked = None if known is None else self.planned(known)
        return self.decode_whole(body, json_bytes) if asked is None else asked

    def decode_whole(self, body: bytes | memoryview, json_bytes: int | None) -> InferRequest:
        """`decode` without a look at the plans."""
        if json_bytes is None:
            return self._decode_json(bytes(body))
        if not 0 < json_bytes <= len(body):
            raise BadRequest(f"Inference-Header-Content-Length must be a number from 1 to {len(body)}, the bytes of the body")
        return self._decode_binary(body, json_bytes)

    def known(self, body: bytes | memoryview, json_bytes: int | None) -> Known | None:
        """The plan of a request whose JSON has come before, and what is its own."""
        if json_bytes is not None:
            head, own_id = _without_id(bytes(body[:json_bytes]))
            plan = self._plans.get(head) if json_bytes > 0 else None
            known = None if plan is None or len(body) != json_bytes + plan.raw_bytes else Known(plan, body, json_bytes, own_id)
        else:
            body = bytes(body)
            span = _flat_data(body)
            if span is None:
                return None
            _, start, end = span
            head, own_id = _without_id(body[:start])
            plan = self._json_plans.get((head, body[end:]))
            known = None if plan is None else Known(plan, body[start : end + 1], 0, own_id)
        return None if known is None or not known.plan.fits(own_id) else known

    def planned(self, known: Known) -> InferRequest | None:
        """Decode a request of a plan; None when it must be decoded as a whole, which has the words for what is wrong with it.

        Raises:
            BadRequest: numbers that the type cannot hold.
        """
        plan, own, start, own_id = known
        if plan.raw_bytes:
            inputs = {}
            for view in plan.views:
                raw, dtype = memoryview(own)[start + view.start : start + view.end], DTYPES[view.dtype]
                is_aligned = (start + view.start) % dtype.itemsize == 0
                inputs[view.name] = np.frombuffer(raw if is_aligned else bytes(raw), dtype).reshape(view.shape)
            return InferRequest(inputs, plan.outputs, own_id, plan.timeout, plan.priority)
        view, data = plan.views[0], bytes(own)
        array = array_of(view.name, json_value(data), view.dtype)
        if array.ndim != 1 or array.size != view.end or _has_boolean_letters(data):
            return None
        return InferRequest({view.name: array.reshape(view.shape)}, plan.outputs, own_id, plan.timeout, plan.priority)

    def planned_together(self, asked: Sequence[Known]) -> Tensors | None:
        """The batch of several requests of one plan, in their order; None when one of them must be looked at alone.

        All inputs have the batch dimension first.
        """
        count, plan = len(asked), asked[0].plan
        if plan.raw_bytes:
            batch = {}
            for view in plan.views:
                raw = b"".join([own[start + view.start : start + view.end] for _, own, start, _ in asked])
                batch[view.name] = np.frombuffer(raw, DTYPES[view.dtype]).reshape((count * view.shape[0], *view.shape[1:]))
            return batch
        view, text = plan.views[0], b"[%b]" % b",".join([known.own for known in asked])
        if _has_boolean_letters(text):
            return None
        try:
            array = array_of(view.name, json_value(text), view.dtype)
        except BadRequest:
            return None
        # Each text ends at its only "]", so that the whole is a list of lists only where each begins with its only "[".
        if array.shape != (count, view.end):
            return None
        return {view.name: array.reshape((count * view.shape[0], *view.shape[1:]))}

    def _decode_binary(self, body: bytes | memoryview, json_bytes: int) -> InferRequest:
        head, tail = bytes(body[:json_bytes]), _Tail(body, json_bytes)
        asked = self._decode_object(json_object(head), tail, may_have_booleans=has_booleans(head))
        if tail.position != len(body):
            raise BadRequest(f"{len(body) - tail.position} bytes are left over after the binary tensors; check each binary_data_size")
        rest, own_id = _without_id(head)
        plan = Plan.of(tail.views, len(body) - json_bytes, asked, takes_id=_ID_KEY not in rest)
        if asked.id == own_id and plan.fits(own_id) and tail.is_plain and json_bytes <= MAX_PLAN_BYTES:
            _keep(self._plans, rest, plan)
        return asked

    def _decode_json(self, body: bytes) -> InferRequest:
        value = json_object(body)
        asked = self._decode_object(value, None, may_have_booleans=has_booleans(body))
        span = _flat_data(body)
        if span is not None:
            self._keep_json(body, span, value, asked)
        return asked

    def _keep_json(self, body: bytes, span: tuple[int, int, int], value: dict[str, Any], asked: InferRequest) -> None:
        found, start, end = span
        # Exactly one key "data", not part of an escaped string, whose list is flat: then these bytes around any flat list of
        # numbers mean the same request with those numbers.
        listed = value["inputs"]
        flat = body.find(b"[", start + 1, end) < 0 and body.find(b'"', start + 1, end) < 0 and body.find(_DATA, found + 1) < 0
        if len(listed) != 1 or not flat or body[found - 1] == 0x5C or "data" not in listed[0]:
            return
        name = listed[0]["name"]
        spec, array = self._specs[name], asked.inputs[name]
        (head, own_id), rest = _without_id(body[:start]), body[end:]
        view = _View(name, spec.dtype, 0, array.size, array.shape)
        plan = Plan.of([view], 0, asked, takes_id=_ID_KEY not in head and _ID_KEY not in rest)
        if asked.id == own_id and plan.fits(own_id):
            _keep(self._json_plans, (head, rest), plan)

    def _decode_object(self, value: dict[str, Any], tail: _Tail | None, *, may_have_booleans: bool) -> InferRequest:
        listed = value.get("inputs")
        if not isinstance(listed, list) or not listed:
            raise BadRequest("'inputs' must be a list of tensors, each with name, shape, datatype and data")
        tensors: Tensors = {}
        for item in listed:
            self._decode_tensor(item, tensors, tail)
            if may_have_booleans and (dtype := self._specs[item["name"]].dtype) not in {"bool", "string"}:
                refuse_booleans(item["name"], item.get("data"), dtype)
        check_inputs(tensors, self.signature.inputs)
        request_id = value.get("id")
        if request_id is not None and not isinstance(request_id, str):
            raise BadRequest("'id' must be a string")
        parameters = _parameters(value)
        timeout, priority = _whole(parameters, "timeout") / 1e6, _whole(parameters, "priority")
        outputs = self._wanted(value.get("outputs"), is_binary=parameters.get("binary_data_output") is True)
        return InferRequest(tensors, outputs, request_id, timeout, priority)

    def _decode_tensor(self, item: object, tensors: Tensors, tail: _Tail | None) -> None:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise BadRequest("each input must be an object with a 'name'")
        name = item["name"]
        spec = self._specs.get(name)
        if spec is None:
            raise BadRequest(f"unknown input '{name}'; expected {', '.join(map(repr, self._specs))}")
        if name in tensors:
            raise BadRequest(f"input '{name}' is given twice")
        expected = DATATYPES[spec.dtype]
        if item.get("datatype") != expected:
            raise BadRequest(f"input '{name}': expected datatype {expected}, got {item.get('datatype')!r}")
        parameters = _parameters(item)
        if "shared_memory_region" in parameters:
            raise BadRequest(f"input '{name}': shared memory is not supported; send the tensor in the request")
        size = parameters.get("binary_data_size")
        if size is not None:
            if tail is None or type(size) is not int or size < 0:
                raise BadRequest(f"input '{name}': binary_data_size needs the header Inference-Header-Content-Length and a whole number")
            tensors[name] = tail.take(spec, checked_shape(name, item.get("shape")), size)
        elif "data" not in item:
            raise BadRequest(f"input '{name}': 'data' is missing, and so is the parameter binary_data_size")
        else:
            if tail is not None:
                tail.is_plain = False
            tensors[name] = reshaped(name, array_of(name, item["data"], spec.dtype), item.get("shape"))

    def _wanted(self, listed: object, *, is_binary: bool) -> tuple[Output, ...]:
        if not listed:
            return tuple(Output(output.name, is_binary) for output in self._outputs) if is_binary else self._outputs
        if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
            raise BadRequest("'outputs' must be a list of objects with a 'name'")
        return tuple(self._output(item, is_binary) for item in listed)

    def _output(self, item: dict[str, Any], is_binary: bool) -> Output:
        name, parameters = item.get("name"), _parameters(item)
        if not isinstance(name, str) or all(name != output.name for output in self._outputs):
            raise BadRequest(f"unknown output {name!r}; this model has {', '.join(repr(output.name) for output in self._outputs)}")
        if "shared_memory_region" in parameters:
            raise BadRequest(f"output '{name}': shared memory is not supported; take the tensor in the answer")
        return Output(name, parameters.get("binary_data", is_binary) is True, _whole(parameters, "classification"))

    # --- encode ---------------------------------------------------------------------------------------------------

    def encode(self, asked: InferRequest, outputs: Tensors) -> Response:
        """Encode the outputs the client asked for, row-major.

        In JSON, NaN and infinities are written as null: JSON has no word for them, and a client that meets null fails
        loudly where the extension literals of some encoders would break its parser.
        """
        parts = [self._prefix]
        if asked.id is not None:
            parts.append(b'"id":%b,' % orjson.dumps(asked.id))
        comma, raws = b'"outputs":[', []
        for output in asked.outputs:
            array = outputs[output.name]
            if output.classes:
                array = classification(array, output.classes, self.labels)
            parts += comma, self._tensor_head(output.name, array)
            comma = b","
            if output.binary:
                raw = to_raw(array)
                raws.append(raw)
                parts.append(b'"parameters":{"binary_data_size":%d}}' % len(raw))
            else:
                parts += b'"data":', orjson.dumps(to_json(array), option=orjson.OPT_SERIALIZE_NUMPY), b"}"
        parts.append(b"]}")
        if not raws:
            return Response(200, b"".join(parts))
        json_bytes = sum(map(len, parts))
        return Response(200, b"".join(parts + raws), OCTETS, json_bytes=json_bytes)

    def encode_together(self, asked: Sequence[Known], outputs: Tensors) -> list[Response] | None:
        """Encode the outputs of a batch: an answer for each of its requests, in their order, as `encode` gives it.

        None where they must be encoded one by one: outputs with another number of rows, of strings, or to be classified.
        """
        count, plan = len(asked), asked[0].plan
        parts, comma = [self._prefix], b'"outputs":['
        pieces: list[bytes] = []  # of JSON, between which each answer has its own texts
        texts: list[list[bytes]] = []
        raws: list[list[bytes]] = []
        if any([known.id is not None for known in asked]):
            pieces, parts = [self._prefix], []
            texts.append([b"" if known.id is None else b'"id":"%b",' % known.id.encode() for known in asked])
        for output in plan.outputs:
            array = outputs[output.name]
            if output.classes or array.dtype.kind in "OUS" or not array.ndim or len(array) != count * plan.rows:
                return None
            parts += comma, self._tensor_head(output.name, array[: plan.rows])
            comma = b","
            if output.binary:
                raw = to_raw(array)
                size = len(raw) // count
                raws.append([raw[start : start + size] for start in range(0, len(raw), size)])
                parts.append(b'"parameters":{"binary_data_size":%d}}' % size)
            else:
                text: bytes = orjson.dumps(to_json(array).reshape(count, -1), option=orjson.OPT_SERIALIZE_NUMPY)
                texts.append(text[2:-2].split(b"],["))
                pieces.append(b"".join((*parts, b'"data":[')))
                parts = [b"]}"]
        pieces.append(b"".join((*parts, b"]}")))
        if texts:
            form = b"%b".join([piece.replace(b"%", b"%%") for piece in pieces])
            bodies = [form % own for own in zip(*texts, strict=True)]
        else:
            bodies = pieces * count
        if not raws:
            return [Response(200, body) for body in bodies]
        pairs = zip(bodies, zip(*raws, strict=True), strict=True)
        return [Response(200, b"".join((body, *own)), OCTETS, json_bytes=len(body)) for body, own in pairs]

    def _tensor_head(self, name: str, array: Array) -> bytes:
        key = name, array.shape, array.dtype.char
        known = self._heads.get(key)
        if known is None:
            known = orjson.dumps({"name": name, "datatype": datatype_of(array), "shape": array.shape})[:-1] + b","
            _keep(self._heads, key, known)
        return known

    def metadata(self, platform: str) -> dict[str, object]:
        """The answer to GET /v2/models/{model}."""
        return {
            "name": self.model,
            "versions": [self.revision],
            "platform": platform,
            "inputs": [_described(spec) for spec in self.signature.inputs],
            "outputs": [_described(spec) for spec in self.signature.outputs],
        }


class _Tail:
    """The raw tensors behind the JSON part, taken in the order of the inputs."""

    def __init__(self, body: bytes | memoryview, position: int) -> None:
        self._body = body
        self._origin = self.position = position
        self.views: list[_View] = []
        self.is_plain = True

    def take(self, spec: TensorSpec, shape: list[int], size: int) -> Array:
        start, end = self.position, self.position + size
        if end > len(self._body):
            raise BadRequest(f"input '{spec.name}': binary_data_size is {size}, but only {len(self._body) - start} bytes are left")
        self.position = end
        itemsize = item_bytes(spec.dtype)
        aligned = itemsize and start % itemsize == 0
        raw: bytes | memoryview = memoryview(self._body)[start:end] if aligned else bytes(self._body[start:end])
        array = from_raw(spec.name, raw, spec.dtype, shape)
        # Booleans are normalised and strings parsed each time.
        self.is_plain = self.is_plain and spec.dtype not in ("bool", "string")
        self.views.append(_View(spec.name, spec.dtype, start - self._origin, end - self._origin, tuple(shape)))
        return array


def classification(scores: Array, count: int, labels: Sequence[str]) -> Array:
    """Triton's classification extension: [batch, classes] -> [batch, count] strings `score:index[:label]`, best first.

    Raises:
        BadRequest: the output is no [batch, classes] of numbers.
    """
    if scores.ndim not in (1, 2) or scores.dtype.kind not in "iuf":
        raise BadRequest(f"classification needs an output of shape [batch, classes], this one has {list(scores.shape)}")
    rows = scores.reshape(-1, scores.shape[-1])
    best = np.argsort(-rows.astype(np.float64), axis=-1, kind="stable")[:, :count]
    text = np.empty(best.shape, dtype=object)
    for row, column in np.ndindex(best.shape):
        index = int(best[row, column])
        label = f":{labels[index]}" if index < len(labels) else ""
        text[row, column] = f"{float(rows[row, index]):f}:{index}{label}"
    return text if scores.ndim == 2 else text[0]


def _without_id(head: bytes) -> tuple[bytes, str | None]:
    """JSON without the id that it begins with, and that id: what is left means the same but for it, if it has no other id."""
    found = _ID.match(head) if head.startswith(b'{"id"') else None
    return (head, None) if found is None else (b"{" + head[found.end() :], found[1].decode())


def _flat_data(body: bytes) -> tuple[int, int, int] | None:
    """Where a JSON request has its first "data", and the list there begins and ends, if it is flat and what is around it is short."""
    found = body.find(_DATA)
    start = body.find(b"[", found, found + 16) if found > 0 else -1
    end = body.find(b"]", start) if start > 0 else -1
    return None if end < 0 or len(body) - end > MAX_PLAN_BYTES or start > MAX_PLAN_BYTES else (found, start, end)


def _has_boolean_letters(numbers: bytes) -> bool:
    """Whether a text of numbers may have true or false among them."""
    return b"t" in numbers or b"f" in numbers


def has_booleans(text: bytes) -> bool:
    """Whether JSON may have true or false in it; numpy takes them for 1 and 0, and looking at each value costs more than this."""
    return b"true" in text or b"false" in text


def _keep(table: dict[Any, Any], key: Any, value: Any) -> None:
    # Clients with ever new bytes empty the table from time to time; that is cheaper than keeping track of use.
    if len(table) >= MAX_PLANS:
        table.clear()
    table[key] = value


def _parameters(item: dict[str, Any]) -> dict[str, Any]:
    parameters = item.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise BadRequest("'parameters' must be an object")
    return parameters


def _whole(parameters: dict[str, Any], name: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or not 0 <= value < 2**63:
        raise BadRequest(f"parameter '{name}' must be a whole number, not negative")
    return value


def _described(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": wire_shape(spec)}
