"""WatchWorkers, WatchQueues and ConfigureQueue: what operators see, as it changes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import grpc
import pytest

from jobwire.v1 import admin_service_pb2
from jobwire.v1.worker_service_pb2 import (
    WORKER_STATUS_LOST,
    WORKER_STATUS_PAUSED,
    WORKER_STATUS_READY,
    DeregisterWorkerRequest,
    UpdateWorkerStatusRequest,
)

from tests.support.grpc_servers import refusal
from tests.support.streams import RawWorker, StreamServer, stream_server
from tests.support.waiting import eventually
from tests.watch.conftest import OPTIONS
from tests.watch.support import PENDING, SUCCEEDED, Hands


class Reader:
    """A stream that is read in the background."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.answers: list[Any] = []
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for answer in self.call:
            self.answers.append(answer)

    async def until(self, condition: Any, what: str) -> None:
        await eventually(lambda: condition() or self.task.done(), what)
        assert condition(), self.task

    async def __aenter__(self) -> Reader:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()
        with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await self.task


def _workers(hands: Hands, queue: str = "") -> Reader:
    return Reader(hands.admin.WatchWorkers(admin_service_pb2.WatchWorkersRequest(queue=queue)))


def _told(reader: Reader, worker_id: str) -> list[Any]:
    """The workers of that id in the order in which they were told, `left` for its leaving."""
    found: list[Any] = []
    for answer in reader.answers:
        if answer.worker.spec.worker_id == worker_id:
            found.append(answer.worker)
        elif answer.left.worker_id == worker_id:
            found.append("left")
    return found


async def test_workers_are_told_as_they_stand_and_then_as_they_come_change_and_leave(
    hands: Hands, server: StreamServer
) -> None:
    async with _workers(hands) as reader:
        await reader.until(lambda: reader.answers[-1:], "answers")
        await reader.until(lambda: reader.answers[-1].bookmark.caught_up, "caught up")
        assert [worker.status for worker in _told(reader, "w1")] == [WORKER_STATUS_READY]
        async with RawWorker(server.address, "w2") as streaming:
            await streaming.attach()
            await reader.until(lambda: _told(reader, "w2"), "w2 attaches")
            assert _told(reader, "w2")[-1].attached
            await streaming.set_status(WORKER_STATUS_PAUSED)
            await reader.until(
                lambda: _told(reader, "w2")[-1].status == WORKER_STATUS_PAUSED, "w2 pauses"
            )
            await streaming.leave()
            await reader.until(lambda: _told(reader, "w2")[-1] == "left", "w2 leaves")
        await hands.workers.UpdateWorkerStatus(
            UpdateWorkerStatusRequest(worker_id="w1", status=WORKER_STATUS_PAUSED)
        )
        await reader.until(
            lambda: _told(reader, "w1")[-1].status == WORKER_STATUS_PAUSED, "w1 pauses"
        )
        await hands.workers.DeregisterWorker(DeregisterWorkerRequest(worker_id="w1"))
        await reader.until(lambda: _told(reader, "w1")[-1] == "left", "w1 leaves")


async def test_a_worker_that_falls_silent_is_told_to_be_lost(valkey_url: str) -> None:
    async with (
        stream_server(valkey_url) as server,
        Hands(server.address) as hands,
        _workers(hands) as reader,
    ):
        await hands.register()
        await reader.until(lambda: _told(reader, "w1"), "w1 registers")
        server.parts.runner.clock_shift_ms += 60_000
        await server.parts.reaper.sweep()
        await reader.until(
            lambda: _told(reader, "w1")[-1].status == WORKER_STATUS_LOST, "w1 is lost"
        )


async def test_only_workers_of_the_queue_that_is_named_are_told(hands: Hands) -> None:
    async with _workers(hands, "elsewhere") as reader:
        await hands.register("default", "elsewhere")
        await reader.until(lambda: _told(reader, "w1"), "w1 serves it")
        assert [answer.worker.spec.queues for answer in reader.answers if answer.worker.status] == [
            ["default", "elsewhere"]
        ]


async def test_queues_are_told_at_first_and_then_when_they_change(hands: Hands) -> None:
    one = await hands.submit()
    request = admin_service_pb2.WatchQueuesRequest()
    request.interval.FromMilliseconds(200)
    async with Reader(hands.admin.WatchQueues(request)) as reader:

        def depth(queue: str) -> dict[int, int]:
            for answer in reversed(reader.answers):
                for found in answer.queues:
                    if found.queue == queue:
                        return {item.state: item.count for item in found.counts}
            return {}

        await reader.until(lambda: depth("default") == {PENDING: 1}, "the queue as it stands")
        await hands.submit("other")
        await reader.until(lambda: depth("other") == {PENDING: 1}, "a new queue")
        await hands.complete(await hands.claim(one))
        await reader.until(lambda: depth("default") == {SUCCEEDED: 1}, "the change")


async def test_only_the_queues_that_are_named_are_told(hands: Hands) -> None:
    await hands.submit()
    await hands.submit("other")
    request = admin_service_pb2.WatchQueuesRequest(queues=["other"])
    async with Reader(hands.admin.WatchQueues(request)) as reader:
        await reader.until(lambda: reader.answers, "an answer")
        assert [queue.queue for queue in reader.answers[0].queues] == ["other"]


async def test_watchers_of_queues_and_workers_are_told_that_the_server_drains(
    store_url: str,
) -> None:
    async with stream_server(store_url, OPTIONS) as server, Hands(server.address) as hands:
        await hands.submit()
        request = admin_service_pb2.WatchQueuesRequest()
        request.interval.FromSeconds(3600)
        async with Reader(hands.admin.WatchQueues(request)) as queues, _workers(hands) as workers:
            await queues.until(lambda: queues.answers, "an answer")
            await workers.until(lambda: workers.answers, "an answer")
            await server.router.drain(5)
            for reader in (queues, workers):
                await eventually(reader.task.done, "the stream ends")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await reader.task
                assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_settings_of_a_queue_stay_unless_they_are_named(hands: Hands) -> None:
    await hands.submit()

    async def configure(**settings: int) -> tuple[int, int]:
        answer = await hands.admin.ConfigureQueue(
            admin_service_pb2.ConfigureQueueRequest(
                queue="default", config=admin_service_pb2.QueueConfig(**settings)
            )
        )
        config = answer.queue.config
        return config.event_log_entries, config.max_output_bytes

    assert await configure(event_log_entries=50) == (50, 0)
    assert await configure(max_output_bytes=7) == (50, 7)
    assert await configure() == (50, 7)
    assert await configure(event_log_entries=0) == (0, 7)
    assert await configure(max_output_bytes=0) == (0, 0)
    unknown = admin_service_pb2.ConfigureQueueRequest(queue="nobody")
    assert (await refusal(hands.admin.ConfigureQueue(unknown))).reason == "QUEUE_NOT_FOUND"
    wrong = admin_service_pb2.ConfigureQueueRequest(
        queue="default", config=admin_service_pb2.QueueConfig(event_log_entries=1_000_001)
    )
    said = await refusal(hands.admin.ConfigureQueue(wrong))
    assert said.fields == {"config.event_log_entries"}
