"""Pushing to an OCI registry: blobs, then the manifest, then a look at what the registry says it holds.

The runtime has a client of its own (`slipway_runtime.oci`), which also downloads; the two projects share no code on purpose.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin

import requests

from slipway.cli.errors import CliError

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
MODEL_TYPE = "application/vnd.slipway.model.v1+json"
FILE_TYPE = "application/vnd.slipway.file.v1"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
TITLE = "org.opencontainers.image.title"
EMPTY = b"{}"
TIMEOUT = (10, 300)  # seconds to connect, and between two bytes
_CHUNK = 1 << 20
_REFERENCE = re.compile(
    r"oci://(?P<host>[A-Za-z0-9.\-]+(?::\d+)?)/(?P<repository>[a-z0-9][a-z0-9._\-/]*[a-z0-9]|[a-z0-9])(?::(?P<tag>\w[\w.\-]{0,127}))?"
)
# Two labels may be a Service and its namespace, or a public host: these ends, and all of two letters, are public.
_PUBLIC = {"com", "org", "net", "edu", "gov", "int", "mil", "info", "dev", "app", "cloud", "tech", "run", "sh", "arpa", "local", "lan"}


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a model is pushed to."""

    host: str
    repository: str
    tag: str

    def pinned(self, digest: str) -> str:
        """Return the URI that names exactly what was pushed."""
        return f"oci://{self.host}/{self.repository}@{digest}"


def parse_reference(uri: str) -> Reference:
    """Read `oci://host[:port]/repository[:tag]`; the tag defaults to `latest`.

    Raises:
        CliError: it is something else.
    """
    found = _REFERENCE.fullmatch(uri)
    if found is None:
        raise CliError(f"{uri} is not oci://host[:port]/repository[:tag]", "write for example oci://registry:5000/models/digits:v1")
    return Reference(found["host"], found["repository"], found["tag"] or "latest")


def service_of(host: str) -> tuple[str, str, int] | None:
    """Return (Service, namespace, port) when a host looks like a Service in the cluster, else None."""
    name, _, port = host.partition(":")
    labels = name.removesuffix(".cluster.local").split(".")
    if len(labels) == 3 and labels[2] == "svc":
        labels.pop()
    elif len(labels) != 2 or len(labels[1]) == 2 or labels[1] in _PUBLIC:
        return None
    if all(re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", label) for label in labels):
        return labels[0], labels[1], int(port or 80)
    return None


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine."""
    return host.partition(":")[0] in ("localhost", "127.0.0.1")


def file_digest(path: Path) -> str:
    """Return the digest of a file."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def bytes_digest(data: bytes) -> str:
    """Return the digest of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def model_manifest(layers: Mapping[str, tuple[str, int]]) -> bytes:
    """Return the manifest of a model folder: equal files give equal bytes, so there is no date in it.

    Args:
        layers: digest and size by path.
    """
    rows = [
        {"mediaType": FILE_TYPE, "digest": digest, "size": size, "annotations": {TITLE: path}}
        for path, (digest, size) in sorted(layers.items())
    ]
    value = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": MODEL_TYPE,
        "config": {"mediaType": EMPTY_TYPE, "digest": bytes_digest(EMPTY), "size": len(EMPTY)},
        "layers": rows,
    }
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def docker_credentials(host: str) -> tuple[str, str] | None:
    """Return user and password of a host from the Docker configuration, as `docker login` leaves them."""
    path = Path(os.environ.get("DOCKER_CONFIG", str(Path.home() / ".docker"))) / "config.json"
    try:
        auths = json.loads(path.read_text())["auths"]
        entry = next((auths[key]["auth"] for key in (host, f"https://{host}", f"https://{host}/v1/") if key in auths), None)
        user, _, password = base64.b64decode(entry or "").decode().partition(":")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (user, password) if user else None


class Repository:
    """One repository of one registry, reached at `base` (which is a tunnel's end for a registry in the cluster)."""

    def __init__(self, reference: Reference, base: str, credentials: tuple[str, str] | None = None) -> None:
        """Take a repository; nothing is sent yet."""
        self._reference, self._credentials = reference, credentials
        self._root = f"{base}/v2/{reference.repository}"
        self._session = requests.Session()
        self._session.trust_env = False if is_loopback(base.partition("://")[2]) else self._session.trust_env

    def has_blob(self, digest: str) -> bool:
        """Say whether the registry holds a blob already."""
        return bool(self._send("HEAD", f"{self._root}/blobs/{digest}", (200, 404)).status_code == requests.codes.ok)

    def push_blob(self, digest: str, data: Path | bytes) -> bool:
        """Upload a blob; False when it was there already."""
        if self.has_blob(digest):
            return False
        started = self._send("POST", f"{self._root}/blobs/uploads/", (202,))
        url = urljoin(started.url, started.headers.get("Location", ""))
        url += ("&" if "?" in url else "?") + f"digest={digest}"
        with _opened(data) as body:
            self._send("PUT", url, (201,), data=body, headers={"Content-Type": "application/octet-stream"})
        return True

    def push_manifest(self, data: bytes) -> str:
        """Put the manifest under its tag and return the digest, which the registry has to report as well.

        Raises:
            CliError: it reports another one.
        """
        digest, url = bytes_digest(data), f"{self._root}/manifests/{self._reference.tag}"
        self._send("PUT", url, (201,), data=data, headers={"Content-Type": MANIFEST_TYPE})
        answer = self._send("HEAD", url, (200,), headers={"Accept": MANIFEST_TYPE})
        got = answer.headers.get("Docker-Content-Digest", digest)
        if got != digest:
            raise CliError(
                f"{self._reference.host} holds {got} under {self._reference.tag}, but {digest} was pushed",
                "push again; somebody else may push to the same tag",
            )
        return digest

    def _send(self, method: str, url: str, expected: tuple[int, ...], **options: Any) -> requests.Response:
        try:
            response = self._session.request(method, url, timeout=TIMEOUT, **options)
            if response.status_code == requests.codes.unauthorized and self._log_in(response):
                if hasattr(options.get("data"), "seek"):
                    options["data"].seek(0)
                response = self._session.request(method, url, timeout=TIMEOUT, **options)
        except requests.RequestException as error:
            raise CliError(f"{self._reference.host} does not answer: {_cause(error)}", "check the host, and --plain-http") from error
        if response.status_code in expected:
            return response
        if response.status_code in (401, 403):
            raise CliError(
                f"{self._reference.host}/{self._reference.repository} refuses the credentials",
                f"run `docker login {self._reference.host}` with an account that may push",
            )
        said = f"HTTP {response.status_code} {response.text[:200]}"
        raise CliError(f"{self._reference.host} refuses {method} {self._reference.repository}: {said}", "check the repository's name")

    def _log_in(self, response: requests.Response) -> bool:
        """Answer the registry's challenge; False when there is nothing to answer it with."""
        challenge = response.headers.get("WWW-Authenticate", "")
        if challenge.lower().startswith("basic"):
            self._session.auth = self._credentials
            return self._credentials is not None
        fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        if "realm" not in fields:
            return False
        query = {key: fields[key] for key in ("service", "scope") if key in fields}
        query["scope"] = f"repository:{self._reference.repository}:pull,push"
        answer = self._session.get(fields["realm"], params=query, auth=self._credentials, timeout=TIMEOUT)
        token = answer.json().get("token") or answer.json().get("access_token") if answer.ok else None
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"
        return bool(token)


@contextmanager
def _opened(data: Path | bytes) -> Any:
    if isinstance(data, bytes):
        yield data
        return
    with data.open("rb") as file:
        body: IO[bytes] | bytes = file if data.stat().st_size else b""  # an empty file would be sent chunked
        yield body


def _cause(error: Exception) -> str:
    found = re.search(
        r"(Connection refused|Name or service not known|No route to host|timed out|CERTIFICATE\w+|WRONG_VERSION\w*)", str(error)
    )
    return found[1] if found else f"{type(error).__name__}"
