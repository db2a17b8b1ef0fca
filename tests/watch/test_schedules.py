"""Random schedules of changes, output, breaks, kills of servers and restarts of the store.

However it goes, every watcher ends with exactly the bytes that were written, in order, with the
final state, and with no state older than one that it has seen.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Any

import grpc
import pytest

from jobwire.v1 import job_service_pb2, worker_service_pb2
from jobwire.v1.worker_service_pb2 import Released
from jobwire_server.domain.options import Limits

from tests.support.grpc_servers import refused
from tests.support.stores import Engine, StoreProcess
from tests.support.streams import StreamServer, stream_server
from tests.watch.conftest import OPTIONS
from tests.watch.support import SUCCEEDED, Account, Hands, chunk

WATCHERS = 8
STEPS = 120
DEADLINE_S = 60.0
ROOMY = replace(OPTIONS, limits=Limits())
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)


class Fleet:
    """Two servers on one store, which are replaced while others use them."""

    def __init__(self, url: str, chance: random.Random) -> None:
        self._url = url
        self._chance = chance
        self._number = 0
        self._running: list[tuple[AsyncExitStack, StreamServer, Hands]] = []

    async def start_one(self) -> None:
        """Starts another server."""
        self._number += 1
        stack = AsyncExitStack()
        server = await stack.enter_async_context(
            stream_server(self._url, ROOMY, f"s{self._number}")
        )
        hands = await stack.enter_async_context(Hands(server.address))
        self._running.append((stack, server, hands))

    async def kill_one(self) -> None:
        """Cuts all calls of one server off, ends it, and starts another."""
        stack, server, _ = self._running.pop(self._chance.randrange(len(self._running)))
        await server.server.stop(None)
        await stack.aclose()
        await self.start_one()

    def any(self) -> Hands:
        """A client of one of the servers."""
        return self._chance.choice(self._running)[2]

    async def stop(self) -> None:
        for stack, _, _ in self._running:
            await stack.aclose()


async def _persist(call: Callable[[], Awaitable[Any]]) -> Any:
    """Makes a call that may be repeated until it is answered."""
    while True:
        try:
            return await call()
        except (grpc.aio.AioRpcError, asyncio.CancelledError, grpc.aio.UsageError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            if isinstance(error, grpc.aio.AioRpcError) and error.code() not in AGAIN:
                raise
        await asyncio.sleep(0.01)


class Work:
    """The worker's side: what it wrote is what watchers must be told."""

    def __init__(self, fleet: Fleet, job_id: str, chance: random.Random) -> None:
        self._fleet = fleet
        self._job_id = job_id
        self._chance = chance
        self._lease: worker_service_pb2.Assignment | None = None
        self._number = 0
        self.written: dict[int, bytes] = {}

    async def _claim(self) -> worker_service_pb2.Assignment:
        if self._lease is None:
            await _persist(lambda: self._fleet.any().register())
            request = worker_service_pb2.ClaimJobRequest(worker_id="w1", job_id=self._job_id)
            answer = await _persist(lambda: self._fleet.any().workers.ClaimJob(request))
            self._lease = answer.assignments[0]
        return self._lease

    async def write(self) -> None:
        """Writes some bytes, at times repeating some of the last."""
        lease = await self._claim()
        so_far = self.written.get(lease.attempt, b"")
        fresh = self._chance.randbytes(self._chance.choice((1, 10, 100, 5_000, 60_000)))
        back = min(len(so_far), self._chance.choice((0, 0, 3)))
        whole = so_far + fresh
        piece = chunk(whole[len(so_far) - back :], len(so_far) - back)
        await _persist(lambda: self._fleet.any().write(lease, piece))
        self.written[lease.attempt] = whole

    async def progress(self) -> None:
        self._number += 1
        lease = await self._claim()
        await _persist(lambda: self._fleet.any().progress(lease, str(self._number)))

    async def release(self) -> None:
        """Ends the attempt; another one follows."""
        lease = await self._claim()
        await _persist(lambda: self._fleet.any().complete(lease, released=Released()))
        self._lease = None

    async def finish(self) -> None:
        lease = await self._claim()
        await _persist(lambda: self._fleet.any().complete(lease))


async def _watch(fleet: Fleet, job_id: str, account: Account, chance: random.Random) -> None:
    """Watches to the end, resuming at any server after each break, its own included."""
    while not account.finished:
        request = job_service_pb2.WatchJobRequest(job_id=job_id)
        if account.cursor:
            request.cursor = account.cursor
        call: Any = None
        left = chance.choice((1, 2, 5, 1_000))
        with suppress(grpc.aio.UsageError):
            call = fleet.any().jobs.WatchJob(request)
        try:
            if call is not None:
                async for answer in call:
                    account.take(answer)
                    left -= 1
                    if not left:
                        break
                    # A slow reader now and then.
                    if chance.random() < 0.1:
                        await asyncio.sleep(0.01)
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            if isinstance(error, grpc.aio.AioRpcError) and error.code() not in AGAIN:
                raise AssertionError(refused(error)) from error
        finally:
            if call is not None:
                call.cancel()
        await asyncio.sleep(0.002)


@pytest.mark.parametrize("seed", range(3))
async def test_every_watcher_ends_with_all_output_and_the_final_state(
    seed: int, own_store: StoreProcess, store_engine: Engine
) -> None:
    chance = random.Random(f"{seed}-{store_engine}")
    with own_store.client() as client:
        # A restart must not lose what was acknowledged: that is not what is tried here.
        client.execute_command("CONFIG", "SET", "appendfsync", "always")
    own_store.config = (*own_store.config, "--appendfsync", "always")
    fleet = Fleet(own_store.url, chance)
    try:
        async with asyncio.timeout(DEADLINE_S):
            for _ in range(2):
                await fleet.start_one()
            job_id = await fleet.any().submit()
            work = Work(fleet, job_id, chance)
            accounts = [Account() for _ in range(WATCHERS)]
            async with asyncio.TaskGroup() as group:
                for number, account in enumerate(accounts):
                    own = random.Random(f"{seed}-{number}")
                    group.create_task(_watch(fleet, job_id, account, own))

                async def restart() -> None:
                    await asyncio.to_thread(own_store.restart)

                steps: dict[Callable[[], Awaitable[None]], float] = {
                    work.write: 30,
                    work.progress: 10,
                    work.release: 3,
                    fleet.kill_one: 2,
                    restart: 1,
                }
                for step in chance.choices([*steps], [*steps.values()], k=STEPS):
                    await step()
                await work.write()
                await work.finish()
        final = await fleet.any().job(job_id)
        for account in accounts:
            assert account.output == work.written
            assert not any(account.starts.values())
            assert account.jobs[-1].state == SUCCEEDED
            assert account.jobs[-1].revision == final.revision
    finally:
        await fleet.stop()
