"""kopf's loop: a kind that is gone is no reason to end, anything else is."""

from __future__ import annotations

import asyncio

import pytest

from slipway import main
from slipway.settings import Settings


class ApiError(Exception):
    """As kopf's, which is private."""

    def __init__(self, status):
        super().__init__(f"{status} page not found")
        self.status = status


class Resync:
    looks = 0

    async def find_keda(self):
        self.looks += 1


@pytest.mark.parametrize(
    ("raised", "runs", "ends"),
    [
        ([ApiError(404), ApiError(404), None], 3, None),
        ([ApiError(403), None], 1, ApiError),
        ([ValueError("no status"), None], 1, ValueError),
        ([None], 1, None),
    ],
)
async def test_watching(monkeypatch, raised, runs, ends):
    begun = []

    async def operator(**_):
        begun.append(raised[len(begun)])
        if begun[-1] is not None:
            raise begun[-1]

    monkeypatch.setattr(main.kopf, "operator", operator)
    monkeypatch.setattr(main, "WATCH_SECONDS", 0)
    monkeypatch.setattr(main, "register", lambda *_: None)
    resync = Resync()
    watching = main._watch(Settings(), None, None, resync, "me", asyncio.Event())
    if ends is None:
        await watching
    else:
        with pytest.raises(ends):
            await watching
    assert (len(begun), resync.looks) == (runs, runs)
