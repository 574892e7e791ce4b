"""The protocol over gRPC (grpc.aio), onto the same codec rules, queue and metrics as HTTP. Imported only when a port is asked for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from slipway_runtime.reasons import Failure
from slipway_runtime.serve import oip, triton
from slipway_runtime.serve.app import READY, App, Call, rows_of
from slipway_runtime.serve.batching import model_error
from slipway_runtime.serve.messages import BadRequest, HttpError
from slipway_runtime.serve.model import Model
from slipway_runtime.serve.protocol import Codec, InferRequest, Output, classification
from slipway_runtime.serve.tensors import (
    DATATYPES,
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

log = logging.getLogger(__name__)

MAX_STREAMED = 32  # requests of one stream that are in the house at the same time
Context = Any  # grpc.aio.ServicerContext, whose generic parameters say nothing here

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
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


# --- codec --------------------------------------------------------------------------------------------------------


def decode(request: Any, codec: Codec) -> InferRequest:
    """Decode and check a ModelInferRequest; tensors come raw, or each in its contents.

    Raises:
        BadRequest: names the tensor, what was expected and what came.
    """
    raws, tensors = request.raw_input_contents, {}
    specs = {spec.name: spec for spec in codec.signature.inputs}
    if raws and len(raws) != len(request.inputs):
        raise BadRequest(f"raw_input_contents has {len(raws)} entries for {len(request.inputs)} inputs; give one for each")
    for index, item in enumerate(request.inputs):
        spec = specs.get(item.name)
        if spec is None or item.name in tensors:
            problem = "unknown input" if spec is None else "given twice: input"
            raise BadRequest(f"{problem} '{item.name}'; expected {', '.join(map(repr, specs))}")
        if item.datatype != DATATYPES[spec.dtype]:
            raise BadRequest(f"input '{item.name}': expected datatype {DATATYPES[spec.dtype]}, got '{item.datatype}'")
        shape = checked_shape(item.name, list(item.shape))
        if "shared_memory_region" in item.parameters:
            raise BadRequest(f"input '{item.name}': shared memory is not supported; send the tensor in the request")
        tensors[item.name] = from_raw(item.name, raws[index], spec.dtype, shape) if raws else _contents(item, spec.dtype, shape)
    check_inputs(tensors, codec.signature.inputs)
    timeout, priority = (_whole(request.parameters, name) for name in ("timeout", "priority"))
    return InferRequest(tensors, _wanted(request, codec), request.id or None, timeout / 1e6, priority)


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


def _wanted(request: Any, codec: Codec) -> list[Output]:
    names = [spec.name for spec in codec.signature.outputs]
    if not request.outputs:
        return [Output(name) for name in names]
    for item in request.outputs:
        if item.name not in names:
            raise BadRequest(f"unknown output '{item.name}'; this model has {', '.join(map(repr, names))}")
        if "shared_memory_region" in item.parameters:
            raise BadRequest(f"output '{item.name}': shared memory is not supported; take the tensor in the answer")
    return [Output(item.name, classes=_whole(item.parameters, "classification")) for item in request.outputs]


def _whole(parameters: Any, name: str) -> int:
    if name not in parameters:
        return 0
    value = parameters[name]
    choice = value.WhichOneof("parameter_choice")
    number = getattr(value, choice) if choice in ("int64_param", "uint64_param") else -1
    if number < 0:
        raise BadRequest(f"parameter '{name}' must be a whole number, not negative")
    return int(number)


def encode(asked: InferRequest, outputs: Tensors, codec: Codec, *, is_raw: bool) -> Any:
    """Make the ModelInferResponse: raw where the request was (or a type has no contents), else in contents."""
    response = oip.message("ModelInferResponse")(model_name=codec.model, model_version=codec.revision, id=asked.id or "")
    arrays = [
        classification(outputs[output.name], output.classes, codec.labels) if output.classes else outputs[output.name]
        for output in asked.outputs
    ]
    is_raw = is_raw or any(datatype_of(array) not in _CONTENTS for array in arrays)
    for output, array in zip(asked.outputs, arrays, strict=True):
        tensor = response.outputs.add(name=output.name, datatype=datatype_of(array), shape=array.shape)
        if is_raw:
            response.raw_output_contents.append(to_raw(array))
        else:
            values = array.ravel().tolist()
            if array.dtype.kind in "OUS":
                values = [value if isinstance(value, bytes) else str(value).encode() for value in values]
            getattr(tensor.contents, _CONTENTS[tensor.datatype]).extend(values)
    return response


# --- service ------------------------------------------------------------------------------------------------------


class Rpc:
    """The service's methods."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._request = oip.message("ModelInferRequest")
        self._loop = asyncio.get_running_loop()

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What grpc's server is given."""
        methods: dict[str, Any] = {
            "ServerLive": self._unary("ServerLive", lambda _: {"live": self._app.is_live()[0]}),
            "ServerReady": self._unary("ServerReady", lambda _: {"ready": self._app.phase == READY}),
            "ModelReady": self._unary("ModelReady", self._model_ready),
            "ServerMetadata": self._unary("ServerMetadata", lambda _: self._app.server_metadata()),
            "ModelMetadata": self._unary("ModelMetadata", lambda request: self._known(request.name, request.version).metadata()),
            "ModelConfig": self._unary("ModelConfig", self._config),
            "ModelStatistics": self._unary("ModelStatistics", self._statistics),
            "RepositoryIndex": self._unary("RepositoryIndex", self._index),
            "ModelInfer": grpc.unary_unary_rpc_method_handler(self.infer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self.stream),
        }
        health = {"Check": grpc.unary_unary_rpc_method_handler(self._health)}
        return [
            grpc.method_handlers_generic_handler(oip.SERVICE, methods),
            grpc.method_handlers_generic_handler("grpc.health.v1.Health", health),
        ]

    async def infer(self, data: bytes, context: Context) -> bytes:
        """ModelInfer."""
        started = time.perf_counter()
        try:
            response = await self._answer(data, started, context.time_remaining())
        except HttpError as error:
            trailing = tuple((name, value) for name, value in error.headers.items() if name == "retry-after")
            await context.abort(_CODES.get(error.status, grpc.StatusCode.INTERNAL), error.message, trailing)
            raise
        serialized: bytes = response.SerializeToString()
        return serialized

    async def _answer(self, data: bytes, started: float, patience: float | None) -> Any:
        app = self._app
        app.inflight += 1
        status = 499  # of a client that left
        try:
            response = await self._asked(data, started, patience)
            status = 200
        except HttpError as error:
            status = error.status
            raise
        except Exception as error:
            wrapped = model_error(error)
            status = wrapped.status
            raise wrapped from error
        finally:
            app.inflight -= 1
            if status != 499:
                app.metrics.count(status)
                app.metrics.seconds(time.perf_counter() - started)
        return response

    async def _asked(self, data: bytes, started: float, patience: float | None) -> Any:
        try:
            request = self._request.FromString(data)
        except DecodeError as error:
            raise BadRequest(f"the message is no ModelInferRequest: {error}") from error
        codec, app = self._known(request.model_name, request.model_version).model.codec, self._app
        asked = decode(request, codec)
        rows, is_raw = rows_of(asked.inputs), bool(request.raw_input_contents)
        if app.is_short(asked.inputs):
            outputs = app.run_now(asked.inputs, rows)
        else:
            outputs = await self._queued(asked, rows, len(data), started, patience or 0.0)
        return encode(asked, outputs, codec, is_raw=is_raw)

    async def _queued(self, asked: InferRequest, rows: int, size: int, started: float, patience: float) -> Tensors:
        future: asyncio.Future[Tensors] = self._loop.create_future()

        def done(outputs: Tensors | None, error: HttpError | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(outputs or {})

        call = Call(asked.inputs, rows, size, _no_encoding, asked.timeout, asked.priority)
        job = self._app.queue(call, done, started, patience)
        try:
            return await future
        except asyncio.CancelledError:
            if self._app.batcher is not None:
                self._app.batcher.cancel(job)
            raise

    async def stream(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        """ModelStreamInfer: answers in the order of the requests, several of which may be in the model at once."""
        tasks: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(MAX_STREAMED)

        async def read() -> None:
            async for data in requests:
                await tasks.put(self._loop.create_task(self._streamed(data)))
            await tasks.put(None)

        reader = self._loop.create_task(read())
        try:
            while (task := await tasks.get()) is not None:
                yield await task
        finally:
            reader.cancel()
            while not tasks.empty():
                if (left := tasks.get_nowait()) is not None:
                    left.cancel()

    async def _streamed(self, data: bytes) -> bytes:
        try:
            response = oip.message("ModelStreamInferResponse")(infer_response=await self._answer(data, time.perf_counter(), None))
        except HttpError as error:
            response = oip.message("ModelStreamInferResponse")(error_message=error.message)
            try:
                response.infer_response.id = self._request.FromString(data).id
            except DecodeError:
                log.debug("a message of a stream is no ModelInferRequest")
        serialized: bytes = response.SerializeToString()
        return serialized

    # --- information ----------------------------------------------------------------------------------------------

    def _unary(self, name: str, answer: Callable[[Any], dict[str, Any]]) -> Any:
        """A method that answers from what is known; `answer` returns the message as a dict."""
        request_type, response_type = oip.message(f"{name}Request"), oip.message(f"{name}Response")

        async def method(data: bytes, context: Context) -> bytes:
            try:
                message = json_format.ParseDict(answer(request_type.FromString(data)), response_type(), ignore_unknown_fields=True)
            except HttpError as error:
                await context.abort(_CODES.get(error.status, grpc.StatusCode.INTERNAL), error.message)
                raise
            except DecodeError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the message is no {name}Request: {error}")
                raise
            serialized: bytes = message.SerializeToString()
            return serialized

        return grpc.unary_unary_rpc_method_handler(method)

    def _known(self, name: str, version: str) -> _Known:
        options = self._app.options
        if name != options.name or version not in ("", "1", options.revision):
            raise HttpError(404, f"unknown model '{name}' {version}; this server has only '{options.name}', version '{options.revision}'")
        return _Known(self._app.loaded())

    def _model_ready(self, request: Any) -> dict[str, Any]:
        if self._app.phase != READY:
            return {"ready": False}
        self._known(request.name, request.version)
        return {"ready": True}

    def _config(self, request: Any) -> dict[str, Any]:
        self._known(request.name, request.version)
        return {"config": self._app.config()}

    def _statistics(self, request: Any) -> dict[str, Any]:
        options = self._app.options
        if request.name:
            self._known(request.name, request.version)
        return triton.statistics(options.name, options.revision, self._app.metrics)

    def _index(self, request: Any) -> dict[str, Any]:
        options = self._app.options
        rows = triton.index(options.name, options.revision, self._app.phase)
        return {"models": [row for row in rows if row["state"] == "READY" or not request.ready]}

    async def _health(self, data: bytes, context: Context) -> bytes:
        """grpc.health.v1: HealthCheckResponse with status SERVING or NOT_SERVING."""
        return b"\x08\x01" if self._app.phase == READY and self._app.is_live()[0] else b"\x08\x02"


class _Known:
    """The model, once the request has named it right."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def metadata(self) -> dict[str, Any]:
        return self.model.codec.metadata(self.model.backend.platform)


def _no_encoding(outputs: Tensors) -> Any:
    raise NotImplementedError  # of HTTP; a call from here is answered by `encode`


async def start(app: App, host: str, port: int, max_bytes: int, *, is_shared: bool = False) -> grpc.aio.Server:
    """Listen; `is_shared` when other processes listen on the same port.

    Raises:
        Failure: InvalidArguments, the port cannot be had.
    """
    options = [
        ("grpc.max_receive_message_length", max_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", 1024),
        ("grpc.so_reuseport", int(is_shared)),
    ]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers(Rpc(app).handlers())
    try:
        bound = server.add_insecure_port(f"{host or '[::]'}:{port}")
    except RuntimeError as error:
        raise Failure("InvalidArguments", f"cannot listen on port {port} for gRPC: {error}") from error
    if not bound:
        raise Failure("InvalidArguments", f"cannot listen on port {port} for gRPC")
    await server.start()
    log.info("gRPC on port %d", bound)
    return server
