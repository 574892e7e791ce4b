"""Requests that no user sent: golden inputs, replayed by the servers themselves when an empty request with our header asks for it.

The operator never sees the inputs: a server has those of its artifact, takes them through its queue and its model as it takes a user's,
and answers 200 only when the golden outputs came out. It counts such requests apart (`slipway_probe_…`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import aiohttp

from slipway.verdict import Replay

HEADERS = {"x-slipway-probe": "golden"}
TIMEOUT = aiohttp.ClientTimeout(total=30, connect=2)  # the first request to a model may be slow
TIMES = 3  # a replay asks each pod so often: one that is right by chance should show
TRIES = 3  # of a request that found nobody
PER_SECOND = 10.0  # probes a second and revision at most, one after the other: a slow model gets fewer
MAX_BURST = 600  # in one interval
NOTHING_THERE = 501  # the artifact has no golden inputs
BUSY = frozenset({429, 503})
MAX_SAID = 300


class Prober:
    """Sends them."""

    def __init__(self, session: aiohttp.ClientSession, clock: Callable[[], float] = time.monotonic) -> None:
        """`session` is shared and stays the caller's; `clock` gives seconds."""
        self._session, self._clock = session, clock

    async def replay(self, url: str) -> Replay:
        """Replay the golden inputs on one pod, a few times.

        Fail: it answered, and wrongly. Inconclusive: it did not answer, or is busy.
        """
        for _ in range(TIMES):
            found = await self._replayed(url)
            if found.verdict != "Pass":
                return found
        return Replay("Pass", f"{url} gave its golden outputs {TIMES} times")

    async def _replayed(self, url: str) -> Replay:
        found = Replay("Inconclusive", f"{url} was not asked")
        for attempt in range(TRIES):
            status, said = await self._ask(url)
            if status not in BUSY and status is not None:
                return _judged(url, status, said)
            found = Replay("Inconclusive", said if status is None else f"{url} answers {status}: {said}")
            if attempt < TRIES - 1:
                await asyncio.sleep(1.0)
        return found

    async def send(self, urls: Sequence[str], seconds: float) -> int:
        """Probe pods in turn, at most `PER_SECOND` times a second, for at most so many seconds; returns how many were sent."""
        count, end = 0, self._clock() + seconds
        limit = min(MAX_BURST, int(seconds * PER_SECOND)) if urls else 0
        while count < limit and self._clock() < end:
            await asyncio.gather(self._ask(urls[count % len(urls)]), asyncio.sleep(1 / PER_SECOND))
            count += 1
        return count

    async def _ask(self, url: str) -> tuple[int | None, str]:
        try:
            async with self._session.post(url, headers=HEADERS, timeout=TIMEOUT, allow_redirects=False) as answer:
                body = await answer.content.read(MAX_SAID)
                return answer.status, body.decode(errors="replace")
        except TimeoutError:
            return None, f"{url} did not answer in {TIMEOUT.total:g} s"
        except (aiohttp.ClientError, ValueError) as error:
            return None, f"{url}: {error or type(error).__name__}"


def _judged(url: str, status: int, said: str) -> Replay:
    if status == 200:
        return Replay("Pass")
    if status == NOTHING_THERE:
        return Replay("Skipped", f"{url} has no golden inputs")
    return Replay("Fail", f"{url} answers {status}: {said}")


def together(replays: Sequence[Replay]) -> Replay:
    """Return what the pods of a revision say together: one that fails is enough."""
    for verdict in ("Fail", "Inconclusive", "Pass"):
        found = next((replay for replay in replays if replay.verdict == verdict), None)
        if found is not None:
            return found
    return replays[0] if replays else Replay("Inconclusive", "no pod was asked yet")
