"""The Go example against a real broker; only where Go is installed and JOBWIRE_TEST_GO=1."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from jobwire import Client, JobState
from jobwire.v1 import errors_pb2, job_pb2
from jobwire.v1 import job_service_pb2 as jobs

from tests.client.broker import Broker
from tests.client.produce_server import StreamBroker, broke
from tests.support.servers import ServerProcess
from tests.support.stores import wait_until

EXAMPLE = Path(__file__).parents[2] / "examples" / "go"

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("JOBWIRE_TEST_GO") != "1" or shutil.which("go") is None,
        reason="needs Go, and downloads modules: JOBWIRE_TEST_GO=1",
    ),
    pytest.mark.processes,
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the programs."""
    folder = tmp_path_factory.mktemp("go")
    for name in ("worker", "submit", "call"):
        subprocess.run(
            ["go", "build", "-o", str(folder / name), f"./cmd/{name}"], cwd=EXAMPLE, check=True
        )
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    made = ServerProcess("--max-stream-age", "1s", data_dir=tmp_path / "data")
    made.start()
    yield made
    made.stop()


@contextmanager
def worker(programs: Path, target: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([str(programs / "worker"), "-target", target])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def attached(client: Client) -> None:
    """Wait for the one worker."""
    deadline = time.monotonic() + 30
    while not any(worker.attached for worker in client.workers()):
        assert time.monotonic() < deadline


def test_the_programs_do_a_job_and_leave(programs: Path, server: ServerProcess) -> None:
    with worker(programs, server.address) as process, Client(server.address) as client:
        done = subprocess.run(
            [str(programs / "submit"), "-target", server.address, "hello", '{"name": "Ada"}'],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout == '"Hello, Ada! This is attempt 1, in Go."\n'
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert list(client.workers()) == []


def test_jobs_outlive_moves_and_a_killed_server(programs: Path, server: ServerProcess) -> None:
    with worker(programs, server.address), Client(server.address, timeout_s=30) as client:
        attached(client)
        jobs = [client.submit("sum", list(range(30))) for _ in range(50)]
        for seen in jobs[-1].watch(timeout=60):
            if seen.progress is not None:
                break
        server.kill()
        server.start()
        for job in jobs:
            assert job.result(timeout=60) == 435
        assert {client.get(job.id).attempt for job in jobs} == {1}


def test_a_cancellation_reaches_the_handler(programs: Path, server: ServerProcess) -> None:
    with worker(programs, server.address), Client(server.address) as client:
        job = client.submit("sum", [1] * 10_000)
        for seen in job.watch(timeout=60):
            if seen.progress is not None:
                break
        job.cancel("enough")
        assert job.wait(timeout=30).state.value == "CANCELLED"


@pytest.fixture
def pair(valkey_url: str) -> Iterator[list[ServerProcess]]:
    """Two servers of one store."""
    flags = ("--redis-url", valkey_url, "--shutdown-grace", "10s")
    made = [ServerProcess(*flags), ServerProcess(*flags)]
    try:
        for each in made:
            each.start()
        yield made
    finally:
        for each in made:
            each.signal(signal.SIGCONT)
            each.stop()


CALLS = 1000


@contextmanager
def calling(programs: Path, *servers: ServerProcess, store: ServerProcess) -> Iterator[None]:
    """Run the body in the middle of many calls; all of them succeed, each by one job of its own."""
    command = [str(programs / "call"), "-targets", ",".join(each.address for each in servers)]
    command += ["-calls", str(CALLS), "sum", "[1, 2]"]  # 0.2 s each
    with worker(programs, store.address):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            with Client(servers[0].address) as client:
                attached(client)
                wait_until(
                    lambda: ended(client) >= CALLS // 4,
                    "a quarter of the calls",
                    timeout_s=60,
                )
                assert ended(client) < CALLS
            yield
            said, _ = process.communicate(timeout=120)
        finally:
            process.kill()
            process.wait()
    assert said.startswith(f"{CALLS} of {CALLS} succeeded"), said
    assert process.returncode == 0
    print(said)
    with Client(store.address, timeout_s=30) as client:
        (queue,) = client.queues()
        assert {state: count for state, count in queue.counts.items() if count} == {
            JobState.SUCCEEDED: CALLS
        }


def ended(client: Client) -> int:
    return sum(queue.counts.get(JobState.SUCCEEDED, 0) for queue in client.queues())


def test_calls_outlive_a_killed_server(programs: Path, server: ServerProcess) -> None:
    with calling(programs, server, store=server):
        server.kill()
        server.start()


def test_calls_move_from_a_server_that_drains(programs: Path, pair: list[ServerProcess]) -> None:
    with calling(programs, *pair, store=pair[1]):
        pair[0].signal(signal.SIGTERM)
        assert pair[0].wait() == 0


def test_calls_move_from_a_server_that_hangs(programs: Path, pair: list[ServerProcess]) -> None:
    with calling(programs, *pair, store=pair[1]):
        pair[0].signal(signal.SIGSTOP)


@pytest.fixture
async def told() -> AsyncIterator[StreamBroker]:
    """A broker whose producers' streams do as they are told."""
    made = StreamBroker()  # type: ignore[abstract]
    made.finishes["work"] = '"done"'
    await made.start()
    yield made
    await made.stop()


@asynccontextmanager
async def caller(programs: Path, target: str, calls: int = 1) -> AsyncIterator[Process]:
    """Run the program that calls; at the end of the body all of them have succeeded."""
    process = await asyncio.create_subprocess_exec(
        str(programs / "call"), "-targets", target, "-calls", str(calls), "work", "null",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
        said, _ = await asyncio.wait_for(process.communicate(), 60)
        assert said.startswith(b"%d of %d succeeded" % (calls, calls)), said
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_calls_go_without_a_stream_where_there_is_none(programs: Path) -> None:
    broker = Broker()  # type: ignore[abstract]
    await broker.start()
    try:
        async with caller(programs, broker.target, calls=20):
            await broker.until(lambda: len(broker.calls["WatchJob"]) == 20)
            for job in broker.jobs.values():
                job.state = job_pb2.JOB_STATE_SUCCEEDED
                job.finished_at.GetCurrentTime()
                await broker.touch(job)
        assert len(broker.calls["SubmitJob"]) == 20
    finally:
        await broker.stop()


async def test_a_call_is_made_again_when_its_job_may_be_taken(
    programs: Path, told: StreamBroker
) -> None:
    full = errors_pb2.ItemError(code=8, message="full")
    full.retry_delay.FromMilliseconds(300)
    told.refusals["work"] = [errors_pb2.ItemError(code=14, message="away"), full]
    async with caller(programs, told.target):
        pass
    (stream,) = told.streams
    assert len(stream.submitted) == 3
    assert len(set(stream.submitted)) == 1


async def test_a_call_fails_with_what_does_not_pass(programs: Path, told: StreamBroker) -> None:
    told.refusals["work"] = [errors_pb2.ItemError(code=8, message="too many queues")]
    with pytest.raises(AssertionError, match="0 of 1 succeeded"):
        async with caller(programs, told.target):
            pass
    assert len(told.streams[0].submitted) == 1


async def test_a_silent_server_is_asked_and_then_left(programs: Path, told: StreamBroker) -> None:
    told.holds = True
    async with caller(programs, told.target, calls=5):
        await told.until(lambda: told.held)
        silent = told.streams[0]
        silent.mute = True
        await told.until(lambda: len(told.streams) == 2)
        told.holds = False
    assert any(f.sequence and not f.submissions for f in silent.frames)
    assert sorted(told.streams[1].submitted) == sorted(silent.submitted)
    assert len(told.jobs) == 5


async def test_a_quiet_producer_and_a_quiet_server_keep_their_stream(
    programs: Path, told: StreamBroker
) -> None:
    told.finishes.clear()
    told.interval_s = 0.1
    async with caller(programs, told.target):
        await told.until(lambda: told.jobs and told.streams[0].follows)
        frames = told.streams[0].frames
        seen = len(frames)
        await told.until(lambda: len(frames) > seen + 3)
        assert frames[-1].ByteSize() == 0
        await told.finish(*told.jobs)
    assert len(told.streams) == 1


@pytest.mark.parametrize("when", ["before the answer", "after the answer"])
async def test_what_is_awaited_is_named_on_another_stream(
    programs: Path, told: StreamBroker, when: str
) -> None:
    told.finishes.clear()
    told.holds = when == "before the answer"
    async with caller(programs, told.target, calls=3):
        await told.until(lambda: told.held if told.holds else len(told.jobs) == 3)
        told.holds = False
        told.streams[0].say(drain=jobs.ProducerDrain(reason="enough"))
        await told.until(lambda: len(told.streams) == 2)
        told.answer()
        await told.until(lambda: len(told.streams[1].follows) == 3)
        await told.until(lambda: told.streams[0].half_closed)
        for job_id in told.jobs:
            await told.finish(job_id)
    assert len(told.jobs) == 3


async def test_the_window_of_the_server_is_kept(programs: Path, told: StreamBroker) -> None:
    told.max_unanswered, told.holds = 7, True
    async with caller(programs, told.target, calls=50):
        await told.until(lambda: told.streams)
        for answered in range(0, 50, 7):
            due = min(answered + 7, 50)
            await told.until(lambda due=due: len(told.streams[0].submitted) == due)  # type: ignore[misc]
            told.answer()
    assert len(told.streams) == 1


async def test_follows_that_are_lost_are_named_again_or_watched(
    programs: Path, told: StreamBroker
) -> None:
    told.finishes.clear()
    async with caller(programs, told.target, calls=2):
        await told.until(lambda: len(told.jobs) == 2)
        away, many = told.jobs
        for job_id, code in ((away, 14), (many, 8)):
            del told.streams[0].follows[job_id]
            error = errors_pb2.ItemError(code=code)
            told.streams[0].say(lost_follows=[jobs.FollowEnd(job_id=job_id, error=error)])
        await told.until(lambda: told.calls["WatchJob"] and away in told.streams[0].follows)
        assert told.calls["WatchJob"][0].job_id == many
        for job_id in told.jobs:
            told.jobs[job_id].finished_at.GetCurrentTime()
            await told.finish(job_id)


async def test_a_submission_that_ends_streams_goes_by_a_call(
    programs: Path, told: StreamBroker
) -> None:
    told.end_on = lambda stream, frame: broke() if frame.submissions else None
    async with caller(programs, told.target):
        await told.until(lambda: told.calls["SubmitJob"])
        (job_id,) = told.jobs
        await told.finish(job_id)
    assert sum(len(stream.submitted) for stream in told.streams) == 3
