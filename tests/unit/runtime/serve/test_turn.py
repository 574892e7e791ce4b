"""Short calls on the event loop: what shares a batch, and who is not kept waiting for nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from slipway_runtime.artifact import open_artifact
from slipway_runtime.serve.app import App, AppOptions
from slipway_runtime.serve.batching import Batcher, Job, QueueOptions
from slipway_runtime.serve.messages import Head, Request
from slipway_runtime.serve.metrics import Metrics
from slipway_runtime.serve.model import LoadOptions, load_model
from slipway_runtime.serve.turn import LONE_TURNS, PROBE_CALLS, Turn, batches
from unit.runtime.serve.artifacts import mlp_draft, write


def job(key, rows=1, done=None, inputs=None):
    return Job(done or (lambda outputs, error: None), inputs or {}, rows, key)


A, B = ((4,),), ((5,),)
CASES = [
    ([], 8, []),
    ([(A, 1)], 8, [(1, [0])]),
    ([(A, 1), (A, 2), (A, 1)], 8, [(4, [0, 1, 2])]),
    ([(A, 1), (B, 1), (A, 1)], 8, [(2, [0, 2]), (1, [1])]),
    ([(A, 1)] * 5, 2, [(2, [0, 1]), (2, [2, 3]), (1, [4])]),
    ([(A, 1), (A, 9), (A, 1)], 8, [(1, [0]), (9, [1]), (1, [2])]),
    ([(A, 3), (A, 3), (A, 2)], 8, [(8, [0, 1, 2])]),
]


@pytest.mark.parametrize(("asked", "most", "made"), CASES)
def test_batches(asked, most, made):
    jobs = [job(key, rows) for key, rows in asked]
    assert [(rows, [jobs.index(one) for one in batch]) for batch, rows in batches(jobs, most)] == made


class Loop:
    def __init__(self):
        self.ready = []

    def call_soon(self, callback, *args):
        self.ready.append(lambda: callback(*args))

    def turn(self):
        ready, self.ready = self.ready, []
        for callback in ready:
            callback()


def asked(turn, count):
    """Whether each of so many calls of one turn of the loop was put off."""
    took = []
    for _ in range(count):
        took.append(turn.takes())
        if took[-1]:
            turn.add(job(A))
    return took


def test_a_lone_client_is_put_off_now_and_then_only():
    loop, runs = Loop(), []
    turn, calls = Turn(lambda batch, rows: runs.append(rows), 8, loop), []
    for _ in range(10 * PROBE_CALLS):
        calls += asked(turn, 1)
        loop.turn()
    assert 0 < sum(calls) <= 2 * 10
    assert runs == [1] * sum(calls)


def test_calls_with_company_share_batches_as_long_as_they_have_it():
    loop, runs = Loop(), []
    turn = Turn(lambda batch, rows: runs.append(rows), 8, loop)
    for _ in range(PROBE_CALLS):
        asked(turn, 4)
        loop.turn()
    runs.clear()
    assert asked(turn, 4) == [True] * 4
    assert not runs
    loop.turn()
    assert runs == [4]
    for _ in range(LONE_TURNS):
        assert asked(turn, 1) == [True]
        loop.turn()
    assert asked(turn, 1) == [False]


def test_each_gets_its_own_answer_and_one_that_fails_fails_alone():
    def infer(inputs):
        if (inputs["x"] < 0).any():
            raise ValueError("negative")
        return {"y": inputs["x"] * 2}

    answers, metrics = {}, Metrics("m", "r", lambda: 0)
    batcher = Batcher(infer, QueueOptions(max_batch=8), Loop(), metrics)

    def one(value):
        return job(
            A,
            1,
            lambda outputs, error: answers.update({value: error.status if error else outputs["y"].tolist()}),
            {"x": np.full((1, 1), value)},
        )

    batcher.run_here([one(1.0), one(2.0), one(3.0)], 3)
    assert answers == {1.0: [[2.0]], 2.0: [[4.0]], 3.0: [[6.0]]}
    gone = one(5.0)
    batcher.cancel(gone)
    batcher.run_here([one(-1.0), gone, one(4.0)], 3)
    assert answers == {1.0: [[2.0]], 2.0: [[4.0]], 3.0: [[6.0]], -1.0: 500, 4.0: [[8.0]]}


class Asked(Request):
    """A request whose answer is kept."""

    def __init__(self, values):
        item = {"name": "x", "shape": [1, 64], "datatype": "FP32", "data": values}
        body = json.dumps({"inputs": [item]}).encode()
        super().__init__(Head("POST", "/v2/models/m/infer", body_bytes=len(body)), body)
        self.answers = []

    def reply(self, response):
        self.answers.append(response)

    @property
    def result(self):
        """The outputs, or the status of a refusal."""
        (answer,) = self.answers
        return json.loads(answer.body)["outputs"][0]["data"] if answer.status == 200 else answer.status


@pytest.fixture
def app(tmp_path):
    """A server's app with a small model that runs on the event loop, in whose turns requests have had company so far."""
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
