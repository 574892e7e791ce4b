"""Short calls on the event loop: what shares a batch, and who is not kept waiting for nothing."""

from __future__ import annotations

import numpy as np
import pytest

from slipway_runtime.serve.batching import Batcher, Job, QueueOptions
from slipway_runtime.serve.metrics import Metrics
from slipway_runtime.serve.turn import LONE_TURNS, PROBE_CALLS, Turn, batches


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
