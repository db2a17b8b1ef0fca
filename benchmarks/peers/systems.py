"""The systems: what they are called, how they run, and how their store tells what is done."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.installing import PEERS, go_program, node_peer, python_peer
from benchmarks.stores import Store

Make = Callable[[Path], Sequence[Sequence[str]]]


@dataclass(frozen=True, slots=True)
class System:
    """Another job system."""

    name: str
    version: str
    install: tuple[Path, Make, Sequence[str]]
    """Its folder, how it is made, and the command to which `produce` or `work` is added."""
    left: Callable[[Store, int], Awaitable[int]]
    """Returns how many of so many jobs are not done; cheap, and right once all were submitted."""
    results: Callable[[Store], Awaitable[int]]
    """Counts the stored results that say success."""
    killed: str
    """What its documentation says of jobs that run in a worker which is killed."""
    waiting: str | None = None
    """The list of the jobs that wait, of a system whose program can also do one thing at a time
    (`produce-one`, `work-one`)."""


async def _left_unless_listed(store: Store, key: str, command: str, count: int) -> int:
    return count - int(await store.command(command, key))


async def _values(store: Store, pattern: str) -> list[bytes]:
    """Returns all values of keys that match."""
    values: list[bytes] = []
    async for keys in _scan(store, pattern):
        values += [value for value in await store.command("MGET", *keys) if value is not None]
    return values


async def _scan(store: Store, pattern: str):  # type: ignore[no-untyped-def]
    cursor: int | bytes = 0
    while True:
        cursor, keys = await store.command("SCAN", cursor, "MATCH", pattern, "COUNT", 5_000)
        if keys:
            yield keys
        if int(cursor) == 0:
            return


async def _celery_left(store: Store, count: int) -> int:
    waiting = int(await store.command("LLEN", "bench"))
    return waiting + int(await store.command("HLEN", "unacked"))


async def _celery_results(store: Store) -> int:
    found = await _values(store, "celery-task-meta-*")
    return sum(json.loads(value)["status"] == "SUCCESS" for value in found)


async def _huey_left(store: Store, count: int) -> int:
    return await _left_unless_listed(store, "huey.results.bench", "HLEN", count)


async def _huey_results(store: Store) -> int:
    # Values are pickled; an error would be stored as an object of Huey's.
    found = await store.command("HVALS", "huey.results.bench")
    return sum(b"done" in value for value in found)


async def _dramatiq_left(store: Store, count: int) -> int:
    return int(await store.command("HLEN", "dramatiq:bench.msgs"))


async def _dramatiq_results(store: Store) -> int:
    found = 0
    # Its keys are the MD5 sums of what it calls a result.
    async for keys in _scan(store, "[0-9a-f]" * 32):
        for key in keys:
            (value,) = await store.command("LRANGE", key, 0, 0)
            found += b"done" in value
    return found


async def _bullmq_left(store: Store, count: int) -> int:
    return await _left_unless_listed(store, "bull:bench:completed", "ZCARD", count)


async def _bullmq_results(store: Store) -> int:
    found = 0
    ids = await store.command("ZRANGE", "bull:bench:completed", 0, -1)
    for at in ids:
        value = await store.command("HGET", f"bull:bench:{at.decode()}", "returnvalue")
        found += value.startswith(b'"done')
    return found


async def _asynq_left(store: Store, count: int) -> int:
    return await _left_unless_listed(store, "asynq:{default}:completed", "ZCARD", count)


async def _asynq_results(store: Store) -> int:
    found = 0
    for at in await store.command("ZRANGE", "asynq:{default}:completed", 0, -1):
        value = await store.command("HGET", f"asynq:{{default}}:t:{at.decode()}", "result")
        found += value == b"done"
    return found


SYSTEMS = (
    System(
        "celery",
        "5.7.0",
        python_peer("celery"),
        _celery_left,
        _celery_results,
        "with acks_late its jobs run again after the visibility timeout, 1 h",
        waiting="bench",
    ),
    System(
        "huey",
        "3.5.4",
        python_peer("huey"),
        _huey_left,
        _huey_results,
        "what it ran is lost: a task leaves the queue before it runs",
        waiting="huey.redis.bench",
    ),
    System(
        "dramatiq",
        "2.2.1",
        python_peer("dramatiq"),
        _dramatiq_left,
        _dramatiq_results,
        "its jobs run again once its heartbeat is missed, 60 s",
    ),
    System(
        "bullmq",
        "6.7.0",
        node_peer("bullmq"),
        _bullmq_left,
        _bullmq_results,
        "its jobs run again once they stall, 30 s, and fail if they stall again",
        waiting="bull:bench:wait",
    ),
    System(
        "asynq",
        "0.26.0",
        go_program(PEERS / "asynq"),
        _asynq_left,
        _asynq_results,
        "its jobs run again once their lease is over, 30 s",
    ),
)
