"""kill -9 of servers under watchers: they resume elsewhere and miss and double nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import cycle
from typing import Any

import grpc

from tests.support.servers import ServerProcess
from tests.support.stores import StoreProcess
from tests.watch.support import SUCCEEDED, Account, Hands, chunk

WATCHERS = 10
PIECES = 150
DEADLINE_S = 60.0


async def _persist(call: Callable[[Hands], Awaitable[Any]], hands: list[Hands]) -> Any:
    """Makes a call at one server after the other until it is answered."""
    for one in cycle(hands):
        try:
            return await call(one)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
        await asyncio.sleep(0.02)


async def _watch(job_id: str, account: Account, hands: list[Hands]) -> None:
    for one in cycle(hands):
        if account.finished:
            return
        request = {"cursor": account.cursor} if account.cursor else {}
        watcher = one.watch(job_id, account, **request)
        try:
            await watcher.end()
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
        await asyncio.sleep(0.02)


async def test_watchers_outlive_kills_of_the_servers_that_they_watch_at(
    own_store: StoreProcess,
) -> None:
    # The worker must not be lost while servers are started on a machine that is busy.
    flags = ("--redis-url", own_store.url, "--worker-timeout", "1m", "--lease", "1m")
    servers = [ServerProcess(*flags) for _ in range(2)]
    hands: list[Hands] = []
    try:
        for server in servers:
            server.start()
            hands.append(Hands(server.address))
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
            await _persist(lambda one: one.register(), hands)
            lease = await _persist(lambda one: one.running(), hands)
            accounts = [Account() for _ in range(WATCHERS)]
            for number, account in enumerate(accounts):
                order = hands[number % 2 :] + hands[: number % 2]
                group.create_task(_watch(lease.job_id, account, order))
            written = b""
            for number in range(PIECES):
                piece = chunk(f"line {number}\n", len(written))
                await _persist(lambda one, piece=piece: one.write(lease, piece), hands)  # type: ignore[misc]
                written += piece.text.encode()
                if number in (40, 80, 120):
                    victim = servers[number // 40 % 2]
                    victim.kill()
                    await asyncio.to_thread(victim.start)
            await _persist(lambda one: one.complete(lease), hands)
        for account in accounts:
            assert account.output == {1: written}
            assert account.states[-1] == SUCCEEDED
    finally:
        for one in hands:
            await one.channel.close()
        for server in servers:
            await asyncio.to_thread(server.stop)
