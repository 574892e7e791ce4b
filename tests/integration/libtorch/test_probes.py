"""Requests that no user sent, and those of an experiment, are counted apart; golden inputs are replayed when a probe asks for it.

As in the Python server.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from integration.libtorch.drafts import tensor, turning_draft
from integration.runtime.test_probes import BODY, INFER, counts
from unit.runtime.serve.artifacts import mlp_draft

pytestmark = [pytest.mark.nightly]

OPTIONS = pytest.mark.parametrize("options", [(), ("--max-batch-size=8", "--lanes=1")], ids=["alone", "in batches"])
NAN = json.dumps({"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [None] * 64}]})


def metric(server, name: str) -> float:
    """The value of the one sample of this name."""
    (line,) = (line for line in server.get("/metrics").body.decode().splitlines() if line.startswith((f"{name} ", f"{name}{{")))
    return float(line.rsplit(" ", 1)[1])


@OPTIONS
def test_probes_are_counted_apart(start, options):
    server = start(mlp_draft(), *options).wait_ready()
    assert server.ask("POST", INFER, x_slipway_probe="golden").status == 200
    assert server.ask("POST", INFER, BODY, x_slipway_probe="shadow").status == 200
    assert server.ask("POST", "/predict", json.dumps({"instances": [[1.0] * 64]}), x_slipway_probe="golden").json["model"] == "m"
    assert server.ask("POST", INFER, "{}", x_slipway_probe="shadow").status == 400
    assert server.ask("POST", INFER, BODY).status == 200
    assert server.ask("POST", INFER, BODY, x_slipway_probe="").status == 200
    assert counts(server) == {
        "requests_total code=200": 2,
        "request_duration_seconds_count": 2,
        "probe_requests_total code=200": 3,
        "probe_requests_total code=400": 1,
        "probe_request_duration_seconds_count": 4,
    }


@OPTIONS
def test_requests_of_an_experiment_are_counted_besides(start, options):
    server = start(mlp_draft(), *options).wait_ready()
    assert "slipway_experiment" not in server.get("/metrics").body.decode()
    for name in ("beta", " beta ", "alpha", 'made"up', "-", "", "a" * 64):
        assert server.ask("POST", INFER, BODY, x_slipway_experiment=name).status == 200
    assert server.ask("POST", INFER, BODY, x_slipway_experiment="beta", x_slipway_probe="shadow").status == 200
    assert server.ask("POST", INFER, "{}", x_slipway_experiment="beta").status == 400
    assert counts(server) == {
        "requests_total code=200": 7,
        "requests_total code=400": 1,
        "request_duration_seconds_count": 8,
        "probe_requests_total code=200": 1,
        "probe_request_duration_seconds_count": 1,
        "experiment_requests_total code=200 experiment=alpha": 1,
        "experiment_request_duration_seconds_count experiment=alpha": 1,
        "experiment_requests_total code=200 experiment=beta": 2,
        "experiment_requests_total code=400 experiment=beta": 1,
        "experiment_request_duration_seconds_count experiment=beta": 3,
    }


@OPTIONS
def test_answers_to_probes_that_are_not_finite_are_counted_apart(start, options):
    server = start(mlp_draft(), *options).wait_ready()
    for probes in (1, 2):
        assert server.ask("POST", INFER, NAN, x_slipway_probe="shadow").status == 200
        assert (metric(server, "slipway_probe_nonfinite_outputs_total"), metric(server, "slipway_nonfinite_outputs_total")) == (probes, 0)
    assert server.ask("POST", INFER, NAN).status == 200
    assert (metric(server, "slipway_probe_nonfinite_outputs_total"), metric(server, "slipway_nonfinite_outputs_total")) == (2, 1)


def test_probes_that_share_calls_with_users_are_counted_apart(start):
    server = start(mlp_draft(), "--max-batch-size=64", "--max-delay=20ms", "--lanes=1").wait_ready()

    def ask(number: int) -> int:
        return (server.ask("POST", INFER, x_slipway_probe="golden") if number % 2 else server.ask("POST", INFER, NAN)).status

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(80))) == {200}
    assert metric(server, "slipway_batch_size_sum") == 40 * 16 + 40
    assert metric(server, "slipway_batch_size_count") < 80
    assert (metric(server, "slipway_probe_nonfinite_outputs_total"), metric(server, "slipway_nonfinite_outputs_total")) == (0, 40)


@OPTIONS
@pytest.mark.parametrize(("said", "body"), [("golden", None), (" Golden ", None), ("golden", "not JSON")])
def test_golden_inputs_are_replayed(start, options, said, body):
    server = start(mlp_draft(), *options).wait_ready()
    answer = server.ask("POST", INFER, body, x_slipway_probe=said)
    assert (answer.status, answer.json) == (200, {"model": "m", "revision": "m-1", "golden": True, "maxAbsoluteError": 1e-4})
    assert metric(server, "slipway_batch_size_sum") == 16  # the model was asked, and so was the queue where there are batches
    if options:
        assert metric(server, "slipway_queue_duration_seconds_count") == 1


def test_of_a_fixed_batch_one_request_is_replayed(start):
    signature = {"inputs": [tensor("x", "float32", 4, 64)], "outputs": [tensor("y", "float32", 4, 10)]}
    server = start(mlp_draft(signature=signature)).wait_ready()
    assert server.ask("POST", INFER, x_slipway_probe="golden").status == 200
    assert metric(server, "slipway_batch_size_sum") == 4


@OPTIONS
def test_a_model_that_answers_otherwise_than_at_load_is_a_500_that_says_what_differs(start, options):
    server = start(turning_draft(), *options).wait_ready()
    assert server.ask("POST", INFER, x_slipway_probe="golden").status == 200
    server.infer("m", [[7.0, 0.0]])
    answer = server.ask("POST", INFER, x_slipway_probe="golden")
    assert (answer.status, answer.json["error"]) == (500, "golden output 'y' differs by 1 on this node; at most 0.0001 is allowed")
    assert counts(server)["probe_requests_total code=500"] == 1
