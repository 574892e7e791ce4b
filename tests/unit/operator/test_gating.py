"""Stories of canaries that are measured: the cluster in memory, the real evaluation, and requests that the test counts itself."""

from __future__ import annotations

from typing import Any

import pytest

from slipway.analysis.evaluate import Observations, evaluate
from slipway.analysis.window import Sample
from slipway.api.models import ModelDeployment
from slipway.plan.gate import probe_urls, scrape_urls, subject_of
from slipway.verdict import Replay
from unit.operator.test_rollout import KEY, STEPS, V2, V3, WholePasses, judge, note, roll_out, selector, stable, status, turn, wish
from unit.operator.world import RUNTIME, model_deployment

INTERVAL = 15
ANALYSIS = {"interval": "15s", "minimumRequests": 100, "metrics": [{"name": "error-rate", "maximum": "0.01"}]}
NAN = {**ANALYSIS, "metrics": [{"name": "error-rate", "maximum": "0.01"}, {"name": "nan-rate", "maximum": "0"}]}


class Measured(WholePasses):
    """Looks once an interval at a canary that answers `rate` requests a second, of which shares are errors or not finite."""

    def __init__(self, *resources: dict[str, Any]) -> None:
        super().__init__(*resources)
        self.rate, self.errors, self.nonfinite = 40.0, 0.0, 0.0

    @property
    def told(self) -> list[Any]:
        return list(self.notices.values())

    def interval(self, times: int = 1) -> None:
        for _ in range(times):
            self.advance(INTERVAL)
            self.look()
            turn(self)

    def look(self) -> None:
        subject = subject_of(self.objects[KEY])
        if subject is None:
            self.verdicts = ()
            return
        now, seconds = self.now.timestamp(), (self.now - subject.since).total_seconds()
        requests = int(self.rate * seconds)
        canary = Sample(seconds, now, requests, int(requests * self.errors), int(requests * self.nonfinite))
        others = Sample(seconds, now, requests * 9, 0, 0)
        observed = Observations(canary, others)
        found = evaluate(observed, subject.specs, minimum_requests=subject.minimum_requests, now=now, stale_after=3 * subject.interval)
        self.verdicts = found.verdicts()


def served(**rollout: Any) -> Measured:
    world = Measured(model_deployment(rollout={"steps": STEPS, **rollout}))
    turn(world)
    world.finish_jobs()
    turn(world, 2)
    return world


def test_a_good_canary_needs_both_the_time_and_a_pass() -> None:
    world = served(analysis=ANALYSIS)
    second = roll_out(world, V2)
    world.interval()
    row = status(world)["canary"]
    assert (row["step"], row["metrics"][0]["verdict"], row["metrics"][0]["samples"]) == (1, "Pass", 600), "passed, but its time is not over"
    world.interval(3)
    assert status(world)["canary"]["step"] == 2
    assert [e["verdict"] for e in status(world)["canary"]["evaluations"]] == ["Pass"] * 4
    assert subject_of(world.objects[KEY]).since == world.now  # type: ignore[union-attr]
    world.interval(3)
    assert stable(world) != second
    world.interval()
    assert stable(world) == second
    assert [n.moment for n in world.told] == ["Started", "Step", "Promoted"]
    assert [(n.revision, n.weight, n.step) for n in world.told] == [(second, 10, 1), (second, 50, 2), (second, 100, None)]


def test_a_pass_that_comes_late_is_waited_for() -> None:
    world = served(analysis=ANALYSIS)
    roll_out(world, V2)
    world.rate = 1.0
    world.interval(6)
    row = status(world)["canary"]
    assert (row["step"], row["weight"], row["metrics"][0]["verdict"]) == (1, 10, "Inconclusive")
    ready = next(c for c in status(world)["conditions"] if c["type"] == "Ready")
    assert ready["message"].endswith("not passed yet: error-rate: 90 of 100 requests to the canary so far"), ready["message"]
    world.interval(8)
    assert status(world)["canary"]["step"] == 2
    assert len(status(world)["canary"]["evaluations"]) == 10


@pytest.mark.parametrize("on_failure", ["Rollback", "Pause"])
@pytest.mark.parametrize(
    ("analysis", "faults", "name"),
    [(ANALYSIS, {"errors": 0.05}, "error-rate"), (NAN, {"nonfinite": 0.2}, "nan-rate"), (None, {"errors": 0.05}, "error-rate")],
    ids=["errors", "nan", "errors, without a section"],
)
def test_a_bad_canary_is_stopped(analysis: Any, faults: dict[str, float], name: str, on_failure: str) -> None:
    world = served(onFailure=on_failure, **({"analysis": analysis} if analysis else {}))
    first = stable(world)
    roll_out(world, V2)
    vars(world).update(faults)
    world.interval()
    row = status(world)["canary"]
    if on_failure == "Rollback":
        assert (row["phase"], row["weight"], selector(world)["slipway.dev/revision"]) == ("RolledBack", 0, first)
    else:
        assert (row["phase"], row["weight"], row["step"]) == ("Paused", 10, 1)
    assert row["reason"] == "AnalysisFailed"
    assert f"at 10 % of the traffic: {name}: " in row["message"]
    measured = next(m for m in row["metrics"] if m["name"] == name)
    assert (measured["verdict"], measured["value"], measured["samples"]) == ("Fail", str(next(iter(faults.values()))), 600)
    (event,) = {e.message for e in world.events if e.reason == "AnalysisFailed"}
    assert f"{name}: {measured['value']} [" in event
    assert [(n.moment, n.reason) for n in world.told] == [("Started", None), (row["phase"], "AnalysisFailed")]
    assert next(m for m in world.told[-1].metrics if m["name"] == name) == measured
    evidence = row["metrics"], row["evaluations"]
    world.interval(5)
    if on_failure == "Rollback":
        assert (status(world)["canary"]["metrics"], status(world)["canary"]["evaluations"]) == evidence, "the evidence stays"
        assert len(world.told) == 2
    wish(world, model=V3)
    turn(world)
    assert "metrics" not in status(world)["canary"], "it is about the revision that was measured"


def test_no_traffic_waits_or_goes_on_as_the_user_wants() -> None:
    for wanted, step in (("Wait", 1), ("Promote", 2)):
        world = served(analysis={**ANALYSIS, "onInsufficientTraffic": wanted})
        roll_out(world, V2)
        world.rate = 0.0
        world.interval(3)
        assert status(world)["canary"]["step"] == 1, "not before its time"
        world.interval(2)
        assert status(world)["canary"]["step"] == step, wanted


def test_missing_data_are_not_a_lack_of_traffic() -> None:
    world = served(analysis={**NAN, "onInsufficientTraffic": "Promote"})
    roll_out(world, V2)
    world.nonfinite = float("nan")
    world.interval = None  # type: ignore[method-assign,assignment]
    for _ in range(6):
        world.advance(INTERVAL)
        subject = subject_of(world.objects[KEY])
        assert subject is not None
        now = world.now.timestamp()
        sample = Sample(60, now, 5000, 0, None)
        world.verdicts = evaluate(Observations(sample), subject.specs, minimum_requests=100, now=now, stale_after=45).verdicts()
        turn(world)
    assert status(world)["canary"]["step"] == 1
    assert "slipway_nonfinite_outputs_total" in status(world)["canary"]["evaluations"][0]["message"]


def test_without_a_section_time_moves_the_steps_and_an_open_verdict_is_written_once() -> None:
    world = served()
    second = roll_out(world, V2)
    world.rate = 1.0
    world.interval()
    before = world.objects[KEY]["status"]
    world.look()
    world.settle()
    assert world.objects[KEY]["status"] == before, "nothing but the samples changed"
    world.interval(8)
    assert stable(world) == second


def test_a_restart_of_the_operator_loses_the_window_and_neither_promotes_nor_forgets_the_evidence() -> None:
    world = served(analysis=ANALYSIS)
    roll_out(world, V2)
    world.interval()
    evidence = status(world)["canary"]["metrics"]
    world.verdicts = ()
    world.advance(120)
    turn(world)
    assert (status(world)["canary"]["step"], status(world)["canary"]["metrics"]) == (1, evidence)


def test_an_abort_and_a_promotion_by_hand_are_told() -> None:
    for key, moment in (("abort", "Aborted"), ("promote", "Promoted")):
        world = served(analysis=ANALYSIS)
        second = roll_out(world, V2)
        judge(world, "Inconclusive")
        note(world, key, second)
        turn(world, 3)
        assert world.told[-1].moment == moment


def test_what_is_measured() -> None:
    resource = model_deployment(rollout={"steps": STEPS})
    assert subject_of(resource) is None
    resource["status"] = {"stable": {"revision": "a"}, "canary": {"revision": "b", "weight": 10, "stepStartedAt": "2026-11-24T12:00:00Z"}}
    subject = subject_of(resource)
    assert subject is not None
    assert (subject.canary, subject.stable, subject.interval, [s.name for s in subject.specs]) == ("b", "a", 15, ["error-rate"])
    resource["status"]["canary"]["weight"] = 0
    assert subject_of(resource) is None
    resource["status"]["canary"]["weight"] = 10
    resource["metadata"]["annotations"] = {"slipway.dev/reconcile": "disabled"}
    assert subject_of(resource) is None


REPLAYING = {**RUNTIME, "spec": {**RUNTIME["spec"], "replay": True}}


@pytest.mark.parametrize(
    "rollout", [{"analysis": ANALYSIS}, {}, {"strategy": "BlueGreen", "steps": None}], ids=["analysed", "by time", "blue-green"]
)
@pytest.mark.parametrize("verdict", ["Pending", "Pass", "Skipped", "Inconclusive", "Fail"])
def test_no_request_of_a_user_before_the_golden_inputs_were_replayed(rollout: dict[str, Any], verdict: Any) -> None:
    world = served(**{key: value for key, value in {"steps": STEPS, **rollout}.items() if value})
    if rollout.get("strategy"):
        world.objects[KEY]["spec"]["rollout"] = {"strategy": "BlueGreen"}
    first = stable(world)
    world.runtimes = (REPLAYING,)
    second = roll_out(world, V2)
    row, ready = status(world)["canary"], next(c for c in status(world)["conditions"] if c["type"] == "Ready")
    assert (row["phase"] in ("Preparing", "Promoting"), row["weight"], stable(world)) == (True, 0, first)
    assert ready["message"].endswith("waits for the replay of its golden inputs"), ready["message"]
    world.replay = Replay(verdict, "http://10.0.0.1 said so")
    turn(world)
    has_begun = stable(world) == second or status(world)["canary"]["weight"] > 0
    assert has_begun == (verdict in ("Pass", "Skipped") or (verdict == "Inconclusive" and "analysis" not in rollout))
    if verdict == "Fail":
        assert (status(world)["canary"]["phase"], status(world)["canary"]["reason"]) == ("RolledBack", "GoldenMismatch")
        assert "http://10.0.0.1 said so" in status(world)["canary"]["message"]
    elif not has_begun:
        note(world, "promote", second)
        turn(world, 3)
        assert stable(world) == second, "a person knows better"


def pod(name: str, ip: str | None, *, started: bool = True, port: int = 8080, **metadata: Any) -> dict[str, Any]:
    server = {"name": "server", "image": "slipway-runtime", "ports": [{"name": "http", "containerPort": port}]}
    said = {"containerStatuses": [{"name": "server", "started": started}]} | ({"podIP": ip} if ip else {})
    labels = {"slipway.dev/deployment": "digits", "slipway.dev/revision": "b"}
    return {
        "kind": "Pod",
        "metadata": {"name": name, "uid": name, "namespace": "default", "labels": labels, **metadata},
        "spec": {"containers": [server]},
        "status": said,
    }


def test_whom_to_ask_for_metrics() -> None:
    world = Measured(model_deployment())
    world.runtimes = ({**RUNTIME, "spec": {**RUNTIME["spec"], "metrics": {"path": "/stats"}}},)
    for row in (
        pod("one", "10.0.0.1"),
        pod("six", "fd00::6", port=9000),
        pod("starting", "10.0.0.2", started=False),
        pod("going", "10.0.0.3", deletionTimestamp="2026-11-24T12:00:00Z"),
        pod("pending", None),
    ):
        world.put(row)
    apart = pod("apart", "10.0.0.4")
    apart["spec"]["containers"][0]["ports"].append({"name": "metrics", "containerPort": 8002})
    world.put(apart)
    found = dict(scrape_urls(world.snapshot(*KEY), "b"))
    assert found == {
        "one": "http://10.0.0.1:8080/stats",
        "six": "http://[fd00::6]:9000/stats",
        "apart": "http://10.0.0.4:8002/stats",
    }
    assert dict(scrape_urls(world.snapshot(*KEY), "a")) == {}
    for formats in ([{"name": "ONNX", "image": "slipway-runtime"}], [{"name": "ONNX", "acceleratorImage": "slipway-runtime"}]):
        world.runtimes = ({**RUNTIME, "spec": {**RUNTIME["spec"], "image": "another", "formats": formats, "metrics": {"path": "/stats"}}},)
        assert dict(scrape_urls(world.snapshot(*KEY), "b")) == found, "the image is one of those of the runtime"
    world.runtimes = ({**RUNTIME, "spec": {**RUNTIME["spec"], "metrics": {"path": "/stats"}}},)
    assert dict(probe_urls(world.snapshot(*KEY), "b")) == {}, "its runtime has no replay"
    world.runtimes = (REPLAYING,)
    assert dict(probe_urls(world.snapshot(*KEY), "b"))["six"] == "http://[fd00::6]:9000/v2/models/digits/infer"


@pytest.mark.parametrize("strategy", ["BlueGreen", "Recreate"])
def test_an_analysis_needs_steps(strategy: str) -> None:
    resource = model_deployment(rollout={"strategy": strategy, "analysis": ANALYSIS})
    with pytest.raises(ValueError, match="analysis and shadow need steps"):
        ModelDeployment.model_validate(resource)
