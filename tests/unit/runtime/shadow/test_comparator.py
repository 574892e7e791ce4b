"""The queue of copies: who is asked, what is dropped, and that nobody waits; both sides are servers that the test plays."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from slipway_runtime.shadow import comparator as module
from slipway_runtime.shadow.comparator import Comparator, Copied
from slipway_runtime.shadow.metrics import ShadowMetrics

BODY = json.dumps({"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0.0, 1.0]}]}).encode()


class Played(ThreadingHTTPServer):
    """Answers every request alike, after `gate` was opened."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.gate, self.asked, self.body, self.closes = threading.Event(), list[tuple[str, str, bytes]](), BODY, False
        self.gate.set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Played
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append((self.path, self.headers["x-slipway-probe"], body))
        self.server.gate.wait(60)
        self.send_response(200)
        self.send_header("content-length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)
        self.close_connection = self.server.closes

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def sides() -> Iterator[tuple[Played, Played]]:
    both = Played(), Played()
    yield both
    for side in both:
        side.gate.set()
        side.shutdown()
        side.server_close()


@pytest.fixture
def make(sides: tuple[Played, Played]) -> Iterator[Callable[..., Comparator]]:
    made: list[Comparator] = []

    def _make(percent: int = 100) -> Comparator:
        made.append(Comparator(sides[0].base, sides[1].base, ShadowMetrics("m", "m-2", "m-1", lambda: 0), percent))
        made[-1].start()
        return made[-1]

    yield _make
    for comparator in made:
        comparator.stop(5)


def counts(comparator: Comparator) -> dict[str, float]:
    text = comparator.metrics.render().decode()
    rows = re.findall(
        r'^slipway_shadow_(\w+?)(?:_total)?\{baseline="m-1",model="m"(?:,result="(\w+)")?,revision="m-2"(?:,source="(\w+)")?\} (\S+)$',
        text,
        re.M,
    )
    return {" ".join(filter(None, [name, source, result])): float(value) for name, result, source, value in rows if float(value)}


def until(check: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not check():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("closes", [False, True], ids=["connections are kept", "connections are closed"])
def test_both_are_asked_the_same_and_counted(make: Callable[..., Comparator], sides: tuple[Played, Played], closes: bool) -> None:
    for side in sides:
        side.closes = closes
    comparator = make()
    for number in range(20):
        assert comparator.offer(Copied("/v2/models/m/infer", b"%d" % number, source="golden" if number < 5 else "mirrored"))
    until(lambda: sum(v for k, v in counts(comparator).items() if k.startswith("comparisons")) == 20)
    assert counts(comparator)["comparisons golden agreed"] == 5
    assert counts(comparator)["comparisons mirrored agreed"] == 15
    assert counts(comparator)["latency_difference_seconds_count"] == 20
    for side in sides:
        assert sorted(side.asked) == sorted(("/v2/models/m/infer", "shadow", b"%d" % number) for number in range(20))


def test_a_full_queue_drops_and_never_waits(make: Callable[..., Comparator], sides: tuple[Played, Played]) -> None:
    comparator = make()
    sides[0].gate.clear()
    taken = sum(comparator.offer(Copied("/", b"x")) for _ in range(1000))
    assert module.MAX_WAITING <= taken <= module.MAX_WAITING + module.WORKERS
    assert counts(comparator)["dropped"] == 1000 - taken
    sides[0].gate.set()
    until(lambda: counts(comparator).get("comparisons mirrored agreed", 0) == taken)
    assert len(sides[0].asked) == taken


def test_waiting_copies_hold_a_bounded_number_of_bytes(
    make: Callable[..., Comparator], sides: tuple[Played, Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", 1000)
    comparator = make()
    sides[0].gate.clear()
    assert [comparator.offer(Copied("/", bytes(400))) for _ in range(3)] == [True, True, False]
    sides[0].gate.set()
    until(lambda: counts(comparator).get("comparisons mirrored agreed", 0) == 2)
    until(lambda: comparator.offer(Copied("/", bytes(900))))


def test_a_share_is_taken_evenly(make: Callable[..., Comparator]) -> None:
    comparator = make(percent=30)
    taken = [comparator.offer(Copied("/", b"")) for _ in range(20)]
    assert sum(taken[:10]) == sum(taken[10:]) == 3
    assert all(comparator.offer(Copied("/", b"", source="golden")) for _ in range(5)), "a probe is always taken"
    assert counts(comparator)["left_out"] == 14


def test_a_side_that_is_gone_is_no_difference(make: Callable[..., Comparator], sides: tuple[Played, Played]) -> None:
    comparator = make()
    sides[1].shutdown()
    sides[1].server_close()
    comparator.offer(Copied("/", b""))
    until(lambda: counts(comparator).get("comparisons mirrored busy", 0) == 1)


def test_another_class_is_told(make: Callable[..., Comparator], sides: tuple[Played, Played]) -> None:
    sides[1].body = BODY.replace(b"[0.0, 1.0]", b"[1.0, 0.0]")
    comparator = make()
    comparator.offer(Copied("/", b""))
    until(lambda: counts(comparator).get("comparisons mirrored differed", 0) == 1)
    assert counts(comparator)["max_absolute_error_sum"] == 1.0
