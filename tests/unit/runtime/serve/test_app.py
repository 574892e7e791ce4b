"""The app between connections and model: what it does with requests that share a turn of the event loop, and whom it counts them for."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from slipway_runtime.artifact import open_artifact
from slipway_runtime.serve.app import App, AppOptions
from slipway_runtime.serve.batching import QueueOptions
from slipway_runtime.serve.messages import Head, Request
from slipway_runtime.serve.model import LoadOptions, load_model
from slipway_runtime.serve.turn import LONE_TURNS, PROBE_CALLS
from unit.runtime.serve.artifacts import mlp_draft, write
from unit.runtime.serve.test_turn import Loop


class Asked(Request):
    """A request whose answer is kept."""

    def __init__(self, values, probe=""):
        item = {"name": "x", "shape": [1, 64], "datatype": "FP32", "data": values}
        body = json.dumps({"inputs": [item]}).encode()
        super().__init__(Head("POST", "/v2/models/m/infer", body_bytes=len(body), probe=probe), body)
        self.answers = []

    def reply(self, response):
        self.answers.append(response)

    @property
    def result(self):
        """The outputs, or the status of a refusal."""
        (answer,) = self.answers
        return json.loads(answer.body)["outputs"][0]["data"] if answer.status == 200 else answer.status


@pytest.fixture
def app(tmp_path, monkeypatch):
    """A server's app with a small model that runs on the event loop, in whose turns requests have had company so far."""
    monkeypatch.setattr("slipway_runtime.serve.app.INLINE_LIMIT_SECONDS", 60.0)  # however busy the machine is
    write(tmp_path / "artifact", mlp_draft())
    model = load_model(open_artifact(tmp_path / "artifact", None), LoadOptions("m", "r", max_batch=8))
    app = App(AppOptions("m", "r", QueueOptions(max_batch=8)), Loop())
    app.install(replace(model, inline_elements=1000, max_batch=8))
    for _ in range(PROBE_CALLS):
        for _ in range(4):
            app.handle(Asked([0.0] * 64))
        app.loop.turn()
    yield app
    app.close(1.0)


def calls_of_model(app):
    return app.metrics.batch_buckets.count


def test_requests_of_one_plan_share_a_call_and_get_their_own_answers(app):
    alone = []
    for value in range(5):
        app._turn._lone_turns = LONE_TURNS
        alone.append(Asked([float(value)] * 64))
        app.handle(alone[-1])
    app._turn._lone_turns = 0
    before, requests = calls_of_model(app), [Asked([float(value)] * 64) for value in range(5)]
    for request in requests:
        app.handle(request)
    assert [request.answers for request in requests] == [[]] * 5
    assert app.inflight == 5
    app.loop.turn()
    assert calls_of_model(app) == before + 1
    for request, other in zip(requests, alone, strict=True):
        assert request.result == pytest.approx(other.result, rel=1e-5, abs=1e-6)
    assert app.inflight == 0


def test_of_requests_of_one_plan_a_wrong_one_is_refused_and_one_that_left_is_not_answered(app):
    requests = [Asked([0.5] * 64), Asked([0.5] * 63), Asked([0.5] * 64), Asked([True] * 64)]
    for request in requests:
        app.handle(request)
    requests[0].cancel()
    assert app.inflight == 3
    app.loop.turn()
    assert requests[0].answers == []
    assert requests[1].result == requests[3].result == 400
    assert len(requests[2].result) == 10
    assert app.inflight == 0


def test_what_is_not_finite_is_counted_for_the_request_whose_it_is(app):
    before = app.metrics.nonfinite_answers.value
    requests = [Asked([value] * 64) for value in (0.5, None, 0.5)]
    for request in requests:
        app.handle(request)
    app.loop.turn()
    assert [None in request.result for request in requests] == [False, True, False]
    assert app.metrics.nonfinite_answers.value == before + 1


@pytest.mark.parametrize("path", ["/v2/models/m/infer", "/v2/models/m/predict", "/v1/models/m:predict"])
@pytest.mark.parametrize("probe", ["", "shadow"])
@pytest.mark.parametrize("has_company", [False, True])
def test_answers_to_probes_that_are_not_finite_are_counted_apart(app, path, probe, has_company):
    counts = app.metrics.nonfinite_answers, app.metrics.probes.nonfinite
    before = [count.value for count in counts]
    for _ in range(3 if has_company else 1):
        request = Asked([None] * 64, probe)
        if path != request.head.path:
            request.head, request.body = replace(request.head, path=path), json.dumps({"instances": [[None] * 64]}).encode()
        app.handle(request)
    app.loop.turn()
    asked = 3 if has_company else 1
    assert [count.value - was for count, was in zip(counts, before, strict=True)] == ([0, asked] if probe else [asked, 0])


def test_a_model_that_cannot_bear_one_request_answers_the_others(app, monkeypatch):
    backend = app.model.backend

    class Fussy:
        def infer(self, inputs):
            if (inputs["x"] == 3).any():
                raise ValueError("three")
            return backend.infer(inputs)

    app.model = replace(app.model, backend=Fussy())
    requests = [Asked([float(value)] * 64) for value in (2, 3, 4)]
    for request in requests:
        app.handle(request)
    app.loop.turn()
    assert [request.result == 500 for request in requests] == [False, True, False]
