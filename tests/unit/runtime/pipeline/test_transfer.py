"""What the log says while a source is downloaded, and when a download goes on, starts over or gives up."""

from __future__ import annotations

import hashlib
import logging

import pytest

from slipway_runtime.fetch import transfer as module
from slipway_runtime.fetch.transfer import Broken, Progress, Transfer, completed
from slipway_runtime.reasons import Failure


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_progress_says_percent_and_speed_every_few_seconds(caplog):
    clock = Clock()
    progress = Progress("s3://models/digits", 100 << 20, clock)
    with caplog.at_level(logging.INFO):
        for _ in range(10):
            clock.now += 1.0
            progress.add(8 << 20)
    assert caplog.messages == [
        "s3://models/digits: 40 % of 100.0 MiB, 8.0 MiB/s",
        "s3://models/digits: 80 % of 100.0 MiB, 8.0 MiB/s",
    ]
    assert Progress("x", None, clock).line() == "x: 0.0 MiB, 0.0 MiB/s"


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RETRY_DELAYS", [0.0, 0.0])
    return Transfer(tmp_path / "a" / "file", 100, Progress("x"))


def test_goes_on_as_long_as_bytes_come(file):
    asked = []

    def connect(transfer):
        asked.append(transfer.size)
        if transfer.size < 5:
            transfer.append(b"x")
            raise Broken("cut")

    assert completed(file, connect, "x").sha256 == hashlib.sha256(b"xxxxx").hexdigest()
    assert asked == [0, 1, 2, 3, 4, 5]


def test_gives_up_when_none_come(file):
    asked = []

    def connect(transfer):
        asked.append(transfer.size)
        raise Broken("cut")

    with pytest.raises(Failure, match="SourceUnreachable: x: cut"):
        completed(file, connect, "x")
    assert len(asked) == 3


def test_starts_over_with_another_hash(file):
    file.append(b"old")
    file.restart()
    file.append(b"new")
    assert (file.path.read_bytes(), file.size, file.sha256) == (b"new", 3, hashlib.sha256(b"new").hexdigest())


def test_never_writes_more_than_the_limit(file):
    with pytest.raises(Failure, match="SourceTooLarge"):
        file.expect(101)
    with pytest.raises(Failure, match="SourceTooLarge"):
        file.append(b"x" * 101)
    assert file.path.read_bytes() == b""
