"""`http(s)://…`: one archive of the model folder, or one model file, streamed with a size limit and resumed where the connection broke."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit, urlunsplit

import requests

from slipway_runtime.fetch.base import Fetched, Source
from slipway_runtime.fetch.single import check_name, stored
from slipway_runtime.fetch.transfer import Broken, Progress, Transfer, completed
from slipway_runtime.oci import error_text
from slipway_runtime.reasons import Failure

_TIMEOUT = (10, 60)
_CHUNK = 1 << 18
_BROKEN = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
_UNUSABLE = (requests.exceptions.InvalidURL, requests.exceptions.TooManyRedirects, requests.exceptions.InvalidSchema)


class HttpSource(Source):
    """A file on a web server."""

    def fetch(self, folder: Path) -> Fetched:
        """Download the file, hash it, and unpack an archive."""
        name = PurePosixPath(unquote(urlsplit(self.uri).path)).name
        check_name(name or self.shown)
        return stored(name, folder, self.settings.max_source_bytes, self._download)

    @property
    def shown(self) -> str:
        """The URI without user, password and query, for messages."""
        return without_secrets(self.uri)

    def _download(self, path: Path) -> Transfer:
        token, basic = self._credentials()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        transfer = Transfer(path, self.settings.max_source_bytes, Progress(self.shown))
        return completed(transfer, HttpFile(self.uri, self.shown, headers, basic).receive, self.shown)

    def _credentials(self) -> tuple[str | None, tuple[str, str] | None]:
        values = {key: self.secret(key) for key in ("token", "username", "password")}
        if values["token"]:
            return values["token"], None
        return None, (values["username"], values["password"] or "") if values["username"] else None


def without_secrets(url: str) -> str:
    """Return a URL without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@dataclass(frozen=True, slots=True)
class HttpFile:
    """A file behind a URL, and how to ask for it.

    Attributes:
        url: where it lies.
        shown: what messages call it.
        headers: further headers, with the token if there is one.
        basic: user and password.
    """

    url: str
    shown: str
    headers: Mapping[str, str] = field(default_factory=dict)
    basic: tuple[str, str] | None = None

    def receive(self, transfer: Transfer) -> None:
        """Make one connection and append what comes.

        Raises:
            Failure: SourceNotFound, CredentialsRejected, SourceUnreachable, SourceTooLarge.
            Broken: the connection ended early.
        """
        session = requests.Session()
        session.trust_env = False  # no .netrc
        headers = {"Accept-Encoding": "identity", **self.headers, **_range_headers(transfer)}
        try:
            with session.get(self.url, headers=headers, auth=self.basic, stream=True, timeout=_TIMEOUT) as response:
                self._check(response)
                _receive(response, transfer)
        except _UNUSABLE as error:
            raise Failure("SourceUnreachable", f"{self.shown}: {error}") from error
        except _BROKEN as error:
            raise Broken(error_text(error)) from error

    def _check(self, response: requests.Response) -> None:
        code = response.status_code
        if code in (401, 403):
            raise Failure("CredentialsRejected", f"{self.shown} refuses the credentials, or there are none (HTTP {code})")
        if code in (404, 410):
            raise Failure("SourceNotFound", f"{self.shown} does not exist (HTTP {code})")
        if code >= 500 or code == requests.codes.too_many_requests:
            raise Broken(f"HTTP {code}")
        if code not in (200, 206):
            raise Failure("SourceUnreachable", f"{self.shown} answers HTTP {code}")


def _range_headers(transfer: Transfer) -> dict[str, str]:
    """Ask for the rest, and only if the file is still the same."""
    if not transfer.size:
        return {}
    return {"Range": f"bytes={transfer.size}-"} | ({"If-Range": transfer.version} if transfer.version else {})


def _receive(response: requests.Response, transfer: Transfer) -> None:
    """Append the body; start over when the server sends the whole file."""
    if response.status_code == requests.codes.ok:
        transfer.restart()
        etag = response.headers.get("ETag", "")
        transfer.version = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
    elif not response.headers.get("Content-Range", "").startswith(f"bytes {transfer.size}-"):
        transfer.restart()  # the next connection asks for all of it
        raise Broken("the server sent another range than asked for")
    left = response.headers.get("Content-Length")
    total = transfer.size + int(left) if left and left.isdigit() else None
    if total is not None:
        transfer.expect(total)
    for chunk in response.iter_content(_CHUNK):
        transfer.append(chunk)
    if total is not None and transfer.size < total:
        raise Broken(f"the connection closed after {transfer.size} of {total} bytes")
