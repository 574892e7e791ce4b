"""The comparator as a process, beside two real servers: copies of requests are answered at once, and compared."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from integration.ports import free_port
from integration.runtime.conftest import ROOT, Running
from unit.runtime.serve.artifacts import Draft, mlp_draft

VALUES = np.random.default_rng(1).standard_normal((1, 64)).astype("<f4")
JSON_BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": VALUES.ravel().tolist()}]})
HEAD = json.dumps({"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "parameters": {"binary_data_size": VALUES.nbytes}}]})


def results(server: Running) -> dict[str, float]:
    text = server.get("/metrics").body.decode()
    rows = re.findall(r'^slipway_shadow_comparisons_total\{.*result="(\w+)".*source="mirrored"\} (\S+)$', text, re.M)
    return {result: float(value) for result, value in rows if float(value)}


@pytest.fixture
def beside(start: Callable[..., Running], tmp_path) -> Iterator[Callable[..., Running]]:
    """Start a comparator of two drafts."""
    started: list[Running] = []

    def _start(stable: Draft, canary: Draft, *options: str) -> tuple[Running, Running, Running]:
        servers = [start(draft).wait_ready() for draft in (stable, canary)]
        port, log = free_port(), tmp_path / "shadow.log"
        urls = [
            part
            for side, server in zip(("stable", "canary"), servers, strict=True)
            for part in (f"--{side}", f"http://127.0.0.1:{server.port}")
        ]
        names = ["--model-name", "m", "--stable-revision", "m-1", "--canary-revision", "m-2", "--host", "127.0.0.1", "--port", str(port)]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "runtime-image/src")}
        with log.open("wb") as stream:
            command = [sys.executable, "-m", "slipway_runtime.shadow", *urls, *names, *options]
            process = subprocess.Popen(command, env=environment, stderr=stream)
        started.append(Running(process, port, tmp_path / "termination", log))
        return started[-1].wait_ready(), servers[0], servers[1]

    yield _start
    for running in started:
        running.process.kill()
        running.process.wait()


def wait_for(server: Running, wanted: dict[str, float]) -> None:
    end = time.monotonic() + 20
    while (found := results(server)) != wanted:
        assert time.monotonic() < end, (found, wanted, server.log.read_text())
        time.sleep(0.1)


def send(server: Running, times: int = 1) -> None:
    for _ in range(times):
        assert server.ask("POST", "/v2/models/m/infer", JSON_BODY).status == 200
        said = server.ask("POST", "/v2/models/m/infer", HEAD.encode() + VALUES.tobytes(), inference_header_content_length=str(len(HEAD)))
        assert said.json == {"taken": True}
        assert server.ask("POST", "/v2/models/m/predict", json.dumps({"inputs": VALUES.tolist()})).status == 200


def user_requests(server: Running) -> list[str]:
    return re.findall(r"^slipway_requests_total.*$", server.get("/metrics").body.decode(), re.M)


def test_the_same_model_agrees_and_users_are_not_counted(beside: Callable[..., tuple[Running, Running, Running]]) -> None:
    comparator, stable, canary = beside(mlp_draft(), mlp_draft())
    send(comparator, 10)
    wait_for(comparator, {"agreed": 30})
    assert user_requests(stable) == user_requests(canary) == []
    assert 'slipway_probe_requests_total{code="200",model="m",revision="m-1"} 30.0' in canary.get("/metrics").body.decode()
    assert comparator.ask("POST", "/v2/models/m/infer", x_slipway_probe="golden").status == 501
    comparator.process.send_signal(signal.SIGTERM)
    assert comparator.process.wait(20) == 0


def test_another_model_differs_in_every_form_of_an_answer(beside: Callable[..., tuple[Running, Running, Running]]) -> None:
    comparator, _, _ = beside(mlp_draft(), mlp_draft(turned=True))
    send(comparator, 10)
    wait_for(comparator, {"differed": 30})
    text = comparator.get("/metrics").body.decode()
    assert re.search(r'slipway_shadow_max_absolute_error_count\{baseline="m-1",model="m",revision="m-2"\} 30', text)


def test_a_canary_that_is_gone_is_no_verdict_about_its_answers(beside: Callable[..., tuple[Running, Running, Running]]) -> None:
    comparator, _, canary = beside(mlp_draft(), mlp_draft())
    canary.process.kill()
    canary.process.wait()
    send(comparator)
    wait_for(comparator, {"busy": 3})
