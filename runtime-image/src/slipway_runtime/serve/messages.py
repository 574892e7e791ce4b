"""The values that pass between the HTTP connection and the handlers; no sockets, no model here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import orjson

JSON = "application/json"
GOLDEN = "golden"  # of the header x-slipway-probe: replay the golden inputs
HTML = "text/html; charset=utf-8"
_BINARY_OK = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ninference-header-content-length: %d\r\ncontent-length: %d\r\n%b\r\n"
)

_PHRASES = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


@dataclass(frozen=True, slots=True)
class Head:
    """What matters of the head of an HTTP request; one object serves all requests with the same head.

    Attributes:
        method: upper-case method, such as ``POST``.
        path: the path of the target, decoded, without the query and without a slash at its end.
        content_type: the Content-Type header, empty when absent.
        json_bytes: the `Inference-Header-Content-Length` of the binary tensor extension; None when absent, -1 when it is no number.
        timeout: seconds that the client waits (grpc-timeout's cousin `x-envoy-expected-rq-timeout-ms`), 0 when it does not say.
        body_bytes: the Content-Length, 0 when absent.
        encoding: the Content-Encoding, lower-case, empty when absent; the body is decoded before it is handed over.
        probe: the header `x-slipway-probe`: not a user's request, counted apart; `golden` asks for the golden inputs to be replayed.
        experiment: the header `x-slipway-experiment`, which the route of an A/B experiment sets.
    """

    method: str
    path: str
    content_type: str = ""
    json_bytes: int | None = None
    timeout: float = 0.0
    body_bytes: int = 0
    encoding: str = ""
    probe: str = ""
    experiment: str = ""


class Request:
    """One complete HTTP request, and the way back to its client.

    Attributes:
        head: its head.
        body: the whole body; empty when it is in `buffer`.
        buffer: the body of a large infer request with binary tensors, which lies where the kernel wrote it.
        cancel: set while the request waits; called when the client leaves.
    """

    __slots__ = ("body", "buffer", "cancel", "head")

    def __init__(self, head: Head, body: bytes = b"") -> None:
        self.head = head
        self.body = body
        self.buffer: memoryview | None = None
        self.cancel: Callable[[], None] | None = None

    def reply(self, response: Response) -> None:
        """Answer, on the event loop; only the first answer counts."""
        raise NotImplementedError


@dataclass(slots=True)
class Response:
    """One HTTP answer; `headers` holds what is special to it, the connection adds the rest.

    Attributes:
        status: of HTTP.
        body: the whole body.
        content_type: of the body.
        headers: header lines beyond type and length.
        json_bytes: length of the JSON part of a body with binary tensors, 0 when there are none.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)
    json_bytes: int = 0

    def head(self, common: bytes) -> bytes:
        """Render the status line and the headers.

        Args:
            common: header lines every answer carries, each ended by CRLF.
        """
        if self.status == 200 and not self.headers:
            if self.json_bytes:
                return _BINARY_OK % (self.json_bytes, len(self.body), common)
            if self.content_type is JSON:
                return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n" % (len(self.body), common)
        extra = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        line = f"HTTP/1.1 {self.status} {_PHRASES.get(self.status, 'Status')}\r\n"
        own = f"{line}content-type: {self.content_type}\r\ncontent-length: {len(self.body)}\r\n{extra}"
        return own.encode("latin-1") + common + b"\r\n"


class HttpError(Exception):
    """An answer that is not 200; the message is what the client reads in `error`."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def response(self) -> Response:
        """The JSON answer `{"error": message}`."""
        return Response(self.status, orjson.dumps({"error": self.message}), headers=self.headers)


class BadRequest(HttpError):
    """The client's data do not fit the model: 400, with what was expected and what came."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message)


def json_response(value: object, status: int = 200) -> Response:
    """Encode `value` as JSON; numpy arrays are allowed, NaN and infinities become null (JSON has no word for them)."""
    return Response(status, orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))
