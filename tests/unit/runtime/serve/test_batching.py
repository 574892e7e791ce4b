"""The queue: what is batched, what waits, what is refused, and that nobody suffers by a neighbour."""

from __future__ import annotations

import math
import time

import ml_dtypes
import numpy as np
import pytest

from slipway_runtime.artifact import Signature, TensorSpec
from slipway_runtime.serve.batching import Batcher, Job, QueueOptions, fair_rows, target_rows, useful_batch
from slipway_runtime.serve.messages import HttpError
from slipway_runtime.serve.metrics import Metrics
from slipway_runtime.serve.padding import Joiner, Padding
from slipway_runtime.serve.tensors import has_nonfinite


class Timer:
    def __init__(self, due, callback):
        self.due, self.callback = due, callback

    def cancel(self):
        self.callback = None


class FakeLoop:
    """An event loop that runs when the test says so; its clock is the test's."""

    def __init__(self):
        self.timers, self.ready = [], []

    def call_later(self, delay, callback, *args):
        self.timers.append(Timer(delay, lambda: callback(*args)))
        return self.timers[-1]

    def call_soon_threadsafe(self, callback, *args):
        self.ready.append(lambda: callback(*args))

    def pending(self):
        return [timer for timer in self.timers if timer.callback]

    def fire(self):
        for timer in self.pending():
            callback, timer.callback = timer.callback, None
            callback()


class House:
    """A batcher whose lanes run when the test says so."""

    def __init__(self, infer=lambda inputs: {"y": inputs["x"] * 2}, joiner=None, **options):
        self.loop, self.calls, self.answers, self.work = FakeLoop(), [], {}, []

        def recorded(inputs):
            self.calls.append([tuple(array.shape) for array in inputs.values()])
            return infer(inputs)

        self.metrics = Metrics("m", "r", lambda: 0)
        self.batcher = Batcher(recorded, QueueOptions(**options), self.loop, self.metrics, joiner)
        self.batcher.lanes.submit = self.work.append

    def job(self, name, rows=1, width=2, **more):
        def done(outputs, error):
            assert name not in self.answers
            self.answers[name] = error.status if error else outputs["y"][:, 0].tolist()

        inputs = more.pop("inputs", {"x": np.full((rows, width), len(self.answers) + 1.0)})
        job = Job(done, inputs, rows, ((width,),), **more)
        self.batcher.submit(job)
        return job

    def run(self):
        """Run what the lanes were given, until nothing is left."""
        while self.work or self.loop.ready:
            self.step()

    def step(self):
        """Run what the next lane was given, and what the event loop was."""
        if self.work:
            self.work.pop(0)()
        for callback in self.loop.ready[:]:
            self.loop.ready.remove(callback)
            callback()


def test_what_waits_goes_together_up_to_the_limit():
    house = House(max_batch=4)
    for name in "abcdefg":
        house.job(name)
    house.run()
    assert house.calls == [[(1, 2)], [(4, 2)], [(2, 2)]]
    assert set(house.answers) == set("abcdefg")


def test_answers_that_are_not_finite_are_counted_one_by_one():
    house = House(max_batch=8)
    values = {"first": 1.0, "nan": np.nan, "good": 2.0, "infinite": np.inf}
    for name, value in values.items():
        house.job(name, inputs={"x": np.full((1, 2), value)})
    house.run()
    assert house.calls == [[(1, 2)], [(3, 2)]], "three shared a batch"
    assert house.metrics.nonfinite_answers.value == 2
    assert b'slipway_nonfinite_outputs_total{model="m",revision="r"} 2.0' in house.metrics.render()


@pytest.mark.filterwarnings("ignore:overflow encountered in dot")
@pytest.mark.parametrize(
    ("array", "want"),
    [
        (np.array([1.0, np.nan], np.float32), True),
        (np.array([[1.0], [-np.inf]], np.float64), True),
        (np.array([3e38, 3e38], np.float32), False),  # their squares are infinite, they are not
        (np.array([6e4] * 3, np.float16), False),
        (np.array([1e300], np.float64), False),
        (np.array([np.inf], np.float16), True),
        (np.array([1.0, np.nan], ml_dtypes.bfloat16), True),
        (np.array([1.0, 3e38], ml_dtypes.bfloat16), False),
        (np.array([1, 2], np.int64), False),
        (np.array(["nan"], object), False),
        (np.zeros((0, 3), np.float32), False),
        (np.array(np.nan, np.float32), True),
        (np.array([[1.0, np.nan], [1.0, 2.0]], np.float32)[:, :1], False),
    ],
)
def test_what_is_not_finite(array, want):
    assert has_nonfinite({"a": np.zeros(2, np.float32), "b": array}) is want


def test_each_gets_its_own_rows():
    house = House(max_batch=8)
    house.job("first")
    for rows in (1, 2, 3):
        house.job(rows, rows, inputs={"x": np.full((rows, 2), float(rows))})
    house.run()
    assert house.calls[1] == [(6, 2)]
    assert [house.answers[rows] for rows in (1, 2, 3)] == [[2.0], [4.0] * 2, [6.0] * 3]


def test_different_shapes_never_share_a_batch_and_the_oldest_comes_first():
    house = House(max_batch=8)
    for index, width in enumerate([2, 3, 2, 3, 2]):
        house.job(index, width=width)
    house.run()
    assert house.calls == [[(1, 2)], [(2, 3)], [(2, 2)]]


def test_different_lengths_share_a_batch_where_they_may_be_padded():
    spec = TensorSpec("x", "float32", ("n", "words"), 0)
    padding = Padding.of(Signature((spec,), (TensorSpec("y", "float32", ("n", "words")),)))
    house, got = House(joiner=Joiner(padding), max_batch=8), {}
    for number, width in enumerate((3, 5, 8, 3)):
        inputs = {"x": np.full((1, width), float(number), np.float32)}
        done = lambda outputs, error, number=number: got.update({number: error or outputs["y"].tolist()})  # noqa: E731
        house.batcher.submit(Job(done, inputs, key=house.batcher.key_of(inputs)))
    house.run()
    assert house.calls == [[(1, 3)], [(2, 8)], [(1, 3)]]
    assert got == {0: [[0.0] * 3], 1: [[2.0] * 5], 2: [[4.0] * 8], 3: [[6.0] * 3]}


def test_a_batch_larger_than_the_limit_goes_alone():
    house = House(max_batch=4)
    for name, rows in (("a", 1), ("b", 9), ("c", 3), ("d", 2)):
        house.job(name, rows)
    house.run()
    assert house.calls == [[(1, 2)], [(9, 2)], [(3, 2)], [(2, 2)]]


def test_priorities_come_first():
    house = House()
    order = []
    for name, priority in (("running", 5), ("late", 9), ("default", 1 << 31), ("first", 1)):
        house.job(name, priority=priority).done = lambda outputs, error, name=name: order.append(name)
    house.run()
    assert order == ["running", "first", "late", "default"]


@pytest.mark.parametrize(
    ("expected", "running", "max_batch", "target"), [(1.0, 0, 32, 1), (64.0, 0, 32, 32), (10.0, 6, 32, 4), (3.0, 8, 32, 1), (1.4, 0, 32, 1)]
)
def test_target_rows(expected, running, max_batch, target):
    assert target_rows(expected, running, max_batch) == target


@pytest.mark.parametrize(
    ("in_house", "lanes", "is_shared", "rows"),
    [(16, 2, True, 8), (16.2, 2, True, 8), (1, 8, True, 1), (0, 2, True, 1), (100, 2, True, 32), (16, 1, True, 16), (16, 3, False, 32)],
)
def test_a_lane_takes_its_share(in_house, lanes, is_shared, rows):
    assert fair_rows(in_house, QueueOptions(lanes=lanes, max_batch=32, is_shared=is_shared)) == rows


@pytest.mark.parametrize(("is_shared", "sizes"), [(True, {5, 6}), (False, {1, 14})])
def test_batches_of_two_lanes_become_alike(is_shared, sizes):
    house = House(lanes=2, max_batch=32, is_shared=is_shared)
    clients = iter(range(10_000))
    for _ in range(16):
        house.job(next(clients))
    for _ in range(200):  # each client asks again as soon as it is answered; the lanes end in turn
        answered = len(house.answers)
        house.step()
        for _ in range(len(house.answers) - answered):
            house.job(next(clients))
    assert {call[0][0] for call in house.calls[-20:]} == sizes


def test_a_lone_client_never_waits():
    house = House(max_batch=32, max_delay=0.5)
    for index in range(20):
        house.job(index)
        assert len(house.work) == 1
        house.run()
    assert not house.loop.timers


def test_a_free_lane_waits_for_the_company_it_expects_but_not_for_ever():
    house = House(max_batch=4, max_delay=0.5)
    for index in range(41):  # one, and ten full batches
        house.job(index)
    house.run()
    assert len(house.answers) == 41
    house.job("early")
    assert not house.work
    (timer,) = house.loop.pending()
    assert 0 < timer.due <= 0.5
    for name in ("b", "c", "d"):
        house.job(name)
    assert len(house.work) == 1
    house.run()
    assert house.calls[-1] == [(4, 2)]
    job = house.job("alone")
    job.queued_at -= 0.6
    house.loop.fire()
    assert len(house.work) == 1


def test_the_queue_is_bounded_in_requests_and_bytes():
    house = House(max_requests=2, max_bytes=100)
    house.job("running", size=1000)
    house.job("a", size=60)
    for name, size in (("too many bytes", 50), ("b", 40), ("too many", 0)):
        if name.startswith("too"):
            with pytest.raises(HttpError) as caught:
                house.job(name, size=size)
            assert (caught.value.status, caught.value.headers["retry-after"]) == (429, "1")
        else:
            house.job(name, size=size)
    house.run()
    assert set(house.answers) == {"running", "a", "b"}
    house.job("after", size=1000)


def test_a_deadline_that_passes_in_the_queue_is_answered():
    house = House()
    house.job("running")
    house.job("late", deadline=time.perf_counter() + 0.5)
    house.loop.fire()
    assert house.answers == {"late": 504}
    house.run()
    assert len(house.calls) == 1


def test_a_deadline_that_cannot_be_met_is_refused_at_once():
    house = House(infer=lambda inputs: time.sleep(0.05) or {"y": inputs["x"]})
    house.job("first")
    house.run()
    for index in range(20):
        house.job(index)
    assert house.batcher.expected_wait() > 0.1
    with pytest.raises(HttpError, match="deadline") as caught:
        house.job("hopeless", deadline=time.perf_counter() + 0.05)
    assert (caught.value.status, int(caught.value.headers["retry-after"])) == (503, math.ceil(house.batcher.expected_wait()))
    house.job("patient", deadline=time.perf_counter() + 600)


def test_a_cancelled_job_leaves_the_queue_and_is_not_answered():
    house = House(max_requests=2)
    running, a = house.job("running"), house.job("a")
    house.job("b")
    house.batcher.cancel(a)
    house.batcher.cancel(running)
    house.job("c", deadline=math.inf)
    house.run()
    assert set(house.answers) == {"b", "c"}
    assert len(house.calls) == 3


def test_one_that_the_model_cannot_bear_fails_alone():
    def infer(inputs):
        if (inputs["x"] < 0).any():
            raise ValueError("negative")
        return {"y": inputs["x"]}

    house = House(infer=infer, max_batch=8)
    house.job("running")
    for name, value in (("a", 1.0), ("bad", -1.0), ("c", 3.0)):
        house.job(name, inputs={"x": np.full((1, 2), value)})
    house.run()
    assert house.answers == {"running": [1.0], "a": [1.0], "bad": 500, "c": [3.0]}


def test_inputs_made_in_the_lane_may_fail_alone():
    def broken():
        raise HttpError(400, "no image")

    house = House(max_batch=8)
    house.job("running")
    house.job("bad", inputs=broken)
    house.job("good", inputs=lambda: {"x": np.ones((1, 2))})
    house.run()
    assert (house.answers["bad"], house.answers["good"]) == (400, [2.0])


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ([], 16),
        ([(1, 0.003), (2, 0.006), (4, 0.012)], 1),
        ([(1, 0.003), (2, 0.0031), (4, 0.0032), (8, 0.0064)], 4),
        ([(1, 0.010), (2, 0.018), (16, 0.1)], 16),
    ],
)
def test_batches_are_only_as_large_as_pays(seconds, best):
    assert useful_batch(seconds, 16) == best
