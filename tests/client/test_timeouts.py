"""Timeouts: None and infinity are none, timedeltas are seconds, nonsense is refused by name."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from jobwire import AsyncClient, Client, Context, DeadlineExceeded, NewJob, RetryPolicy, Worker
from jobwire._requests import submit_request
from jobwire.v1 import job_pb2

from tests.client.broker import Broker

ENDLESS = [None, math.inf, timedelta.max, 1e18, 10**12]


@pytest.mark.parametrize("endless", ENDLESS, ids=repr)
async def test_a_call_without_an_end_is_made(broker: Broker, endless: Any) -> None:
    async with AsyncClient(broker.target, timeout_s=endless, reconnect_s=endless) as client:
        assert (await client.submit("work")).id
        assert len(await client.submit_many([NewJob(operation="a"), NewJob(operation="b")])) == 2
    with Client(broker.target, timeout_s=endless, reconnect_s=endless) as blocking:
        assert (await asyncio.to_thread(blocking.submit, "work")).id


@pytest.mark.parametrize("endless", ENDLESS, ids=repr)
async def test_a_wait_without_an_end_lasts_until_the_job_has_ended(
    broker: Broker, client: AsyncClient, endless: Any
) -> None:
    handle = await client.submit("work")

    async def each(events: Any) -> None:
        async for _ in events:
            pass

    waits = [
        asyncio.create_task(handle.wait(timeout=endless)),
        asyncio.create_task(handle.result(timeout=endless)),
        asyncio.create_task(each(handle.watch(timeout=endless))),
        asyncio.create_task(each(handle.chunks(timeout=endless))),
        asyncio.create_task(each(handle.output(timeout=endless))),
        asyncio.create_task(each(handle.output_text(timeout=endless))),
        asyncio.create_task(each(handle.output_bytes(timeout=endless))),
        asyncio.create_task(each(client.watch(handle.id, timeout=endless))),
    ]
    await broker.until(lambda: len(broker.calls["WatchJob"]) == len(waits))
    job = broker.jobs[handle.id]
    job.state = job_pb2.JOB_STATE_SUCCEEDED
    await broker.touch(job)
    await asyncio.gather(*waits)


async def test_a_call_without_an_end_is_made_again_when_an_attempt_is_lost_without_a_word(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobwire._async.calls.LONE_ATTEMPT_S", 0.2)
    silent = asyncio.Event()
    enter, entered = broker.enter, 0

    async def be_silent_once(method: str, request: Any, context: Any) -> None:
        nonlocal entered
        entered += 1
        if entered == 1:
            await silent.wait()
        await enter(method, request, context)

    monkeypatch.setattr(broker, "enter", be_silent_once)
    async with AsyncClient(broker.target, timeout_s=None) as client:
        await client.submit("work")
    assert entered == 2
    silent.set()


async def test_a_timedelta_is_as_good_as_seconds(broker: Broker) -> None:
    async with AsyncClient(broker.target, timeout_s=timedelta(seconds=20)) as client:
        handle = await client.submit("work")
        with pytest.raises(DeadlineExceeded, match=r"did not end within 0\.2 s"):
            await handle.result(timeout=timedelta(milliseconds=200))


NONSENSE = [math.nan, -1, -math.inf, timedelta(seconds=-1)]


@pytest.mark.parametrize("nonsense", NONSENSE, ids=repr)
@pytest.mark.parametrize("name", ["timeout_s", "reconnect_s"])
@pytest.mark.parametrize("kind", [AsyncClient, Client])
def test_a_client_refuses_a_nonsensical_timeout_by_name(
    kind: Callable[..., Any], name: str, nonsense: Any
) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is .*; it must be 0 or more, or None"):
        kind("127.0.0.1:1", **{name: nonsense})


@pytest.mark.parametrize("nonsense", NONSENSE, ids=repr)
async def test_every_wait_refuses_a_nonsensical_timeout_by_name(nonsense: Any) -> None:
    handle = AsyncClient("127.0.0.1:1").job("q-1")
    for wait in (handle.wait, handle.result):
        with pytest.raises(ValueError, match=r"^timeout is"):
            await wait(timeout=nonsense)
    for watch in (handle.watch, handle.chunks):
        with pytest.raises(ValueError, match=r"^timeout is"):
            watch(timeout=nonsense)
    with pytest.raises(ValueError, match=r"^timeout is"):
        await AsyncClient("127.0.0.1:1").run("work", timeout=nonsense)


@pytest.mark.parametrize("wrong", ["5", True, [1]], ids=repr)
def test_what_is_no_span_of_time_is_refused_by_name(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"^timeout_s is .*a number of seconds or a timedelta"):
        Client("127.0.0.1:1", timeout_s=wrong)
    with pytest.raises(TypeError, match=r"^delay is .*a number of seconds or a timedelta"):
        submit_request(NewJob(operation="work", delay=wrong))


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -math.inf, 1e300], ids=repr)
@pytest.mark.parametrize("name", ["delay", "retention"])
def test_a_job_refuses_a_nonsensical_span_by_name(name: str, nonsense: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is .*; it must be a finite span of time"):
        submit_request(NewJob(operation="work", **{name: nonsense}))
    with pytest.raises(ValueError, match=r"^initial_backoff is"):
        submit_request(NewJob(operation="work", retry=RetryPolicy(initial_backoff=nonsense)))


@pytest.mark.parametrize("endless", [None, math.inf])
def test_an_endless_execution_timeout_is_none(endless: Any) -> None:
    request = submit_request(NewJob(operation="work", execution_timeout=endless))
    assert not request.spec.HasField("execution_timeout")


def test_a_worker_refuses_nonsensical_times_by_name() -> None:
    for nonsense in [math.nan, -1, timedelta(seconds=-1)]:
        with pytest.raises(ValueError, match=r"^lease_s is"):
            Worker(lease_s=nonsense)
        with pytest.raises(ValueError, match=r"^shutdown_grace_s is"):
            Worker(shutdown_grace_s=nonsense)
    with pytest.raises(ValueError, match=r"^lease_s is inf"):
        Worker(lease_s=math.inf)


def test_a_handler_may_wait_for_its_cancellation_without_an_end() -> None:
    context = Context.for_test()
    context.cancel()
    for endless in ENDLESS:
        assert context.wait_cancelled(endless)
    with pytest.raises(ValueError, match=r"^timeout_s is"):
        context.wait_cancelled(math.nan)
