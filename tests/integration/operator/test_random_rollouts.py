"""Z3 on a real API server: 200 random stories of changes, reverts, aborts and promotions end like fresh creates of their last wishes.

All stories run at the same time, with one operator. Nothing runs pods: a task says of each Deployment that its pods are ready.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from contextlib import suppress
from typing import Any

import pytest

from integration.conftest import ApiServer
from integration.operator.conftest import Tenant, ready_status
from kube import NotFound
from slipway.plan.artifact import artifact_manifest, artifact_spec
from slipway.snapshot import Config

pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.timeout(1200)]
STORIES, SEED = 200, 6
GROUP = "/apis/slipway.dev/v1alpha1/namespaces"
ROLLOUTS: list[dict[str, Any]] = [
    {},
    {"rollout": {"strategy": "Canary", "steps": [{"weight": 25, "duration": "2s"}, {"weight": 100, "duration": "1s"}]}},
    {"rollout": {"strategy": "BlueGreen", "steps": [{"weight": 100, "duration": "1s"}]}},
    {"rollout": {"strategy": "Recreate"}},
]
Manifest = dict[str, Any]


def a_wish(dice: random.Random) -> Manifest:
    """A spec."""
    return {"model": model(f"v{dice.randrange(3)}"), "serving": {"replicas": dice.choice([1, 2, 3])}, **dice.choice(ROLLOUTS)}


def model(version: str) -> Manifest:
    return {"uri": f"oci://registry:5000/models/digits:{version}"}


class Api:
    """One namespace of the API server."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self._kube = server.kube
        self.mdeps, self.deployments = f"{GROUP}/{namespace}/modeldeployments", f"/apis/apps/v1/namespaces/{namespace}/deployments"
        self.services = f"/api/v1/namespaces/{namespace}/services"

    async def get(self, path: str) -> Manifest:
        return await asyncio.to_thread(self._kube.request, "GET", path)

    async def patch(self, path: str, body: Manifest, kind: str = "merge-patch+json") -> None:
        await asyncio.to_thread(self._kube.request, "PATCH", path, body, f"application/{kind}")

    async def wish(self, name: str, spec: Manifest) -> None:
        """Apply a ModelDeployment, as kubectl does: what the spec no longer has goes."""
        resource = {"apiVersion": "slipway.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": name}, "spec": spec}
        await self.patch(f"{self.mdeps}/{name}?fieldManager=test&force=true", resource, "apply-patch+yaml")

    async def note(self, name: str, **annotations: str | None) -> None:
        """Annotate it; None removes one."""
        await self.patch(
            f"{self.mdeps}/{name}", {"metadata": {"annotations": {f"slipway.dev/{key}": value for key, value in annotations.items()}}}
        )

    async def run_pods(self) -> None:
        """Say of each Deployment that it has all its pods, until cancelled."""
        while True:
            for deployment in (await self.get(self.deployments))["items"]:
                size, meta = deployment["spec"]["replicas"], deployment["metadata"]
                counts = dict.fromkeys(("replicas", "readyReplicas", "availableReplicas", "updatedReplicas"), size)
                said = counts | {"observedGeneration": meta["generation"]}
                if any((deployment.get("status") or {}).get(key, 0) != value for key, value in said.items()):
                    with suppress(NotFound):
                        await self.patch(f"{self.deployments}/{meta['name']}/status", {"status": said})
            await asyncio.sleep(0.5)


async def story(api: Api, name: str, dice: random.Random) -> Manifest:
    """Two to ten things that users do, and the last wish; returns that."""
    await api.wish(name, a_wish(dice))
    for _ in range(dice.randrange(2, 10)):
        await asyncio.sleep(dice.choice([0, 0.1, 1, 3]))
        if dice.random() < 0.6:
            await api.wish(name, a_wish(dice))
            continue
        canary = ((await api.get(f"{api.mdeps}/{name}")).get("status") or {}).get("canary") or {}
        if canary:
            await api.note(name, **{dice.choice(["abort", "promote"]): canary["revision"]})
    await api.note(name, abort=None, promote=None)
    # a revision that was given up stays so until another is wished for: wish for one in between
    await api.wish(name, {"model": model("other"), "serving": {"replicas": 1}})
    while not is_over(await api.get(f"{api.mdeps}/{name}")):
        await asyncio.sleep(1)
    last = a_wish(dice)
    await api.wish(name, last)
    return last


async def until_over(api: Api, names: list[str], seconds: float = 300) -> None:
    """Wait until each is Ready with its present spec, and without a canary."""
    end, left = time.monotonic() + seconds, list(names)
    while left:
        found = {item["metadata"]["name"]: item for item in (await api.get(api.mdeps))["items"]}
        left = [name for name in left if not is_over(found[name])]
        assert time.monotonic() < end, f"{len(left)} of {len(names)} not over, the first: {found[left[0]]}"
        await asyncio.sleep(1)


def is_over(resource: Manifest) -> bool:
    status = resource.get("status") or {}
    ready = next((c for c in status.get("conditions") or () if c["type"] == "Ready"), {})
    is_present = ready.get("observedGeneration") == resource["metadata"]["generation"]
    return is_present and ready["status"] == "True" and not status.get("canary")


async def ends(api: Api, names: list[str]) -> dict[str, Manifest]:
    """What users see of each: who answers, from how many pods, and what the status says; without times and its own name."""
    mdeps = {item["metadata"]["name"]: item for item in (await api.get(api.mdeps))["items"]}
    services = {item["metadata"]["name"]: item for item in (await api.get(api.services))["items"]}
    pods: dict[str, dict[str, int]] = {name: {} for name in mdeps}
    for item in (await api.get(api.deployments))["items"]:
        if item["spec"]["replicas"]:
            pods[item["metadata"]["labels"]["slipway.dev/deployment"]][item["metadata"]["name"]] = item["spec"]["replicas"]

    def end(name: str) -> Manifest:
        status = mdeps[name]["status"]
        seen = {
            "pods": pods[name],
            "service": services[name]["spec"]["selector"],
            "stable": {key: value for key, value in status["stable"].items() if key != "since"},
            "canary": status.get("canary"),
            "conditions": {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]},
        }
        return dict(json.loads(json.dumps(seen).replace(name, "NAME")))

    return {name: end(name) for name in names}


async def tell(tenant: Tenant) -> tuple[dict[str, Manifest], dict[str, Manifest], dict[str, Manifest]]:
    """Run all stories, then fresh creates of their last wishes; returns the last wishes and both ends by story."""
    api = Api(tenant.server, tenant.name)
    kubelet = asyncio.create_task(api.run_pods())
    kubelet.add_done_callback(lambda task: task.cancelled() or print("the pods' task ended:", task.exception()))
    names = [f"story{index:03}" for index in range(STORIES)]
    lasts = await asyncio.gather(*(story(api, name, random.Random(f"{SEED} {name}")) for name in names))
    last = dict(zip(names, lasts, strict=True))
    await until_over(api, names)
    wishes = sorted({json.dumps(spec, sort_keys=True) for spec in lasts})
    fresh = {wish: f"fresh{index:03}" for index, wish in enumerate(wishes)}
    for wish, name in fresh.items():
        await api.wish(name, json.loads(wish))
    await until_over(api, list(fresh.values()))
    await asyncio.sleep(5)  # old revisions drain, and are scaled down
    await settled(api)
    old, new = await ends(api, names), await ends(api, list(fresh.values()))
    kubelet.cancel()
    return last, old, {name: new[fresh[json.dumps(last[name], sort_keys=True)]] for name in names}


async def settled(api: Api) -> None:
    """Wait until nothing changes for five seconds."""

    async def versions() -> list[str]:
        return [item["metadata"]["resourceVersion"] for path in (api.mdeps, api.deployments) for item in (await api.get(path))["items"]]

    before: list[str] = []
    while (now := await versions()) != before:
        before = now
        await asyncio.sleep(5)


def test_the_end_depends_on_the_last_wish_alone(tenant: Tenant) -> None:
    for version in ("v0", "v1", "v2", "other"):
        manifest = artifact_manifest(tenant.name, artifact_spec({"model": model(version)}, Config()), [], None)
        tenant.apply(manifest)
        tenant.server.kube.patch(tenant.name, "mart", manifest["metadata"]["name"], {"status": ready_status(version)}, subresource="status")
    operator = tenant.lead(SLIPWAY_DRAIN_SECONDS="1")
    wishes, ended, fresh = asyncio.run(tell(tenant))
    differ = [f"{name}: {wishes[name]}\n  {ended[name]}\n  {fresh[name]}" for name in ended if ended[name] != fresh[name]]
    print(f"{len(ended)} stories, {len({json.dumps(wish, sort_keys=True) for wish in wishes.values()})} last wishes, {len(differ)} differ")
    assert not differ, differ[0]
    assert "Traceback" not in operator.log.read_text()
