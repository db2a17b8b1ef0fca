"""What a running job writes out: fenced, in order, bounded, and told byte by byte."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
import redis

from jobwire.v1 import admin_service_pb2, job_pb2, worker_service_pb2
from jobwire.v1.job_service_pb2 import WatchJobRequest
from jobwire.v1.worker_service_pb2 import Released, Report
from jobwire_server.domain.model import QueueSettings

from tests.support.grpc_servers import refusal, refused
from tests.support.streams import RawWorker, StreamServer
from tests.watch.support import SUCCEEDED, Hands, chunk, content_of

KIB = 1 << 10
TRIM = job_pb2.OUTPUT_OVERFLOW_TRIM


def policy(
    max_bytes: int, overflow: job_pb2.OutputOverflow.ValueType = job_pb2.OUTPUT_OVERFLOW_REFUSE
) -> job_pb2.OutputPolicy:
    return job_pb2.OutputPolicy(max_bytes=max_bytes, overflow=overflow)


async def _told(hands: Hands, lease: Any) -> dict[int, bytes]:
    """Completes a job; returns the output of its attempts as a watcher is told it."""
    await hands.complete(lease)
    return (await hands.watch(lease.job_id).end()).output


async def test_text_and_bytes_on_several_channels_come_in_the_order_they_were_written(
    hands: Hands,
) -> None:
    lease = await hands.running()
    await hands.write(
        lease, chunk("grün\n", 0), chunk(b"\xff\x00", 6, "stderr"), chunk("ja", 8, "tokens")
    )
    await hands.write(lease, chunk("!", 10, "tokens"))
    await hands.complete(lease)
    told = []
    async for answer in hands.jobs.WatchJob(WatchJobRequest(job_id=lease.job_id)):
        told += [(c.channel, c.offset, c.text or c.data) for c in answer.output.chunks]
    merged = {channel: b"" for channel, _, _ in told}
    for channel, _, content in told:
        merged[channel] += content if isinstance(content, bytes) else content.encode()
    assert [channel for channel, _, _ in told][:3] == ["stdout", "stderr", "tokens"]
    assert merged == {"stdout": "grün\n".encode(), "stderr": b"\xff\x00", "tokens": b"ja!"}


async def test_the_output_of_a_worker_that_lost_its_lease_is_refused(hands: Hands) -> None:
    zombie = await hands.running()
    await hands.write(zombie, chunk(b"first", 0))
    await hands.complete(zombie, released=Released(reason="deploy"))
    lease = await hands.claim()
    late = await refusal(hands.write(zombie, chunk(b"late", 5)))
    assert (late.code, late.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "LEASE_LOST")
    await hands.write(lease, chunk(b"second", 0))
    assert await _told(hands, lease) == {1: b"first", 2: b"second"}
    ended = await refusal(hands.write(lease, chunk(b"after the end", 6)))
    assert ended.reason == "LEASE_LOST"


async def test_a_chunk_that_was_written_before_is_not_written_twice(hands: Hands) -> None:
    lease = await hands.running()
    for _ in range(2):
        await hands.write(lease, chunk(b"abc", 0), chunk(b"def", 3, "stderr"))
    await hands.write(lease, chunk(b"bc", 1))
    assert (await hands.job(lease.job_id)).output_bytes == 6
    assert await _told(hands, lease) == {1: b"abcdef"}


async def test_of_a_chunk_that_overlaps_only_what_is_new_is_written(hands: Hands) -> None:
    lease = await hands.running()
    await hands.write(lease, chunk("gr", 0))
    # The overlap ends within a character of the text.
    await hands.write(lease, chunk("grün", 0))
    await hands.write(lease, chunk("ün und", 2))
    assert await _told(hands, lease) == {1: "grün und".encode()}


async def test_a_gap_is_refused_with_the_offset_to_go_on_from(hands: Hands) -> None:
    lease = await hands.running()
    await hands.write(lease, chunk(b"abc", 0))
    gap = await refusal(hands.write(lease, chunk(b"x", 4)))
    assert (gap.code, gap.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "OUTPUT_GAP")
    assert gap.metadata["expected_offset"] == "3"
    await hands.write(lease, chunk(b"de", int(gap.metadata["expected_offset"])))
    assert await _told(hands, lease) == {1: b"abcde"}


async def test_chunks_of_a_call_that_do_not_follow_each_other_are_refused(hands: Hands) -> None:
    lease = await hands.running()
    wrong = await refusal(hands.write(lease, chunk(b"abc", 0), chunk(b"x", 4)))
    assert wrong.code == grpc.StatusCode.INVALID_ARGUMENT
    assert wrong.fields == {"output[1].offset"}
    assert (await hands.job(lease.job_id)).output_bytes == 0


@pytest.mark.parametrize(
    ("chunks", "field"),
    [
        ([chunk(b"", 0)], "output[0]"),
        ([chunk(b"x" * (64 * KIB + 1), 0)], "output[0]"),
        ([chunk(b"x", 0, "no spaces")], "output[0].channel"),
        ([chunk(b"x", 0, "c" * 33)], "output[0].channel"),
        ([chunk(b"x", at) for at in range(257)], "output"),
        ([chunk(b"x" * 64 * KIB, at * 64 * KIB) for at in range(17)], "output"),
    ],
    ids=["empty", "too-large", "bad-channel", "long-channel", "too-many", "too-much-together"],
)
async def test_a_report_beyond_its_range_is_refused(
    hands: Hands, chunks: list[job_pb2.OutputChunk], field: str
) -> None:
    lease = await hands.running()
    wrong = await refusal(hands.write(lease, *chunks))
    assert wrong.code == grpc.StatusCode.INVALID_ARGUMENT
    assert wrong.fields == {field}
    assert (await hands.job(lease.job_id)).output_bytes == 0


async def test_the_largest_report_is_taken(hands: Hands) -> None:
    lease = await hands.running()
    await hands.write(lease, *(chunk(b"x" * 64 * KIB, at * 64 * KIB) for at in range(16)))
    assert (await hands.job(lease.job_id)).output_bytes == 1 << 20


async def test_above_the_limit_of_a_job_nothing_of_a_report_is_written(hands: Hands) -> None:
    lease = await hands.running(output=policy(10))
    await hands.write(lease, chunk(b"12345678", 0))
    full = await refusal(hands.write(lease, chunk(b"9", 8), chunk(b"ab", 9, "stderr")))
    assert (full.code, full.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUTPUT_FULL")
    assert (await hands.job(lease.job_id)).output_bytes == 8
    await hands.write(lease, chunk(b"90", 8))
    assert await _told(hands, lease) == {1: b"1234567890"}


async def test_the_limit_of_the_queue_holds_over_its_jobs_and_ends_with_them(
    hands: Hands, server: StreamServer
) -> None:
    one, two = await hands.running(), await hands.running()
    await hands.admin.ConfigureQueue(
        admin_service_pb2.ConfigureQueueRequest(
            queue="default", config=admin_service_pb2.QueueConfig(max_output_bytes=100)
        )
    )
    await hands.write(one, chunk(b"x" * 60, 0))
    full = await refusal(hands.write(two, chunk(b"y" * 41, 0)))
    assert (full.code, full.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUTPUT_FULL")
    await hands.write(two, chunk(b"y" * 40, 0))
    queue = (await hands.admin.GetQueue(admin_service_pb2.GetQueueRequest())).queue
    assert (queue.output_bytes, queue.config.max_output_bytes) == (100, 100)
    await hands.complete(one)
    await hands.complete(two)
    await _purge(server, hands)
    queue = (await hands.admin.GetQueue(admin_service_pb2.GetQueueRequest())).queue
    assert queue.output_bytes == 0


async def _purge(server: StreamServer, hands: Hands) -> None:
    """Lets the retention of what has ended be over."""
    server.parts.runner.clock_shift_ms += 30 * 86_400_000
    await server.parts.upkeep.purge("default", 1000)


async def test_output_is_removed_with_the_job(
    hands: Hands, server: StreamServer, store_url: str
) -> None:
    lease = await hands.running()
    await hands.write(lease, chunk(b"x", 0))
    await hands.complete(lease)
    await _purge(server, hands)
    with redis.Redis.from_url(store_url) as client:
        left = [key for key in client.keys("jw:{default}:*") if b":o:" in key or b":j:" in key]
        assert left == []
        assert client.hget("jw:{default}:usage", "output") == b"0"
    assert (await hands.watch(lease.job_id).fails()).code() == grpc.StatusCode.NOT_FOUND


async def test_output_that_went_before_its_job_is_said_to_be_gone(
    hands: Hands, server: StreamServer
) -> None:
    lease = await hands.running()
    async with hands.watch(lease.job_id) as watcher:
        await hands.write(lease, chunk(b"aaaa", 0))
        await watcher.reads(1, b"aaaa")
    await hands.write(lease, chunk(b"bbbb", 4))
    await hands.complete(lease)
    settings = QueueSettings(retain_output_ms=0)
    assert await server.parts.upkeep.trim("default", 10, settings) == 1
    said = refused(await hands.watch(lease.job_id, cursor=watcher.account.cursor).fails())
    assert (said.code, said.reason) == (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_COMPACTED")
    rest = await hands.watch(lease.job_id, cursor=said.metadata["first_available"]).end()
    assert (rest.output, rest.states) == ({}, [SUCCEEDED])
    # Whoever names no point is given what there is.
    assert (await hands.watch(lease.job_id).end()).output == {}
    assert (await hands.job(lease.job_id)).output_bytes == 0


async def test_a_job_of_a_full_queue_that_trims_its_own_output_goes_on(hands: Hands) -> None:
    lease = await hands.running(output=policy(100, TRIM))
    await hands.admin.ConfigureQueue(
        admin_service_pb2.ConfigureQueueRequest(
            queue="default", config=admin_service_pb2.QueueConfig(max_output_bytes=100)
        )
    )
    for number in range(10):
        await hands.write(lease, chunk(bytes([65 + number]) * 50, 50 * number))
    assert (await hands.job(lease.job_id)).output_bytes == 100


@pytest.mark.parametrize(
    ("content", "kept"), [(b"b" * 13 + b"c" * 4, b"b" * 6 + b"c" * 4), ("é" * 8 + "x", "ééééx")]
)
async def test_of_more_at_once_than_a_trimmed_job_keeps_the_newest_stays(
    hands: Hands, content: bytes | str, kept: bytes | str
) -> None:
    lease = await hands.running(output=policy(10, TRIM))
    await hands.write(lease, chunk(b"aaaa", 0))
    await hands.write(lease, chunk(content, 4))
    size, left = len(content_of(chunk(content, 4))), content_of(chunk(kept, 0))
    assert (await hands.job(lease.job_id)).output_bytes == len(left)
    await hands.complete(lease)
    told = await hands.watch(lease.job_id).end()
    assert (told.output, told.starts) == ({1: left}, {1: 4 + size - len(left)})


async def test_an_item_that_is_refused_leaves_the_others_of_its_frame_unharmed(
    hands: Hands, server: StreamServer
) -> None:
    ids = [await hands.submit(output=policy(5)) for _ in range(4)]
    async with RawWorker(server.address, "w2") as worker:
        await worker.attach()
        leases = {one.job_id: one for one in await worker.jobs(4)}
        fits, full, gap, gone = (leases[job_id] for job_id in ids)

        def report(lease: worker_service_pb2.Assignment, token: int, *chunks: Any) -> Report:
            return Report(job_id=lease.job_id, fencing_token=token, output=chunks)

        receipt = await worker.receipt(
            await worker.post(
                reports=[
                    report(fits, fits.fencing_token, chunk(b"12", 0)),
                    report(full, full.fencing_token, chunk(b"123456", 0)),
                    report(gap, gap.fencing_token, chunk(b"1", 1)),
                    report(gone, gone.fencing_token + 1, chunk(b"1", 0)),
                    report(fits, fits.fencing_token, chunk(b"345", 2)),
                ]
            )
        )
        refused_ones = {one.job_id: one.error for one in receipt.refused}
        assert refused_ones.keys() == {full.job_id, gap.job_id, gone.job_id}
        assert refused_ones[full.job_id].code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert refused_ones[gap.job_id].metadata["expected_offset"] == "0"
        for lease, written in ((fits, 5), (full, 0), (gap, 0), (gone, 0)):
            assert (await hands.job(lease.job_id)).output_bytes == written


async def test_trimmed_output_is_said_and_the_cursor_that_is_named_goes_on(hands: Hands) -> None:
    lease = await hands.running(output=policy(10, TRIM))
    async with hands.watch(lease.job_id) as watcher:
        await hands.write(lease, chunk(b"aaaa", 0))
        await watcher.reads(1, b"aaaa")
    for number, letter in enumerate(b"bcdef"):
        await hands.write(lease, chunk(bytes([letter]) * 4, 4 + 4 * number))
    said = refused(await hands.watch(lease.job_id, cursor=watcher.account.cursor).fails())
    assert (said.code, said.reason) == (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_COMPACTED")
    await hands.complete(lease)
    rest = await hands.watch(lease.job_id, cursor=said.metadata["first_available"]).end()
    assert (rest.output, rest.starts) == ({1: b"eeeeffff"}, {1: 16})
    assert rest.states == [SUCCEEDED]
    # Whoever names no point is given what there is.
    assert (await hands.watch(lease.job_id).end()).output == {1: b"eeeeffff"}


async def test_a_cursor_from_before_the_first_byte_is_told_of_what_was_trimmed(
    hands: Hands,
) -> None:
    lease = await hands.running(output=policy(10, TRIM))
    async with hands.watch(lease.job_id) as watcher:
        await watcher.sees(job_pb2.JOB_STATE_RUNNING)
    await hands.write_all(lease, [b"aaaa", b"bbbb", b"cccc"])
    said = refused(await hands.watch(lease.job_id, cursor=watcher.account.cursor).fails())
    assert said.reason == "CURSOR_COMPACTED"


async def test_output_that_is_trimmed_before_a_live_watcher_was_told_is_said(
    hands: Hands, server: StreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await hands.running(output=policy(10, TRIM))
    async with hands.watch(lease.job_id) as watcher:
        await hands.write(lease, chunk(b"aaaa", 0))
        await watcher.reads(1, b"aaaa")
        store, written = server.parts.jobs, asyncio.Event()
        follow = store.follow

        async def late(*args: Any) -> Any:
            await written.wait()
            return await follow(*args)

        monkeypatch.setattr(store, "follow", late)
        await hands.write_all(lease, [b"bbbb", b"cccc", b"dddd", b"eeee"], 4)
        written.set()
        said = refused(await watcher.fails())
    assert said.reason == "CURSOR_COMPACTED"
    rest = hands.watch(lease.job_id, cursor=said.metadata["first_available"])
    await rest.reads(1, b"ddddeeee")
    await rest.break_off()


async def test_whoever_has_all_of_an_attempt_misses_nothing_when_it_is_trimmed(
    hands: Hands,
) -> None:
    first = await hands.running(output=policy(10, TRIM))
    async with hands.watch(first.job_id) as watcher:
        await hands.write(first, chunk(b"0123456789", 0))
        await watcher.reads(1, b"0123456789")
    await hands.complete(first, released=Released())
    second = await hands.claim()
    await hands.write(second, chunk(b"abcdefghij", 0))
    await hands.complete(second)
    account = await hands.watch(first.job_id, watcher.account, cursor=watcher.account.cursor).end()
    assert account.output == {1: b"0123456789", 2: b"abcdefghij"}


async def test_several_attempts_are_told_in_their_order_each_from_its_beginning(
    hands: Hands,
) -> None:
    job_id = await hands.submit()
    async with hands.watch(job_id) as watcher:
        expected = {}
        for number in range(1, 5):
            lease = await hands.claim(job_id)
            pieces = [bytes([64 + number, 48 + at]) for at in range(3)]
            await hands.write_all(lease, pieces)
            expected[lease.attempt] = b"".join(pieces)
            if number < 4:
                await hands.complete(lease, released=Released())
        await hands.complete(lease)
        assert (await watcher.end()).output == expected
    assert (await hands.watch(job_id).end()).output == expected


async def test_an_attempt_that_wrote_keeps_its_number_though_it_is_said_not_to_have_begun(
    hands: Hands, server: StreamServer
) -> None:
    job_id = await hands.submit()
    async with RawWorker(server.address, "mute", acks=False) as mute:
        await mute.attach()
        (lease,) = await mute.jobs(1)
        await mute.send(status=worker_service_pb2.WORKER_STATUS_PAUSED)
        report = Report(
            job_id=job_id, fencing_token=lease.fencing_token, output=[chunk(b"first", 0)]
        )
        assert not (await mute.receipt(await mute.post(reports=[report]))).refused
        assert not (await mute.release(lease, started=False)).refused
    last = await hands.claim()
    await hands.write(last, chunk(b"last", 0))
    await hands.complete(last)
    account = await hands.watch(job_id).end()
    assert account.output == {1: b"first", 2: b"last"}
    assert [attempt.number for attempt in account.jobs[-1].attempts] == [1, 2]
