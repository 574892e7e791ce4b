"""Routes and handlers: which path answers what, in each phase of the server's life. No sockets here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from urllib.parse import unquote

from slipway_runtime.serve import docs, form
from slipway_runtime.serve.lanes import Job, Lanes, answer_of
from slipway_runtime.serve.messages import HTML, HttpError, Reply, Request, Response, json_response
from slipway_runtime.serve.metrics import CONTENT_TYPE, Metrics
from slipway_runtime.serve.model import Model
from slipway_runtime.serve.predict import answer, decode_plain
from slipway_runtime.serve.preprocess import image_inputs
from slipway_runtime.serve.protocol import decode_infer, encode_infer, metadata
from slipway_runtime.serve.tensors import Tensors

LOADING, READY, DRAINING = "loading", "ready", "draining"

Getter = Callable[[], Response]
Work = Callable[[], Response]
# Decodes and checks on the event loop; returns the rest of the work, and whether it is short enough to be done there too.
Prepare = Callable[[Model, Request], tuple[Work, bool]]
CallSoon = Callable[[Callable[[], None]], object]


@dataclass(frozen=True, slots=True)
class AppOptions:
    """What the app is told.

    Attributes:
        name: the model's name in paths.
        revision: the revision this pod serves; also the only version in paths.
        lanes: worker threads.
        queue_size: requests that may wait for a lane.
        stuck_seconds: a call that takes longer turns liveness 503.
    """

    name: str
    revision: str
    lanes: int = 1
    queue_size: int = 256
    stuck_seconds: float = 60.0


@dataclass(slots=True)
class App:
    """The server's state and its handlers.

    Attributes:
        options: what it was told.
        call_soon: runs a callback on the event loop, from any thread.
        phase: LOADING, READY or DRAINING.
        model: None while loading.
        inflight: infer and predict requests taken and not answered.
    """

    options: AppOptions
    call_soon: CallSoon
    phase: str = LOADING
    model: Model | None = None
    inflight: int = 0
    metrics: Metrics = field(init=False)
    lanes: Lanes = field(init=False)
    _gets: dict[str, Getter] = field(init=False)
    _posts: dict[str, Prepare] = field(init=False)

    def __post_init__(self) -> None:
        """Make the metrics, the lanes and the routes."""
        options = self.options
        self.metrics = Metrics(options.name, options.revision, lambda: self.inflight)
        self.lanes = Lanes(options.lanes, options.queue_size, self.metrics.queue)
        self._gets = {
            "/docs": self._docs,
            "/openapi.json": self._openapi,
            "/metrics": lambda: Response(200, self.metrics.render(), CONTENT_TYPE),
            "/v2": self._server,
            "/v2/health/live": self._live,
            "/v2/health/ready": self._ready,
        }
        self._posts = {"/predict": self._prepare_predict}
        for base in (f"/v2/models/{options.name}", f"/v2/models/{options.name}/versions/{options.revision}"):
            self._gets |= {base: self._metadata, f"{base}/ready": self._model_ready}
            self._posts |= {f"{base}/infer": self._prepare_infer, f"{base}/predict": self._prepare_predict}

    def install(self, model: Model) -> None:
        """Serve `model`: the server is ready from here on, unless it drains already."""
        self.model = model
        self.metrics.load_seconds.set(model.load_seconds)
        self.metrics.set_artifact(model.artifact.digest, model.artifact.format, model.artifact.precision)
        if self.phase == LOADING:
            self.phase = READY

    # --- dispatch -------------------------------------------------------------------------------------------------

    def handle(self, request: Request, reply: Reply, is_wanted: Callable[[], bool]) -> None:
        """Answer one request, now or later, exactly once.

        Args:
            request: a complete request.
            reply: takes the answer; is called on the event loop.
            is_wanted: whether the client is still there; is called from any thread.
        """
        prepare = self._posts.get(request.path)
        if prepare is None and ("%" in request.path or request.path.endswith("/")):
            request.path = unquote(request.path).rstrip("/")
            prepare = self._posts.get(request.path)
        if prepare is not None and request.method == "POST":
            self._ask(prepare, request, reply, is_wanted)
        else:
            reply(answer_of(partial(self._get, request)))

    def _get(self, request: Request) -> Response:
        getter = self._gets.get(request.path)
        if getter is None and request.path not in self._posts:
            raise HttpError(404, self._not_found(request.path))
        if getter is None:
            raise HttpError(405, f"{request.path} takes POST, not {request.method}", allow="POST")
        if request.method not in ("GET", "HEAD"):
            raise HttpError(405, f"{request.path} takes GET, not {request.method}", allow="GET, HEAD")
        return getter()

    def _not_found(self, path: str) -> str:
        parts = path.split("/")
        if parts[:3] == ["", "v2", "models"] and len(parts) > 3:
            return f"{path[:200]}: this server has only model '{self.options.name}', version '{self.options.revision}'"
        return f"no such path: {path[:200]}; see /docs"

    def _ask(self, prepare: Prepare, request: Request, reply: Reply, is_wanted: Callable[[], bool]) -> None:
        started = time.perf_counter()
        self.inflight += 1

        def finish(response: Response) -> None:
            self.inflight -= 1
            self.metrics.count(response.status)
            self.metrics.seconds(time.perf_counter() - started)
            reply(response)

        def finish_soon(response: Response) -> None:
            self.call_soon(partial(finish, response))

        try:
            work, is_short = prepare(self._loaded(), request)
            if not is_short:
                self.lanes.submit(Job(work, finish_soon, is_wanted, self._forget))
                return
        except HttpError as error:
            response = error.response()
        else:
            response = answer_of(work)
        finish(response)

    def _forget(self) -> None:
        self.call_soon(self._decrement)

    def _decrement(self) -> None:
        self.inflight -= 1

    def _loaded(self) -> Model:
        if self.model is None:
            raise HttpError(503, "the model is still loading", retry_after="1")
        return self.model

    # --- model ----------------------------------------------------------------------------------------------------

    def _prepare_infer(self, model: Model, request: Request) -> tuple[Work, bool]:
        if request.binary_header:
            raise HttpError(415, "the binary tensor extension is not supported; send the tensors as JSON")
        asked = decode_infer(request.body, model.artifact.signature)
        options = self.options

        def work() -> Response:
            return encode_infer(asked, self._run(model, asked.inputs), options.name, options.revision)

        return work, model.runs_inline(asked.inputs)

    def _prepare_predict(self, model: Model, request: Request) -> tuple[Work, bool]:
        if form.is_upload(request.content_type):
            return self._prepare_image(model, request), False
        inputs = decode_plain(request.body, model.artifact.signature)
        return (lambda: self._predicted(model, inputs, as_list=True)), model.runs_inline(inputs)

    def _prepare_image(self, model: Model, request: Request) -> Work:
        preprocessing = model.preprocessing
        if preprocessing is None:
            raise HttpError(415, "this model declares no image preprocessing (preprocessing.image in model.yaml); send JSON")
        files = form.uploaded_images(request)

        def work() -> Response:
            inputs = image_inputs(files, preprocessing, model.artifact.signature)
            return self._predicted(model, inputs, as_list=False)

        return work

    def _predicted(self, model: Model, inputs: Tensors, *, as_list: bool) -> Response:
        outputs = self._run(model, inputs)
        body = answer(outputs, model.artifact.signature.outputs[0].name, model.labels, as_list=as_list)
        return json_response({**body, "model": self.options.name, "revision": self.options.revision})

    def _run(self, model: Model, inputs: Tensors) -> Tensors:
        started = time.perf_counter()
        outputs = model.backend.infer(inputs)
        self.metrics.inference(time.perf_counter() - started)
        self.metrics.batch(_batch_size(inputs))
        return outputs

    # --- information ----------------------------------------------------------------------------------------------

    def _server(self) -> Response:
        return json_response({"name": "slipway-runtime", "version": version("slipway-runtime"), "extensions": []})

    def _live(self) -> Response:
        stuck = self.lanes.stuck_seconds()
        if stuck > self.options.stuck_seconds:
            return json_response({"live": False, "reason": f"a call of the model has been running for {stuck:.0f} s"}, 503)
        return json_response({"live": True})

    def _ready(self) -> Response:
        if self.phase == READY:
            return json_response({"ready": True})
        return json_response({"ready": False, "reason": self.phase}, 503)

    def _model_ready(self) -> Response:
        ready = self.phase == READY
        return json_response({"name": self.options.name, "ready": ready}, 200 if ready else 503)

    def _metadata(self) -> Response:
        model = self._loaded()
        return json_response(metadata(model.artifact.signature, self.options.name, self.options.revision, model.backend.platform))

    def _docs(self) -> Response:
        return Response(200, docs.page(self._facts()).encode(), HTML)

    def _openapi(self) -> Response:
        return json_response(docs.openapi(self._facts()))

    def _facts(self) -> docs.Facts:
        model = self._loaded()
        return docs.Facts(self.options.name, self.options.revision, model.artifact, model.labels, model.preprocessing is not None)


def _batch_size(inputs: Tensors) -> int:
    shape = next(iter(inputs.values())).shape
    return shape[0] if shape else 1
