import asyncio

import pytest

from slipway.queue import MAX_BACKOFF, REST_SECONDS, KeyQueue
from slipway.snapshot import Key

A, B = Key("ModelDeployment", "default", "a"), Key("ModelDeployment", "default", "b")
pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]


async def test_a_key_waits_once_and_in_order():
    queue = KeyQueue()
    for key in (A, B, A):
        queue.add(key)
    assert len(queue) == 2
    assert [await queue.get(), await queue.get()] == [A, B]


async def test_a_key_is_never_handled_twice_at_once_and_again_when_it_changed_meanwhile():
    queue = KeyQueue()
    queue.add(A)
    await queue.get()
    queue.add(A)
    assert len(queue) == 0
    queue.done(A)
    assert await queue.get() == A


async def test_the_earlier_of_two_delays_holds(looptime):
    queue = KeyQueue()
    queue.add_after(A, 50)
    queue.add_after(A, 5)
    queue.add_after(A, 20)
    assert await queue.get() == A
    assert looptime == 5


async def test_backoff_grows_to_a_bound_and_is_forgotten_after_success(looptime):
    queue = KeyQueue()
    queue.add(A)
    waits = []
    for _ in range(15):
        await queue.get()
        before = looptime.value if hasattr(looptime, "value") else asyncio.get_running_loop().time()
        queue.failed(A)
        queue.add_after(B, 0)
        assert await queue.get() == B
        queue.done(B)
        key = await queue.get()
        assert key == A
        waits.append(asyncio.get_running_loop().time() - before)
        queue.done(A) if len(waits) == 15 else queue._active.discard(A)
        queue.add(A)
    assert 0.5 <= waits[0] <= 0.65
    assert 1.0 <= waits[1] <= 1.3
    assert waits[-1] == pytest.approx(MAX_BACKOFF, abs=0.01)
    await queue.get()
    queue.failed(A)
    before = asyncio.get_running_loop().time()
    await queue.get()
    assert asyncio.get_running_loop().time() - before <= 0.65


async def test_retry_after_is_never_cut_short():
    queue = KeyQueue()
    queue.add(A)
    await queue.get()
    before = asyncio.get_running_loop().time()
    queue.failed(A, retry_after=7)
    await queue.get()
    assert 7 <= asyncio.get_running_loop().time() - before <= 7 * 1.3


async def test_a_change_during_a_failing_pass_does_not_wait_for_the_backoff():
    queue = KeyQueue()
    queue.add(A)
    await queue.get()
    queue.add(A)
    queue.failed(A, retry_after=100)
    assert len(queue) == 1


async def test_oldest_age(looptime):
    queue = KeyQueue()
    queue.add(A)
    await asyncio.sleep(3)
    queue.add(B)
    assert queue.oldest_age() == 3
    await queue.get()
    assert queue.oldest_age() == 0


async def test_a_cancelled_getter_loses_no_key():
    queue = KeyQueue()
    first, second = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add(A)
    first.cancel()
    assert await second == A


async def test_the_rest_of_a_key_waits_for_other_work_but_not_for_long():
    queue = KeyQueue()
    queue.add(A)
    queue.rest_later(await queue.get())
    queue.add(B)
    assert (len(queue), queue.is_busy()) == (2, True)
    assert await queue.get() == B
    queue.done(B)
    assert not queue.is_busy()
    queue.add(B)
    await asyncio.sleep(REST_SECONDS)
    assert queue.oldest_age() == REST_SECONDS
    assert [await queue.get(), await queue.get()] == [A, B]


async def test_the_rest_of_what_changed_meanwhile_does_not_wait():
    queue = KeyQueue()
    for change_first in (True, False):
        queue.add(A)
        await queue.get()
        if change_first:
            queue.add(A)
        queue.rest_later(A)
        if not change_first:
            queue.add(A)
        assert (len(queue), queue.is_busy()) == (1, True)
        await queue.get()
        queue.done(A)


async def test_the_rest_wakes_who_waits_for_a_key():
    queue = KeyQueue()
    queue.add(A)
    await queue.get()
    getter = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.rest_later(A)
    assert await getter == A
