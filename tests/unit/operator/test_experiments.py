"""A/B experiments: which revision the users of one get in each state of a rollout, and what the route says."""

from __future__ import annotations

import re
from typing import Any

import pytest

from slipway.plan.traffic import route_problem
from unit.operator.test_rollout import CANARY, GATEWAY, KEY, V2, WholePasses, note, roll_out, shares, stable, status, turn, wait, wish
from unit.operator.world import World, model_deployment

BETA = {"name": "beta", "headers": [{"name": "x-beta", "value": "true"}], "cookies": [{"name": "beta", "value": "a.1"}]}
CONTROL = {"name": "control", "cookies": [{"name": "beta", "value": "0"}], "revision": "Stable"}
ROUTE = ("HTTPRoute", "digits.experiments")


def served(experiments: list[dict[str, Any]], *, has_gateway: bool = True) -> World:
    routing = {**(GATEWAY["routing"] if has_gateway else {}), "experiments": experiments}
    world = WholePasses(model_deployment(**CANARY, routing=routing))
    turn(world)
    world.finish_jobs()
    turn(world, 2)
    return world


def sides(world: World) -> list[str]:
    """The revision of each experiment, by the route."""
    return [rule["backendRefs"][0]["name"] for rule in world.objects[ROUTE]["spec"]["rules"]]


def said(world: World) -> tuple[str, str, str]:
    found = next(c for c in status(world)["conditions"] if c["type"] == "Experiments")
    return found["status"], found["reason"], found["message"]


def test_users_of_an_experiment_get_the_canary_while_it_has_a_weight() -> None:
    world = served([BETA, CONTROL])
    first = stable(world)
    assert sides(world) == [first, first]
    second = roll_out(world, V2)
    assert (sides(world), shares(world)) == ([second, first], {first: 90, second: 10})
    assert said(world) == ("True", "UpToDate", f"beta is answered by {second}, control is answered by {first}")
    note(world, "abort", second)
    turn(world)
    assert (sides(world), shares(world)) == ([first, first], {first: 100}), "a canary that was given up gets nobody"


def test_after_the_promotion_both_get_the_new_one() -> None:
    world = served([BETA, CONTROL])
    second = roll_out(world, V2)
    wait(world, 61)
    wait(world, 61)
    assert (stable(world), sides(world)) == (second, [second, second])


def test_a_control_without_a_stable_pod_is_answered_by_whoever_is_there() -> None:
    world = served([CONTROL])
    first, second = stable(world), roll_out(world, V2)
    world.kind("Deployment")[first]["status"] |= {"readyReplicas": 0, "availableReplicas": 0}
    world.settle()
    assert sides(world) == [second]


def test_the_rules() -> None:
    world = served([BETA])
    header, cookie = world.objects[ROUTE]["spec"]["rules"][0]["matches"]
    assert header == {"path": {"type": "PathPrefix", "value": "/"}, "headers": [{"type": "Exact", "name": "x-beta", "value": "true"}]}
    (pattern,) = cookie["headers"]
    assert (pattern["type"], pattern["name"]) == ("RegularExpression", "Cookie")
    rows = [
        ("beta=a.1", True),
        ("a=b; beta=a.1", True),
        ("beta=a.1;c=d", True),
        ("beta=ax1", False),
        ("xbeta=a.1", False),
        ("beta=a.12", False),
    ]
    for value, expected in rows:
        assert bool(re.fullmatch(pattern["value"], value)) is bool(re.search(pattern["value"], value)) is expected, value
    assert world.objects[ROUTE]["spec"]["hostnames"] == ["digits.example.com"]
    assert world.objects[ROUTE]["spec"]["rules"][0]["filters"] == [
        {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x-slipway-experiment", "value": "beta"}]}}
    ]


def test_what_users_changed_in_our_rule_holds_for_the_experiments_too() -> None:
    world = served([BETA])
    (rule,) = world.objects[("HTTPRoute", "digits")]["spec"]["rules"]
    rule |= {"matches": [{"path": {"type": "PathPrefix", "value": "/digits"}}], "timeouts": {"request": "3s"}}
    rule["filters"] = [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x-team", "value": "a"}]}}]
    turn(world)
    (pinned,) = world.objects[ROUTE]["spec"]["rules"]
    assert (pinned["matches"][0]["path"]["value"], pinned["timeouts"]) == ("/digits", {"request": "3s"})
    assert [item["name"] for item in pinned["filters"][0]["requestHeaderModifier"]["set"]] == ["x-team", "x-slipway-experiment"]


@pytest.mark.parametrize("gone", ["experiments", "gateway"])
def test_the_route_goes_with_the_wish(gone: str) -> None:
    world = served([BETA])
    routing = {**GATEWAY["routing"]} if gone == "experiments" else {"experiments": [BETA]}
    wish(world, routing=routing)
    turn(world)
    assert ROUTE not in world.objects
    if gone == "experiments":
        assert "Experiments" not in [c["type"] for c in status(world)["conditions"]]


def test_without_a_gateway_a_condition_says_so_and_the_rollout_goes_on() -> None:
    world = served([BETA], has_gateway=False)
    state, reason, message = said(world)
    assert (state, reason, ROUTE in world.objects) == ("False", "GatewayRequired", False)
    assert "Next: Set spec.routing.gateway" in message
    second = roll_out(world, V2)
    wait(world, 61)
    wait(world, 61)
    assert stable(world) == second
    assert next(c for c in status(world)["conditions"] if c["type"] == "Ready")["status"] == "True"


def test_a_route_that_the_gateway_does_not_take_stops_nobody_else() -> None:
    world = served([BETA])
    refusal = {"type": "Accepted", "status": "False", "reason": "UnsupportedValue", "message": "no regular expressions"}
    world.objects[ROUTE]["status"] = {"parents": [{"conditions": [refusal]}]}
    turn(world)
    assert said(world)[:2] == ("False", "RouteRejected")
    assert "no regular expressions" in said(world)[2]
    assert route_problem(world.objects[("HTTPRoute", "digits")]) is None
    assert world.objects[KEY]["status"]["conditions"][0]["status"] == "True"
