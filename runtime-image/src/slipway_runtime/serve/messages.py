"""The values that pass between the HTTP connection and the handlers; no sockets, no model here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import orjson

JSON = "application/json"
HTML = "text/html; charset=utf-8"

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
    503: "Service Unavailable",
}


@dataclass(slots=True)
class Request:
    """One complete HTTP request.

    Attributes:
        method: upper-case method, such as ``POST``.
        path: the path of the target without the query.
        content_type: the Content-Type header, empty when absent.
        body: the whole body.
        binary_header: the client sent `Inference-Header-Content-Length` (the binary tensor extension).
    """

    method: str
    path: str
    content_type: str = ""
    body: bytes = b""
    binary_header: bool = False


@dataclass(slots=True)
class Response:
    """One HTTP answer; `headers` holds what is special to it, the connection adds the rest."""

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)

    def head(self, common: bytes) -> bytes:
        """Render the status line and the headers.

        Args:
            common: header lines every answer carries, each ended by CRLF.
        """
        if self.status == 200 and self.content_type is JSON and not self.headers:
            return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n" % (len(self.body), common)
        extra = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        line = f"HTTP/1.1 {self.status} {_PHRASES.get(self.status, 'Status')}\r\n"
        own = f"{line}content-type: {self.content_type}\r\ncontent-length: {len(self.body)}\r\n{extra}"
        return own.encode("latin-1") + common + b"\r\n"


Reply = Callable[[Response], None]


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
