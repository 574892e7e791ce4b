"""gRPC's transport, server side, without sockets: bytes in, events out.

HTTP/2 (RFC 9113) is libnghttp2's; the five bytes before each message are gRPC's (its PROTOCOL-HTTP2.md).
"""

from slipway_http2._session import CALL, CLOSED, COMPRESSED, DAMAGED, DRAINED, END, MESSAGE, NO_ROOM, TOO_LARGE, ProtocolError, Session

__all__ = ["CALL", "CLOSED", "COMPRESSED", "DAMAGED", "DRAINED", "END", "MESSAGE", "NO_ROOM", "TOO_LARGE", "ProtocolError", "Session"]
