"""A rollout whose operator is killed (SIGKILL) whenever it has moved ends like one whose operator lives: the same objects and status."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import ApiServer
from integration.operator.conftest import Tenant
from integration.operator.test_rollout import IMAGE, Scene

pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = [{"weight": weight, "duration": "3s"} for weight in (10, 50, 100)]
# a successor leads when the dead leader's Lease has run out
TAKEOVER_SECONDS = 60


class Stormy(Scene):
    """A namespace with an operator of its own, which dies at each new place of the rollout when `is_stormy`."""

    def __init__(self, server: ApiServer, namespace: str, folder: Path, *, is_stormy: bool) -> None:
        super().__init__(server, namespace)
        self.tenant, self.is_stormy = Tenant(server, namespace, folder), is_stormy
        self.operator = self.tenant.lead(SLIPWAY_DRAIN_SECONDS="2")
        self.places: list[tuple[Any, ...]] = []

    def place(self) -> tuple[Any, ...]:
        """Where the rollout is: who is stable, and step, weight and phase of the canary."""
        status = self.status()
        canary = status.get("canary") or {}
        return (status["stable"]["revision"], *(canary.get(key) for key in ("revision", "step", "weight", "phase")))

    def look(self) -> None:
        """Note a new place, and kill the operator there."""
        place = self.place()
        if place in self.places:
            return
        self.places.append(place)
        if self.is_stormy:
            self.operator.process.kill()
            self.operator.process.wait(20)
            self.operator = self.tenant.start(SLIPWAY_DRAIN_SECONDS="2")

    def walk(self, question: Any) -> Any:
        """Wait for an answer, looking all the time."""

        def ask() -> Any:
            self.look()
            return question()

        return self.until(ask, 20 * TAKEOVER_SECONDS)

    def end_state(self) -> dict[str, Any]:
        """Owned objects and status, uids and times aside."""
        status = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", json.dumps(self.status()))
        owned = sorted(
            (item["kind"], item["metadata"]["name"], json.dumps(item["spec"].get("replicas", item["spec"].get("selector"))))
            for item in self.get("deployments,services", "-l", "app.kubernetes.io/managed-by=slipway")["items"]
        )
        return {"status": json.loads(status), "owned": owned}


def settled(scene: Stormy, stable: str, phase: str | None) -> bool:
    """Whether the rollout is over and only stable has pods."""
    status = scene.status()
    canary = status.get("canary") or {}
    sizes = {d["metadata"]["name"]: d["spec"]["replicas"] for d in scene.get("deployments")["items"]}
    is_alone = all(size == 0 for name, size in sizes.items() if name != stable) and sizes[stable] == 2
    return status["stable"]["revision"] == stable and canary.get("phase") == phase and is_alone


def promote(scene: Stormy, first: str) -> None:
    """Walk all steps."""
    scene.walk(lambda: scene.status()["stable"]["revision"] != first)
    scene.walk(lambda: settled(scene, scene.status()["stable"]["revision"], None))


def abort(scene: Stormy, first: str) -> None:
    """Go back in the second step."""
    scene.walk(lambda: scene.status()["canary"]["step"] == 2)
    scene.slipway("abort", "digits")
    scene.walk(lambda: settled(scene, first, scene.status()["canary"]["phase"]) and scene.status()["canary"]["weight"] == 0)


@pytest.fixture
def scenes(apiserver: ApiServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[Stormy]]:
    """A stormy one and a calm one."""
    apiserver.apply({"apiVersion": "slipway.dev/v1alpha1", "kind": "ServingRuntime", "metadata": {"name": "slipway"}, "spec": IMAGE})
    made: list[Stormy] = []
    for kind in ("stormy", "calm"):
        (tmp_path / kind).mkdir()
        made.append(Stormy(apiserver, f"{kind}-{request.node.callspec.id}", tmp_path / kind, is_stormy=kind == "stormy"))
    yield made
    for scene in made:
        scene.operator.end()
        assert all("Traceback" not in operator.log.read_text() for operator in scene.tenant.operators)


@pytest.mark.parametrize("story", [promote, abort], ids=lambda story: story.__name__)
def test_killed_at_each_boundary_ends_in_the_same_state(scenes: list[Stormy], story: Any) -> None:
    states, places = [], []
    for scene in scenes:
        scene.apply(1, rollout={"steps": STEPS})
        first = scene.until(lambda scene=scene: scene.status()["stable"].get("since") and scene.status()["stable"]["revision"])
        scene.apply(2, rollout={"steps": STEPS})
        story(scene, first)
        scene.until(lambda scene=scene: scene.tenant.reason("digits") in ("Ready", "Serving", "RolloutAborted"), TAKEOVER_SECONDS)
        states.append(json.loads(json.dumps(scene.end_state()).replace(scene.namespace, "NAMESPACE")))
        places.append(scene.places)
    print(f"{len(places[0])} kills, at {places[0]}")
    assert len(places[0]) >= 3, "the operator was not killed at the boundaries"
    assert states[0] == states[1]
