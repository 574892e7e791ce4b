"""The levers of a rollout as the patches that they are, applied to a cluster in memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from click.testing import CliRunner

from slipway.cli import rollout
from slipway.cli.kubectl import Cluster
from slipway.cli.main import main
from unit.operator.test_rollout import CANARY, GATEWAY, KEY, V1, V2, roll_out, stable, status, turn, wait, wish
from unit.operator.world import World, model_deployment


def patched(document: dict[str, Any], patch: Any) -> dict[str, Any]:
    """RFC 6902, as far as it is used here."""
    result = copy.deepcopy(document)
    for change in patch:
        *path, last = [part.replace("~1", "/").replace("~0", "~") for part in change["path"].split("/")[1:]]
        parent = result
        for part in path:
            parent = parent[part]
        if change["op"] == "add":
            parent[last] = change["value"]
        elif change["op"] == "remove":
            del parent[last]
        else:
            assert parent[last] == change["value"]
    return result


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(model_deployment(serving={"replicas": 2, "labels": ["a", "b"]}, **CANARY, **GATEWAY))
    turn(world)
    world.finish_jobs()
    turn(world, 2)

    def find(_: Cluster, kind: str, name: str) -> Any:
        return copy.deepcopy(world.objects.get(("ModelDeployment", name))) if kind == rollout.MDEP else None

    def items(_: Cluster, *_arguments: str) -> Any:
        return list(world.kind("Deployment").values())

    def patch(_: Cluster, kind: str, name: str, changes: Any) -> None:
        assert kind == rollout.MDEP
        world.put(patched(world.objects[("ModelDeployment", name)], changes))

    monkeypatch.setattr(Cluster, "find", find)
    monkeypatch.setattr(Cluster, "items", items)
    monkeypatch.setattr(Cluster, "patch", patch)
    return world


def test_the_comparison_of_answers_is_promoted_by_itself(world: World) -> None:
    wish(world, rollout={**CANARY["rollout"], "shadow": {}, "analysis": {}})
    second = roll_out_shadowed(world)
    assert status(world)["canary"]["phase"] == "Shadowing"
    assert run("promote", "digits") == f"digits: revision {second} promoted past the comparison of answers\n"
    turn(world)
    assert (status(world)["canary"]["phase"], status(world)["canary"]["step"]) == ("Progressing", 1)
    assert run("promote", "digits") == f"digits: revision {second} promoted past step 1\n"


def roll_out_shadowed(world: World) -> str:
    wish(world, model=V2)
    world.settle()
    world.finish_jobs()
    turn(world)
    return str(status(world)["canary"]["revision"])


def run(*arguments: str) -> str:
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == 0, done.output
    return done.output


def test_promote_ends_the_step_and_full_all_of_them(world: World) -> None:
    second = roll_out(world, V2)
    assert run("promote", "digits") == f"digits: revision {second} promoted past step 1\n"
    turn(world)
    assert status(world)["canary"]["step"] == 2
    run("promote", "digits", "--full")
    turn(world)
    assert stable(world) == second


def test_abort_then_undo_serves_the_first_again(world: World) -> None:
    first = stable(world)
    second = roll_out(world, V2)
    assert run("abort", "digits") == f"digits: revision {second} aborted; stable is {first}\n"
    turn(world)
    assert status(world)["canary"]["reason"] == "RolloutAborted"
    run("undo", "digits")
    turn(world)
    assert world.objects[KEY]["spec"]["model"] == V1
    assert {c["type"]: c["status"] for c in status(world)["conditions"]}["Ready"] == "True"


def test_undo_goes_back_to_what_served_before_without_steps_and_keeps_the_size(world: World) -> None:
    first = stable(world)
    second = roll_out(world, V2)
    run("promote", "digits", "--full")
    turn(world)
    wait(world, 10)
    assert stable(world) == second
    wish(world, serving={"replicas": 3}, signature={"inputs": [], "outputs": []})
    jobs = world.names("Job")
    out = run("undo", "digits")
    assert f"that of revision {first} again" in out
    assert f"spec.model.uri: {V1['uri']}" in out
    turn(world, 2)
    assert stable(world) == first
    spec = world.objects[KEY]["spec"]
    assert (spec["serving"], spec.get("signature")) == ({"replicas": 3, "labels": ["a", "b"]}, None)
    assert world.names("Job") == jobs, "nothing was converted"


def test_history_tells_what_can_be_gone_back_to(world: World) -> None:
    first = stable(world)
    second = roll_out(world, V2)
    lines = [line.split() for line in run("history", "digits").splitlines()]
    assert lines[0] == ["revision", "state", "reason", "since", "kept", "model"]
    assert [line[:2] for line in lines[1:]] == [[second, "Progressing"], [first, "Stable"]]
    assert [line[-2:] for line in lines[1:]] == [["yes", V2["uri"]], ["yes", V1["uri"]]]
    del world.objects[("Deployment", second)]
    assert run("history", "digits").splitlines()[1].split()[-1] == "no"


def test_pause_and_resume(world: World) -> None:
    roll_out(world, V2)
    run("pause", "digits")
    wait(world, 600)
    assert status(world)["canary"]["step"] == 1
    run("resume", "digits")
    turn(world)
    assert status(world)["canary"]["step"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["promote", "other"], "there is no ModelDeployment other"),
        (["promote", "digits"], "digits has no rollout in progress"),
        (["abort", "digits"], "digits has no rollout in progress"),
        (["undo", "digits"], "digits has no earlier revision that served"),
        (["undo", "digits", "--to", "digits-0"], "revision digits-0 of digits is not there any more"),
    ],
)
def test_what_cannot_be_done_says_so(world: World, arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert words in done.output
    assert "Next: " in done.output


def test_a_rolled_back_revision_is_not_promoted(world: World) -> None:
    roll_out(world, V2)
    run("abort", "digits")
    turn(world)
    done = CliRunner().invoke(main, ["promote", "digits"])
    assert "was rolled back: RolloutAborted" in done.output
