"""The protocol over gRPC, onto the same codec rules, queue and metrics as HTTP. Imported only when a port is asked for."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from slipway_runtime.serve import oip, triton
from slipway_runtime.serve.app import App
from slipway_runtime.serve.app import Call as Question
from slipway_runtime.serve.batching import model_error
from slipway_runtime.serve.calls import WINDOW_BYTES, Call, Code, Methods, Port, Streaming, Unary
from slipway_runtime.serve.connection import Limits
from slipway_runtime.serve.incoming import Room
from slipway_runtime.serve.messages import HttpError
from slipway_runtime.serve.model import Model
from slipway_runtime.serve.rpc_codec import RpcCodec, streamed
from slipway_runtime.serve.tensors import Tensors, rows_of

MAX_STREAMED = 32  # requests of one stream that are in the house at the same time
Done = Callable[[bytes, HttpError | None], None]

_CODES = {
    400: Code.INVALID_ARGUMENT,
    404: Code.NOT_FOUND,
    413: Code.RESOURCE_EXHAUSTED,
    415: Code.INVALID_ARGUMENT,
    429: Code.RESOURCE_EXHAUSTED,
    501: Code.UNIMPLEMENTED,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}


class Rpc:
    """The service's methods."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._codec: RpcCodec | None = None  # of the model, once it is loaded

    def methods(self) -> Methods:
        """All methods by path."""
        answers: dict[str, Callable[[Any], dict[str, Any]]] = {
            "ServerLive": lambda _: {"live": self._app.all_live()[0]},
            "ServerReady": lambda _: {"ready": self._app.is_ready()},
            "ModelReady": self._model_ready,
            "ServerMetadata": lambda _: self._app.server_metadata(),
            "ModelMetadata": self._metadata,
            "ModelConfig": self._config,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
        }
        methods: dict[str, Unary | Streaming] = {name: Unary(partial(self._tell, name, answer)) for name, answer in answers.items()}
        methods |= {"ModelInfer": Unary(self.infer), "ModelStreamInfer": Streaming(self.stream)}
        named = {f"/{oip.SERVICE}/{name}".encode(): method for name, method in methods.items()}
        return named | {b"/grpc.health.v1.Health/Check": Unary(self._health)}

    def infer(self, call: Call, data: bytes) -> None:
        """ModelInfer."""

        def done(response: bytes, error: HttpError | None) -> None:
            if error is None:
                call.reply(response)
            else:
                _fail(call, error)

        call.cancel = self.ask(data, call.timeout, done)

    def stream(self, call: Call) -> _Stream:
        """ModelStreamInfer."""
        return _Stream(self, call)

    def ask(self, data: bytes, patience: float, done: Done) -> Callable[[], None] | None:
        """Answer a ModelInferRequest.

        Args:
            data: the message.
            patience: seconds that the client waits; 0 when it does not say.
            done: gets the ModelInferResponse's bytes or the error, now or later.

        Returns:
            What cancels it; None when it has been answered.
        """
        app, started = self._app, time.perf_counter()
        app.inflight += 1
        try:
            codec = self._loaded()
            asked = codec.known(data)
            if asked is None:
                request = codec.parse(data)
                self._known(request.model_name, request.model_version)
                asked = codec.decode(data, request)
            inputs = asked.inputs
            is_short = app.is_short(inputs)
            if not is_short or app.has_company():
                question = Question(inputs, rows_of(inputs), len(data), _no_encoding, asked.timeout, asked.priority, is_put_off=is_short)
                return self._queue(question, partial(codec.encode, asked), started, patience, done)
            response = codec.encode(asked, app.run_now(inputs, rows_of(inputs)))
        except Exception as error:
            self._end(started, b"", error, done)
        else:
            self._end(started, response, None, done)
        return None

    def _loaded(self) -> RpcCodec:
        if self._codec is None:
            self._codec = RpcCodec(self._app.loaded().codec)
        return self._codec

    def _queue(
        self, question: Question, encode: Callable[[Tensors], bytes], started: float, patience: float, done: Done
    ) -> Callable[[], None]:
        app = self._app

        def ended(outputs: Tensors | None, error: HttpError | None) -> None:
            response, problem = b"", error
            if problem is None:
                try:
                    response = encode(outputs or {})
                except Exception as failed:
                    problem = model_error(failed)
            self._end(started, response, problem, done)

        job = app.queue(question, ended, started, patience)

        def cancel() -> None:
            app.inflight -= 1
            if app.batcher is not None:
                app.batcher.cancel(job)

        return cancel

    def _end(self, started: float, response: bytes, error: Exception | None, done: Done) -> None:
        problem = error if error is None or isinstance(error, HttpError) else model_error(error)
        app = self._app
        app.inflight -= 1
        app.metrics.count(200 if problem is None else problem.status)
        app.metrics.seconds(time.perf_counter() - started)
        done(response, problem)

    # --- information ----------------------------------------------------------------------------------------------

    def _tell(self, name: str, answer: Callable[[Any], dict[str, Any]], call: Call, data: bytes) -> None:
        """A method that answers from what is known; `answer` returns the message as a dict."""
        request_type, response_type = oip.message(f"{name}Request"), oip.message(f"{name}Response")
        try:
            message = json_format.ParseDict(answer(request_type.FromString(data)), response_type(), ignore_unknown_fields=True)
        except HttpError as error:
            _fail(call, error)
        except DecodeError as error:
            call.fail(Code.INVALID_ARGUMENT, f"the message is no {name}Request: {error}")
        else:
            call.reply(message.SerializeToString())

    def _known(self, name: str, version: str) -> Model:
        options = self._app.options
        if name != options.name or version not in ("", "1", options.revision):
            raise HttpError(404, f"unknown model '{name}' {version}; this server has only '{options.name}', version '{options.revision}'")
        return self._app.loaded()

    def _model_ready(self, request: Any) -> dict[str, Any]:
        if not self._app.is_ready():
            return {"ready": False}
        self._known(request.name, request.version)
        return {"ready": True}

    def _metadata(self, request: Any) -> dict[str, Any]:
        model = self._known(request.name, request.version)
        return model.codec.metadata(model.backend.platform)

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

    def _health(self, call: Call, data: bytes) -> None:
        """grpc.health.v1: HealthCheckResponse with status SERVING or NOT_SERVING."""
        call.reply(b"\x08\x01" if self._app.is_ready() and self._app.all_live()[0] else b"\x08\x02")


class _Stream:
    """One ModelStreamInfer: answers in the order of the requests, several of which may be in the model at once."""

    def __init__(self, rpc: Rpc, call: Call) -> None:
        self._rpc, self._call = rpc, call
        self._waiting: deque[bytes] = deque()
        self._asked: deque[_Asked] = deque()
        self._is_ended = self._is_moving = self._is_clogged = False
        call.cancel = self._leave

    def message(self, data: bytes) -> None:
        """The next request."""
        self._waiting.append(data)
        self._move()

    def end(self) -> None:
        """No more requests."""
        self._is_ended = True
        self._move()

    def drained(self) -> None:
        """The client has taken its answers."""
        self._is_clogged = False
        self._move()

    def _move(self) -> None:
        """Send what is answered, and ask what waits; an answer that comes at once must not begin this anew."""
        if self._is_moving:
            return
        self._is_moving = True
        try:
            while self._send() or self._ask():
                pass
        finally:
            self._is_moving = False
        if self._waiting:
            self._call.hold()
        elif self._is_ended and not self._asked:
            self._call.finish()
        else:
            self._call.release()

    def _send(self) -> bool:
        if not self._asked or self._asked[0].answer is None:
            return False
        self._is_clogged = self._call.send(self._asked.popleft().answer or b"") > WINDOW_BYTES
        return True

    def _ask(self) -> bool:
        if not self._waiting or len(self._asked) >= MAX_STREAMED or self._is_clogged:
            return False
        data, asked = self._waiting.popleft(), _Asked()
        self._asked.append(asked)
        asked.cancel = self._rpc.ask(data, 0.0, partial(self._done, asked, data))
        return True

    def _done(self, asked: _Asked, data: bytes, response: bytes, error: HttpError | None) -> None:
        asked.cancel = None
        asked.answer = streamed(response) if error is None else self._refusal(data, error)
        self._move()

    def _refusal(self, data: bytes, error: HttpError) -> bytes:
        message = oip.message("ModelStreamInferResponse")(error_message=error.message)
        with suppress(DecodeError):  # a client whose message was none hears that
            message.infer_response.id = oip.message("ModelInferRequest").FromString(data).id
        serialized: bytes = message.SerializeToString()
        return serialized

    def _leave(self) -> None:
        for asked in self._asked:
            if asked.cancel is not None:
                asked.cancel()


class _Asked:
    """A request of a stream, and its answer once there is one."""

    __slots__ = ("answer", "cancel")

    def __init__(self) -> None:
        self.answer: bytes | None = None
        self.cancel: Callable[[], None] | None = None


def _no_encoding(outputs: Tensors) -> Any:
    raise NotImplementedError  # of HTTP; a call from here is answered by `encode`


def _fail(call: Call, error: HttpError) -> None:
    kept = {name: value for name, value in error.headers.items() if name == "retry-after"}
    call.fail(_CODES.get(error.status, Code.INTERNAL), error.message, kept)


def port_of(app: App, limits: Limits, loop: asyncio.AbstractEventLoop, room: Room) -> Port:
    """What serves the app's model over gRPC."""
    return Port(Rpc(app).methods(), limits, loop, room)
