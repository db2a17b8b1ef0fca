"""The asyncio client on a producers' stream, against a server that does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from jobwire import (
    AsyncBatchError,
    AsyncClient,
    ClientClosed,
    Context,
    DeadlineExceeded,
    InvalidRequest,
    JobFailed,
    JobState,
    NewJob,
    NotFound,
    QueueFull,
)
from jobwire.v1 import errors_pb2, job_pb2
from jobwire.v1 import job_service_pb2 as jobs

from tests.client.broker import Broker, rich_status
from tests.client.newer import newer
from tests.client.produce_server import StreamBroker
from tests.client.support import Server, worker_at
from tests.support.waiting import eventually

UNAVAILABLE = rich_status(grpc.StatusCode.UNAVAILABLE, "broke")


@pytest.fixture
async def streams() -> AsyncIterator[StreamBroker]:
    """A broker whose streams do as they are told."""
    made = StreamBroker()  # type: ignore[abstract]
    await made.start()
    yield made
    made.mute = True
    await made.stop()


@pytest.fixture
async def client(streams: StreamBroker) -> AsyncIterator[AsyncClient]:
    """A client of that broker."""
    async with AsyncClient(streams.target, timeout_s=20) as made:
        yield made


def calls(broker: Broker) -> set[str]:
    """The methods that were called."""
    return {method for method, requests in broker.calls.items() if requests}


async def test_everything_of_a_client_goes_over_one_stream(
    streams: StreamBroker, client: AsyncClient
) -> None:
    handles = await asyncio.gather(*(client.submit("work", n) for n in range(50)))
    handles += await client.submit_many(NewJob(operation="work") for _ in range(700))
    results = [asyncio.create_task(handle.result(timeout=20)) for handle in handles]
    await eventually(lambda: len(streams.streams[0].follows) == 750, "the follows")
    for handle in handles:
        streams.jobs[handle.id].state = job_pb2.JOB_STATE_SUCCEEDED
        streams.jobs[handle.id].result.json = "1"
    await streams.touch()
    assert sum(await asyncio.gather(*results)) == 750
    assert len(streams.streams) == 1
    assert calls(streams) == {"Produce"}


async def test_many_who_wait_for_a_job_share_a_follow(
    streams: StreamBroker, client: AsyncClient
) -> None:
    handle = await client.submit("work")
    waits = [asyncio.create_task(handle.result()) for _ in range(20)]
    await eventually(lambda: streams.streams[0].follows, "a follow")
    await streams.finish(handle.id)
    assert await asyncio.gather(*waits) == ["done"] * 20
    assert sum(len(frame.follows) for frame in streams.streams[0].frames) == 1


async def test_call_is_one_message_and_returns_the_result(
    streams: StreamBroker, client: AsyncClient
) -> None:
    streams.finishes["sum"] = "6"
    assert await client.call("sum", [1, 2, 3], labels={"a": "b"}) == 6
    (frame,) = [frame for frame in streams.streams[0].frames if frame.submissions]
    assert not any(frame.follows for frame in streams.streams[0].frames)
    assert frame.submissions[0].request.spec.labels == {"a": "b"}
    assert calls(streams) == {"Produce"}


async def test_call_raises_as_submit_and_as_result_do(
    streams: StreamBroker, client: AsyncClient
) -> None:
    streams.refusals["bad"] = [errors_pb2.ItemError(code=3, message="no", reason=1)]  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest):
        await client.call("bad")
    failing = asyncio.create_task(client.call("work"))
    await eventually(lambda: streams.jobs, "the job")
    (job,) = streams.jobs.values()
    job.state = job_pb2.JOB_STATE_FAILED
    job.failure.type = "Boom"
    await streams.touch(job)
    with pytest.raises(JobFailed) as raised:
        await failing
    assert raised.value.failure is not None
    assert raised.value.failure.type == "Boom"
    with pytest.raises(DeadlineExceeded, match=r"did not end within 0\.1 s"):
        await client.call("work", timeout=0.1)
    await eventually(lambda: not streams.streams[0].follows, "it is followed no longer")


@pytest.mark.parametrize("when", ["before the answer", "after the answer", "before the frame"])
async def test_a_break_loses_nothing_and_doubles_nothing(
    streams: StreamBroker, client: AsyncClient, when: str
) -> None:
    streams.holds = True
    submitting = [asyncio.create_task(client.submit("work", n)) for n in range(30)]
    calling = asyncio.create_task(client.call("work", timeout=20))
    await eventually(lambda: streams.held, "submissions")
    if when == "after the answer":
        streams.holds = False
        streams.answer()
        await eventually(lambda: len(streams.jobs) == 31, "all are accepted")
    elif when == "before the answer":
        # They are accepted, and nobody is told.
        for _, frame in streams.held:
            for item in frame.submissions:
                streams.accept(item.request)
    streams.holds = False
    streams.held.clear()
    streams.streams[0].end(*UNAVAILABLE)
    handles = await asyncio.gather(*submitting)
    assert len({handle.id for handle in handles}) == 30
    await eventually(lambda: len(streams.jobs) == 31, "all are accepted")
    for job_id in [*streams.jobs]:
        await streams.finish(job_id)
    assert await calling == "done"
    assert len(streams.jobs) == 31
    assert calls(streams) == {"Produce"}


async def test_follows_go_on_over_a_restart_of_the_server(
    streams: StreamBroker, client: AsyncClient
) -> None:
    handle = await client.submit("work")
    waiting = asyncio.create_task(handle.result(timeout=30))
    await eventually(lambda: streams.streams[0].follows, "a follow")
    await streams.stop()
    await streams.finish(handle.id)
    await asyncio.sleep(0.3)
    await streams.start()
    assert await waiting == "done"
    assert "WatchJob" not in calls(streams)


async def test_a_hung_server_is_left_for_a_new_connection(
    streams: StreamBroker, client: AsyncClient
) -> None:
    await client.submit("work")
    streams.streams[0].mute = True
    submitting = asyncio.create_task(client.submit("work"))
    await eventually(
        lambda: any(f.sequence and not f.submissions for f in streams.streams[0].frames),
        "it is asked",
    )
    handle = await asyncio.wait_for(submitting, 20)
    first, second = streams.streams
    assert first.peer != second.peer
    assert handle.id in first.submitted
    assert handle.id in second.submitted


async def test_a_drained_stream_brings_what_it_owes_and_another_takes_over(
    streams: StreamBroker, client: AsyncClient
) -> None:
    followed = await client.submit("work")
    waiting = asyncio.create_task(followed.result(timeout=20))
    streams.holds = True
    owed = asyncio.create_task(client.submit("work"))
    await eventually(lambda: streams.held, "a submission")
    old = streams.streams[0]
    old.say(drain=jobs.ProducerDrain(reason="age"))
    await eventually(lambda: len(streams.streams) == 2, "another stream", timeout_s=20)
    await eventually(lambda: followed.id in streams.streams[1].follows, "the follow moves")
    assert not old.half_closed
    streams.holds = False
    streams.answer()
    await owed
    await eventually(lambda: old.half_closed, "the old one is left", timeout_s=20)
    await streams.finish(followed.id)
    assert await waiting == "done"
    handle = await client.submit("work")
    assert handle.id in streams.streams[1].submitted


async def test_an_item_that_is_refused_for_now_is_sent_again(
    streams: StreamBroker, client: AsyncClient
) -> None:
    full = errors_pb2.ItemError(code=8, message="full", reason=errors_pb2.ERROR_REASON_QUEUE_FULL)
    full.retry_delay.FromMilliseconds(200)
    away = errors_pb2.ItemError(
        code=14, message="away", reason=errors_pb2.ERROR_REASON_STORE_UNAVAILABLE
    )
    streams.refusals["work"] = [full, away]
    loop = asyncio.get_running_loop()
    began = loop.time()
    handle = await client.submit("work")
    assert loop.time() - began >= 0.2
    assert streams.streams[0].submitted == [handle.id] * 3
    for_good = errors_pb2.ItemError(
        code=8, message="full", reason=errors_pb2.ERROR_REASON_QUEUE_FULL
    )
    streams.refusals["work"] = [for_good]
    with pytest.raises(QueueFull):
        await client.submit("work")


async def test_a_batch_tells_the_accepted_from_the_refused(
    streams: StreamBroker, client: AsyncClient
) -> None:
    streams.refusals["b"] = [errors_pb2.ItemError(code=3, message="no")]
    with pytest.raises(AsyncBatchError) as raised:
        await client.submit_many([NewJob(operation=name) for name in "abc"])
    assert [*raised.value.errors] == [1]
    assert [streams.jobs[h.id].spec.operation for h in raised.value.handles] == ["a", "c"]


async def test_no_more_than_the_window_is_unanswered(
    streams: StreamBroker, client: AsyncClient
) -> None:
    streams.max_unanswered = 5
    await client.submit("work")
    streams.holds = True
    submitting = [asyncio.create_task(client.submit("work")) for _ in range(40)]
    most = 0
    while not all(task.done() for task in submitting):
        most = max(most, streams.unanswered(streams.streams[0]))
        streams.answer()
        await asyncio.sleep(0.01)
    assert 0 < most <= 5
    assert len(streams.jobs) == 41


async def test_what_a_newer_server_says_is_read_as_far_as_it_is_known(
    streams: StreamBroker, client: AsyncClient
) -> None:
    streams.newer = True
    handle = await client.submit("work")
    stream = streams.streams[0]
    waiting = asyncio.create_task(handle.result(timeout=20))
    await eventually(lambda: stream.follows, "a follow")
    stream.outgoing.put_nowait(newer(jobs.ProduceResponse, newer=b"later"))
    stream.say(answers=[jobs.ProduceAnswer(sequence=99_999)])
    # A terminal state without a name here: GetJob tells what it is.
    streams.jobs[handle.id].state = 77  # type: ignore[assignment]
    streams.jobs[handle.id].finished_at.GetCurrentTime()
    stream.say(ends=[jobs.JobEnd(job_id=handle.id, state=77)])  # type: ignore[arg-type]
    with pytest.raises(Exception, match="ended in 77"):
        await waiting
    assert len(streams.streams) == 1


async def test_a_watch_of_states_needs_no_call(streams: StreamBroker, client: AsyncClient) -> None:
    handle = await client.submit("work")
    seen: list[JobState] = []

    async def watch() -> None:
        async for job in handle.watch():
            seen.append(job.state)

    watching = asyncio.create_task(watch())
    await eventually(lambda: seen, "the job as it stands")
    job = streams.jobs[handle.id]
    job.state = job_pb2.JOB_STATE_RUNNING
    await streams.touch(job)
    await eventually(lambda: len(seen) == 2, "a change")
    streams.streams[0].end(*UNAVAILABLE)
    await eventually(lambda: len(streams.streams) == 2, "another stream", timeout_s=20)
    await streams.finish(handle.id)
    await watching
    assert seen == [JobState.PENDING, JobState.RUNNING, JobState.SUCCEEDED]
    assert calls(streams) == {"Produce"}
    with pytest.raises(DeadlineExceeded, match=r"did not end within 0\.1 s"):
        async for _ in client.watch((await client.submit("work")).id, timeout=0.1):
            pass
    with pytest.raises(NotFound):
        await client.job("default-01m8d4smghm8cnt9gfgrrtarh2").result()


async def test_without_the_stream_a_client_goes_on_by_calls(broker: Broker) -> None:
    async with AsyncClient(broker.target, timeout_s=20) as client:
        handles = await asyncio.gather(*(client.submit("work") for _ in range(30)))
        assert {handle.id for handle in handles} == {*broker.jobs}
        waiting = asyncio.create_task(handles[0].result(timeout=20))
        calling = asyncio.create_task(client.call("work", timeout=20))
        await eventually(lambda: len(broker.jobs) == 31, "the call's job")
        for job in broker.jobs.values():
            job.state = job_pb2.JOB_STATE_SUCCEEDED
            job.result.json = '"done"'
            await broker.touch(job)
        assert (await waiting, await calling) == ("done", "done")


async def test_a_stream_that_does_not_open_is_done_without(streams: StreamBroker) -> None:
    streams.mute = True
    async with AsyncClient(streams.target, timeout_s=4) as client:
        handle = await asyncio.wait_for(client.submit("work"), 15)
        assert [request.job_id for request in streams.calls["SubmitJob"]] == [handle.id]
        # The same job: it may have been accepted on the stream as well.
        assert handle.id in streams.streams[0].submitted
        # Whoever waits goes over once it is known that calls work and streams don't.
        result = asyncio.create_task(handle.result(timeout=60))
        await eventually(lambda: streams.calls["WatchJob"], "a watch", timeout_s=30)
        count = len(streams.streams)
        await streams.finish(handle.id)
        assert await result == "done"
        await client.submit("work")
        assert len(streams.streams) == count


async def test_streams_that_end_at_once_are_done_without(
    streams: StreamBroker, client: AsyncClient
) -> None:
    streams.end_on = lambda stream, frame: UNAVAILABLE
    handles = await asyncio.gather(*(client.submit("work") for _ in range(20)))
    assert {handle.id for handle in handles} == {*streams.jobs}
    assert len(streams.streams) <= 6
    # Where they work again, they are used again.
    streams.end_on = lambda stream, frame: None
    for _ in range(200):
        handle = await client.submit("work")
        if any(handle.id in stream.submitted for stream in streams.streams):
            break
        await asyncio.sleep(0.05)
    else:
        pytest.fail("the stream is not used again")


async def test_a_task_that_is_cancelled_breaks_nothing(
    streams: StreamBroker, client: AsyncClient
) -> None:
    streams.holds = True
    tasks = [asyncio.create_task(client.submit("work")) for _ in range(10)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[5].cancel()
    await eventually(lambda: streams.held, "submissions")
    tasks[9].cancel()
    streams.holds = False
    streams.answer()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes) == 3
    await client.submit("work")
    assert len(streams.streams) == 1


async def test_to_close_a_client_tells_those_who_wait_and_leaves_the_stream(
    streams: StreamBroker, client: AsyncClient
) -> None:
    handle = await client.submit("work")
    waits = [asyncio.create_task(handle.result()) for _ in range(3)]
    await eventually(lambda: streams.streams[0].follows, "a follow")
    await client.close()
    for wait in waits:
        with pytest.raises(ClientClosed):
            await wait
    await eventually(lambda: streams.streams[0].half_closed, "the stream is left")
    await client.submit("work")
    assert len(streams.streams) == 2


async def test_a_channel_of_the_callers_carries_the_stream_and_stays_open(
    streams: StreamBroker,
) -> None:
    async with grpc.aio.insecure_channel(streams.target) as channel:
        async with AsyncClient(channel=channel, timeout_s=20) as client:
            await client.submit("work")
        async with AsyncClient(channel=channel, timeout_s=20) as client:
            await client.submit("work")
            await client.get(next(iter(streams.jobs)))
    assert len(streams.streams) == 2


async def test_real_servers_lose_and_double_nothing_when_they_are_killed(server: Server) -> None:
    async def work(context: Context) -> int:
        return int(context.payload)

    worker = worker_at(server.address, "stream", work=work)
    async with worker, AsyncClient(server.address, timeout_s=60, reconnect_s=60) as client:
        assert await client.call("work", 1) == 1
        calling = [asyncio.create_task(client.call("work", n)) for n in range(100)]
        later = await asyncio.gather(*(client.submit("work", n, delay=0.5) for n in range(100)))
        waiting = [asyncio.create_task(handle.result()) for handle in later]
        await asyncio.to_thread(server.kill)
        server.start()
        submitting = [asyncio.create_task(client.submit("work", n)) for n in range(100)]
        handles = await asyncio.gather(*submitting)
        assert await asyncio.gather(*calling) == [*range(100)]
        assert await asyncio.gather(*waiting) == [*range(100)]
        assert await asyncio.gather(*(handle.result() for handle in handles)) == [*range(100)]
        assert len([job async for job in client.list_jobs(page_size=1000)]) == 301


async def test_an_idle_stream_is_left(
    streams: StreamBroker, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobwire._producing.on_loop.IDLE_S", 0.2)
    await client.submit("work")
    await eventually(lambda: streams.streams[0].half_closed, "the stream is left", timeout_s=20)
    await client.submit("work")
    assert len(streams.streams) == 2
