"""The files of an upload: multipart/form-data field `image`, or the raw image as the body. No model, no Pillow."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from slipway_runtime.serve.messages import BadRequest, HttpError, Request

FIELD = "image"
MAX_FILES = 256


def is_upload(content_type: str) -> bool:
    """Whether the body is an image or a form with images, rather than JSON."""
    return content_type.lower().startswith(("multipart/form-data", "image/"))


def uploaded_images(request: Request) -> list[bytes]:
    """The image files of a request, in order; several parts named `image` make a batch.

    Raises:
        HttpError: 400 for a malformed form, no field `image`, or too many; 415 for what is no upload.
    """
    if request.head.content_type.lower().startswith("image/"):
        return _not_empty([request.body])
    return uploaded_files(request, (FIELD,))


def uploaded_files(request: Request, fields: tuple[str, ...]) -> list[bytes]:
    """The parts of a form that have one of the names, in order.

    Raises:
        HttpError: as `uploaded_images`.
    """
    kind, options = parse_options_header(request.head.content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data":
        raise HttpError(415, f"expected an image or multipart/form-data, got {request.head.content_type!r}")
    if not boundary:
        raise BadRequest("multipart/form-data without a boundary")
    return _not_empty(_Parts(boundary, fields).files(request.body))


def form_parts(request: Request) -> list[tuple[str, str, bytes]]:
    """All parts of a form as (name, content type, value), in order.

    Raises:
        HttpError: as `uploaded_images`.
    """
    boundary = parse_options_header(request.head.content_type)[1].get(b"boundary")
    if not boundary:
        raise BadRequest("multipart/form-data without a boundary")
    parts = _Parts(boundary, ()).parts(request.body)
    if not parts or len(parts) > MAX_FILES:
        raise BadRequest(f"a form has 1 to {MAX_FILES} parts with names, got {len(parts)}")
    return parts


def _not_empty(files: list[bytes]) -> list[bytes]:
    if not files or not all(files):
        raise BadRequest(f"no image: send a form field '{FIELD}' with a file, or an image as the body")
    if len(files) > MAX_FILES:
        raise BadRequest(f"at most {MAX_FILES} images in a request, got {len(files)}")
    return files


class _Parts:
    """Callbacks of the multipart parser; keeps the parts of the wanted names, or of all, in memory (the body already is)."""

    def __init__(self, boundary: bytes, fields: tuple[str, ...]) -> None:
        self._boundary = boundary
        self._fields = frozenset(field.encode() for field in fields)
        self._field = self._value = self._kind = b""
        self._name: bytes | None = None
        self._chunks: list[bytes] = []
        self._found: list[tuple[str, str, bytes]] = []

    def files(self, body: bytes) -> list[bytes]:
        return [value for _, _, value in self.parts(body)]

    def parts(self, body: bytes) -> list[tuple[str, str, bytes]]:
        parser = MultipartParser(
            self._boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_part_data": self._data,
                "on_part_end": self._end,
            },
        )
        try:
            parser.write(body)
            parser.finalize()
        except FormParserError as error:
            raise BadRequest(f"malformed multipart/form-data: {error}") from error
        return self._found

    def _begin(self) -> None:
        self._name = None
        self._kind = b""
        self._chunks = []

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._name = parse_options_header(self._value)[1].get(b"name")
        elif self._field.lower() == b"content-type":
            self._kind = self._value
        self._field = self._value = b""

    def _is_wanted(self) -> bool:
        return self._name is not None and (not self._fields or self._name in self._fields)

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_wanted():
            self._chunks.append(data[start:end])

    def _end(self) -> None:
        if self._is_wanted():
            name, kind = (self._name or b"").decode("utf-8", "replace"), self._kind.decode("latin-1")
            self._found.append((name, kind, b"".join(self._chunks)))
