"""Requests that no user sent, and those of an experiment, are counted apart; golden inputs are replayed when a probe asks for it."""

from __future__ import annotations

import json
import re

import pytest

from unit.runtime.serve.artifacts import mlp_draft

INFER = "/v2/models/m/infer"
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}]})


def counts(server) -> dict[str, float]:
    text = server.get("/metrics").body.decode()
    rows = re.findall(r"^slipway_((?:probe_|experiment_)?(?:requests_total|request_duration_seconds_count))\{([^}]*)\} (\S+)$", text, re.M)
    keep = ("experiment", "code")
    return {
        " ".join([name, *(f"{k}={v}" for k, v in re.findall(r'(\w+)="([^"]*)"', labels) if k in keep)]): float(value)
        for name, labels, value in rows
    }


@pytest.mark.parametrize("options", [(), ("--max-batch-size", "8", "--lanes", "1")], ids=["alone", "in batches"])
def test_probes_and_experiments_are_counted_apart(start, options) -> None:
    server = start(mlp_draft(), *options).wait_ready()
    said = server.ask("POST", INFER, x_slipway_probe="golden")
    assert (said.status, said.json["golden"], said.json["revision"]) == (200, True, "m-1")
    assert server.ask("POST", INFER, BODY, x_slipway_probe="shadow").status == 200
    assert server.ask("POST", INFER, BODY).status == 200
    assert server.ask("POST", INFER, BODY, x_slipway_experiment="beta").status == 200
    assert server.ask("POST", INFER, BODY, x_slipway_experiment='made"up').status == 200
    assert counts(server) == {
        "requests_total code=200": 3,
        "request_duration_seconds_count": 3,
        "probe_requests_total code=200": 2,
        "probe_request_duration_seconds_count": 2,
        "experiment_requests_total code=200 experiment=beta": 1,
        "experiment_request_duration_seconds_count experiment=beta": 1,
    }


def test_names_of_experiments_that_a_client_makes_up_are_bounded(start) -> None:
    server = start(mlp_draft()).wait_ready()
    for number in range(20):
        assert server.ask("POST", INFER, BODY, x_slipway_experiment=f"e{number}").status == 200
    found = counts(server)
    assert sum(name.startswith("experiment_requests") for name in found) == 16
    assert found["requests_total code=200"] == 20


def test_an_artifact_without_golden_data_says_so(start) -> None:
    draft = mlp_draft()
    draft.golden = None
    server = start(draft).wait_ready()
    said = server.ask("POST", INFER, x_slipway_probe="golden")
    assert (said.status, said.json["error"]) == (501, "this artifact has no golden inputs to replay")
