# cython: language_level=3, boundscheck=False, wraparound=False
"""One connection's HTTP/2 session, server side, with gRPC's messages cut out of its streams.

libnghttp2 parses and makes the frames, keeps the windows, and bounds what a hostile peer can make it do (resets, CONTINUATION,
SETTINGS and PING floods). Its callbacks only note what happened; `take_events` hands that over, so that no Python runs inside of one.
"""

from collections import deque

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.pyport cimport PY_SSIZE_T_MAX
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcpy

from slipway_http2.nghttp2 cimport *

CALL, MESSAGE, COMPRESSED, END, CLOSED, DRAINED, DAMAGED, TOO_LARGE, NO_ROOM = range(9)

cdef enum:
    PREFIX = 5  # a flag (compressed) and the length in network byte order


class ProtocolError(Exception):
    """The peer does not speak HTTP/2, or no memory was left; the connection is of no further use."""


cdef class Stream:
    """What is known of one call."""

    cdef int32_t id
    cdef dict headers
    cdef Py_ssize_t header_bytes
    # the message that is arriving
    cdef uint8_t prefix[PREFIX]
    cdef Py_ssize_t prefix_bytes
    cdef bytes message
    cdef Py_ssize_t filled
    cdef Py_ssize_t received
    cdef bint is_dropped
    cdef bint is_remote_done
    # flow control
    cdef bint is_held
    cdef size_t unconsumed
    # the answer
    cdef object out
    cdef Py_ssize_t offset
    cdef Py_ssize_t unsent
    cdef Py_ssize_t sent
    cdef bint is_started
    cdef bint is_deferred
    cdef list trailers

    def __cinit__(self, int32_t id):
        self.id = id
        self.headers = {}
        self.out = deque()


cdef class Session:
    """HTTP/2 of one connection.

    Args:
        max_message_bytes: a longer message refuses its call.
        max_streams: calls at the same time.
        max_header_bytes: names and values of one call together.
        window: bytes of one call that may be under way before they are taken; four times as many of all calls.

    Attributes:
        incoming: bytes that have come of messages that are not complete.
        max_incoming: a call whose message makes it more is dropped. No limit at first.
    """

    cdef nghttp2_session *_session
    cdef dict _streams
    cdef list _events
    cdef Py_ssize_t _max_message_bytes
    cdef Py_ssize_t _max_header_bytes
    cdef readonly Py_ssize_t incoming
    cdef public Py_ssize_t max_incoming

    def __cinit__(self, Py_ssize_t max_message_bytes, uint32_t max_streams, uint32_t max_header_bytes, int32_t window):
        self._streams = {}
        self._events = []
        self._max_message_bytes = max_message_bytes
        self._max_header_bytes = max_header_bytes
        self.max_incoming = PY_SSIZE_T_MAX
        cdef nghttp2_session_callbacks *callbacks
        cdef nghttp2_option *option
        if nghttp2_session_callbacks_new(&callbacks) or nghttp2_option_new(&option):
            raise MemoryError
        nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers)
        nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header)
        nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame_received)
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data)
        nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_frame_sent)
        nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_closed)
        nghttp2_option_set_no_auto_window_update(option, 1)
        cdef int failed = nghttp2_session_server_new2(&self._session, callbacks, <void *>self, option)
        nghttp2_option_del(option)
        nghttp2_session_callbacks_del(callbacks)
        if failed:
            raise MemoryError
        cdef nghttp2_settings_entry[4] settings
        settings[0].settings_id, settings[0].value = NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, max_streams
        settings[1].settings_id, settings[1].value = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, window
        settings[2].settings_id, settings[2].value = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, max_header_bytes
        settings[3].settings_id, settings[3].value = NGHTTP2_SETTINGS_MAX_FRAME_SIZE, 1 << 17
        check(nghttp2_submit_settings(self._session, 0, settings, 4))
        check(nghttp2_session_set_local_window_size(self._session, 0, 0, 4 * window))

    def __dealloc__(self):
        nghttp2_session_del(self._session)

    # --- in -------------------------------------------------------------------------------------------------------

    def receive(self, bytes data):
        """Take what came from the peer; see `take_events`.

        Raises:
            ProtocolError: it is no HTTP/2 at all. Other errors of the peer are answered with GOAWAY (`is_over` then).
        """
        cdef ssize_t taken = nghttp2_session_mem_recv(self._session, <const uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        if taken < 0:
            raise ProtocolError((<bytes>nghttp2_strerror(<int>taken)).decode())

    def take_events(self):
        """What has happened since the last look, in order: (kind, stream, what comes with it).

        CALL: its headers as a dict. MESSAGE, or COMPRESSED, by what its headers name: bytes.
        END: the peer sends no more. DAMAGED, TOO_LARGE, NO_ROOM: words about a message, and no more is read of that call.
        DRAINED: all that was sent has gone to the connection. CLOSED: the error code of HTTP/2, 0 at the end of a good call.
        """
        cdef list events = self._events
        if events:
            self._events = []
        return events

    def hold(self, int32_t stream):
        """Let the peer fill the window of a call and no more, until `release`."""
        cdef Stream held = self._streams.get(stream)
        if held is not None:
            held.is_held = True

    def release(self, int32_t stream):
        """Let more come."""
        cdef Stream held = self._streams.get(stream)
        if held is not None and held.is_held:
            held.is_held = False
            if held.unconsumed:
                nghttp2_session_consume_stream(self._session, stream, held.unconsumed)
                held.unconsumed = 0

    def waiting_for_peer(self):
        """Calls that wait for more of a message, or for room in the peer's window: (stream, bytes that have moved by now)."""
        cdef Stream stream
        return [
            (stream.id, stream.received + stream.sent)
            for stream in self._streams.values()
            if stream.unsent or (not stream.is_remote_done and not stream.is_dropped and (stream.prefix_bytes or not stream.received))
        ]

    # --- out ------------------------------------------------------------------------------------------------------

    def data_to_send(self, Py_ssize_t limit):
        """The next bytes for the peer, about `limit` at most; b"" when there are none for now.

        Raises:
            ProtocolError: out of memory, or an error of this module.
        """
        cdef const uint8_t *data
        cdef ssize_t size = nghttp2_session_mem_send(self._session, &data)
        if size == 0:
            return b""
        cdef bytes first
        cdef list parts = None
        cdef ssize_t total = 0
        first = b""
        while size > 0:
            total += size
            if first:
                if parts is None:
                    parts = [first]
                parts.append(PyBytes_FromStringAndSize(<const char *>data, size))
            else:
                first = PyBytes_FromStringAndSize(<const char *>data, size)
            if total >= limit:
                break
            size = nghttp2_session_mem_send(self._session, &data)
        if size < 0:
            raise ProtocolError((<bytes>nghttp2_strerror(<int>size)).decode())
        return first if parts is None else b"".join(parts)

    def respond(self, int32_t stream, list headers):
        """Begin an answer."""
        cdef Stream answered = self._streams.get(stream)
        if answered is None or answered.is_started:
            return
        cdef nghttp2_data_provider provider
        provider.source.ptr = NULL
        provider.read_callback = read_out
        answered.is_started = True
        submit(self._session, stream, headers, RESPONSE, &provider)

    def send_message(self, int32_t stream, bytes message):
        """Send a message of an answer that has begun."""
        cdef Stream answered = self._streams.get(stream)
        if answered is None:
            return
        cdef Py_ssize_t size = PyBytes_GET_SIZE(message)
        cdef bytes prefix = PyBytes_FromStringAndSize(NULL, PREFIX)
        cdef uint8_t *into = <uint8_t *>PyBytes_AS_STRING(prefix)
        into[0] = 0
        into[1], into[2], into[3], into[4] = (size >> 24) & 255, (size >> 16) & 255, (size >> 8) & 255, size & 255
        answered.out.append(prefix)
        if size:
            answered.out.append(message)
        answered.unsent += size + PREFIX
        self._resume(answered)

    def finish(self, int32_t stream, list trailers):
        """End an answer that has begun."""
        cdef Stream answered = self._streams.get(stream)
        if answered is not None and answered.trailers is None:
            answered.trailers = trailers
            self._resume(answered)

    cdef _resume(self, Stream stream):
        if stream.is_deferred:
            stream.is_deferred = False
            nghttp2_session_resume_data(self._session, stream.id)

    def refuse(self, int32_t stream, list headers, bytes body=b""):
        """Answer with headers, and a body that is no message, and take no more of the call."""
        cdef Stream answered = self._streams.get(stream)
        if answered is None or answered.is_started:
            return
        answered.is_dropped = True
        if body:
            self.respond(stream, headers)
            answered.out.append(body)
            answered.unsent = PyBytes_GET_SIZE(body)
            answered.trailers = []
        else:
            answered.is_started = True
            submit(self._session, stream, headers, RESPONSE, NULL)

    def reset(self, int32_t stream, uint32_t code):
        """End a call at once, with an error code of HTTP/2."""
        if stream in self._streams:
            nghttp2_submit_rst_stream(self._session, NGHTTP2_FLAG_NONE, stream, code)

    def unsent(self, int32_t stream):
        """Bytes of a call's answer that have not gone to the connection."""
        cdef Stream answered = self._streams.get(stream)
        return 0 if answered is None else answered.unsent

    # --- end ------------------------------------------------------------------------------------------------------

    def announce_shutdown(self):
        """Tell the peer to make new calls elsewhere; those under way still come in."""
        nghttp2_submit_shutdown_notice(self._session)

    def go_away(self):
        """Take no call that has not come by now."""
        nghttp2_submit_goaway(
            self._session, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(self._session), NGHTTP2_NO_ERROR, NULL, 0
        )

    @property
    def is_over(self):
        """Whether there is nothing left to read or to write."""
        return not nghttp2_session_want_read(self._session) and not nghttp2_session_want_write(self._session)


# --- nghttp2's callbacks ------------------------------------------------------------------------------------------
# They run inside of receive and data_to_send. One that raises makes that call fail; nothing they do is expected to, but for want of memory.

cdef int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user_data) except? -902:
    cdef Session self = <Session>user_data
    if frame.hd.type == NGHTTP2_HEADERS and frame.headers.cat == NGHTTP2_HCAT_REQUEST:
        self._streams[frame.hd.stream_id] = Stream(frame.hd.stream_id)
    return 0


cdef int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_size, const uint8_t *value,
                   size_t value_size, uint8_t flags, void *user_data) except? -902:
    cdef Session self = <Session>user_data
    cdef Stream stream = self._streams.get(frame.hd.stream_id)
    if stream is None:
        return 0
    stream.header_bytes += name_size + value_size
    if stream.header_bytes > self._max_header_bytes:
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE  # resets this stream
    if stream.headers is not None:  # else these are trailers, which no method has
        stream.headers[PyBytes_FromStringAndSize(<const char *>name, name_size)] = PyBytes_FromStringAndSize(<const char *>value, value_size)
    return 0


cdef int on_frame_received(nghttp2_session *session, const nghttp2_frame *frame, void *user_data) except? -902:
    cdef Session self = <Session>user_data
    cdef Stream stream
    if frame.hd.type != NGHTTP2_HEADERS and frame.hd.type != NGHTTP2_DATA:
        return 0
    stream = self._streams.get(frame.hd.stream_id)
    if stream is None:
        return 0
    if stream.headers is not None and frame.hd.type == NGHTTP2_HEADERS:
        self._events.append((CALL, stream.id, stream.headers))
        stream.headers = None
    if frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
        stream.is_remote_done = True
        if stream.is_dropped:
            return 0
        if stream.prefix_bytes:
            drop(self, stream, DAMAGED, "the last message is cut off")
        else:
            self._events.append((END, stream.id, None))
    return 0


cdef int on_data(nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *data, size_t size, void *user_data) except? -902:
    cdef Session self = <Session>user_data
    cdef Stream stream = self._streams.get(stream_id)
    nghttp2_session_consume_connection(session, size)  # one call that is held must not stop the others
    if stream is None:
        return 0
    stream.received += size
    if stream.is_held:
        stream.unconsumed += size
    else:
        nghttp2_session_consume_stream(session, stream_id, size)
    if not stream.is_dropped:
        take(self, stream, data, size)
    return 0


cdef int take(Session self, Stream stream, const uint8_t *data, size_t size) except -1:
    """Cut messages out of the bytes of a stream."""
    cdef size_t part
    cdef Py_ssize_t length
    while size:
        if stream.message is None:
            part = min(size, <size_t>(PREFIX - stream.prefix_bytes))
            memcpy(stream.prefix + stream.prefix_bytes, data, part)
            stream.prefix_bytes += part
            data += part
            size -= part
            if stream.prefix_bytes < PREFIX:
                return 0
            length = (<Py_ssize_t>stream.prefix[1] << 24) | (stream.prefix[2] << 16) | (stream.prefix[3] << 8) | stream.prefix[4]
            if stream.prefix[0] > 1:
                return drop(self, stream, DAMAGED, "a message begins with a byte other than 0 or 1")
            if length > self._max_message_bytes:
                return drop(self, stream, TOO_LARGE, f"a message of {length} bytes is larger than {self._max_message_bytes}")
            # Pages that are never written take no memory: a length alone costs nothing.
            stream.message = PyBytes_FromStringAndSize(NULL, length)
            stream.filled = 0
        length = PyBytes_GET_SIZE(stream.message)
        part = min(size, <size_t>(length - stream.filled))
        memcpy(PyBytes_AS_STRING(stream.message) + stream.filled, data, part)
        stream.filled += part
        data += part
        size -= part
        self.incoming += part
        if stream.filled == length:
            done(self, stream)
        elif self.incoming > self.max_incoming:
            return drop(self, stream, NO_ROOM, "there is no room for more of this message")
    if stream.message is not None and stream.filled == PyBytes_GET_SIZE(stream.message):
        done(self, stream)  # an empty one at the end of the bytes
    return 0


cdef int done(Session self, Stream stream) except -1:
    self._events.append((COMPRESSED if stream.prefix[0] else MESSAGE, stream.id, stream.message))
    self.incoming -= stream.filled
    stream.message = None
    stream.prefix_bytes = 0
    return 0


cdef int drop(Session self, Stream stream, int kind, str why) except -1:
    stream.is_dropped = True
    if stream.message is not None:
        self.incoming -= stream.filled
    stream.message = None
    stream.prefix_bytes = 0
    self._events.append((kind, stream.id, why))
    return 0


cdef ssize_t read_out(nghttp2_session *session, int32_t stream_id, uint8_t *buffer, size_t length, uint32_t *data_flags,
                      nghttp2_data_source *source, void *user_data) except? -902:
    cdef Session self = <Session>user_data
    cdef Stream stream = self._streams.get(stream_id)
    cdef bytes piece
    cdef size_t part, written = 0
    if stream is None:
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    while written < length and stream.out:
        piece = stream.out[0]
        part = min(length - written, <size_t>(PyBytes_GET_SIZE(piece) - stream.offset))
        memcpy(buffer + written, PyBytes_AS_STRING(piece) + stream.offset, part)
        written += part
        stream.offset += part
        if stream.offset == PyBytes_GET_SIZE(piece):
            stream.out.popleft()
            stream.offset = 0
    stream.unsent -= written
    stream.sent += written
    if stream.out:
        return written
    if stream.trailers is not None:
        data_flags[0] = NGHTTP2_DATA_FLAG_EOF
        if stream.trailers:
            data_flags[0] |= NGHTTP2_DATA_FLAG_NO_END_STREAM
            submit(session, stream_id, stream.trailers, TRAILERS, NULL)
        return written
    if written:
        self._events.append((DRAINED, stream_id, None))
        return written
    stream.is_deferred = True
    return NGHTTP2_ERR_DEFERRED


cdef int on_frame_sent(nghttp2_session *session, const nghttp2_frame *frame, void *user_data) except? -902:
    """An answer that ends while its call still sends: the peer is told to stop (RFC 9113, 8.1)."""
    cdef Session self = <Session>user_data
    cdef Stream stream
    if frame.hd.type <= NGHTTP2_HEADERS and frame.hd.flags & NGHTTP2_FLAG_END_STREAM:  # DATA is 0
        stream = self._streams.get(frame.hd.stream_id)
        if stream is not None and not stream.is_remote_done:
            nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, stream.id, NGHTTP2_NO_ERROR)
    return 0


cdef int on_closed(nghttp2_session *session, int32_t stream_id, uint32_t error_code, void *user_data) except? -902:
    cdef Session self = <Session>user_data
    cdef Stream stream = self._streams.pop(stream_id, None)
    if stream is not None:
        if stream.message is not None:
            self.incoming -= stream.filled
        self._events.append((CLOSED, stream_id, error_code))
    return 0


# --- helpers ------------------------------------------------------------------------------------------------------

cdef enum:
    RESPONSE
    TRAILERS
    MAX_HEADERS = 16


cdef int submit(nghttp2_session *session, int32_t stream, list headers, int kind, nghttp2_data_provider *provider) except -1:
    """Hand headers over, which nghttp2 copies."""
    cdef nghttp2_nv[MAX_HEADERS] pairs
    cdef bytes name, value
    cdef size_t count = 0
    if len(headers) > MAX_HEADERS:
        raise ValueError(f"{len(headers)} headers; {MAX_HEADERS} at most")
    for name, value in headers:
        pairs[count].name, pairs[count].namelen = <uint8_t *>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name)
        pairs[count].value, pairs[count].valuelen = <uint8_t *>PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value)
        pairs[count].flags = NGHTTP2_NV_FLAG_NONE
        count += 1
    check(nghttp2_submit_response(session, stream, pairs, count, provider) if kind == RESPONSE
          else nghttp2_submit_trailer(session, stream, pairs, count))
    return 0


cdef int check(int code) except -1:
    if code == NGHTTP2_ERR_NOMEM:
        raise MemoryError
    if code < 0:
        raise ValueError((<bytes>nghttp2_strerror(code)).decode())
    return 0
