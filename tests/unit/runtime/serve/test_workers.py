"""Workers: what they tell each other, and that they end together."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from slipway_runtime.reasons import Failure
from slipway_runtime.serve.main import worker_count
from slipway_runtime.serve.metrics import Metrics
from slipway_runtime.serve.workers import Board

# What worker `number` does, and what is sent to the parent
SCRIPT = """
import os, signal, sys, time
from slipway_runtime.serve.workers import run_workers

def work(number):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    {work}
    print(number, "works", flush=True)
    while True:
        time.sleep(0.1)

def guarded(number):
    try:
        return work(number)
    except SystemExit as error:
        print(number, "ends", flush=True)
        return error.code

sys.exit(run_workers(3, guarded))
"""


@pytest.mark.parametrize(
    ("argument", "variable", "count"), [(0, None, 1), (2, None, 2), (0, "3", 3), (2, "3", 2), (64, None, 64), (0, "", 1)]
)
def test_the_argument_counts_before_the_variable(argument, variable, count):
    environment = {} if variable is None else {"SLIPWAY_WORKERS": variable}
    assert worker_count(Namespace(workers=argument), environment) == count


@pytest.mark.parametrize(("argument", "variable"), [(-1, None), (65, None), (0, "two"), (0, "1.5"), (0, "0")])
def test_a_number_of_workers_that_cannot_be_is_refused(argument, variable):
    with pytest.raises(Failure, match="InvalidArguments: workers"):
        worker_count(Namespace(workers=argument), {} if variable is None else {"SLIPWAY_WORKERS": variable})


@pytest.mark.parametrize(
    ("work", "code", "reason"),
    [
        ("number == 2 and (time.sleep(1), sys.exit(44))", 44, None),
        ("number == 2 and (time.sleep(1), sys.exit(0))", 0, None),
        ("number == 2 and (time.sleep(1), os.kill(os.getpid(), signal.SIGKILL))", 1, "killed by SIGKILL; if it was SIGKILL"),
        ("number == 2 and (time.sleep(1), 1 / 0)", 1, None),
    ],
    ids=["failed", "ended", "killed", "raised"],
)
def test_when_one_ends_all_end_and_the_code_is_its(work, code, reason, tmp_path):
    message = tmp_path / "termination"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(work=work)],
        env={"SLIPWAY_TERMINATION_LOG": str(message), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert {"0 ends", "1 ends"} <= set(done.stdout.splitlines())
    assert (json.loads(message.read_text())["reason"] if message.exists() else None) == ("InternalError" if reason else None)
    assert reason is None or reason in message.read_text()


def begun(script: str, lines: int) -> tuple[subprocess.Popen[str], list[str]]:
    """The script, when it has printed so many lines."""
    process = subprocess.Popen([sys.executable, "-c", script], env={"PYTHONPATH": ":".join(sys.path)}, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, [process.stdout.readline() for _ in range(lines)]


def test_all_may_end_before_the_first_is_noticed():
    waiting = "wait, signal.sigwait = signal.sigwait, lambda these: (time.sleep(1), wait(these))[1]\n"
    late = SCRIPT.replace("sys.exit(run_workers", waiting + "sys.exit(run_workers")
    process, _ = begun(late.format(work="sys.exit(44)"), 3)
    assert process.wait(60) == 44


def test_sigterm_reaches_all():
    process, lines = begun(SCRIPT.format(work="pass"), 3)
    assert sorted(lines) == [f"{number} works\n" for number in range(3)]
    process.terminate()
    assert process.wait(60) == 0
    assert sorted(process.stdout) == [f"{number} ends\n" for number in range(3)]


def test_one_that_is_told_to_end_before_it_listens_has_not_failed():
    deaf = SCRIPT.replace("signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))", "")
    process, _ = begun(deaf.format(work="pass"), 3)
    process.terminate()
    assert process.wait(60) == 0


def test_none_outlives_the_one_that_forked():
    process, lines = begun(SCRIPT.format(work="print(os.getpid(), flush=True)"), 6)
    pids = [line.strip() for line in lines if line.strip().isdigit()]
    process.kill()
    process.wait(60)
    assert process.stdout.read() == "", "it ends when the last of them has closed it"
    assert [Path("/proc", pid, "cmdline").read_bytes() for pid in pids if Path("/proc", pid).exists()] in ([], [b""] * len(pids))


def test_a_place_holds_the_last_state_that_fits(caplog):
    board = Board(3)
    assert board.others(0) == []
    board.write(1, {"n": 1})
    board.write(1, {"n": 2})
    board.write(2, {"n": 7})
    assert (board.others(0), board.others(1), board.others(2)) == ([{"n": 2}, {"n": 7}], [{"n": 7}], [{"n": 2}])
    board.write(2, {"n": "x" * 70_000})
    assert board.others(0) == [{"n": 2}, {"n": 7}]
    assert "too many for the board" in caplog.text


def counted(*statuses: int, experiment: str = "", inflight: int = 0) -> Metrics:
    metrics = Metrics("m", "r", lambda: inflight)
    for status in statuses:
        metrics.count(status)
        metrics.seconds(0.003)
        metrics.batch(4)
        metrics.nonfinite(1)
        metrics.probes.add(status, 0.1)
        if experiment:
            metrics.experiment(experiment, status, 0.2)
    return metrics


def test_a_scrape_is_the_sum_of_all_workers():
    own, other = counted(200, 200, 429, experiment="a", inflight=2), counted(200, 500, experiment="b", inflight=1)
    own.others = lambda: [json.loads(json.dumps(other.state()))]
    lines = own.render().decode().splitlines()
    for line in (
        'slipway_requests_total{code="200",model="m",revision="r"} 3.0',
        'slipway_requests_total{code="429",model="m",revision="r"} 1.0',
        'slipway_requests_total{code="500",model="m",revision="r"} 1.0',
        'slipway_request_duration_seconds_bucket{le="0.005",model="m",revision="r"} 5.0',
        'slipway_request_duration_seconds_bucket{le="0.0025",model="m",revision="r"} 0.0',
        'slipway_request_duration_seconds_count{model="m",revision="r"} 5.0',
        'slipway_nonfinite_outputs_total{model="m",revision="r"} 5.0',
        "slipway_batch_size_sum 20.0",
        'slipway_probe_requests_total{code="200",model="m",revision="r"} 3.0',
        'slipway_experiment_requests_total{code="200",experiment="a",model="m",revision="r"} 2.0',
        'slipway_experiment_requests_total{code="500",experiment="b",model="m",revision="r"} 1.0',
        "slipway_inflight_requests 3.0",
    ):
        assert line in lines, line
    alone = counted(200, experiment="a").render().decode().splitlines()
    assert [line for line in alone if line[0] == "#"] == [line for line in lines if line[0] == "#"]
    assert own.requests.counts == {200: 2, 429: 1}, "its own counts stay its own"
