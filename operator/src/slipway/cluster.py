"""The only API client: dictionaries in, dictionaries out, typed errors, one rate limit.

Authentication comes from the official client's configuration loader (in-cluster and kubeconfig); requests go through aiohttp directly,
because the operator needs server-side apply of plain dictionaries and none of the generated models.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from slipway import metrics, names

TOKEN_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
TOKEN_SECONDS = 60.0  # mounted tokens rotate; client-go reads them again every minute as well
Objects = list[dict[str, Any]]  # not spelled out below, where `list` is a method
TIMEOUT = aiohttp.ClientTimeout(total=15, connect=5)
MERGE_PATCH, JSON_PATCH = "application/merge-patch+json", "application/json-patch+json"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
PLURALS = {
    "ModelDeployment": f"apis/{names.API_VERSION}/{{}}modeldeployments",
    "ModelArtifact": f"apis/{names.API_VERSION}/{{}}modelartifacts",
    "ServingRuntime": f"apis/{names.API_VERSION}/{{}}servingruntimes",
    "Deployment": "apis/apps/v1/{}deployments",
    "Service": "api/v1/{}services",
    "Pod": "api/v1/{}pods",
    "Event": "api/v1/{}events",
    "Job": "apis/batch/v1/{}jobs",
    "HTTPRoute": "apis/gateway.networking.k8s.io/v1/{}httproutes",
    "GRPCRoute": "apis/gateway.networking.k8s.io/v1/{}grpcroutes",
    "ResourceClaimTemplate": "apis/resource.k8s.io/v1/{}resourceclaimtemplates",
    "HorizontalPodAutoscaler": "apis/autoscaling/v2/{}horizontalpodautoscalers",
    "ScaledObject": "apis/keda.sh/v1alpha1/{}scaledobjects",
    "Node": "api/v1/nodes",
    "ClusterRole": "apis/rbac.authorization.k8s.io/v1/{}clusterroles",
    "Lease": "apis/coordination.k8s.io/v1/{}leases",
}


class ApiError(Exception):
    """The API server refused; `code` is the HTTP status, 0 when there was no answer."""

    def __init__(self, code: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.retry_after = code, reason, message, retry_after


class NotFound(ApiError):
    """404."""


class NoSuchKind(NotFound):
    """404: the cluster does not have resources of that kind."""


class Conflict(ApiError):
    """409: somebody else was faster, or the object is there already."""


class Forbidden(ApiError):
    """403: no right, over quota, or refused by admission."""


class Invalid(ApiError):
    """400 or 422: the object cannot be accepted."""


class Throttled(ApiError):
    """429: wait for `retry_after` seconds."""


class Unavailable(ApiError):
    """5xx, or no answer at all."""


_NO_SUCH_KIND = ("404 page not found", "could not find the requested resource")  # without its group, and without its version
_ERRORS: dict[int, type[ApiError]] = {400: Invalid, 403: Forbidden, 404: NotFound, 409: Conflict, 422: Invalid, 429: Throttled}


class RateLimit:
    """A token bucket: `qps` requests a second on average, `burst` at once."""

    def __init__(self, qps: float, burst: int) -> None:
        self._qps, self._burst, self._tokens, self._at = qps, burst, float(burst), time.monotonic()

    async def wait(self) -> None:
        """Return when one more request may be sent."""
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._qps) - 1
        self._at = now
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens / self._qps)


def is_kubeconfig_named() -> bool:
    """Say whether the environment names a kubeconfig; it then wins over the service account, also in a pod."""
    return bool(os.environ.get("KUBECONFIG"))


def path_of(kind: str, namespace: str | None, name: str | None = None, sub: str | None = None) -> str:
    """Return the API path of an object or a collection."""
    base = PLURALS[kind].format(f"namespaces/{namespace}/" if namespace else "")
    return "/".join(["", base, *([name] if name else []), *([sub] if sub else [])])


class Cluster:
    """A connection to one API server."""

    def __init__(self, configuration: Configuration, *, qps: float = 400, burst: int = 800) -> None:
        self._host = configuration.host.rstrip("/")
        self._limit = RateLimit(qps, burst)
        self._configuration = configuration
        self._token: str | None = None
        self._token_at = -TOKEN_SECONDS
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    async def connect(cls, *, qps: float = 400, burst: int = 800) -> Cluster:
        """Connect by the kubeconfig that the environment names, else as the pod's service account, else by the user's kubeconfig."""
        configuration = Configuration()
        if is_kubeconfig_named():
            await load_kube_config(client_configuration=configuration)
            return cls(configuration, qps=qps, burst=burst)
        try:
            load_incluster_config(client_configuration=configuration)
        except ConfigException:
            await load_kube_config(client_configuration=configuration)
        return cls(configuration, qps=qps, burst=burst)

    @property
    def configuration(self) -> Configuration:
        """The address and credentials, for kopf's own connection."""
        return self._configuration

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            settings = self._configuration
            context = ssl.create_default_context(cafile=settings.ssl_ca_cert)
            if not settings.verify_ssl:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            if settings.cert_file:
                context.load_cert_chain(settings.cert_file, settings.key_file)
            connector = aiohttp.TCPConnector(limit=64, ssl=context)
            self._session = aiohttp.ClientSession(connector=connector, timeout=TIMEOUT, json_serialize=lambda o: orjson.dumps(o).decode())
        return self._session

    def _authorization(self) -> dict[str, str]:
        if time.monotonic() - self._token_at > TOKEN_SECONDS:
            self._token_at = time.monotonic()
            self._token = TOKEN_FILE.read_text().strip() if not is_kubeconfig_named() and TOKEN_FILE.exists() else None
        if self._token:
            return {"Authorization": f"Bearer {self._token}"}
        token = self._configuration.api_key.get("BearerToken") or self._configuration.api_key.get("authorization")
        if not token:
            return {}
        return {"Authorization": token if " " in token else f"Bearer {token}"}

    async def request(  # noqa: PLR0913 - the parts of a request
        self,
        verb: str,
        path: str,
        body: object = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> dict[str, Any]:
        """Send one request.

        Raises:
            ApiError: or the subclass that fits; `Unavailable` when there was no answer.
        """
        await self._limit.wait()
        headers = {"Accept": accept, "Content-Type": content_type, "User-Agent": "slipway-operator", **self._authorization()}
        data = None if body is None else orjson.dumps(body)
        try:
            async with self._open().request(verb, self._host + path, data=data, params=params, headers=headers) as response:
                text = await response.read()
                metrics.API_REQUESTS.labels(verb, str(response.status)).inc()
                if response.status < 300:
                    return dict(orjson.loads(text))
                raise _error(response.status, text, response.headers.get("Retry-After"))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            metrics.API_REQUESTS.labels(verb, "0").inc()
            raise Unavailable(0, "NoAnswer", f"the API server does not answer: {error!r}") from error

    async def get(self, kind: str, namespace: str | None, name: str) -> dict[str, Any]:
        """Return one object."""
        return await self.request("GET", path_of(kind, namespace, name))

    async def list(
        self, kind: str, namespace: str | None, *, selector: str | None = None, fields: str | None = None, version: str | None = "0"
    ) -> Objects:
        """Return the objects of a kind, from the API server's watch cache; with `version` None as they are, however old the cache is."""
        wanted = {"resourceVersion": version, "labelSelector": selector, "fieldSelector": fields}
        params = {key: value for key, value in wanted.items() if value}
        answer = await self.request("GET", path_of(kind, namespace), params=params)
        version = answer.get("apiVersion")
        return [{"apiVersion": version, "kind": kind, **item} for item in answer.get("items") or ()]

    async def list_metadata(self, kind: str, namespace: str | None, *, selector: str | None = None) -> Objects:
        """Return the objects of a kind without spec and status, from the API server's watch cache."""
        params = {"resourceVersion": "0"} | ({"labelSelector": selector} if selector else {})
        answer = await self.request("GET", path_of(kind, namespace), params=params, accept=METADATA_LIST)
        return [{"kind": kind, "metadata": item["metadata"]} for item in answer.get("items") or ()]

    async def create(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object; raises `Conflict` when there is one of that name, whosever it is."""
        path = path_of(manifest["kind"], manifest["metadata"].get("namespace"))
        return await self.request("POST", path, dict(manifest), params={"fieldManager": names.FIELD_MANAGER})

    async def patch(self, kind: str, namespace: str | None, name: str, body: object, content_type: str) -> dict[str, Any]:
        """Send a merge patch (RFC 7396) or a JSON patch (RFC 6902)."""
        params = {"fieldManager": names.FIELD_MANAGER}
        return await self.request("PATCH", path_of(kind, namespace, name), body, params=params, content_type=content_type)

    async def apply(self, manifest: Mapping[str, Any], *, manager: str = names.FIELD_MANAGER) -> dict[str, Any]:
        """Apply an object by server-side apply, taking over the fields it names."""
        metadata = manifest["metadata"]
        path = path_of(manifest["kind"], metadata.get("namespace"), metadata["name"])
        params = {"fieldManager": manager, "force": "true"}
        return await self.request("PATCH", path, dict(manifest), params=params, content_type="application/apply-patch+yaml")

    async def delete(self, kind: str, namespace: str | None, name: str, *, uid: str | None = None) -> bool:
        """Delete an object, if it is still that one, and what it owns in the background; return whether it is gone at once."""
        options: dict[str, Any] = {"propagationPolicy": "Background"} | ({"preconditions": {"uid": uid}} if uid else {})
        try:
            answer = await self.request("DELETE", path_of(kind, namespace, name), options)
        except NotFound:
            return True
        return answer.get("kind") == "Status" or not answer["metadata"].get("deletionTimestamp")

    async def put_status(self, resource: Mapping[str, Any], status: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the status, if the object is still at the version that the decision saw."""
        metadata = resource["metadata"]
        path = path_of(resource["kind"], metadata.get("namespace"), metadata["name"], "status")
        kept = {key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion") if key in metadata}
        body = {
            "apiVersion": names.API_VERSION,
            "kind": resource["kind"],
            "metadata": kept,
            "spec": resource["spec"],
            "status": dict(status),
        }
        return await self.request("PUT", path, body, params={"fieldManager": names.FIELD_MANAGER})


def _error(code: int, text: bytes, retry_after: str | None) -> ApiError:
    try:
        answer = orjson.loads(text)
        reason, message = answer.get("reason", ""), answer.get("message", "")
    except (ValueError, AttributeError):
        reason, message = "", text[:300].decode(errors="replace")
    if code == 404 and any(words in message for words in _NO_SUCH_KIND):
        return NoSuchKind(code, reason, message)
    wait = float(retry_after) if retry_after and retry_after.isdigit() else None
    return _ERRORS.get(code, Unavailable)(code, reason, message, wait)
