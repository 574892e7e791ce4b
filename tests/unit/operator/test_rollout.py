"""Stories of rollouts, in the cluster in memory: who gets the requests, how many pods there are, and what the status tells."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from slipway.decide import decide
from slipway.plan.rollout import canary_size
from slipway.plan.traffic import route
from slipway.snapshot import Decision
from slipway.verdict import MetricVerdict
from unit.operator.world import CONFIG, World, model_deployment, ready_reason

V1, V2, V3 = ({"uri": f"oci://reg:5000/digits:v{n}"} for n in (1, 2, 3))
STEPS = [{"weight": 10, "duration": "1m"}, {"weight": 50, "duration": "1m"}]
CANARY = {"rollout": {"strategy": "Canary", "steps": STEPS}}
GATEWAY = {"routing": {"gateway": {"name": "public", "namespace": "gateways"}, "hostnames": ["digits.example.com"]}}
KEY = ("ModelDeployment", "digits")


class WholePasses(World):
    """As the worker writes: objects until the decision is at rest, then the status once."""

    def step(self, kind: str, name: str) -> Decision:
        for _ in range(4):
            decision = decide(self.snapshot(kind, name), self.now, CONFIG)
            if not (decision.apply or decision.delete):
                break
            for manifest in decision.apply:
                self.put(dict(manifest))
            for address in decision.delete:
                self.objects.pop((address.kind, address.name), None)
            self.writes += len(decision.apply) + len(decision.delete)
            self.tell(decision)
        return super().step(kind, name)


@pytest.fixture(params=[World, WholePasses])
def make(request: pytest.FixtureRequest) -> Any:
    def served(**spec: Any) -> World:
        """A world in which the first revision serves."""
        world: World = request.param(model_deployment(**spec))
        turn(world)
        world.finish_jobs()
        turn(world, 2)
        return world

    return served


def turn(world: World, times: int = 1) -> None:
    """The operator comes to rest, then the pods come up, and it comes to rest again."""
    for _ in range(times):
        world.settle()
        world.run_pods()
        world.settle()


def wish(world: World, **spec: Any) -> None:
    resource = world.objects[KEY]
    world.put({**resource, "spec": {**resource["spec"], **spec}})


def note(world: World, key: str, value: str) -> None:
    world.objects[KEY]["metadata"].setdefault("annotations", {})[f"slipway.dev/{key}"] = value


def roll_out(world: World, model: dict[str, str]) -> str:
    """Ask for a model, let it be converted and started; returns its revision."""
    before = world.names("Deployment")
    wish(world, model=model)
    world.settle()
    world.finish_jobs()
    turn(world)
    (revision,) = world.names("Deployment") - before
    return revision


def status(world: World) -> Any:
    return world.objects[KEY]["status"]


def stable(world: World) -> str:
    return str(world.objects[("Service", "digits")]["metadata"]["annotations"]["slipway.dev/stable"])


def selector(world: World) -> dict[str, str]:
    return dict(world.objects[("Service", "digits")]["spec"]["selector"])


def sizes(world: World) -> dict[str, int]:
    return {name: d["spec"]["replicas"] for name, d in world.kind("Deployment").items() if d["spec"]["replicas"]}


def shares(world: World) -> dict[str, int]:
    (rule,) = world.objects[("HTTPRoute", "digits")]["spec"]["rules"]
    return {ref["name"]: ref["weight"] for ref in rule["backendRefs"]}


def wait(world: World, seconds: float) -> None:
    world.advance(seconds)
    turn(world)


def judge(world: World, verdict: str) -> None:
    world.verdicts = (
        MetricVerdict("error-rate", verdict, world.now, "0.2", "0.001", samples=500, message="0.2 over 500 must be at most 0.01"),
    )  # type: ignore[arg-type]


SHARED = {"slipway.dev/deployment": "digits", "app.kubernetes.io/component": "server"}


def test_a_canary_by_replicas_walks_its_steps_and_stable_keeps_its_size(make: Any) -> None:
    world = make(serving={"replicas": 3}, **CANARY)
    first = stable(world)
    second = roll_out(world, V2)
    assert status(world)["canary"]["phase"] == "Progressing"
    assert (status(world)["stable"]["weight"], status(world)["canary"]["weight"]) == (90, 10)
    assert (status(world)["stable"]["share"], status(world)["canary"]["share"]) == (75, 25), "what it really is with whole pods"
    assert sizes(world) == {first: 3, second: 1}
    assert selector(world) == SHARED
    wait(world, 59)
    assert status(world)["canary"]["step"] == 1
    wait(world, 2)
    assert (status(world)["canary"]["step"], status(world)["canary"]["share"], sizes(world)) == (2, 50, {first: 3, second: 3})
    wait(world, 61)
    assert stable(world) == second
    assert selector(world)["slipway.dev/revision"] == second
    assert sizes(world) == {first: 3, second: 3}, "the old one drains"
    assert "canary" not in status(world)
    assert ready_reason(world, *KEY) == "Ready"
    wait(world, 10)
    assert sizes(world) == {second: 3}
    assert [e["outcome"] for e in status(world)["history"]] == ["Served"]


def test_a_canary_by_gateway_has_exact_weights_and_pods_for_its_share(make: Any) -> None:
    world = make(serving={"replicas": 4}, **CANARY, **GATEWAY)
    first = stable(world)
    assert shares(world) == {first: 100}
    second = roll_out(world, V2)
    assert shares(world) == {first: 90, second: 10}
    assert sizes(world) == {first: 4, second: 1}
    assert selector(world)["slipway.dev/revision"] == first
    wait(world, 61)
    assert (shares(world), sizes(world)) == ({first: 50, second: 50}, {first: 4, second: 2})
    wait(world, 61)
    assert (shares(world), stable(world)) == ({second: 100}, second)
    wait(world, 10)
    assert sizes(world) == {second: 4}


def test_no_weight_before_the_pods_are_ready_and_none_when_they_are_lost(make: Any) -> None:
    world = make(**CANARY, **GATEWAY)
    first = stable(world)
    wish(world, model=V2)
    world.settle()
    world.finish_jobs()
    world.settle()
    assert shares(world) == {first: 100}
    assert status(world)["canary"]["phase"] == "Preparing"
    world.run_pods()
    world.settle()
    (second,) = set(shares(world)) - {first}
    world.advance(59)
    world.objects[("Deployment", second)]["status"] |= {"readyReplicas": 0, "availableReplicas": 0}
    world.settle()
    assert (shares(world), status(world)["canary"]["phase"]) == ({first: 100}, "Preparing")
    turn(world)
    wait(world, 59)
    assert shares(world) == {first: 90, second: 10}, "the step began anew"


def test_an_operator_that_was_away_skips_no_step(make: Any) -> None:
    world = make(**CANARY, **GATEWAY)
    roll_out(world, V2)
    world.advance(3600)
    world.settle()
    assert status(world)["canary"]["step"] == 2
    wait(world, 59)
    assert status(world)["canary"]["step"] == 2


def test_a_step_without_a_duration_waits_to_be_promoted(make: Any) -> None:
    world = make(rollout={"steps": [{"weight": 10}, {"weight": 50, "duration": "1m"}]}, **GATEWAY)
    second = roll_out(world, V2)
    wait(world, 3600)
    assert (ready_reason(world, *KEY), status(world)["canary"]["phase"]) == ("RolloutPaused", "Paused")
    note(world, "promote", f"{second}/1")
    turn(world)
    assert (status(world)["canary"]["step"], status(world)["canary"]["weight"]) == (2, 50)
    wait(world, 61)
    assert stable(world) == second


def test_a_promotion_all_the_way_needs_full_size_and_nothing_else(make: Any) -> None:
    world = make(serving={"replicas": 4}, **CANARY, **GATEWAY)
    first = stable(world)
    second = roll_out(world, V2)
    note(world, "promote", second)
    world.settle()
    assert (stable(world), sizes(world), shares(world)) == (first, {first: 4, second: 4}, {first: 90, second: 10})
    turn(world)
    assert (stable(world), shares(world)) == (second, {second: 100})


@pytest.mark.parametrize("routing", [{}, GATEWAY], ids=["replicas", "gateway"])
def test_an_abort_gives_everything_back_and_lasts_until_the_spec_changes(make: Any, routing: dict[str, Any]) -> None:
    world = make(serving={"replicas": 2}, **CANARY, **routing)
    first = stable(world)
    second = roll_out(world, V2)
    note(world, "abort", second)
    world.settle()
    assert selector(world)["slipway.dev/revision"] == first
    assert second in sizes(world), "it drains"
    assert (ready_reason(world, *KEY), status(world)["canary"]["phase"]) == ("RolloutAborted", "RolledBack")
    wait(world, 10)
    assert sizes(world) == {first: 2}
    del world.objects[KEY]["metadata"]["annotations"]
    wait(world, 3600)
    assert sizes(world) == {first: 2}, "not tried again"
    assert [e["outcome"] for e in status(world)["history"]] == ["RolledBack"]
    wish(world, model=V1)
    turn(world)
    assert ready_reason(world, *KEY) == "Ready"
    wish(world, model=V2)
    turn(world)
    assert status(world)["canary"]["weight"] == 10


ANALYSIS = {"analysis": {"interval": "15s"}}


def test_a_failed_verdict_rolls_back_and_the_status_has_what_was_measured(make: Any) -> None:
    world = make(rollout={"steps": STEPS, **ANALYSIS})
    first = stable(world)
    second = roll_out(world, V2)
    world.advance(15)
    judge(world, "Fail")
    world.settle()
    assert selector(world)["slipway.dev/revision"] == first
    row = status(world)["canary"]
    assert (row["weight"], row["phase"], row["reason"]) == (0, "RolledBack", "AnalysisFailed")
    assert "error-rate: 0.2 over 500 must be at most 0.01" in row["message"]
    kinds = {c["type"]: c for c in status(world)["conditions"]}
    assert (kinds["Ready"]["reason"], kinds["Stalled"]["status"], kinds["Available"]["status"]) == ("AnalysisFailed", "True", "True")
    assert [e.reason for e in world.events if e.type == "Warning"].count("AnalysisFailed") >= 1
    assert status(world)["lastFailure"]["revision"] == second
    before = world.writes
    judge(world, "Pass")
    wait(world, 10)
    wait(world, 3600)
    assert sizes(world) == {first: 1}
    assert world.writes - before < 10


def test_an_inconclusive_analysis_neither_promotes_nor_rolls_back(make: Any) -> None:
    world = make(rollout={"steps": STEPS, **ANALYSIS})
    roll_out(world, V2)
    for verdict in ("Inconclusive", None, "Inconclusive"):
        world.advance(3600)
        world.verdicts = ()
        if verdict:
            judge(world, verdict)
        turn(world)
        assert (status(world)["canary"]["step"], status(world)["canary"]["weight"]) == (1, 10)
    judge(world, "Pass")
    turn(world)
    assert status(world)["canary"]["step"] == 2
    wait(world, 3600)
    assert status(world)["canary"]["step"] == 2, "the verdict is about the step before"


def test_the_operator_comes_back_for_the_end_of_a_step_and_for_each_evaluation(make: Any) -> None:
    world = make(rollout={"steps": [{"weight": 10, "duration": "1m"}, {"weight": 50}], **ANALYSIS}, **GATEWAY)
    roll_out(world, V2)
    world.advance(10)
    assert world.step(*KEY).requeue_after == 15
    world.advance(45)
    assert world.step(*KEY).requeue_after == 5
    judge(world, "Pass")
    world.advance(6)
    judge(world, "Pass")
    turn(world)
    assert status(world)["canary"]["phase"] == "Paused"
    assert world.step(*KEY).requeue_after == 15, "a step that waits for a person is watched as well"


def test_on_failure_pause_stops_where_it_is_until_a_person_decides(make: Any) -> None:
    world = make(rollout={"steps": STEPS, "onFailure": "Pause", **ANALYSIS}, **GATEWAY)
    second = roll_out(world, V2)
    world.advance(15)
    judge(world, "Fail")
    world.settle()
    assert (status(world)["canary"]["phase"], status(world)["canary"]["weight"]) == ("Paused", 10)
    assert ready_reason(world, *KEY) == "AnalysisFailed"
    judge(world, "Pass")
    wait(world, 3600)
    assert status(world)["canary"]["weight"] == 10
    note(world, "promote", f"{second}/1")
    turn(world)
    assert status(world)["canary"]["weight"] == 50


@pytest.mark.parametrize(
    ("code", "said", "reason", "words"),
    [
        (3, None, "PodsCrashing", "exit code 3"),
        (137, None, "PodsCrashing", "exit code 137"),
        (65, {"reason": "ModelStuck", "message": "a call has been running for 61 s"}, "ModelStuck", "running for 61 s"),
    ],
    ids=["crash", "killed", "stuck"],
)
def test_a_crash_at_some_weight_rolls_back_also_when_the_pod_is_ready_again(
    make: Any, code: int, said: dict[str, str] | None, reason: str, words: str
) -> None:
    world = make(**CANARY, **GATEWAY)
    first = stable(world)
    second = roll_out(world, V2)
    world.advance(5)
    ended = {"exitCode": code, "reason": "Error", "finishedAt": world.now.isoformat(), "message": json.dumps(said)}
    container = {"name": "server", "ready": True, "restartCount": 1, "state": {"running": {}}, "lastState": {"terminated": ended}}
    labels = {"slipway.dev/deployment": "digits", "slipway.dev/revision": second}
    pod = {"kind": "Pod", "metadata": {"name": f"{second}-x", "labels": labels}, "status": {"containerStatuses": [container]}}
    world.put(pod)
    world.settle()
    assert (shares(world), status(world)["canary"]["reason"]) == ({first: 100}, reason)
    assert words in status(world)["canary"]["message"]
    kinds = {c["type"]: c["status"] for c in status(world)["conditions"]}
    assert (kinds.get("Stalled"), kinds.get("Reconciling"), kinds["Available"]) == ("True", None, "True"), "it is over, not retried"


@pytest.mark.parametrize(("code", "given_up"), [(62, True), (50, False)], ids=["its model does not load", "the registry is down"])
def test_who_crashes_until_the_deadline_is_given_up_unless_it_is_not_to_blame(make: Any, code: int, given_up: bool) -> None:
    world = make(**CANARY)
    first = stable(world)
    second = convert_second(world, first)
    reason = {62: "ModelLoadFailed", 50: "RegistryUnavailable"}[code]
    ended = {"exitCode": code, "message": json.dumps({"reason": reason, "message": "no"})}
    container = {"name": "server", "ready": False, "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": ended}}
    labels = {"slipway.dev/deployment": "digits", "slipway.dev/revision": second}
    world.put({"kind": "Pod", "metadata": {"name": f"{second}-x", "labels": labels}, "status": {"containerStatuses": [container]}})
    world.settle()
    assert (second in sizes(world), ready_reason(world, *KEY)) == (True, reason), "it may still come up"
    never_ready(world, second)
    world.settle()
    assert (status(world)["canary"]["phase"], ready_reason(world, *KEY)) == ("RolledBack" if given_up else "Preparing", reason)


def convert_second(world: World, first: str) -> str:
    """Wish for the second model and convert it; return its revision, whose pods are still to come up."""
    wish(world, model=V2)
    world.settle()
    world.finish_jobs()
    world.settle()
    (second,) = world.names("Deployment") - {first}
    return second


def never_ready(world: World, revision: str) -> None:
    failed = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "timed out"}
    world.objects[("Deployment", revision)]["status"] = {"observedGeneration": 9, "replicas": 1, "conditions": [failed]}


@pytest.mark.parametrize(("rollout", "given_up"), [(CANARY, True), ({"rollout": {"strategy": "BlueGreen"}}, True), ({}, False)])
def test_a_revision_that_never_comes_up_is_given_up_where_a_rollout_is_asked_for(make: Any, rollout: Any, given_up: bool) -> None:
    world = make(**rollout)
    first = stable(world)
    second = convert_second(world, first)
    never_ready(world, second)
    world.settle()
    assert ready_reason(world, *KEY) == "ProgressDeadlineExceeded"
    world.advance(60)
    world.settle()
    assert (stable(world), second in sizes(world)) == (first, not given_up)


def test_blue_green_switches_at_full_size_and_can_go_back_at_once(make: Any) -> None:
    world = make(serving={"replicas": 2}, rollout={"strategy": "BlueGreen", "steps": [{"weight": 100, "duration": "5m"}]})
    first = stable(world)
    second = roll_out(world, V2)
    assert (selector(world)["slipway.dev/revision"], stable(world), sizes(world)) == (second, first, {first: 2, second: 2})
    assert (status(world)["stable"]["weight"], status(world)["canary"]["weight"]) == (0, 100)
    note(world, "abort", second)
    world.settle()
    assert selector(world)["slipway.dev/revision"] == first
    assert sizes(world)[first] == 2
    del world.objects[KEY]["metadata"]["annotations"]
    third = roll_out(world, V3)
    wait(world, 10)
    wait(world, 301)
    assert stable(world) == third


def test_recreate_never_has_two_revisions_at_once(make: Any) -> None:
    world = make(serving={"replicas": 2}, rollout={"strategy": "Recreate"})
    first = stable(world)
    second = convert_second(world, first)
    assert sizes(world) == {}, "the old pods end first"
    turn(world, 2)
    assert (sizes(world), stable(world)) == ({second: 2}, second)
    third = roll_out(world, V3)
    assert sizes(world) == {third: 2}
    never_ready(world, third)
    world.settle()
    assert (sizes(world), status(world)["canary"]["phase"]) == ({}, "RolledBack")
    turn(world, 2)
    assert (sizes(world), stable(world), ready_reason(world, *KEY)) == ({second: 2}, second, "ProgressDeadlineExceeded")


def test_a_new_spec_in_the_middle_ends_the_rollout_and_begins_another(make: Any) -> None:
    world = make(serving={"replicas": 2}, **CANARY)
    first = stable(world)
    second = roll_out(world, V2)
    third = roll_out(world, V3)
    assert selector(world)["slipway.dev/revision"] == first, "not shared while the second has pods"
    assert (status(world)["canary"]["revision"], status(world)["canary"]["weight"]) == (third, 0)
    assert sizes(world)[second] == 1, "it drains"
    wait(world, 10)
    assert (selector(world), second in sizes(world)) == (SHARED, False)
    assert status(world)["history"][0]["outcome"] == "Superseded"


def test_a_revert_in_the_middle_is_ready_at_once(make: Any) -> None:
    world = make(serving={"replicas": 2}, **CANARY)
    first = stable(world)
    second = roll_out(world, V2)
    wish(world, model=V1)
    world.settle()
    assert (selector(world)["slipway.dev/revision"], ready_reason(world, *KEY)) == (first, "Ready")
    assert second in sizes(world)
    wait(world, 10)
    assert sizes(world) == {first: 2}


def test_a_pause_holds_the_step_and_a_bad_revision_is_still_rolled_back(make: Any) -> None:
    world = make(rollout={"steps": STEPS, **ANALYSIS}, **GATEWAY)
    roll_out(world, V2)
    wish(world, paused=True)
    world.advance(100)
    judge(world, "Pass")
    turn(world)
    assert (status(world)["canary"]["weight"], ready_reason(world, *KEY)) == (10, "RolloutPaused")
    judge(world, "Fail")
    turn(world)
    assert status(world)["canary"]["phase"] == "RolledBack"


def test_a_pause_holds_a_plain_takeover_too(make: Any) -> None:
    world = make(paused=True)
    first = stable(world)
    second = roll_out(world, V2)
    assert (stable(world), sizes(world)) == (first, {first: 1, second: 1})
    wish(world, paused=False)
    world.settle()
    assert stable(world) == second


def test_a_gateway_sends_nothing_to_a_stable_revision_that_cannot_answer(make: Any) -> None:
    world = make(**CANARY, **GATEWAY)
    first = stable(world)
    second = roll_out(world, V2)
    world.objects[("Deployment", first)]["status"] |= {"readyReplicas": 0, "availableReplicas": 0}
    world.settle()
    assert shares(world) == {second: 100}
    assert stable(world) == first
    world.run_pods()
    world.settle()
    assert shares(world) == {first: 90, second: 10}


def test_what_users_add_to_the_route_stays() -> None:
    resource = model_deployment(**GATEWAY)
    made = route(resource, {"digits-00000001": 100}, None)
    assert made["spec"]["parentRefs"] == [{"namespace": "gateways", "name": "public"}]
    observed = copy.deepcopy(made)
    observed["metadata"]["resourceVersion"] = "7"
    observed["spec"]["rules"][0]["timeouts"] = {"request": "5s"}
    pinned = {"matches": [{"headers": [{"name": "x-beta", "value": "1"}]}], "backendRefs": [{"name": "digits-00000002", "port": 80}]}
    other = {"matches": [{"path": {"value": "/docs"}}], "backendRefs": [{"name": "docs", "port": 80}]}
    observed["spec"]["rules"] = [pinned, *observed["spec"]["rules"], other]
    again = route(resource, {"digits-00000001": 90, "digits-00000002": 10}, observed)
    assert [rule for rule in again["spec"]["rules"] if rule in (pinned, other)] == [pinned, other]
    ours = again["spec"]["rules"][1]
    assert ours["timeouts"] == {"request": "5s"}
    assert [(ref["name"], ref["weight"]) for ref in ours["backendRefs"]] == [("digits-00000001", 90), ("digits-00000002", 10)]
    assert again["metadata"]["resourceVersion"] == "7", "an edit in between must not be lost"


def test_a_gateway_that_is_taken_out_of_the_spec_takes_its_route_along(make: Any) -> None:
    world = make(**GATEWAY)
    wish(world, routing={})
    world.settle()
    assert not world.names("HTTPRoute")


def test_grpc_has_a_route_of_its_own_with_the_same_weights(make: Any) -> None:
    routing = {**GATEWAY["routing"], "grpcHostnames": ["grpc.example.com"]}
    world = make(**CANARY, routing=routing)
    first = stable(world)
    second = roll_out(world, V2)
    spec = world.objects[("GRPCRoute", "digits")]["spec"]
    assert spec["hostnames"] == ["grpc.example.com"]
    assert [(r["name"], r["port"], r["weight"]) for r in spec["rules"][0]["backendRefs"]] == sorted([(first, 9000, 90), (second, 9000, 10)])
    assert shares(world) == {first: 90, second: 10}
    wish(world, **GATEWAY)
    world.settle()
    assert (world.names("GRPCRoute"), world.names("HTTPRoute")) == (set(), {"digits"})


def test_a_route_that_the_gateway_refuses_is_the_reason(make: Any) -> None:
    world = make(**GATEWAY)
    refused = {"type": "Accepted", "status": "False", "reason": "NotAllowedByListeners", "message": "no listener allows it"}
    world.objects[("HTTPRoute", "digits")]["status"] = {"parents": [{"conditions": [refused]}]}
    world.settle()
    assert ready_reason(world, *KEY) == "RouteRejected"


@pytest.mark.parametrize(
    ("weight", "replicas", "by_pods", "by_gateway"),
    [
        (10, 1, 1, 1),
        (10, 9, 1, 1),
        (10, 18, 2, 2),
        (50, 3, 3, 2),
        (25, 3, 1, 1),
        (90, 3, 3, 3),
        (100, 3, 3, 3),
        (10, 0, 0, 0),
        (33, 4, 2, 2),
    ],
)
def test_canary_size(weight: int, replicas: int, by_pods: int, by_gateway: int) -> None:
    assert canary_size(weight, replicas, has_gateway=False) == by_pods
    assert canary_size(weight, replicas, has_gateway=True) == by_gateway


def test_a_replaced_revision_is_kept_warm_and_going_back_takes_no_pod(make: Any) -> None:
    world = make(serving={"replicas": 2}, rollout={"steps": STEPS, "keepPrevious": "30m"}, **GATEWAY)
    first = stable(world)
    second = roll_out(world, V2)
    wait(world, 61)
    wait(world, 61)
    wait(world, 600)
    assert (stable(world), sizes(world)) == (second, {first: 2, second: 2})
    wish(world, model=V1)
    note(world, "promote", first)
    world.settle()
    assert (stable(world), shares(world)) == (first, {first: 100}), "at once, all the way"
    assert sizes(world) == {first: 2, second: 2}
    wait(world, 1801)
    assert sizes(world) == {first: 2}


def test_what_is_kept_warm_gives_way_to_the_next_rollout(make: Any) -> None:
    world = make(rollout={"steps": STEPS, "keepPrevious": "24h"})
    first = stable(world)
    second = roll_out(world, V2)
    wait(world, 61)
    wait(world, 61)
    wait(world, 60)
    assert sizes(world) == {first: 1, second: 1}
    third = roll_out(world, V3)
    turn(world)
    assert sizes(world) == {second: 1, third: 1}
    assert selector(world) == SHARED
