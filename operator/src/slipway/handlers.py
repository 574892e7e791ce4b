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
from slipway.store import Store

RESOURCES = {
    "ModelDeployment": (names.GROUP, names.VERSION, "modeldeployments"),
    "ModelArtifact": (names.GROUP, names.VERSION, "modelartifacts"),
    "ServingRuntime": (names.GROUP, names.VERSION, "servingruntimes"),
    "Deployment": ("apps", "v1", "deployments"),
    "Service": ("", "v1", "services"),
    "Job": ("batch", "v1", "jobs"),
    "Pod": ("", "v1", "pods"),
}
API_VERSIONS = {kind: f"{group}/{version}" if group else version for kind, (group, version, _) in RESOURCES.items()}


def register(registry: kopf.OperatorRegistry, store: Store, queue: KeyQueue) -> None:
    """Connect the watches of all kinds to the store and the queue."""
    for kind, (group, version, plural) in RESOURCES.items():
        index, event = _handlers(kind, store, queue)
        kopf.index(group, version, plural, id=f"index-{kind}", registry=registry)(index)
        kopf.on.event(group, version, plural, id=f"event-{kind}", registry=registry)(event)


def configure(settings: kopf.OperatorSettings) -> None:
    """Set kopf to watch only: no finalizers, no annotations, no Events; the API server filters by our label."""
    settings.posting.enabled = False
    settings.watching.server_timeout = 300
    settings.scanning.disabled = False
    for kind, selector in WATCHED.items():
        if selector is not None:
            group, _, plural = RESOURCES[kind]
            settings.watching.label_selectors[(group, plural)] = selector


def _handlers(kind: str, store: Store, queue: KeyQueue) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def complete(body: kopf.Body) -> Manifest:
        return {"apiVersion": API_VERSIONS[kind], "kind": kind, **{k: v for k, v in dict(body).items() if k not in ("apiVersion", "kind")}}

    def index(body: kopf.Body, **_: Any) -> None:
        store.observe(complete(body))

    async def event(type: str | None, body: kopf.Body, **_: Any) -> None:
        manifest = complete(body)
        if type == "DELETED":
            store.remove(manifest)
        else:
            store.observe(manifest)
        for key in store.keys_for(manifest):
            queue.add(key)

    return index, event
