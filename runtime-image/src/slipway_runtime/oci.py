"""The OCI distribution protocol as the pipeline needs it, on oras-py's Registry: every byte checked, few retries, exact reasons.

oras-py retries for minutes, without time limits, and reads its credentials from the home folder; this file replaces those parts.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import random
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import requests
from oras.provider import Registry

from slipway_runtime.artifact import MANIFEST_TYPE, file_sha256
from slipway_runtime.content_key import canonical_json
from slipway_runtime.reasons import Failure
from slipway_runtime.settings import Signing, signing_from_environment

log = logging.getLogger("slipway")

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
RETRY_DELAYS = [0.5, 1.0, 2.0]  # seconds; a longer outage is the operator's to wait for
_TIMEOUT = (10, 60)  # seconds to connect, and between two bytes
_CHUNK = 1 << 20
_MAX_MANIFEST = 4 << 20
_MAX_CONFIG = 16 << 20
_REFERENCE = re.compile(
    r"(?P<host>[A-Za-z0-9.\-]+(?::\d+)?)/(?P<repository>[a-z0-9._\-/]+)(?::(?P<tag>[\w][\w.\-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_BROKEN = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


@dataclass(frozen=True, slots=True)
class Reasons:
    """Which reason stands for what happened: a source and our own registry fail in different words."""

    missing: str
    unreachable: str
    rejected: str
    corrupt: str


SOURCE = Reasons("SourceNotFound", "SourceUnreachable", "CredentialsRejected", "DigestMismatch")
ARTIFACTS = Reasons("ArtifactNotFound", "RegistryUnavailable", "RegistryRejected", "ArtifactCorrupt")


@dataclass(frozen=True, slots=True)
class Reference:
    """`host[:port]/repository` and a tag or digest."""

    host: str
    repository: str
    reference: str

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}{'@' if ':' in self.reference else ':'}{self.reference}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest's bytes, which its digest names, and what they say."""

    digest: str
    data: bytes
    value: dict[str, Any]


def parse_reference(text: str) -> Reference:
    """Read `host[:port]/repo[:tag|@digest]`; the tag defaults to `latest`.

    Raises:
        Failure: InvalidArguments.
    """
    found = _REFERENCE.fullmatch(text)
    if not found:
        raise Failure("InvalidArguments", f"{text!r} is not host[:port]/repository[:tag|@sha256:…]")
    return Reference(found["host"], found["repository"].strip("/"), found["digest"] or found["tag"] or "latest")


def read_docker_config(folder: Path, host: str) -> tuple[str, str] | None:
    """Return (user, password) for a host from a mounted `.dockerconfigjson`, or None.

    Raises:
        Failure: CredentialsRejected when the file is malformed.
    """
    path = folder / ".dockerconfigjson"
    if not path.is_file():
        return None
    try:
        entries = json.loads(path.read_text())["auths"]
        entry = next((entries[key] for key in (host, f"https://{host}", f"http://{host}", f"https://{host}/v1/") if key in entries), None)
        if entry is None:
            return None
        if entry.get("auth"):
            user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
            return user, password
        return str(entry["username"]), str(entry["password"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failure("CredentialsRejected", f".dockerconfigjson is malformed: {type(error).__name__}") from error


class _Registry(Registry):  # type: ignore[misc]
    """oras-py's client with time limits, our retries and credentials, and Basic as well as token authentication."""

    def __init__(self, host: str, plain_http: bool, credentials: tuple[str, str] | None) -> None:
        super().__init__(hostname=host, insecure=plain_http)
        self.session.trust_env = False  # no proxy and no .netrc: neither is part of the contract
        self._basic: str | None = None
        if credentials:
            self.auth.set_basic_auth(*credentials)
            self._basic = "Basic " + base64.b64encode(":".join(credentials).encode()).decode()

    def do_request(self, url: str, method: str = "GET", headers: Any = None, **options: Any) -> Any:
        """Send a request, once more with credentials when the registry asks for them. `data` may be a seekable file."""
        headers = dict(headers or {}) | self.auth.get_auth_header()
        response = self.session.request(method, url, headers=headers, timeout=_TIMEOUT, **options)
        if response.status_code != requests.codes.unauthorized:
            return response
        challenge = response.headers.get("Www-Authenticate", "")
        response.close()
        if challenge.lower().startswith("basic"):
            if self._basic is None:
                return response
            headers["Authorization"] = self._basic
        else:
            self.auth.token = None  # an expired token: ask for another
            headers, changed = self.auth.authenticate_request(response, headers)
            if not changed:
                return response
        if hasattr(options.get("data"), "seek"):
            options["data"].seek(0)
        return self.session.request(method, url, headers=headers, timeout=_TIMEOUT, **options)


class Client:
    """One repository of one registry."""

    def __init__(
        self, reference: Reference, plain_http: tuple[str, ...], credentials: tuple[str, str] | None, reasons: Reasons = ARTIFACTS
    ) -> None:
        """Take a repository; nothing is sent yet.

        Args:
            reference: of which host and repository count.
            plain_http: hosts spoken to without TLS.
            credentials: user and password, or None.
            reasons: what failures are called.
        """
        is_plain = reference.host in plain_http
        self._registry = _Registry(reference.host, is_plain, credentials)
        self._base = f"{'http' if is_plain else 'https'}://{reference.host}"
        self._root = f"{self._base}/v2/{reference.repository}"
        self._name = f"{reference.host}/{reference.repository}"
        self._reasons = reasons

    def manifest(self, reference: str) -> Manifest:
        """Get a manifest by tag or digest.

        Raises:
            Failure: missing, unreachable, rejected or corrupt, under this client's names.
        """
        accept = f"{MANIFEST_TYPE}, {INDEX_TYPE}"
        url = f"{self._root}/manifests/{reference}"
        data = self._bounded("GET", url, f"{self._name} {reference}", _MAX_MANIFEST, {"Accept": accept})
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if ":" in reference and digest != reference:
            raise Failure(self._reasons.corrupt, f"the manifest in {self._name} has {digest}, wanted {reference}")
        try:
            value = json.loads(data)
        except ValueError as error:
            raise Failure(self._reasons.corrupt, f"the manifest {digest} in {self._name} is not JSON") from error
        if not isinstance(value, dict) or not isinstance(value.get("layers"), list) or not isinstance(value.get("config"), dict):
            raise Failure(self._reasons.corrupt, f"{self._name} {reference} is no artifact: its manifest has no config and layers")
        return Manifest(digest, data, value)

    def find_manifest(self, reference: str) -> Manifest | None:
        """Get a manifest, or None when there is none of that name."""
        try:
            return self.manifest(reference)
        except Failure as failure:
            if failure.reason != self._reasons.missing:
                raise
            return None

    def has_blob(self, digest: str) -> bool:
        """Say whether the registry holds a blob."""
        with self._answer("HEAD", f"{self._root}/blobs/{digest}", digest, ok=(200, 404)) as response:
            return bool(response.status_code == requests.codes.ok)

    def blob(self, digest: str) -> bytes:
        """Get a small blob, such as a config, and check it."""
        data = self._bounded("GET", f"{self._root}/blobs/{digest}", f"{self._name} {digest}", _MAX_CONFIG, {})
        got = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if got != digest:
            raise Failure(self._reasons.corrupt, f"a blob in {self._name} has {got}, wanted {digest}")
        return data

    def download(self, digest: str, size: int, path: Path) -> None:
        """Stream a blob to a file, check size and sha256, and only then give it its name.

        Raises:
            Failure: with both hashes when the bytes differ.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        for attempt in range(len(RETRY_DELAYS) + 1):
            try:
                self._download_once(digest, size, partial)
                break
            except _BROKEN as error:
                self._pause(attempt, error)
        got = f"sha256:{file_sha256(partial)}"
        if got != digest:
            partial.unlink()
            raise Failure(self._reasons.corrupt, f"{path.name} from {self._name} has {got}, wanted {digest}")
        partial.replace(path)

    def push_blob(self, data: bytes | Path) -> str:
        """Upload a blob unless it is there; returns its digest."""
        hexadecimal = file_sha256(data) if isinstance(data, Path) else hashlib.sha256(data).hexdigest()
        digest = f"sha256:{hexadecimal}"
        if self.has_blob(digest):
            return digest
        for attempt in range(len(RETRY_DELAYS) + 1):
            try:
                self._push_once(digest, data)
                break
            except _BROKEN as error:
                self._pause(attempt, error)
        return digest

    def put_manifest(self, data: bytes, reference: str) -> str:
        """Upload a manifest under a tag; returns its digest. Its blobs must be there already."""
        return self.put_referrer(data, reference)[0]

    def put_referrer(self, data: bytes, tag: str, kind: str = MANIFEST_TYPE) -> tuple[str, bool]:
        """Upload a manifest that has a subject; returns its digest, and whether the registry lists it with its subject."""
        headers = {"Content-Type": kind}
        with self._answer("PUT", f"{self._root}/manifests/{tag}", tag, ok=(201,), data=data, headers=headers) as response:
            return f"sha256:{hashlib.sha256(data).hexdigest()}", "OCI-Subject" in response.headers

    def find_index(self, tag: str) -> list[dict[str, Any]]:
        """Get the descriptors of an image index; none when there is no index of that name."""
        url = f"{self._root}/manifests/{tag}"
        try:
            value = json.loads(self._bounded("GET", url, f"{self._name} {tag}", _MAX_MANIFEST, {"Accept": INDEX_TYPE}))
        except Failure as failure:
            if failure.reason != self._reasons.missing:
                raise
            return []
        except ValueError:
            return []
        rows = value.get("manifests") if isinstance(value, dict) else None
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

    def put_index(self, descriptors: list[dict[str, Any]], tag: str) -> None:
        """Upload an image index under a tag."""
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": descriptors}
        self.put_referrer(canonical_json(index), tag, INDEX_TYPE)

    def _download_once(self, digest: str, size: int, partial: Path) -> None:
        written = 0
        with (
            self._answer("GET", f"{self._root}/blobs/{digest}", digest, ok=(200,), stream=True) as response,
            partial.open("wb") as file,
        ):
            for chunk in response.iter_content(_CHUNK):
                written += len(chunk)
                if written > size:
                    raise Failure(self._reasons.corrupt, f"{digest} in {self._name} is longer than the {size} bytes the manifest says")
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())

    def _push_once(self, digest: str, data: bytes | Path) -> None:
        with self._answer("POST", f"{self._root}/blobs/uploads/", "upload", ok=(202,)) as response:
            location = response.headers.get("Location", "")
        url = location if location.startswith("http") else self._base + location
        url += ("&" if "?" in url else "?") + urlencode({"digest": digest})
        headers = {"Content-Type": "application/octet-stream"}
        with _stream(data) as body, self._answer("PUT", url, digest, ok=(201,), attempts=1, data=body, headers=headers):
            return

    def _bounded(self, method: str, url: str, what: str, limit: int, headers: Mapping[str, str]) -> bytes:
        for attempt in range(len(RETRY_DELAYS) + 1):
            try:
                with self._answer(method, url, what, ok=(200,), headers=headers, stream=True) as response:
                    data = b""
                    for chunk in response.iter_content(_CHUNK):
                        data += chunk
                        if len(data) > limit:
                            raise Failure(self._reasons.corrupt, f"{what} has more than {limit} bytes")
                    return data
            except _BROKEN as error:
                self._pause(attempt, error)
        raise AssertionError("the last pause raises")

    @contextmanager
    def _answer(
        self, method: str, url: str, what: str, *, ok: tuple[int, ...], attempts: int | None = None, **options: Any
    ) -> Iterator[requests.Response]:
        response = self._send(method, url, attempts, options)
        try:
            self._check(response, what, ok)
            yield response
        finally:
            response.close()

    def _send(self, method: str, url: str, attempts: int | None, options: dict[str, Any]) -> requests.Response:
        for attempt in range(attempts or len(RETRY_DELAYS) + 1):
            try:
                response: requests.Response = self._registry.do_request(url, method, **options)
            except (*_BROKEN, requests.RequestException) as error:
                if attempts == 1 and isinstance(error, _BROKEN):
                    raise
                self._pause(attempt, error)
                continue
            if response.status_code < 500 and response.status_code != requests.codes.too_many_requests:
                return response
            response.close()
            self._pause(attempt, requests.HTTPError(f"HTTP {response.status_code}"))
        raise Failure(self._reasons.unreachable, f"{self._name} answers with errors")

    def _pause(self, attempt: int, error: Exception) -> None:
        if attempt >= len(RETRY_DELAYS):
            raise Failure(self._reasons.unreachable, f"{self._name}: {error_text(error)}") from error
        log.info("%s: %s; trying again", self._name, error_text(error))
        time.sleep(RETRY_DELAYS[attempt] * random.uniform(0.5, 1.0))  # noqa: S311 - jitter

    def _check(self, response: requests.Response, what: str, ok: tuple[int, ...]) -> None:
        code = response.status_code
        if code in ok:
            return
        if code in (401, 403):
            raise Failure(self._reasons.rejected, f"{self._name} refuses the credentials, or there are none (HTTP {code})")
        if code == requests.codes.not_found:
            raise Failure(self._reasons.missing, f"{what} is not in {self._name}")
        raise Failure(self._reasons.unreachable, f"{self._name} answers HTTP {code} for {what}: {response.text[:200]}")


@dataclass(frozen=True, slots=True)
class Access:
    """How a pod that serves reaches the registry of the artifacts.

    Attributes:
        plain_http: hosts spoken to without TLS.
        credentials: folder of the registry's Secret.
        signing: None when artifacts are not signed.
    """

    plain_http: tuple[str, ...]
    credentials: Path
    signing: Signing | None = None

    def client(self, text: str) -> Client:
        """Return the client of a repository; raises Failure InvalidArguments or CredentialsRejected."""
        reference = parse_reference(text)
        return Client(reference, self.plain_http, read_docker_config(self.credentials, reference.host))


def access_from_environment() -> Access:
    """Return what the environment of a serving pod says."""
    plain = tuple(filter(None, os.environ.get("SLIPWAY_PLAIN_HTTP", "").split(",")))
    credentials = Path(os.environ.get("SLIPWAY_REGISTRY_CREDENTIALS_DIR", "/var/run/slipway/registry-credentials"))
    return Access(plain, credentials, signing_from_environment())


@contextmanager
def _stream(data: bytes | Path) -> Iterator[Any]:
    if isinstance(data, bytes):
        yield data
    else:
        with data.open("rb") as file:
            yield file


def error_text(error: Exception) -> str:
    """Return what broke without urllib3's nesting: the innermost cause that says something."""
    text = str(error)
    found = re.search(
        r"(Connection refused|Name or service not known|Temporary failure in name resolution|No route to host|timed out)", text
    )
    return found[1] if found else f"{type(error).__name__}: {text[:200]}"
