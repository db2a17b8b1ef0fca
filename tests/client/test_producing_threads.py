"""The client for threads on a producers' stream: threads, forks, the end of a process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from jobwire import Client, ClientClosed, DeadlineExceeded, JobState, NewJob
from jobwire.v1 import job_pb2
from jobwire.v1 import job_service_pb2 as jobs

from tests.client.broker import Broker, rich_status
from tests.client.produce_server import StreamBroker
from tests.client.test_surroundings import PREAMBLE, need, quiet, script
from tests.support.waiting import eventually

pytestmark = pytest.mark.processes

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
async def client(streams: StreamBroker) -> AsyncIterator[Client]:
    """A client of that broker."""
    made = Client(streams.target, timeout_s=20)
    yield made
    await asyncio.to_thread(made.close)


def calls(broker: Broker) -> set[str]:
    """The methods that were called."""
    return {method for method, requests in broker.calls.items() if requests}


async def test_threads_share_a_stream_and_their_jobs_share_frames(
    streams: StreamBroker, client: Client
) -> None:
    streams.finishes["sum"] = "6"

    def many() -> tuple[set[str], list[int]]:
        with ThreadPoolExecutor(32) as pool:
            handles = [*pool.map(lambda n: client.submit("work", n), range(300))]
            sums = [*pool.map(lambda n: client.call("sum", n), range(100))]
        return {handle.id for handle in handles}, sums

    ids, sums = await asyncio.to_thread(many)
    assert len(ids) == 300
    assert sums == [6] * 100
    await asyncio.to_thread(client.submit_many, [NewJob(operation="work")] * 600)
    assert len(streams.jobs) == 1000
    assert len(streams.streams) == 1
    assert calls(streams) == {"Produce"}
    assert sum(1 for frame in streams.streams[0].frames if frame.submissions) < 400


async def test_a_break_loses_nothing_and_doubles_nothing(
    streams: StreamBroker, client: Client
) -> None:
    streams.holds = True
    submitting = [asyncio.create_task(asyncio.to_thread(client.submit, "work")) for _ in range(4)]
    calling = asyncio.create_task(asyncio.to_thread(client.call, "work", timeout=20))
    await eventually(lambda: streams.held, "submissions")
    for _, frame in streams.held:
        for item in frame.submissions:
            streams.accept(item.request)
    streams.holds = False
    streams.held.clear()
    streams.streams[0].end(*UNAVAILABLE)
    handles = await asyncio.gather(*submitting)
    assert len({handle.id for handle in handles}) == 4
    await eventually(lambda: len(streams.jobs) == 5, "all are accepted")
    for job_id in [*streams.jobs]:
        await streams.finish(job_id)
    assert await calling == "done"
    assert len(streams.jobs) == 5
    assert calls(streams) == {"Produce"}


async def test_waits_and_watches_share_the_stream(streams: StreamBroker, client: Client) -> None:
    handle = await asyncio.to_thread(client.submit, "work")
    waits = [asyncio.create_task(asyncio.to_thread(handle.result)) for _ in range(3)]
    watching = asyncio.create_task(asyncio.to_thread(lambda: [job.state for job in handle.watch()]))
    stream = streams.streams[0]
    await eventually(
        lambda: (
            handle.id in stream.follows
            and stream.follows[handle.id].content == jobs.FOLLOW_CONTENT_CHANGES
        ),
        "a follow of changes",
    )
    await eventually(lambda: stream.told.get(handle.id) == 1, "the job as it stands")
    await streams.finish(handle.id)
    assert await asyncio.gather(*waits) == ["done"] * 3
    assert (await watching)[-1] is JobState.SUCCEEDED
    other = await asyncio.to_thread(client.submit, "work")
    with pytest.raises(DeadlineExceeded, match=r"did not end within 0\.1 s"):
        await asyncio.to_thread(other.result, timeout=0.1)
    await eventually(lambda: not stream.follows, "it is followed no longer")
    assert calls(streams) == {"Produce"}


async def test_a_drained_stream_brings_what_it_owes_and_another_takes_over(
    streams: StreamBroker, client: Client
) -> None:
    followed = await asyncio.to_thread(client.submit, "work")
    waiting = asyncio.create_task(asyncio.to_thread(followed.result, timeout=20))
    streams.holds = True
    owed = asyncio.create_task(asyncio.to_thread(client.submit, "work"))
    await eventually(lambda: streams.held, "a submission")
    old = streams.streams[0]
    old.say(drain=jobs.ProducerDrain(reason="age"))
    await eventually(lambda: len(streams.streams) == 2, "another stream", timeout_s=20)
    await eventually(lambda: followed.id in streams.streams[1].follows, "the follow moves")
    streams.holds = False
    streams.answer()
    await owed
    await eventually(lambda: old.half_closed, "the old one is left", timeout_s=20)
    await streams.finish(followed.id)
    assert await waiting == "done"


async def test_a_hung_server_is_left_for_a_new_connection(
    streams: StreamBroker, client: Client
) -> None:
    await asyncio.to_thread(client.submit, "work")
    streams.streams[0].mute = True
    submitting = asyncio.create_task(asyncio.to_thread(client.submit, "work"))
    await eventually(
        lambda: any(f.sequence and not f.submissions for f in streams.streams[0].frames),
        "it is asked",
    )
    handle = await asyncio.wait_for(submitting, 20)
    first, second = streams.streams
    assert first.peer != second.peer
    assert handle.id in second.submitted


async def test_without_the_stream_a_client_goes_on_by_calls(broker: Broker) -> None:
    client = Client(broker.target, timeout_s=20)

    def many() -> set[str]:
        with ThreadPoolExecutor(16) as pool:
            return {handle.id for handle in pool.map(lambda _: client.submit("work"), range(100))}

    assert await asyncio.to_thread(many) == {*broker.jobs}
    calling = asyncio.create_task(asyncio.to_thread(client.call, "work", timeout=20))
    await eventually(lambda: len(broker.jobs) == 101, "the call's job")
    job = [*broker.jobs.values()][-1]
    job.state = job_pb2.JOB_STATE_SUCCEEDED
    job.result.json = '"done"'
    await broker.touch(job)
    assert await calling == "done"
    await asyncio.to_thread(client.close)


async def test_to_close_a_client_tells_those_who_wait(
    streams: StreamBroker, client: Client
) -> None:
    handle = await asyncio.to_thread(client.submit, "work")
    waits = [asyncio.create_task(asyncio.to_thread(handle.result)) for _ in range(3)]
    await eventually(lambda: streams.streams[0].follows, "a follow")
    await asyncio.to_thread(client.close)
    for wait in waits:
        with pytest.raises(ClientClosed):
            await wait
    await asyncio.to_thread(client.submit, "work")
    assert len(streams.streams) == 2


async def test_children_of_a_fork_have_streams_of_their_own(streams: StreamBroker) -> None:
    """Beside a stream that is open, with threads that submit all along."""
    code, out, errors = await script(
        """
        from concurrent.futures import ThreadPoolExecutor
        from jobwire import Client
        client = Client(target, timeout_s=20)
        ids = []
        stop = threading.Event()
        def keep_on():
            while not stop.is_set():
                ids.append(client.submit("parent").id)
        threads = [threading.Thread(target=keep_on) for _ in range(2)]
        for each in threads: each.start()

        def serve():
            with ThreadPoolExecutor(4) as pool:
                handles = list(pool.map(lambda _: client.submit("child"), range(20)))
            assert len({handle.id for handle in handles}) == 20
            assert client.call("sum") == 6

        ends = [end_of(child(serve)) for _ in range(3)]
        stop.set()
        for each in threads: each.join()
        print(ends, len(ids) == len(set(ids)), client.call("sum"))
        """,
        _summing(streams).target,
    )
    assert (code, out, quiet(errors)) == (0, "[0, 0, 0] True 6\n", [])
    found = [job.spec.operation for job in streams.jobs.values()]
    assert found.count("child") == 60


def _summing(streams: StreamBroker) -> StreamBroker:
    streams.finishes["sum"] = "6"
    return streams


async def test_children_of_multiprocessing_use_a_client_of_their_parent(
    streams: StreamBroker,
) -> None:
    code, out, errors = await script(
        """
        import multiprocessing
        from jobwire import Client
        client = Client(target, timeout_s=20)
        print(client.call("sum"))
        def work(number):
            return client.call("sum", number)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(sum(pool.map(work, range(20))))
        print(client.call("sum"))
        """,
        _summing(streams).target,
    )
    assert (code, out, quiet(errors)) == (0, "6\n120\n6\n", [])


async def test_each_loop_has_a_stream_of_its_own(streams: StreamBroker) -> None:
    """Loops one after the other, in threads at once."""
    code, out, errors = await script(
        """
        from jobwire import AsyncClient
        client = AsyncClient(target, timeout_s=20)
        done, sums = [], []

        async def submit():
            handles = await asyncio.gather(*(client.submit("work") for _ in range(30)))
            done.extend(handle.id for handle in handles)
            sums.append(await client.call("sum"))

        def thread():
            for _ in range(3):
                asyncio.run(submit())

        threads = [threading.Thread(target=thread) for _ in range(4)]
        for each in threads: each.start()
        for each in threads: each.join()
        print(len(done), len(set(done)), sums == [6] * 12)
        """,
        _summing(streams).target,
    )
    assert (code, out, errors) == (0, "360 360 True\n", "")
    assert len(streams.streams) == 12
    assert calls(streams) == {"Produce"}


async def test_under_gevent_calls_take_the_place_of_the_stream(streams: StreamBroker) -> None:
    need("gevent")
    code, out, errors = await script(
        """
        import gevent
        from jobwire import Client
        client = Client(target, timeout_s=20)
        jobs = [gevent.spawn(client.submit, "work") for _ in range(20)]
        gevent.joinall(jobs, raise_error=True)
        print(len({job.value.id for job in jobs}))
        """,
        streams.target,
        first="from gevent import monkey; monkey.patch_all()",
    )
    assert (code, out, errors) == (0, "20\n", "")
    assert calls(streams) == {"SubmitJob"}


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_process_ends_at_once_with_a_submission_under_way(
    streams: StreamBroker, kind: str
) -> None:
    streams.keeps = {"work"}
    code, out, errors = await script(
        """
        from jobwire import Client
        client = Client(target, timeout_s=600)
        handle = client.submit("waits")
        threading.Thread(target=handle.result, daemon=True).start()
        for _ in range(3):
            threading.Thread(target=client.submit, args=("work",), daemon=True).start()
        time.sleep(0.5)
        print("done", flush=True)
        """
        if kind == "sync"
        else """
        from jobwire import AsyncClient
        client = AsyncClient(target, timeout_s=600)
        async def main():
            tasks = [asyncio.create_task(client.submit("work")) for _ in range(3)]
            await asyncio.sleep(0.5)
            print("done", flush=True)
        asyncio.run(main())
        """,
        streams.target,
        patience_s=30,
    )
    assert (code, out, errors) == (0, "done\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_ctrl_c_ends_a_submission_that_gets_no_answer(streams: StreamBroker) -> None:
    streams.holds = True
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PREAMBLE
        + "from jobwire import Client\n"
        + "try:\n    Client(target, timeout_s=600).submit('work')\n"
        + "except KeyboardInterrupt:\n    print('interrupted')\n",
        streams.target,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        await eventually(lambda: streams.held, "a submission", timeout_s=30)
        process.send_signal(signal.SIGINT)
        out, errors = await asyncio.wait_for(process.communicate(), 20)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, out, errors) == (0, b"interrupted\n", b"")
