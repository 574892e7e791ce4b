"""Stories of shadow rollouts: answers are compared before the first request of a user, and what was found decides."""

from __future__ import annotations

from typing import Any

import pytest

from slipway import names
from slipway.analysis.exposition import ScrapeError, parse_comparisons
from slipway.api.models import ModelDeployment
from slipway.plan.gate import comparator_urls, subject_of
from slipway_runtime.shadow.compare import Finding, Result
from slipway_runtime.shadow.metrics import ShadowMetrics
from unit.operator.test_rollout import (
    GATEWAY,
    KEY,
    STEPS,
    V2,
    V3,
    WholePasses,
    judge,
    note,
    shares,
    sizes,
    stable,
    status,
    turn,
    wait,
    wish,
)
from unit.operator.world import World, model_deployment

ROUTE = ("HTTPRoute", "digits")
SHADOW = {"percent": 50, "duration": "2m", "minTop1AgreementPercent": 98}


def served(*, has_gateway: bool = True, **rollout: Any) -> World:
    spec = {"rollout": {"steps": STEPS, "shadow": SHADOW, "analysis": {"interval": "15s"}, **rollout}}
    world = WholePasses(
        model_deployment(
            **{k: {i: v for i, v in part.items() if v is not None} for k, part in spec.items()}, **(GATEWAY if has_gateway else {})
        )
    )
    turn(world)
    world.finish_jobs()
    turn(world, 2)
    return world


def shadowed(**options: Any) -> tuple[World, str, str]:
    """A world in which a second revision's answers are compared; with both revisions."""
    world = served(**options)
    first, before = stable(world), world.names("Deployment")
    wish(world, model=V2)
    world.settle()
    world.finish_jobs()
    turn(world)
    (second,) = (name for name in world.names("Deployment") - before if "-shadow-" not in name)
    return world, first, second


def mirrors(world: World) -> list[str]:
    (rule,) = world.objects[ROUTE]["spec"]["rules"]
    return [f["requestMirror"]["backendRef"]["name"] for f in rule.get("filters") or () if f["type"] == "RequestMirror"]


def comparators(world: World) -> set[str]:
    """Names that are both a Deployment and a Service."""
    found = [{name for name in world.names(kind) if "-shadow-" in name} for kind in ("Deployment", "Service")]
    assert found[0] == found[1]
    return found[0]


def condition(world: World, kind: str) -> tuple[str, str, str]:
    found = next(c for c in status(world)["conditions"] if c["type"] == kind)
    return found["status"], found["reason"], found["message"]


def test_answers_are_compared_before_the_first_request_of_a_user() -> None:
    world, first, second = shadowed()
    (comparator,) = comparators(world)
    row = status(world)["canary"]
    assert (row["phase"], row["weight"], row["step"], row["stepStartedAt"]) == ("Shadowing", 0, 1, "2026-11-24T12:00:00Z")
    assert (shares(world), mirrors(world), comparator) == ({first: 100}, [comparator], names.shadow_name("digits", first, second))
    assert (
        condition(world, "Ready")[2] == f"revision {second} answers copies of requests, and its answers are compared with those of {first}"
    )
    assert condition(world, "Shadow")[:2] == ("True", "UpToDate")
    wait(world, 119)
    judge(world, "Pass")
    turn(world)
    assert status(world)["canary"]["phase"] == "Shadowing", "not before its time"
    wait(world, 1)
    assert (status(world)["canary"]["phase"], shares(world)) == ("Progressing", {first: 90, second: 10})
    assert (mirrors(world), comparators(world)) == ([], set())
    wait(world, 61)
    judge(world, "Pass")
    turn(world)
    assert status(world)["canary"]["step"] == 2, "no second comparison"
    assert not comparators(world)


@pytest.mark.parametrize("analysis", [{"interval": "15s"}, None], ids=["analysed", "by time"])
def test_another_answer_rolls_back_at_weight_0(analysis: Any) -> None:
    world, first, second = shadowed(analysis=analysis)
    world.advance(15)
    judge(world, "Fail")
    turn(world)
    row = status(world)["canary"]
    assert (row["phase"], row["reason"], row["weight"]) == ("RolledBack", "AnalysisFailed", 0)
    assert row["message"].startswith("at 0 % of the traffic: ")
    assert row["metrics"][0]["verdict"] == "Fail"
    assert (shares(world), mirrors(world), comparators(world)) == ({first: 100}, [], set())
    wait(world, 30)
    assert sizes(world) == {first: 1}
    assert second not in sizes(world)


@pytest.mark.parametrize(
    ("analysis", "verdict", "goes_on"), [({"interval": "15s"}, "Inconclusive", False), (None, "Inconclusive", True), (None, None, True)]
)
def test_what_is_not_proven_holds_up_who_asks_for_a_pass(analysis: Any, verdict: str | None, goes_on: bool) -> None:
    world, _, second = shadowed(analysis=analysis)
    world.advance(121)
    if verdict is not None:
        judge(world, verdict)
    turn(world)
    assert (status(world)["canary"]["phase"] == "Progressing") == goes_on
    if not goes_on:
        note(world, "promote", f"{second}/0")
        turn(world)
        assert (status(world)["canary"]["phase"], status(world)["canary"]["step"], status(world)["canary"]["weight"]) == (
            "Progressing",
            1,
            10,
        )


def test_a_failure_can_wait_for_a_person_who_sends_it_on() -> None:
    world, first, second = shadowed(onFailure="Pause")
    world.advance(15)
    judge(world, "Fail")
    turn(world)
    row = status(world)["canary"]
    assert (row["phase"], row["reason"], row["weight"], shares(world)) == ("Shadowing", "AnalysisFailed", 0, {first: 100})
    world.verdicts = ()
    wait(world, 600)
    assert status(world)["canary"]["phase"] == "Shadowing"
    note(world, "promote", f"{second}/0")
    turn(world)
    row = status(world)["canary"]
    assert (row["phase"], row["weight"], "reason" in row) == ("Progressing", 10, False)


def test_a_comparator_that_does_not_come_up_is_waited_for_and_named() -> None:
    world = served()
    first = stable(world)
    wish(world, model=V2)
    world.settle()
    world.finish_jobs()
    world.settle()
    world.run_pods(*(name for name in world.names("Deployment") if "-shadow-" not in name))
    world.settle()
    assert (status(world)["canary"]["phase"], shares(world), mirrors(world)) == ("Preparing", {first: 100}, [])
    assert condition(world, "Ready")[2].endswith("waits for the comparator's pod")
    turn(world)
    assert status(world)["canary"]["phase"] == "Shadowing"


def test_a_pod_that_is_lost_begins_the_comparison_anew() -> None:
    world, first, second = shadowed()
    world.advance(100)
    world.objects[("Deployment", second)]["status"] |= {"readyReplicas": 0, "availableReplicas": 0}
    world.settle()
    assert (status(world)["canary"]["phase"], mirrors(world)) == ("Preparing", [])
    turn(world)
    row = status(world)["canary"]
    assert (row["phase"], row["stepStartedAt"], shares(world)) == ("Shadowing", "2026-11-24T12:01:40Z", {first: 100})


@pytest.mark.parametrize("how", ["abort", "another", "back"])
def test_an_end_in_the_middle_leaves_nothing(how: str) -> None:
    world, first, second = shadowed()
    (before,) = comparators(world)
    if how == "abort":
        note(world, "abort", second)
    else:
        wish(world, model=V3 if how == "another" else model_deployment()["spec"]["model"])
    turn(world)
    world.finish_jobs()
    turn(world, 2)
    assert before not in comparators(world)
    assert len(comparators(world)) == len(mirrors(world)) == (1 if how == "another" else 0)
    assert shares(world) == {first: 100}


@pytest.mark.parametrize(("wanted", "words"), [("Wait", "so nothing is"), ("Probe", "golden inputs are compared instead")])
def test_without_a_gateway_a_condition_says_what_is_compared(wanted: str, words: str) -> None:
    world, first, _ = shadowed(has_gateway=False, analysis={"interval": "15s", "onInsufficientTraffic": wanted})
    state, reason, message = condition(world, "Shadow")
    assert (state, reason, words in message) == ("False", "GatewayRequired", True)
    assert status(world)["canary"]["phase"] == "Shadowing"
    assert world.objects[("Service", "digits")]["spec"]["selector"]["slipway.dev/revision"] == first
    subject = subject_of(world.objects[KEY])
    assert subject is not None
    assert subject.probes == (wanted == "Probe")


def test_filters_of_users_stay() -> None:
    world = served()
    (rule,) = world.objects[ROUTE]["spec"]["rules"]
    theirs = {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "audit", "port": 80}}}
    rule["filters"] = [theirs]
    roll_out_and_compare(world)
    assert mirrors(world)[0] == "audit"
    assert len(mirrors(world)) == 2
    judge(world, "Fail")
    turn(world)
    assert mirrors(world) == ["audit"]


def roll_out_and_compare(world: World) -> None:
    wish(world, model=V2)
    world.settle()
    world.finish_jobs()
    turn(world)
    world.advance(15)


def test_the_comparator() -> None:
    world, first, second = shadowed()
    (name,) = comparators(world)
    template = world.objects[("Deployment", name)]["spec"]["template"]
    labels, container = template["metadata"]["labels"], template["spec"]["containers"][0]
    assert "slipway.dev/revision" not in labels
    assert labels["app.kubernetes.io/component"] == "comparator", "so no Service of the model selects it"
    assert container["command"][:4] == ["slipway-runtime", "shadow", "--model-name=digits", "--percent=50"]
    for part in (f"--stable=http://{first}.default.svc:80", f"--canary-revision={second}", f"--digest={'sha256:' + 'a' * 64}"):
        assert part in container["command"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert template["spec"]["automountServiceAccountToken"] is False
    service = world.objects[("Service", name)]
    assert {key: labels[key] for key in service["spec"]["selector"]} == service["spec"]["selector"]
    assert [port["name"] for port in service["spec"]["ports"]] == ["http"]


def test_what_is_measured_meanwhile() -> None:
    world, first, second = shadowed()
    subject = subject_of(world.objects[KEY])
    assert subject is not None
    assert (subject.canary, subject.stable, subject.comparator) == (second, first, next(iter(comparators(world))))
    ((name, maximum),) = [(spec.name, spec.maximum) for spec in subject.specs]
    assert (name, maximum) == ("shadow-disagreement", pytest.approx(0.02))
    container = {"name": "comparator", "ports": [{"name": "http", "containerPort": 8080}]}
    labels = {names.DEPLOYMENT: "digits", names.COMPARES: subject.comparator}
    for number, ready in enumerate((True, False)):
        said = {"podIP": f"10.0.0.{number}", "containerStatuses": [{"name": "comparator", "ready": ready}]}
        metadata = {"name": f"c{number}", "uid": f"c{number}", "namespace": "default", "labels": labels}
        world.put({"kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}, "status": said})
    assert dict(comparator_urls(world.snapshot(*KEY), str(subject.comparator))) == {"c0": "http://10.0.0.0:8080"}


def test_what_the_comparator_counts_is_what_the_analysis_reads() -> None:
    metrics = ShadowMetrics("digits", "b", "a", lambda: 0)
    for source, result, count in (
        ("mirrored", "agreed", 90),
        ("mirrored", "differed", 2),
        ("mirrored", "failed", 1),
        ("golden", "agreed", 7),
    ):
        for _ in range(count):
            metrics.add(source, Finding(Result(result)))
    for result in ("busy", "skipped"):
        metrics.add("mirrored", Finding(Result(result)))
    page = metrics.render().decode()
    assert parse_comparisons(page, "b", 1.0).counts.codes == {"200": 90, "500": 3}
    both = parse_comparisons(page, "b", 1.0, with_probes=True).counts
    assert (both.codes, both.probes) == ({"200": 97, "500": 3}, 7)
    with pytest.raises(ScrapeError, match="no metric slipway_shadow_comparisons_total about c"):
        parse_comparisons(page, "c", 1.0)


def test_a_shadow_needs_steps() -> None:
    with pytest.raises(ValueError, match="need steps"):
        ModelDeployment.model_validate(model_deployment(rollout={"strategy": "BlueGreen", "shadow": {}}))
