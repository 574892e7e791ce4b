"""`http(s)://…`: one archive of the model folder, or one .onnx file, streamed with a size limit and resumed where the connection broke."""

from __future__ import annotations

import hashlib
import logging
import random
import shutil
import time
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import requests

from slipway_runtime.fetch.archive import unpack
from slipway_runtime.fetch.base import Budget, Fetched, Source
from slipway_runtime.oci import RETRY_DELAYS, error_text
from slipway_runtime.reasons import Failure

log = logging.getLogger("slipway")

_TIMEOUT = (10, 60)
_CHUNK = 1 << 18
_PROGRESS_SECONDS = 5.0
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
_PLAIN = (".onnx", ".npz")  # a model in one file; validation data
_BROKEN = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


class HttpSource(Source):
    """A file on a web server."""

    def fetch(self, folder: Path) -> Fetched:
        """Download the file, hash it, and unpack an archive."""
        name = PurePosixPath(unquote(urlsplit(self.uri).path)).name
        if not name.lower().endswith((*_ARCHIVES, *_PLAIN)):
            raise Failure("ModelFolderInvalid", f"{name or self.shown!r} is none of {', '.join((*_ARCHIVES, *_PLAIN))}")
        packed = folder.parent / f".download-{folder.name.strip('.')}"
        try:
            digest, size = self._download(packed)
            if name.lower().endswith(_PLAIN):
                shutil.move(packed, folder / name)
            else:
                unpack(packed, name, folder, Budget(self.settings.max_source_bytes))
        finally:
            packed.unlink(missing_ok=True)
        return Fetched(f"sha256:{digest}", size)

    @property
    def shown(self) -> str:
        """The URI without user, password and query, for messages."""
        parts = urlsplit(self.uri)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def _download(self, path: Path) -> tuple[str, int]:
        transfer = _Transfer(path, self.settings.max_source_bytes)
        attempt = 0
        while True:
            before = transfer.size
            try:
                self._continue(transfer)
                return transfer.digest.hexdigest(), transfer.size
            except _BROKEN as error:
                attempt = 0 if transfer.size > before else attempt  # as long as bytes come, go on
                if attempt >= len(RETRY_DELAYS):
                    raise Failure("SourceUnreachable", f"{self.shown}: {error_text(error)}") from error
                log.info("%s: %s; going on from byte %d", self.shown, error_text(error), transfer.size)
                time.sleep(RETRY_DELAYS[attempt] * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                attempt += 1

    def _continue(self, transfer: _Transfer) -> None:
        session = requests.Session()
        session.trust_env = False  # no .netrc
        headers = {"Accept-Encoding": "identity"} | transfer.range_headers()
        token, basic = self._credentials()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            with session.get(self.uri, headers=headers, auth=basic, stream=True, timeout=_TIMEOUT) as response:
                self._check(response)
                transfer.receive(response)
        except (requests.exceptions.InvalidURL, requests.exceptions.TooManyRedirects, requests.exceptions.InvalidSchema) as error:
            raise Failure("SourceUnreachable", f"{self.shown}: {error}") from error

    def _credentials(self) -> tuple[str | None, tuple[str, str] | None]:
        folder = self.settings.source_credentials
        values = {key: (folder / key).read_text().strip() for key in ("token", "username", "password") if (folder / key).is_file()}
        if "token" in values:
            return values["token"], None
        return None, (values["username"], values.get("password", "")) if "username" in values else None

    def _check(self, response: requests.Response) -> None:
        code = response.status_code
        if code in (401, 403):
            raise Failure("CredentialsRejected", f"{self.shown} refuses the credentials, or there are none (HTTP {code})")
        if code in (404, 410):
            raise Failure("SourceNotFound", f"{self.shown} does not exist (HTTP {code})")
        if code >= 500 or code == requests.codes.too_many_requests:
            raise requests.ConnectionError(f"HTTP {code}")
        if code not in (200, 206):
            raise Failure("SourceUnreachable", f"{self.shown} answers HTTP {code}")


class _Transfer:
    """A download that may take several connections. Its hash runs over the bytes as they are written."""

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self.limit = limit
        self.size = 0
        self.digest = hashlib.sha256()
        self._etag: str | None = None
        self._said = time.monotonic()
        path.write_bytes(b"")

    def range_headers(self) -> dict[str, str]:
        """Ask for the rest, and only if the file is still the same."""
        if not self.size:
            return {}
        return {"Range": f"bytes={self.size}-"} | ({"If-Range": self._etag} if self._etag else {})

    def receive(self, response: requests.Response) -> None:
        """Append the body; start over when the server sends the whole file."""
        if response.status_code == requests.codes.ok:
            self._restart(response)
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {self.size}-"):
            self.size = 0  # the next connection asks for all of it
            raise requests.ConnectionError("the server sent another range than asked for")
        left = response.headers.get("Content-Length")
        total = self.size + int(left) if left and left.isdigit() else None
        if total is not None and total > self.limit:
            raise Failure("SourceTooLarge", f"the source has {total} bytes, more than {self.limit}")
        with self.path.open("ab") as file:
            for chunk in response.iter_content(_CHUNK):
                self._append(file, chunk, total)
        if total is not None and self.size < total:
            raise requests.ConnectionError(f"the connection closed after {self.size} of {total} bytes")

    def _restart(self, response: requests.Response) -> None:
        self.size = 0
        self.digest = hashlib.sha256()
        self.path.write_bytes(b"")
        etag = response.headers.get("ETag", "")
        self._etag = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")

    def _append(self, file: Any, chunk: bytes, total: int | None) -> None:
        self.size += len(chunk)
        if self.size > self.limit:
            raise Failure("SourceTooLarge", f"the source has more than {self.limit} bytes")
        self.digest.update(chunk)
        file.write(chunk)
        if time.monotonic() - self._said > _PROGRESS_SECONDS:
            self._said = time.monotonic()
            log.info("downloaded %d of %s bytes", self.size, total if total is not None else "?")
