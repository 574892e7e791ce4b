"""Where kopf's watches meet our queue: the only file besides main that imports kopf.

kopf supplies discovery, watches and reconnects. A handler takes the object into the store and drops a key into the queue, nothing else.
An index is asked for beside each handler because kopf runs no handler before all indexed resources are listed once: the first decision
is then made on the whole picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kopf

from slipway import names
from slipway.queue import KeyQueue
from slipway.resync import WATCHED
from slipway.snapshot import Manifest
from slipway.store import Identity, Store, identity

RESOURCES = {
    "ModelDeployment": (names.GROUP, names.VERSION, "modeldeployments"),
    "ModelArtifact": (names.GROUP, names.VERSION, "modelartifacts"),
    "ServingRuntime": (names.GROUP, names.VERSION, "servingruntimes"),
    "Deployment": ("apps", "v1", "deployments"),
    "Service": ("", "v1", "services"),
    "HorizontalPodAutoscaler": ("autoscaling", "v2", "horizontalpodautoscalers"),
    "Job": ("batch", "v1", "jobs"),
    "Pod": ("", "v1", "pods"),
    "HTTPRoute": ("gateway.networking.k8s.io", "v1", "httproutes"),  # kopf watches them when their CRDs are there, or come
    "GRPCRoute": ("gateway.networking.k8s.io", "v1", "grpcroutes"),
    "ScaledObject": ("keda.sh", "v1alpha1", "scaledobjects"),  # likewise
}
API_VERSIONS = {kind: f"{group}/{version}" if group else version for kind, (group, version, _) in RESOURCES.items()}


def register(registry: kopf.OperatorRegistry, store: Store, queue: KeyQueue) -> None:
    """Connect the watches of all kinds to the store and the queue."""
    for kind, (group, version, plural) in RESOURCES.items():
        index, event = _handlers(kind, store, queue)
        kopf.index(group, version, plural, id=f"index-{kind}", registry=registry)(index)
        kopf.on.event(group, version, plural, id=f"event-{kind}", registry=registry)(event)


class NoDiffBase(kopf.DiffBaseStorage):
    """Keeps no last handled state: nothing here asks what changed, and the copy that kopf makes of each object is most of its work."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Return an empty essence."""
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        """Return nothing."""

    def store(self, **_: Any) -> None:
        """Store nothing."""


class NoProgress(kopf.ProgressStorage):
    """Keeps no progress of handlers: ours are tried once, the queue does the rest."""

    def fetch(self, **_: Any) -> None:
        """Return nothing."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        """Return what there is."""
        return essence

    def store(self, **_: Any) -> None:
        """Store nothing."""

    def purge(self, **_: Any) -> None:
        """Purge nothing."""

    def touch(self, **_: Any) -> None:
        """Touch nothing."""


def configure(settings: kopf.OperatorSettings) -> None:
    """Set kopf to watch only: no finalizers, no annotations, no Events; the API server filters by our label."""
    settings.posting.enabled = False
    settings.persistence.diffbase_storage = NoDiffBase()
    settings.persistence.progress_storage = NoProgress()
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 10
    settings.queueing.idle_timeout = 1
    for kind, selector in WATCHED.items():
        if selector is not None:
            group, _, plural = RESOURCES[kind]
            settings.watching.label_selectors[(group, plural)] = selector


def _handlers(kind: str, store: Store, queue: KeyQueue) -> tuple[Callable[..., Any], Callable[..., Any]]:
    news: set[Identity] = set()  # taken in by `index`, to be told to the queue by `event`, which follows

    def complete(body: kopf.Body) -> Manifest:
        return {**body, "apiVersion": API_VERSIONS[kind], "kind": kind}

    async def index(body: kopf.Body, **_: Any) -> None:
        manifest = complete(body)
        if store.observe(manifest):
            news.add(identity(manifest))

    async def event(type: str | None, body: kopf.Body, **_: Any) -> None:
        manifest = complete(body)
        is_known_to_be_news = identity(manifest) in news
        news.discard(identity(manifest))
        # the echo of our own write is no news: the worker that wrote has told whom it concerns
        is_news = store.remove(manifest) if type == "DELETED" else store.observe(manifest)
        if is_news or is_known_to_be_news:
            for key in store.keys_for(manifest):
                queue.add(key)

    return index, event
