"""Routes and handlers: which path answers what, in each phase of the server's life. No sockets here."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import cast

import numpy as np
import orjson

from slipway_runtime.serve import adapters, docs, form, triton
from slipway_runtime.serve.batching import DEFAULT_PRIORITY, Batcher, Job, Loop, QueueOptions, model_error
from slipway_runtime.serve.gpu import Gpu
from slipway_runtime.serve.messages import GOLDEN, HTML, BadRequest, HttpError, Request, Response, json_response
from slipway_runtime.serve.metrics import CONTENT_TYPE, Metrics
from slipway_runtime.serve.model import Model, golden_difference
from slipway_runtime.serve.padding import Joiner
from slipway_runtime.serve.predict import answer, decode_npy, decode_plain, is_npy
from slipway_runtime.serve.preprocess import image_inputs
from slipway_runtime.serve.protocol import Known, Plan
from slipway_runtime.serve.tensors import Tensors, has_nonfinite, rows_of
from slipway_runtime.serve.turn import Turn
from slipway_runtime.serve.workers import Place

log = logging.getLogger(__name__)
access = logging.getLogger("slipway_runtime.access")

LOADING, READY, DRAINING = "loading", "ready", "draining"
# So many calls in a row on the event loop that each take longer move the model to the lanes for good. One that was only
# preempted does not count: the next will be short.
INLINE_LIMIT_SECONDS = 0.001
INLINE_LIMIT_CALLS = 20

Getter = Callable[[], Response]
Encode = Callable[[Tensors], Response]
Inputs = Tensors | Callable[[], Tensors]


@dataclass(frozen=True, slots=True)
class AppOptions:
    """What the app is told.

    Attributes:
        name: the model's name in paths.
        revision: the revision this pod serves; also a version in paths, beside "1".
        queue: limits of the queue and of a batch.
        stuck_seconds: a call that takes longer turns liveness 503.
        is_logging: one line of JSON for each answered infer or predict request.
        gpus: what is known of the pod's GPUs, for the metrics.
    """

    name: str
    revision: str
    queue: QueueOptions = field(default_factory=QueueOptions)
    stuck_seconds: float = 60.0
    is_logging: bool = False
    gpus: Callable[[], Sequence[Gpu]] = tuple


@dataclass(slots=True)
class Call:
    """One question to the model. Not frozen, which would make it three times as dear to make.

    Attributes:
        inputs: the arrays, or what makes them in a lane.
        rows: size of the batch dimension.
        size: bytes of the body.
        encode: makes the answer; runs on the event loop.
        timeout: seconds the client will wait, 0 when it does not say.
        priority: as the protocol has it, 0 is the default.
        is_probe: whether it is counted apart from users' requests.
        is_put_off: whether it is short, and to share a batch with what else comes in this turn of the event loop.
    """

    inputs: Inputs
    rows: int
    size: int
    encode: Encode
    timeout: float = 0.0
    priority: int = 0
    is_probe: bool = False
    is_put_off: bool = False


@dataclass(slots=True, eq=False)
class Planned:
    """A short infer request whose JSON has come before, to be read, run and answered with others of its plan.

    Attributes:
        known: what came, of `Codec.known`.
        request: None once its client has gone.
        started: when it came, of `time.perf_counter`.
    """

    known: Known
    request: Request | None
    started: float = 0.0

    @property
    def key(self) -> Plan:
        """What requests of one batch have in common."""
        return self.known.plan

    @property
    def rows(self) -> int:
        """Size of the batch dimension."""
        return self.known.plan.rows


@dataclass(slots=True)
class App:
    """The server's state and its handlers.

    Attributes:
        options: what it was told.
        loop: the event loop.
        phase: LOADING, READY or DRAINING.
        model: None while loading.
        batcher: the queue in front of the model; None while loading.
        inflight: infer and predict requests taken and not answered.
        place: among the workers; None when there are no others.
    """

    options: AppOptions
    loop: Loop
    phase: str = LOADING
    model: Model | None = None
    batcher: Batcher | None = None
    inflight: int = 0
    place: Place | None = None
    metrics: Metrics = field(init=False)
    _gets: dict[str, Getter] = field(init=False)
    _posts: dict[str, Callable[[Model, Request], Call | Planned | Response]] = field(init=False)
    _other_posts: dict[str, Getter] = field(init=False)
    _inline_elements: int = 0
    _turn: Turn[Job | Planned] | None = None
    _slow_calls: int = 0
    _inline_since: float = 0.0

    def __post_init__(self) -> None:
        """Make the metrics and the routes."""
        options = self.options
        self.metrics = Metrics(options.name, options.revision, lambda: self.inflight, options.gpus)
        self._gets = {
            "/docs": self._docs,
            "/openapi.json": self._openapi,
            "/metrics": self._metrics,
            "/ping": self._ping,
            "/v1/models": lambda: json_response({"models": [options.name]}),
            f"/v1/models/{options.name}": self._model_ready,
            "/v2": self._server,
            "/v2/health/live": self._live,
            "/v2/health/ready": self._ready,
            "/v2/models/stats": self._statistics,
        }
        self._posts = {
            "/predict": self._predict,
            f"/predictions/{options.name}": self._torchserve,
            f"/v1/models/{options.name}:predict": self._v1,
        }
        self._other_posts = {
            "/v2/repository/index": lambda: json_response(triton.index(options.name, options.revision, self.phase)),
        }
        for name in ("", "/versions/1", f"/versions/{options.revision}"):
            base = f"/v2/models/{options.name}{name}"
            self._gets |= {base: self._metadata, f"{base}/ready": self._model_ready, f"{base}/config": self._config}
            self._gets[f"{base}/stats"] = self._statistics
            self._posts |= {f"{base}/infer": self._infer, f"{base}/predict": self._predict}

    def install(self, model: Model) -> None:
        """Serve `model`: the server is ready from here on, unless it drains already."""
        queue, backend = model.queue_options(self.options.queue), model.backend
        self.batcher = Batcher(backend.infer, queue, self.loop, self.metrics, Joiner(model.padding, backend.empty))
        self.model = model
        self._inline_elements = model.inline_elements
        self._turn = Turn(self._run_turn, queue.max_batch, self.loop) if queue.max_batch > 1 else None
        self.metrics.load_seconds.set(model.load_seconds)
        self.metrics.set_artifact(model.artifact.digest, model.artifact.format, model.artifact.precision)
        if self.phase == LOADING:
            self.phase = READY
        self.tell()

    def join(self, place: Place) -> None:
        """Be one of several workers: tell the others what is counted here, and answer for them."""
        self.place = place
        self.metrics.others = place.others
        self.tell()

    def tell(self) -> None:
        """Tell the other workers, if there are any, what is counted here, and what is wrong."""
        if self.place is not None:
            self.place.write(self.metrics.state() | {"trouble": self._trouble(), "ready": self.phase == READY})

    def close(self, timeout: float) -> bool:
        """Stop the lanes; False when one is still inside the model after `timeout` seconds."""
        return self.batcher is None or self.batcher.close(timeout)

    # --- dispatch -------------------------------------------------------------------------------------------------

    def handle(self, request: Request) -> None:
        """Answer one request, now or later, exactly once."""
        prepare = self._posts.get(request.head.path)
        if prepare is None or request.head.method != "POST":
            request.reply(self._get(request))
            return
        started = time.perf_counter()
        self.inflight += 1
        try:
            call = prepare(self.loaded(), request)
            response: Response | None = None
            if isinstance(call, Response):
                response = call
            elif isinstance(call, Planned):
                self._put_off(call, started)
            else:
                call.is_probe = bool(request.head.probe)
                response = self._ask(call, request, started)
        except HttpError as error:
            response = error.response()
        except Exception as error:
            response = model_error(error).response()
        if response is not None:
            self._end(request, response, started)

    def _ask(self, call: Call, request: Request, started: float) -> Response | None:
        """Run a short call at once, unless it has company; queue any other, whose answer comes later."""
        inputs = call.inputs
        if not call.is_put_off and isinstance(inputs, dict) and self.is_short(inputs):
            if not self.has_company():
                return call.encode(self.run_now(inputs, call.rows, is_probe=call.is_probe))
            call = replace(call, is_put_off=True)

        def done(outputs: Tensors | None, error: HttpError | None) -> None:
            response = error.response() if error is not None else self._encoded(call, outputs or {})
            self._end(request, response, started)

        job = self.queue(call, done, started, request.head.timeout)

        def cancel() -> None:
            self.inflight -= 1
            if self.batcher is not None:
                self.batcher.cancel(job)

        request.cancel = cancel
        return None

    def queue(self, call: Call, done: Callable[[Tensors | None, HttpError | None], None], now: float, timeout: float = 0.0) -> Job:
        """Queue a call, or put it off to the end of this turn of the event loop.

        Args:
            call: what to ask.
            done: gets the outputs or the error, on the event loop.
            now: of `time.perf_counter`.
            timeout: seconds of the transport's own deadline, 0 for none; the earlier of it and the call's counts.

        Raises:
            HttpError: the queue is full, or the deadline cannot be met.
        """
        batcher = self.batcher
        if batcher is None:
            raise HttpError(503, "the model is still loading", retry_after="1")
        key = batcher.key_of(call.inputs)
        if call.is_put_off and self._turn is not None:
            job = Job(done, call.inputs, call.rows, key, is_probe=call.is_probe)
            self._turn.add(job)
            return job
        limits = [seconds for seconds in (call.timeout, timeout) if seconds > 0]
        deadline = now + min(limits) if limits else math.inf
        job = Job(done, call.inputs, call.rows, key, call.size, deadline, call.priority or DEFAULT_PRIORITY, call.is_probe)
        batcher.submit(job)
        return job

    def is_short(self, inputs: Tensors) -> bool:
        """Whether this call is so short that it may run on the event loop."""
        limit = self._inline_elements
        for array in inputs.values():
            limit -= array.size
        return limit >= 0 < self._inline_elements

    def run_now(self, inputs: Tensors, rows: int, *, is_probe: bool = False) -> Tensors:
        """Run the model on the event loop."""
        started = self._inline_since = time.perf_counter()
        try:
            outputs = self.loaded().backend.infer(inputs)
        except Exception as error:
            raise model_error(error) from error
        finally:
            self._inline_since = 0.0
        self._ran(time.perf_counter() - started, rows)
        self._count_nonfinite(outputs, is_probe=is_probe)
        return outputs

    def _ran(self, seconds: float, rows: int) -> None:
        self.metrics.inference(seconds)
        self.metrics.batch(rows)
        self._note_call(seconds)

    def _count_nonfinite(self, outputs: Tensors, *, is_probe: bool) -> None:
        if has_nonfinite(outputs):
            (self.metrics.probes.nonfinite.add if is_probe else self.metrics.nonfinite)(1)

    def has_company(self) -> bool:
        """Whether a short call is better put off to the end of this turn of the event loop, to share a batch with others."""
        return self._turn is not None and self._turn.takes()

    def _run_turn(self, batch: list[Job | Planned], rows: int) -> None:
        if isinstance(batch[0], Planned):  # and so all of them, which have one key
            self._run_planned(cast("list[Planned]", batch), rows)
        elif self.batcher is not None:
            self._inline_since = time.perf_counter()
            try:
                seconds = self.batcher.run_here(cast("list[Job]", batch), rows)
            finally:
                self._inline_since = 0.0
            self._note_call(seconds)

    def _put_off(self, asked: Planned, started: float) -> None:
        """Let a request wait for the end of this turn of the event loop."""
        asked.started = started

        def cancel() -> None:
            self.inflight -= 1
            asked.request = None

        if asked.request is not None and self._turn is not None:
            asked.request.cancel = cancel
            self._turn.add(asked)

    def _run_planned(self, batch: list[Planned], rows: int) -> None:
        """Answer requests of one plan; where they cannot be read, run or answered together, each by itself."""
        codec, plan = self.loaded().codec, batch[0].key
        outputs = self._planned_outputs(batch, rows)
        answers = None
        if outputs is not None and not has_nonfinite(outputs):
            answers = codec.encode_together([one.known for one in batch], outputs)
        for index, one in enumerate(batch):
            if one.request is None:
                continue
            if answers is not None:
                answer = answers[index]
            else:
                begin = index * plan.rows
                part = None if outputs is None else {name: array[begin : begin + plan.rows] for name, array in outputs.items()}
                answer = self._alone(one.request, part)
            self._end(one.request, answer, one.started)

    def _planned_outputs(self, batch: list[Planned], rows: int) -> Tensors | None:
        """What the model makes of all of them; None when one of them may be to blame that it makes nothing."""
        model = self.loaded()
        inputs = model.codec.planned_together([one.known for one in batch])
        if inputs is None:
            return None
        started = self._inline_since = time.perf_counter()
        try:
            outputs = model.backend.infer(inputs)
        except Exception:
            return None
        finally:
            self._inline_since = 0.0
        self._ran(time.perf_counter() - started, rows)
        return outputs

    def _alone(self, request: Request, outputs: Tensors | None) -> Response:
        """The answer to one request of a plan; `outputs` if the model has made them."""
        codec, is_probe = self.loaded().codec, bool(request.head.probe)
        try:
            asked = codec.decode(request.body, request.head.json_bytes)
            if outputs is None:
                outputs = self.run_now(asked.inputs, rows_of(asked.inputs), is_probe=is_probe)
            else:
                self._count_nonfinite(outputs, is_probe=is_probe)
            return codec.encode(asked, outputs)
        except Exception as error:
            return model_error(error).response()

    def inline_seconds(self) -> float:
        """Seconds that the event loop has been in a call of the model; 0 when it is not. For another thread: the loop cannot ask then."""
        since = self._inline_since
        return time.perf_counter() - since if since else 0.0

    def _note_call(self, seconds: float) -> None:
        if seconds <= INLINE_LIMIT_SECONDS:
            self._slow_calls = 0
            return
        self._slow_calls += 1
        if self._slow_calls >= INLINE_LIMIT_CALLS:
            log.warning("calls take %.1f ms: the model runs in the lanes from now on", seconds * 1000)
            self._inline_elements = 0

    def _encoded(self, call: Call, outputs: Tensors) -> Response:
        try:
            return call.encode(outputs)
        except Exception as error:
            return model_error(error).response()

    def _end(self, request: Request, response: Response, started: float) -> None:
        seconds = time.perf_counter() - started
        self.inflight -= 1
        if request.head.probe:
            self.metrics.probes.add(response.status, seconds)
        else:
            self.metrics.count(response.status)
            self.metrics.seconds(seconds)
            if request.head.experiment:
                self.metrics.experiment(request.head.experiment, response.status, seconds)
        request.reply(response)
        if self.options.is_logging:
            head = request.head
            row = {"path": head.path, "status": response.status, "seconds": round(seconds, 6), "bytes": len(request.buffer or request.body)}
            access.info(orjson.dumps(row | {"answerBytes": len(response.body), "revision": self.options.revision}).decode())

    def _get(self, request: Request) -> Response:
        try:
            return self._getter(request.head.path, request.head.method)()
        except HttpError as error:
            return error.response()
        except Exception as error:
            log.exception("%s failed", request.head.path)
            return HttpError(500, f"{type(error).__name__}: {error}"[:500]).response()

    def _getter(self, path: str, method: str) -> Getter:
        getter = self._gets.get(path)
        if method == "POST" and path in self._other_posts:
            return self._other_posts[path]
        if getter is None and path not in self._posts and path not in self._other_posts:
            raise HttpError(404, self._not_found(path))
        if getter is None:
            raise HttpError(405, f"{path} takes POST, not {method}", allow="POST")
        if method not in ("GET", "HEAD"):
            raise HttpError(405, f"{path} takes GET, not {method}", allow="GET, HEAD")
        return getter

    def _not_found(self, path: str) -> str:
        parts = path.split("/")
        if parts[:3] == ["", "v2", "models"] and len(parts) > 3:
            return f"{path[:200]}: this server has only model '{self.options.name}', version '{self.options.revision}'"
        return f"no such path: {path[:200]}; see /docs"

    def loaded(self) -> Model:
        """The model.

        Raises:
            HttpError: 503 while it is loading.
        """
        if self.model is None:
            raise HttpError(503, "the model is still loading", retry_after="1")
        return self.model

    # --- model ----------------------------------------------------------------------------------------------------

    def _infer(self, model: Model, request: Request) -> Call | Planned | Response:
        codec, probe = model.codec, request.head.probe
        if probe == GOLDEN:
            return self._golden(model)
        body = request.body if request.buffer is None else request.buffer
        known, asked = codec.known(body, request.head.json_bytes), None
        if known is not None:
            if known.plan.elements <= self._inline_elements and self.has_company():
                return Planned(known, request)
            asked = codec.planned(known)
        if asked is None:
            asked = codec.decode_whole(body, request.head.json_bytes)
        inputs = asked.inputs
        is_short = self.is_short(inputs)
        if is_short and (known is not None or not self.has_company()):
            return codec.encode(asked, self.run_now(inputs, rows_of(inputs), is_probe=bool(probe)))
        encode = partial(codec.encode, asked)
        return Call(inputs, rows_of(inputs), len(body), encode, asked.timeout, asked.priority, is_put_off=is_short)

    def _golden(self, model: Model) -> Call:
        """Replay the golden inputs like the request of a user, and hold the answer against the golden outputs."""
        if model.golden is None:
            raise HttpError(501, "this artifact has no golden inputs to replay")
        inputs, limit = model.golden.inputs, model.golden.limit

        def encode(outputs: Tensors) -> Response:
            differs = golden_difference(outputs, model)
            if differs is not None:
                raise HttpError(500, differs)
            return json_response({"model": self.options.name, "revision": self.options.revision, "golden": True, "maxAbsoluteError": limit})

        return Call(inputs, rows_of(inputs), sum(array.nbytes for array in inputs.values()), encode)

    def _predict(self, model: Model, request: Request) -> Call:
        if form.is_upload(request.head.content_type):
            if model.takes_rows:
                return _handled([adapters.handler_row(request)], request, adapters.handler_answer)
            return self._images(model, form.uploaded_images(request), len(request.body), partial(self._predicted, model, None))
        inputs = self._plain(model, request)
        return Call(inputs, rows_of(inputs), len(request.body), partial(self._predicted, model, inputs))

    def _plain(self, model: Model, request: Request) -> Tensors:
        signature = model.artifact.signature
        return decode_npy(request.body, signature) if is_npy(request.body) else decode_plain(request.body, signature)

    def _images(self, model: Model, files: Sequence[bytes], size: int, encode: Encode) -> Call:
        preprocessing = model.preprocessing
        if preprocessing is None:
            raise HttpError(415, "this model declares no image preprocessing (preprocessing.image in model.yaml); send JSON")
        return Call(partial(image_inputs, files, preprocessing, model.artifact.signature), len(files), size, encode)

    def _predicted(self, model: Model, inputs: Tensors | None, outputs: Tensors) -> Response:
        """The classes of rows, or of an image, which has no `inputs`."""
        try:
            body = answer(outputs, model.artifact.signature.outputs[0].name, model.labels, as_list=inputs is not None)
        except HttpError as error:
            if inputs is not None and has_nonfinite(inputs):
                raise BadRequest(f"the inputs have NaN or infinite values (null), and so has the output: {error.message}") from error
            raise
        return json_response({**body, "model": self.options.name, "revision": self.options.revision})

    def _v1(self, model: Model, request: Request) -> Call:
        if model.takes_rows:
            return _handled(adapters.v1_rows(request.body), request, adapters.v1_handled)
        inputs = self._plain(model, request)
        names = [spec.name for spec in model.artifact.signature.outputs]
        return Call(inputs, rows_of(inputs), len(request.body), partial(adapters.v1_answer, names))

    def _torchserve(self, model: Model, request: Request) -> Call:
        if model.takes_rows:
            return _handled([adapters.handler_row(request)], request, adapters.handler_answer)
        first, body = model.artifact.signature.outputs[0].name, request.body
        files = adapters.torchserve_files(request)
        if files and model.preprocessing is not None and not adapters.looks_like_json(files[0]):
            return self._images(model, files, len(body), partial(adapters.torchserve_classes, first, model.labels))
        if len(files) > 1:
            raise BadRequest("several parts are taken only as images; send JSON with a batch instead")
        inputs = adapters.torchserve_inputs(files[0] if files else body, model.artifact.signature)
        return Call(inputs, rows_of(inputs), len(body), partial(adapters.torchserve_values, first))

    # --- information ----------------------------------------------------------------------------------------------

    def server_metadata(self) -> dict[str, object]:
        """Name, version and extensions of the server."""
        return {"name": triton.SERVER, "version": version("slipway-runtime"), "extensions": triton.EXTENSIONS}

    def _server(self) -> Response:
        return json_response(self.server_metadata())

    def is_ready(self) -> bool:
        """Whether the model can be asked, whichever worker is."""
        return self.phase == READY and (self.place is None or self.place.are_others_ready())

    def is_live(self) -> tuple[bool, str]:
        """Whether this process works, and if not, why."""
        trouble = self._trouble()
        return not trouble, trouble

    def all_live(self) -> tuple[bool, str]:
        """Whether all workers work, and if not, why."""
        troubles = [self._trouble(), *(state["trouble"] for state in (self.place.others() if self.place is not None else ()))]
        trouble = next(filter(None, troubles), "")
        return not trouble, trouble

    def _trouble(self) -> str:
        stuck = self.batcher.lanes.stuck_seconds() if self.batcher is not None else 0.0
        return f"a call of the model has been running for {stuck:.0f} s" if stuck > self.options.stuck_seconds else ""

    def _live(self) -> Response:
        live, reason = self.all_live()
        return json_response({"live": live} if live else {"live": live, "reason": reason}, 200 if live else 503)

    def _ping(self) -> Response:
        healthy = self.is_ready() and self.all_live()[0]
        return json_response({"status": "Healthy" if healthy else "Unhealthy"}, 200 if healthy else 503)

    def _ready(self) -> Response:
        if self.is_ready():
            return json_response({"ready": True})
        return json_response({"ready": False, "reason": self.phase if self.phase != READY else "another worker is not ready"}, 503)

    def _model_ready(self) -> Response:
        ready = self.is_ready()
        return json_response({"name": self.options.name, "ready": ready}, 200 if ready else 503)

    def _metadata(self) -> Response:
        model = self.loaded()
        return json_response(model.codec.metadata(model.backend.platform))

    def _metrics(self) -> Response:
        # Told before it is counted: what one worker has answered, the next one that is asked knows of, and no counter goes back.
        self.tell()
        return Response(200, self.metrics.render(), CONTENT_TYPE)

    def _config(self) -> Response:
        return json_response(self.config())

    def config(self) -> dict[str, object]:
        """The model's configuration, as Triton's model configuration extension has it."""
        model, batcher = self.loaded(), self.batcher
        options = batcher.options if batcher is not None else self.options.queue
        return triton.config(self.options.name, model.artifact.signature, model.backend.platform, options)

    def _statistics(self) -> Response:
        self.loaded()
        return json_response(triton.statistics(self.options.name, self.options.revision, self.metrics))

    def _docs(self) -> Response:
        return Response(200, docs.page(self._facts()).encode(), HTML)

    def _openapi(self) -> Response:
        return json_response(docs.openapi(self._facts()))

    def _facts(self) -> docs.Facts:
        model = self.loaded()
        return docs.Facts(self.options.name, self.options.revision, model.artifact, model.labels, model.preprocessing is not None)


def _handled(rows: list[dict[str, object]], request: Request, encode: Encode) -> Call:
    """Rows for a handler; made in the lane, so that no tensors of the protocol share their batch."""
    told = {"Content-Type": request.head.content_type} if request.head.content_type else {}
    inputs = {"rows": _objects(rows), "headers": _objects([told] * len(rows))}
    return Call(lambda: inputs, len(rows), len(request.body), encode)


def _objects(values: Sequence[object]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = list(values)
    return array
