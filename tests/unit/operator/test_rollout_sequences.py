"""Z3: whatever was wished before, the end depends on the last wish alone: 200 random stories against a fresh create."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import pytest

from unit.operator.test_rollout import GATEWAY, KEY, STEPS, V1, V2, V3, note, status, turn, wish
from unit.operator.world import World, model_deployment

ROLLOUTS: list[dict[str, Any] | None] = [
    None,
    {"strategy": "Canary", "steps": STEPS},
    {"strategy": "BlueGreen", "steps": [{"weight": 100, "duration": "30s"}]},
    {"strategy": "Recreate"},
]


def a_wish(dice: random.Random) -> dict[str, Any]:
    rollout = dice.choice(ROLLOUTS)
    wished: dict[str, Any] = {"model": dice.choice([V1, V2, V3]), "serving": {"replicas": dice.choice([1, 2, 3])}}
    wished |= {"rollout": rollout} if rollout is not None else {}
    return wished | (GATEWAY if dice.random() < 0.5 else {})


def happen(world: World, dice: random.Random) -> None:
    """One thing that users, pods, time or the operator do."""
    deed = dice.randrange(6)
    if deed == 0:
        world.put({**world.objects[KEY], "spec": a_wish(dice)})
    elif deed == 1:
        world.settle()
    elif deed == 2:
        world.finish_jobs()
    elif deed == 3:
        names = sorted(world.names("Deployment"))
        world.run_pods(*dice.sample(names, k=min(len(names), 1)))
    elif deed == 4:
        world.advance(dice.choice([1, 11, 61, 3600]))
    elif status_of_canary(world):
        note(world, dice.choice(["abort", "promote"]), status_of_canary(world)["revision"])


def status_of_canary(world: World) -> dict[str, Any]:
    return dict((world.objects[KEY].get("status") or {}).get("canary") or {})


def finish(world: World) -> None:
    """Nobody interferes any more."""
    world.objects[KEY]["metadata"].pop("annotations", None)
    for _ in range(8):
        world.settle(20)
        world.finish_jobs()
        turn(world)
        world.advance(62)
    world.settle()


def end(world: World) -> dict[str, Any]:
    """What users see: who answers, from how many pods, and what the status says."""
    deployments = {d["metadata"]["name"]: d["spec"]["replicas"] for d in world.kind("Deployment").values() if d["spec"]["replicas"]}
    service = world.objects[("Service", "digits")]
    route = world.objects.get(("HTTPRoute", "digits"))
    conditions = {c["type"]: (c["status"], c["reason"]) for c in status(world)["conditions"]}
    return {
        "pods": deployments,
        "service": (service["spec"], service["metadata"]["annotations"]),
        "route": route and (route["spec"], route["metadata"]["labels"]),
        "stable": {k: v for k, v in status(world)["stable"].items() if k != "since"},
        "canary": status(world).get("canary"),
        "conditions": conditions,
    }


@cache
def end_of_a_fresh_one(wished: str) -> dict[str, Any]:
    """The end when that was the first wish; the stories have 72 last ones between them."""
    fresh = World(model_deployment(**json.loads(wished)))
    finish(fresh)
    return end(fresh)


@pytest.mark.parametrize("seed", range(200))
def test_the_end_depends_on_the_last_wish_alone(seed: int) -> None:
    dice = random.Random(seed)
    world = World(model_deployment(**a_wish(dice)))
    for _ in range(dice.randrange(3, 25)):
        happen(world, dice)
    # a revision that was given up stays so until another is wished for: wish for one in between
    wish(world, model={"uri": "oci://reg:5000/digits:other"})
    world.settle(20)
    last = a_wish(dice)
    world.put({**world.objects[KEY], "spec": last})
    finish(world)
    assert end(world) == end_of_a_fresh_one(json.dumps(last))
    assert end(world)["conditions"]["Ready"] == ("True", "Ready")
