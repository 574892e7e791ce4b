"""The operator dies after any single write of a create and an update, and the next pass ends in the same state (promises P3 and P4)."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from slipway.decide import decide
from slipway.snapshot import Decision
from slipway.verdict import MetricVerdict
from unit.operator.world import CONFIG, World, as_sent, model_deployment

WRITES = 40  # more than the story below takes; the test says so if it is not


class Crash(Exception):
    """The process is gone."""


class CrashingWorld(World):
    """Dies after its n-th write, once; what was written stays.

    Up to its death the story is that of `whole`, which nothing disturbed, and so are the decisions: they are taken from there.
    """

    def __init__(self, *resources: dict[str, Any], dies_after: int | None, whole: CrashingWorld | None = None) -> None:
        super().__init__(*resources)
        self.dies_after = dies_after
        self.decisions: list[Decision] = []
        self._known = iter(whole.decisions if whole is not None else ())

    def step(self, kind: str, name: str) -> Any:
        decision = next(self._known, None) or decide(self.snapshot(kind, name), self.now, CONFIG)
        self.decisions.append(decision)
        for manifest in decision.apply:
            self.put(dict(manifest))
            self._count()
        for address in decision.delete:
            self.objects.pop((address.kind, address.name), None)
            self._count()
        if decision.status is not None:
            self.objects[(kind, name)]["status"] = as_sent(decision.status)
            self._count()
        return decision

    def _count(self) -> None:
        self.writes += 1
        if self.writes == self.dies_after:
            self._known = iter(())
            raise Crash

    def settle(self, rounds: int = 10) -> None:
        try:
            super().settle(rounds)
        except Crash:
            super().settle(rounds)


def story(dies_after: int | None, whole: CrashingWorld | None = None) -> CrashingWorld:
    """Create, take over by a second version, go back to the first."""
    world = CrashingWorld(model_deployment(serving={"replicas": 2}), dies_after=dies_after, whole=whole)
    for uri in (None, "oci://reg:5000/digits:v2", "oci://reg:5000/digits:v1"):
        if uri is not None:
            resource = world.objects[("ModelDeployment", "digits")]
            world.put({**resource, "spec": {**resource["spec"], "model": {"uri": uri}}})
        for happens in (world.finish_jobs, world.run_pods, lambda: world.advance(CONFIG.drain_seconds)):
            world.settle()
            happens()
        world.settle()
        world.run_pods()
        world.settle()
    return world


STEPS = [{"weight": 25, "duration": "1m"}, {"weight": 50}]
GATEWAY = {"gateway": {"name": "public"}}


def canary_story(dies_after: int | None, routing: dict[str, Any], end: str, whole: CrashingWorld | None = None) -> CrashingWorld:
    """Create, roll out by steps, promote past the last by hand or abort there."""
    resource = model_deployment(serving={"replicas": 2}, rollout={"strategy": "Canary", "steps": STEPS}, routing=routing)
    world = CrashingWorld(resource, dies_after=dies_after, whole=whole)
    for uri in (None, "oci://reg:5000/digits:v2"):
        if uri is not None:
            resource = world.objects[("ModelDeployment", "digits")]
            world.put({**resource, "spec": {**resource["spec"], "model": {"uri": uri}}})
        for happens in (world.finish_jobs, world.run_pods, lambda: world.advance(61), world.run_pods):
            world.settle()
            happens()
        world.settle()
    canary = world.objects[("ModelDeployment", "digits")]["status"]["canary"]
    assert (canary["phase"], canary["step"]) == ("Paused", 2)
    world.objects[("ModelDeployment", "digits")]["metadata"]["annotations"] = {f"slipway.dev/{end}": canary["revision"]}
    for _ in range(3):
        world.settle()
        world.run_pods()
        world.settle()
        world.advance(CONFIG.drain_seconds)
    return world


def judged_story(dies_after: int | None, routing: dict[str, Any], verdict: Any, whole: CrashingWorld | None = None) -> CrashingWorld:
    """Create, and roll out by steps that need a Pass; the verdicts of each step are `verdict`, the memory of the operator goes with it."""
    rollout = {"steps": [{"weight": 25, "duration": "1m"}], "analysis": {"interval": "15s"}}
    resource = model_deployment(serving={"replicas": 2}, rollout=rollout, routing=routing)
    world = CrashingWorld(resource, dies_after=dies_after, whole=whole)
    for uri in (None, "oci://reg:5000/digits:v2"):
        if uri is not None:
            resource = world.objects[("ModelDeployment", "digits")]
            world.put({**resource, "spec": {**resource["spec"], "model": {"uri": uri}}})
        for happens in (world.finish_jobs, world.run_pods):
            world.settle()
            happens()
        world.settle()
    for _ in range(4):
        world.advance(61)
        world.verdicts = (MetricVerdict("error-rate", verdict, world.now, "0.2", samples=500, message="0.2 of 500"),)
        world.settle()
        world.run_pods()
        world.settle()
    return world


def end_state(world: World) -> dict[Any, Any]:
    """What exists, without times, versions and the pods that the tests made."""
    state = {}
    for key, value in world.objects.items():
        kept = {k: v for k, v in value.items() if k != "metadata"}
        kept["labels"] = value["metadata"].get("labels")
        kept["owners"] = value["metadata"].get("ownerReferences")
        state[key] = kept
    return state


@cache
def whole_story() -> CrashingWorld:
    return story(None)


def test_the_story_has_fewer_writes_than_the_test_tries() -> None:
    assert 20 < whole_story().writes < WRITES


@pytest.mark.parametrize("write", range(1, WRITES))
def test_killed_after_write(write: int) -> None:
    assert end_state(story(write, whole_story())) == end_state(whole_story())


@pytest.mark.parametrize(("verdict", "phase"), [("Pass", None), ("Fail", "RolledBack"), ("Inconclusive", "Progressing")])
@pytest.mark.parametrize("routing", [{}, {"gateway": {"name": "public"}}], ids=["replicas", "gateway"])
def test_a_canary_that_is_measured_killed_after_each_write(routing: dict[str, Any], verdict: str, phase: str | None) -> None:
    whole = judged_story(None, routing, verdict)
    assert 15 < whole.writes < 60
    status = whole.objects[("ModelDeployment", "digits")]["status"]
    assert (status.get("canary") or {}).get("phase") == phase
    for write in range(1, whole.writes + 1):
        assert end_state(judged_story(write, routing, verdict, whole)) == end_state(whole), f"killed after write {write}"


@pytest.mark.parametrize("end", ["promote", "abort"])
@pytest.mark.parametrize("routing", [{}, GATEWAY], ids=["replicas", "gateway"])
def test_a_canary_killed_after_each_write(routing: dict[str, Any], end: str) -> None:
    whole = canary_story(None, routing, end)
    assert 20 < whole.writes < 60
    phase = (whole.objects[("ModelDeployment", "digits")]["status"].get("canary") or {}).get("phase")
    assert phase == {"promote": None, "abort": "RolledBack"}[end]
    for write in range(1, whole.writes + 1):
        assert end_state(canary_story(write, routing, end, whole)) == end_state(whole), f"killed after write {write}"
