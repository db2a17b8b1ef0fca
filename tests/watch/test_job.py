"""WatchJob: from wherever a watcher begins, every byte once, and no state older than one seen."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from jobwire.v1 import job_pb2, job_service_pb2
from jobwire.v1.worker_service_pb2 import Released
from jobwire_server.store.connection import connect
from jobwire_server.watch import job_watch as hub_module

from tests.support.grpc_servers import refused
from tests.support.stores import StoreProcess
from tests.support.streams import StreamServer, stream_server
from tests.support.waiting import eventually
from tests.watch.support import (
    OUTPUT,
    PENDING,
    RUNNING,
    STATES,
    SUCCEEDED,
    Account,
    Hands,
    Watcher,
    chunk,
)

PIECES = [b"a", b"bcd", b"ef", b"ghijklmnop", b"q"]
WHOLE = b"".join(PIECES)
END = job_service_pb2.OutputFromEnd()


async def _finished(hands: Hands) -> str:
    """A finished job of two attempts with output, and progress in between; returns its id."""
    lease = await hands.running()
    await hands.write_all(lease, PIECES)
    await hands.progress(lease, "half")
    await hands.complete(lease, released=Released())
    lease = await hands.claim(lease.job_id)
    await hands.write_all(lease, PIECES)
    await hands.complete(lease)
    return lease.job_id


async def test_the_first_answer_is_the_job_as_it_stands(hands: Hands) -> None:
    lease = await hands.running()
    await hands.write_all(lease, PIECES)
    async with hands.watch(lease.job_id) as watcher:
        await watcher.reads(1, WHOLE)
        assert watcher.account.order[0] == "job"
        assert watcher.account.states == [RUNNING]


async def test_all_output_comes_before_the_terminal_state(hands: Hands) -> None:
    job_id = await _finished(hands)
    account = await hands.watch(job_id).end()
    assert account.output == {1: WHOLE, 2: WHOLE}
    assert account.states == [SUCCEEDED]
    assert account.order.index("job") == len(account.order) - 1


async def test_a_job_is_resumed_at_every_answer_without_a_byte_missed_or_doubled(
    hands: Hands,
) -> None:
    lease = await hands.running()
    live = hands.watch(lease.job_id)
    await live.sees(RUNNING)
    written = 0
    for piece in PIECES:
        # Each is told before the next is written, so that there is a cursor behind each.
        await hands.write(lease, chunk(piece, written))
        written += len(piece)
        await live.reads(1, WHOLE[:written])
    await hands.complete(lease)
    account = await live.end()
    assert account.order == ["job", *["output"] * len(PIECES), "job"]
    for number, cursor in enumerate(account.cursors):
        told = await hands.watch(lease.job_id, cursor=cursor).end()
        # The snapshot was the first answer, and the end the last.
        assert told.output.get(1, b"") == b"".join(PIECES[number:])
        assert told.states == ([] if number > len(PIECES) else [SUCCEEDED])


@pytest.mark.parametrize("attempt", [1, 2])
async def test_output_is_told_from_every_single_offset(hands: Hands, attempt: int) -> None:
    job_id = await _finished(hands)
    for offset in range(len(WHOLE) + 1):
        position = job_pb2.OutputPosition(attempt=attempt, offset=offset)
        account = await hands.watch(job_id, output_from=position).end()
        expected = {attempt: WHOLE[offset:]} if offset < len(WHOLE) else {}
        if attempt == 1:
            expected[2] = WHOLE
        assert account.output == expected, offset


async def test_an_offset_without_an_attempt_is_one_of_the_latest(hands: Hands) -> None:
    job_id = await _finished(hands)
    for offset in (0, 2):
        position = job_pb2.OutputPosition(offset=offset)
        account = await hands.watch(job_id, output_from=position).end()
        assert account.output == {2: WHOLE[offset:]}


async def test_output_from_an_offset_that_is_still_to_come_begins_there(hands: Hands) -> None:
    lease = await hands.running()
    position = job_pb2.OutputPosition(attempt=1, offset=5)
    async with hands.watch(lease.job_id, output_from=position) as watcher:
        await watcher.sees(RUNNING)
        await hands.write(lease, chunk(b"01", 0))
        # It covers the offset, and more than the tail of a server keeps comes behind it.
        await hands.write(lease, chunk(b"23456789", 2))
        await watcher.reads(1, b"56789")
        assert watcher.account.starts == {1: 5}


async def test_from_the_end_only_what_is_written_from_now_on_is_told(hands: Hands) -> None:
    lease = await hands.running()
    await hands.write(lease, chunk(b"before", 0))
    async with hands.watch(lease.job_id, output_from_end=END) as watcher:
        await watcher.sees(RUNNING)
        await hands.write(lease, chunk(b"after", 6))
        await hands.complete(lease)
        account = await watcher.end()
    assert (account.output, account.starts) == ({1: b"after"}, {1: 6})


async def test_whoever_wants_states_only_is_told_no_output(hands: Hands) -> None:
    lease = await hands.running()
    async with hands.watch(lease.job_id, content=STATES) as watcher:
        await watcher.sees(RUNNING)
        await hands.write_all(lease, PIECES)
        await hands.progress(lease, "half")
        await hands.complete(lease)
        account = await watcher.end()
    assert account.output == {}
    assert account.states[-1] == SUCCEEDED


async def test_whoever_wants_output_only_is_told_of_the_states_only_the_last(
    hands: Hands,
) -> None:
    lease = await hands.running()
    async with hands.watch(lease.job_id, content=OUTPUT) as watcher:
        written = 0
        for piece in PIECES:
            await hands.progress(lease, piece.decode())
            await hands.write(lease, chunk(piece, written))
            written += len(piece)
        await hands.complete(lease)
        account = await watcher.end()
    assert account.output == {1: WHOLE}
    assert account.states == [SUCCEEDED]


async def test_states_go_on_to_be_told_while_output_never_pauses(hands: Hands) -> None:
    lease = await hands.running()
    async with hands.watch(lease.job_id) as watcher:
        await watcher.sees(RUNNING)
        offset = 0
        for number in range(30):
            for _ in range(3):
                await hands.write(lease, chunk(b"x" * 1000, offset))
                offset += 1000
            await hands.progress(lease, str(number))
            told = watcher.account
            await eventually(
                lambda told=told, number=number: (  # type: ignore[misc]
                    told.jobs[-1].progress.message == str(number)
                ),
                f"report {number} is told",
            )
        await watcher.reads(1, b"x" * offset)


async def test_a_finished_job_is_resumed_at_its_end_with_nothing(hands: Hands) -> None:
    job_id = await _finished(hands)
    account = await hands.watch(job_id).end()
    again = await hands.watch(job_id, cursor=account.cursor).end()
    assert again.order == []


async def test_a_job_that_ends_between_submission_and_watch_is_told_with_all_its_output(
    hands: Hands,
) -> None:
    for number in range(30):
        lease = await hands.running()
        await hands.write(lease, chunk(WHOLE, 0))
        ending = asyncio.create_task(hands.complete(lease))
        for _ in range(number):
            await asyncio.sleep(0)
        account = await hands.watch(lease.job_id).end()
        await ending
        assert account.output == {1: WHOLE}
        assert account.states[-1] == SUCCEEDED


async def test_many_watchers_of_one_job_read_the_store_no_more_often_than_one(
    hands: Hands, server: StreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await hands.running()
    watchers = [hands.watch(lease.job_id) for _ in range(100)]
    for watcher in watchers:
        await watcher.sees(RUNNING)
    store = server.parts.jobs
    reads = 0
    follow = store.follow

    async def counted(*args: Any) -> Any:
        nonlocal reads
        reads += 1
        return await follow(*args)

    monkeypatch.setattr(store, "follow", counted)
    written = 0
    for piece in PIECES:
        await hands.write(lease, chunk(piece, written))
        written += len(piece)
        for watcher in watchers:
            await watcher.reads(1, WHOLE[:written])
    assert reads <= 2 * len(PIECES)
    await hands.complete(lease)
    for watcher in watchers:
        await watcher.end()


async def test_watchers_that_break_off_leave_nothing_behind(
    hands: Hands, server: StreamServer
) -> None:
    lease = await hands.running()
    watchers = [hands.watch(lease.job_id) for _ in range(20)]
    for watcher in watchers:
        await watcher.sees(RUNNING)
    for watcher in watchers:
        await watcher.break_off()
    watch = server.parts.job_watch
    await eventually(lambda: all(queue.empty for queue in watch.queues.values()), "nobody watches")


async def test_a_wish_that_makes_no_sense_is_refused(hands: Hands) -> None:
    job_id = await hands.submit()
    for request in ({"cursor": "x"}, {"cursor": "1-2"}, {"content": 9}):
        said = refused(await hands.watch(job_id, **request).fails())
        assert said.code == grpc.StatusCode.INVALID_ARGUMENT
        assert said.fields == {*request}


async def test_a_broken_subscription_is_followed_by_a_fresh_read(
    own_store: StoreProcess,
) -> None:
    async with stream_server(own_store.url) as server, Hands(server.address) as hands:
        await hands.register()
        lease = await hands.running()
        async with hands.watch(lease.job_id) as watcher:
            await watcher.sees(RUNNING)
            with own_store.client() as client:
                written = 0
                for round_ in range(5):
                    client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                    await hands.write(lease, chunk(b"abc", written))
                    written += 3
                    await hands.progress(lease, str(round_))
                    await watcher.reads(1, (b"abc" * 5)[:written])
                client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await hands.complete(lease)
            account = await watcher.end()
        assert account.states[-1] == SUCCEEDED


async def test_watchers_that_come_and_go_while_the_store_is_away_harm_nobody(
    own_store: StoreProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that a read of the store that hangs lasts until all have come, however busy the machine is.
    monkeypatch.setattr(connect, "READ_TIMEOUT_S", 60.0)
    async with stream_server(own_store.url) as server, Hands(server.address) as hands:
        await hands.register()
        lease = await hands.running()
        async with hands.watch(lease.job_id) as watcher:
            await watcher.sees(RUNNING)
            other = await hands.submit()
            own_store.wait_written()
            own_store.pause()
            # Each joins the read that is under way, and leaves before it fails.
            first = hands.watch(other)
            queue = server.parts.job_watch.queues["default"]
            # Private: nothing else tells a read that is under way from one that is to come.
            await eventually(
                lambda: len(queue.jobs) == 2 and not queue._dirty, "the read is under way"
            )
            late = [hands.watch(other) for _ in range(3)]
            watched = queue.jobs[other[-26:]]
            await eventually(lambda: len(watched.joining) == 3, "they wait for the next read")
            await asyncio.gather(*(one.break_off() for one in late))
            own_store.kill()
            await first.fails()
            own_store.start()
            await _patiently(lambda: hands.complete(lease))
            assert (await watcher.end()).states[-1] == SUCCEEDED
            assert (await hands.job(other)).state == PENDING


async def _patiently(call: Any) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await call()
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
            else:
                return


async def test_a_queue_that_is_watched_again_while_its_room_is_closed_is_heard(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "LINGER_S", 0.001)
    async with stream_server(valkey_url) as server, Hands(server.address) as hands:
        await hands.register()
        lease = await hands.running()
        for number in range(50):
            async with hands.watch(lease.job_id, output_from_end=END) as watcher:
                await watcher.sees(RUNNING)
                await hands.write(lease, chunk(b"x", number))
                await watcher.reads(1, b"x")


async def test_two_hundred_watchers_outlive_a_kill_of_the_store(own_store: StoreProcess) -> None:
    async with stream_server(own_store.url) as server, Hands(server.address) as hands:
        await hands.register()
        leases = [await hands.running() for _ in range(5)]
        accounts = [Account() for _ in range(200)]
        watchers: list[Watcher] = []
        for number, account in enumerate(accounts):
            watchers.append(hands.watch(leases[number % 5].job_id, account))
        for watcher in watchers:
            await watcher.sees(RUNNING)
        for lease in leases:
            await hands.write(lease, chunk(b"before ", 0))
        for watcher in watchers:
            await watcher.reads(1, b"before ")
        # What is written every second only would be lost otherwise, as the setting says.
        with own_store.client() as client:
            client.execute_command("CONFIG", "SET", "appendfsync", "always")
        own_store.restart()
        for lease in leases:
            await _patiently(lambda lease=lease: hands.write(lease, chunk(b"after", 7)))
            await _patiently(lambda lease=lease: hands.complete(lease))
        for number, watcher in enumerate(watchers):
            account = await watcher.end()
            assert account.output == {1: b"before after"}, number
            assert account.states[-1] == SUCCEEDED


def test_the_answers_of_run_and_watch_are_the_same_on_the_wire() -> None:
    watch = job_service_pb2.WatchJobResponse.DESCRIPTOR.fields
    run = job_service_pb2.RunJobResponse.DESCRIPTOR.fields
    assert [(f.name, f.number, f.message_type) for f in watch] == [
        (f.name, f.number, f.message_type) for f in run
    ]
