"""Reading and patching a cluster in process, with the words of kubectl.

`kubectl get` takes a third of a second of CPU, and tests that wait for something ask all the time: on two cores that was half of what the
e2e tests cost. Everything else that tests do to a cluster is done by kubectl, as users do it.
"""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3
import yaml

# API server aggregated discovery: one answer has all resources of all groups. Source: KEP-3352.
DISCOVERY = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
DISCOVERY_SECONDS = 10  # a resource definition is established before discovery tells of it
Manifest = dict[str, Any]


class NotFound(AssertionError):
    """There is no such object."""


@dataclass(frozen=True)
class Resource:
    """Where the objects of a resource are."""

    base: str
    plural: str
    is_namespaced: bool

    def path(self, namespace: str | None) -> str:
        place = f"/namespaces/{namespace}" if self.is_namespaced and namespace is not None else ""
        return f"{self.base}{place}/{self.plural}"


@cache
def kube(kubeconfig: Path, context: str) -> Kube:
    """The client of a context; one for the whole process."""
    return Kube(kubeconfig, context)


class Kube:
    """A context of a kubeconfig; others are never touched."""

    def __init__(self, kubeconfig: Path, context: str) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        chosen = next(item["context"] for item in config["contexts"] if item["name"] == context)
        cluster = next(item["cluster"] for item in config["clusters"] if item["name"] == chosen["cluster"])
        user = next(item["user"] for item in config["users"] if item["name"] == chosen["user"])
        tls = ssl.create_default_context(cadata=_decoded(cluster["certificate-authority-data"]).decode())
        if "client-certificate-data" in user:
            with tempfile.NamedTemporaryFile() as pair:  # ssl reads it from a file only
                pair.write(_decoded(user["client-certificate-data"]) + _decoded(user["client-key-data"]))
                pair.flush()
                tls.load_cert_chain(pair.name)
        self._headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
        url = urlsplit(cluster["server"])
        # 504: the server had no answer of etcd in time, as when the disk stands still. What is asked here may be asked twice.
        retries = urllib3.Retry(3, status_forcelist=[504], allowed_methods=None, raise_on_status=False)
        self._pool = urllib3.HTTPSConnectionPool(url.hostname, url.port, ssl_context=tls, maxsize=8, timeout=60, retries=retries)
        self._resources: dict[str, Resource] = {}

    def get(self, *arguments: str) -> Manifest:
        """What `kubectl get ARGUMENTS -o json` prints, of the flags -n, -A, -l and --field-selector.

        Raises:
            NotFound: the object that was named is absent.
        """
        words, namespace, selectors = _parsed(arguments)
        kinds, name = words[0], words[1] if len(words) > 1 else None
        if "/" in kinds:
            kinds, name = kinds.split("/")
        if name is not None:
            return self.request("GET", f"{self.resource(kinds).path(namespace)}/{name}")
        items = [item for kind in kinds.split(",") for item in self._list(self.resource(kind), namespace, selectors)]
        return {"apiVersion": "v1", "kind": "List", "items": items}

    def _list(self, resource: Resource, namespace: str | None, selectors: dict[str, str]) -> Iterable[Manifest]:
        found = self.request("GET", f"{resource.path(namespace)}?{urlencode(selectors)}")
        kind = found["kind"].removesuffix("List")
        return [{"apiVersion": found["apiVersion"], "kind": kind, **item} for item in found["items"]]  # lists leave them out

    def patch(self, namespace: str | None, kind: str, name: str, body: Manifest, *, subresource: str = "") -> Manifest:
        """Merge-patch an object, or its status."""
        path = f"{self.resource(kind).path(namespace)}/{name}" + (f"/{subresource}" if subresource else "")
        return self.request("PATCH", path, body, "application/merge-patch+json")

    def apply(self, *documents: Manifest) -> None:
        """Server-side apply of manifests, by force and as kubectl; into the namespace `default` unless they name one."""
        for document in documents:
            metadata = document["metadata"]
            path = f"{self.resource(document['kind']).path(metadata.get('namespace', 'default'))}/{metadata['name']}"
            query = urlencode({"fieldManager": "kubectl", "force": "true", "fieldValidation": "Strict"})
            self.request("PATCH", f"{path}?{query}", document, "application/apply-patch+yaml")

    def dry_create(self, document: Manifest) -> tuple[int, Manifest]:
        """What the API server says to a manifest, without storing it: HTTP status, and the object or the Status."""
        path = self.resource(document["kind"]).path(document["metadata"].get("namespace", "default"))
        return self._send("POST", f"{path}?dryRun=All&fieldValidation=Strict", document, "application/json")

    def request(self, verb: str, path: str, body: Manifest | None = None, kind: str = "application/json") -> Manifest:
        """Send a request, and return the object in the answer.

        Raises:
            NotFound: as the API server says.
            AssertionError: the API server refused.
        """
        status, answer = self._send(verb, path, body, kind)
        if status == 404:
            raise NotFound(f"{verb} {path}: {answer.get('message')}")
        assert status < 300, f"{verb} {path}: {status} {answer.get('message')}"
        return answer

    def _send(self, verb: str, path: str, body: Manifest | None, kind: str) -> tuple[int, Manifest]:
        data = None if body is None else json.dumps(body).encode()
        answer = self._pool.request(verb, path, body=data, headers={**self._headers, "Content-Type": kind})
        try:
            return answer.status, answer.json()
        except ValueError:
            return answer.status, {"message": answer.data.decode(errors="replace")}

    def resource(self, word: str) -> Resource:
        """A resource by kind, plural, singular or short name, as kubectl takes it; of several groups the first one."""
        word, end = word.lower(), time.monotonic() + DISCOVERY_SECONDS
        while word not in self._resources:
            self._discover()
            if word in self._resources or time.monotonic() > end:
                break
            time.sleep(0.2)
        assert word in self._resources, f"the server does not have a resource {word!r}"
        return self._resources[word]

    def _discover(self) -> None:
        for root in ("/api", "/apis"):
            answer = self._pool.request("GET", root, headers={**self._headers, "Accept": DISCOVERY}).json()
            for group in answer["items"]:
                self._learn(root, group)

    def _learn(self, root: str, group: Manifest) -> None:
        name = (group.get("metadata") or {}).get("name")
        version = group["versions"][0]
        base = f"{root}/{name}/{version['version']}" if name else f"{root}/{version['version']}"
        for found in version.get("resources", ()):  # an API of another server, such as metrics, has none until that server answers
            resource = Resource(base, found["resource"], found["scope"] == "Namespaced")
            words = {found["resource"], found["singularResource"], found["responseKind"]["kind"].lower(), *(found.get("shortNames") or ())}
            for word in words | ({f"{found['resource']}.{name}", f"{found['singularResource']}.{name}"} if name else set()):
                self._resources.setdefault(word, resource)


def _parsed(arguments: tuple[str, ...]) -> tuple[list[str], str | None, dict[str, str]]:
    words: list[str] = []
    namespace: str | None = "default"
    selectors: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        if argument == "-n":
            namespace = next(rest)
        elif argument == "-A":
            namespace = None
        elif argument in ("-l", "--field-selector"):
            selectors[{"-l": "labelSelector"}.get(argument, "fieldSelector")] = next(rest)
        else:
            assert not argument.startswith("-"), f"{argument} is not known here; use kubectl"
            words.append(argument)
    return words, namespace, selectors


def _decoded(text: str) -> bytes:
    return base64.b64decode(text) + b"\n"
