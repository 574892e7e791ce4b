"""The operator's client of the artifact registry: it lists, reads manifests, puts marks and deletes by digest; it transfers no model.

The pipeline (`slipway_runtime.oci`) and the command line (`slipway.cli.registry`) have clients of their own, which do; this one runs in the
operator's event loop.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

TIMEOUT = aiohttp.ClientTimeout(total=30, connect=5)
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
ACCEPT = ", ".join(
    [
        MANIFEST_TYPE,
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ]
)
EMPTY = b"{}"
MAX_MANIFEST = 4 << 20  # bytes; registries refuse larger ones
PAGE, MAX_PAGES = 500, 200


class RegistryError(Exception):
    """The registry did not do what it was asked; `result` is one word for the metric."""

    result = "Unavailable"


class RejectedError(RegistryError):
    """401 or 403: no credentials, or not enough rights."""

    result = "Rejected"


class DeleteForbiddenError(RegistryError):
    """The registry deletes nothing, whoever asks."""

    result = "DeleteForbidden"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest: its digest, and what it says, empty when that is not a JSON object."""

    digest: str
    value: Mapping[str, Any]

    @property
    def artifact_type(self) -> str:
        """What it is a manifest of; older ones say it by the type of their config."""
        config = self.value.get("config")
        return str(self.value.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else ""))


class Registry:
    """One registry."""

    def __init__(self, session: aiohttp.ClientSession, host: str, *, is_plain: bool, credentials: Path | None = None) -> None:
        """Prepare; nothing is sent yet.

        Args:
            session: stays the caller's.
            host: `host[:port]`.
            is_plain: spoken to without TLS.
            credentials: a folder with a `.dockerconfigjson`, read at each request, since Secrets change.
        """
        self._session, self.host, self._credentials = session, host, credentials
        self._base = f"{'http' if is_plain else 'https'}://{host}"
        self._authorization: dict[str, str] = {}  # by scope

    async def repositories(self) -> list[str] | None:
        """Return the names of all repositories; None when the registry does not tell.

        Raises:
            RegistryError: no answer.
        """
        try:
            return await self._pages("_catalog", "repositories", "registry:catalog:*")
        except RejectedError:
            return None

    async def tags(self, repository: str) -> list[str]:
        """Return the tags of a repository, none when there is no such repository; raises RegistryError."""
        return await self._pages(f"{repository}/tags/list", "tags", _scope(repository)) or []

    async def manifest(self, repository: str, reference: str) -> Manifest | None:
        """Return the manifest of a tag or digest, or None when there is none; raises RegistryError."""
        status, data, _ = await self._send("GET", f"{repository}/manifests/{reference}", _scope(repository), headers={"Accept": ACCEPT})
        if status == 404:
            return None
        self._check(status, f"the manifest {repository} {reference}", 200)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if len(data) > MAX_MANIFEST or (reference.startswith("sha256:") and digest != reference):
            raise RegistryError(f"{self.host} gives something else for the manifest {repository} {reference}")
        return Manifest(digest, _object(data))

    async def put_empty(self, repository: str, tag: str, artifact_type: str, annotations: Mapping[str, str]) -> None:
        """Put a manifest without content under a tag; raises RegistryError."""
        digest = f"sha256:{hashlib.sha256(EMPTY).hexdigest()}"
        descriptor = {"mediaType": EMPTY_TYPE, "digest": digest, "size": len(EMPTY)}
        await self._put_empty_blob(repository, digest)
        value = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": artifact_type,
            "config": descriptor,
            "layers": [descriptor],
            "annotations": dict(annotations),
        }
        options = {"data": json.dumps(value).encode(), "headers": {"Content-Type": MANIFEST_TYPE}}
        status, _, _ = await self._send("PUT", f"{repository}/manifests/{tag}", _scope(repository), **options)
        self._check(status, f"the manifest {repository} {tag}", 201)

    async def delete(self, repository: str, digest: str) -> bool:
        """Delete a manifest and the tags that point at it; return whether it was there.

        Raises:
            DeleteForbiddenError: the registry deletes nothing.
            RegistryError: any other failure.
        """
        status, data, _ = await self._send("DELETE", f"{repository}/manifests/{digest}", _scope(repository))
        if status in (405, 501) or b'"UNSUPPORTED"' in data:
            raise DeleteForbiddenError(f"{self.host} does not delete manifests (HTTP {status})")
        if status == 404:
            return False
        self._check(status, f"the deletion of {repository} {digest}", 202, 200, 204)
        return True

    async def _put_empty_blob(self, repository: str, digest: str) -> None:
        scope = _scope(repository)
        status, _, _ = await self._send("HEAD", f"{repository}/blobs/{digest}", scope)
        if status == 200:
            return
        status, _, headers = await self._send("POST", f"{repository}/blobs/uploads/", scope)
        self._check(status, f"an upload to {repository}", 202)
        url = URL(self._base).join(URL(headers.get("Location", ""), encoded=True)).extend_query(digest=digest)
        options = {"data": EMPTY, "headers": {"Content-Type": "application/octet-stream"}}
        status, _, _ = await self._send("PUT", url, scope, **options)
        self._check(status, f"an upload to {repository}", 201)

    async def _pages(self, path: str, field: str, scope: str) -> list[str] | None:
        """Return a list that comes in pages; None when there is no such list (404, 405)."""
        found: list[str] = []
        url: str | URL = f"{path}?n={PAGE}"
        for _ in range(MAX_PAGES):
            status, data, headers = await self._send("GET", url, scope)
            if status in (404, 405):
                return None
            self._check(status, path, 200)
            found += [str(name) for name in _object(data).get(field) or ()]
            following = re.match(r'<([^>]+)>;\s*rel="?next"?', headers.get("Link", ""))
            if following is None:
                return found
            url = URL(f"{self._base}/v2/{path}").join(URL(following[1], encoded=True))
        raise RegistryError(f"{self.host} lists more than {PAGE * MAX_PAGES} {field}")

    async def _send(self, method: str, path: str | URL, scope: str, **options: Any) -> tuple[int, bytes, Mapping[str, str]]:
        """Send a request, once more with credentials when the registry asks for them; return status, body and headers."""
        url = path if isinstance(path, URL) else URL(f"{self._base}/v2/{path}", encoded=True)
        try:
            status, data, headers = await self._send_once(method, url, scope, options)
            if status == 401 and await self._log_in(headers.get("WWW-Authenticate", ""), scope):
                status, data, headers = await self._send_once(method, url, scope, options)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RegistryError(f"{self.host} does not answer: {error!r}") from error
        return status, data, headers

    async def _send_once(self, method: str, url: URL, scope: str, options: Mapping[str, Any]) -> tuple[int, bytes, Mapping[str, str]]:
        headers = {**options.get("headers", {}), "User-Agent": "slipway-operator"}
        if url.host == URL(self._base).host and scope in self._authorization:  # an upload may go to another host
            headers["Authorization"] = self._authorization[scope]
        async with self._session.request(method, url, data=options.get("data"), headers=headers, timeout=TIMEOUT) as response:
            return response.status, await _body(response), response.headers

    async def _log_in(self, challenge: str, scope: str) -> bool:
        """Answer a challenge (Basic, or a token that somebody else issues); return whether there was something to answer with."""
        known = self._read_credentials()
        basic = "Basic " + base64.b64encode(":".join(known).encode()).decode() if known else None
        fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        if challenge.lower().startswith("basic") and basic:
            self._authorization[scope] = basic
            return True
        if not challenge.lower().startswith("bearer") or "realm" not in fields:
            return False
        query = {"scope": scope} | ({"service": fields["service"]} if "service" in fields else {})
        headers = {"Authorization": basic} if basic else {}
        async with self._session.get(fields["realm"], params=query, headers=headers, timeout=TIMEOUT) as response:
            answer = _object(await _body(response)) if response.status == 200 else {}
        token = answer.get("token") or answer.get("access_token")
        if token:
            self._authorization[scope] = f"Bearer {token}"
        return bool(token)

    def _read_credentials(self) -> tuple[str, str] | None:
        """Return user and password from the mounted Secret, or None; raises RejectedError when it is malformed."""
        path = self._credentials and self._credentials / ".dockerconfigjson"
        if not path or not path.is_file():
            return None
        try:
            auths = json.loads(path.read_text())["auths"]
            entry = next((auths[key] for key in (self.host, f"https://{self.host}", f"http://{self.host}") if key in auths), None)
            if entry is None:
                return None
            if entry.get("auth"):
                user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
                return user, password
            return str(entry["username"]), str(entry["password"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RejectedError(f".dockerconfigjson of the operator's registry Secret is malformed: {type(error).__name__}") from error

    def _check(self, status: int, what: str, *expected: int) -> None:
        if status in (401, 403):
            raise RejectedError(f"{self.host} refuses {what} (HTTP {status}): the operator's credentials are missing or may not delete")
        if status not in expected:
            raise RegistryError(f"{self.host} answers HTTP {status} for {what}")


def _scope(repository: str) -> str:
    return f"repository:{repository}:pull,push,delete"


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """Return the body, or its beginning when it is longer than any manifest."""
    data = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        data += chunk
        if len(data) > MAX_MANIFEST:
            break
    return bytes(data)


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
