"""The yardstick of reconcile_bench.py: the least that kopf's own handlers can do for a ModelDeployment.

One Deployment, one Service and a status, by server-side apply; no artifacts, no revisions, no second look.
"""

from __future__ import annotations

import json
import os
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import kopf
import yaml

CLUSTER = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
SERVER, TOKEN = CLUSTER["clusters"][0]["cluster"]["server"], CLUSTER["users"][0]["user"]["token"]
sessions: list[aiohttp.ClientSession] = []


@kopf.on.startup()
async def startup(settings: kopf.OperatorSettings, **_: Any) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    headers = {"Authorization": f"Bearer {TOKEN}", "User-Agent": "minimal-operator"}
    sessions.append(aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(ssl=context, limit=64)))
    settings.posting.enabled = False


async def apply(path: str, body: dict[str, Any]) -> None:
    headers, params = {"Content-Type": "application/apply-patch+yaml"}, {"fieldManager": "minimal", "force": "true"}
    async with sessions[0].patch(SERVER + path, data=json.dumps(body), params=params, headers=headers) as answer:
        if answer.status >= 300:
            raise kopf.TemporaryError(await answer.text(), delay=1)


@kopf.on.create("slipway.dev", "v1alpha1", "modeldeployments")
async def create(name: str, namespace: str, uid: str, spec: Any, patch: kopf.Patch, **_: Any) -> None:
    reference = {"apiVersion": "slipway.dev/v1alpha1", "kind": "ModelDeployment", "name": name, "uid": uid, "controller": True}
    metadata = {"name": name, "ownerReferences": [reference]}
    labels = {"app": name}
    pod = {"containers": [{"name": "server", "image": "server", "args": [spec["model"]["uri"]]}]}
    deployment = {"replicas": 1, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}}
    service = {"selector": labels, "ports": [{"port": 80}]}
    apps, core = f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}", f"/api/v1/namespaces/{namespace}/services/{name}"
    await apply(apps, {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": deployment})
    await apply(core, {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service})
    patch.status["url"] = f"http://{name}.{namespace}.svc"
