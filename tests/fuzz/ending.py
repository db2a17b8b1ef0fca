"""Ends everything that a run left behind, and looks at what stays in the store."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import grpc
import redis

from jobwire import CallError, Client, JobState, NotFound
from jobwire.v1.worker_service_pb2 import DeregisterWorkerRequest
from jobwire.v1.worker_service_pb2_grpc import WorkerServiceStub

from tests.faults.checks import KEPT
from tests.fuzz.world import World
from tests.support.dump import check_invariants

SETTLE_S = 30.0
"""For what takes its time: leases that run out, workers that are lost, cancellations."""
MOST_TEXT = 3_000
LIVE = tuple(state for state in JobState if not state.is_terminal)[1:]
_REGISTRY = ("workers", "queues")
_OF_A_WORKER = re.compile(r"jw:\{workers\}:(w:|ids$|seen$|lost$|left$|forget$)")


def end(world: World) -> list[str]:
    """End all workers, schedules and jobs; return what is wrong with what stays."""
    found: list[str] = []
    with (
        Client(world.server.address, timeout_s=20.0) as client,
        grpc.insecure_channel(world.server.address) as channel,
        world.store.client() as raw,
    ):
        stub = WorkerServiceStub(channel)
        queues = _queues(raw)
        _soon(lambda: _nobody_works(client, stub), found, "workers are left")
        for queue in queues:
            _soon(lambda queue=queue: _nothing_comes(client, queue), found, f"{queue}: schedules")
            _soon(lambda queue=queue: _all_ended(client, queue), found, f"{queue}: live jobs")
        _soon(
            lambda: [f"{world.calls_in_hand}"] * bool(world.calls_in_hand), found, "calls in hand"
        )
        for queue in queues:
            found += _disagreements(raw, queue)
            client.purge_jobs(queue).wait()
            found += _disagreements(raw, queue)
        _soon(lambda: _leftovers(raw), found, "keys are left")
    return found


def _soon(left: Callable[[], list[str]], found: list[str], what: str) -> None:
    """Wait until nothing is left; note what is."""
    deadline = time.monotonic() + SETTLE_S
    while still := left():
        if time.monotonic() > deadline:
            found.append(f"{what}: {still[:10]}")
            return
        time.sleep(0.1)


def _queues(raw: redis.Redis) -> list[str]:
    """Every queue that has a key."""
    names = {key.decode()[4:].partition("}")[0] for key in raw.scan_iter(match="jw:{*", count=1000)}
    listed = {name.decode() for name in _members(raw.zrange("jw:{queues}:all", 0, -1))}
    return sorted(listed | {name for name in names if name not in _REGISTRY})


def _members(answer: Any) -> list[bytes]:
    return [*answer]


def _nobody_works(client: Client, stub: WorkerServiceStub) -> list[str]:
    left = [worker.id for worker in client.workers()]
    for worker in left:
        try:
            stub.DeregisterWorker(DeregisterWorkerRequest(worker_id=worker), timeout=20)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
    return left


def _nothing_comes(client: Client, queue: str) -> list[str]:
    try:
        client.resume(queue)
    except NotFound:
        return []
    left = [schedule.id for schedule in client.list_schedules(queue)]
    for schedule in left:
        with suppress(NotFound):
            client.delete_schedule(schedule, queue=queue)
    return left


def _all_ended(client: Client, queue: str) -> list[str]:
    try:
        left = [job.id for job in client.list_jobs(queue, states=LIVE, page_size=500)]
        if left:
            client.cancel_jobs(queue).wait()
    except NotFound:
        return []
    except CallError as error:
        return [str(error)]
    return left


def _disagreements(raw: redis.Redis, queue: str) -> list[str]:
    """What the structures of a queue say against each other."""
    try:
        check_invariants(raw, queue)
    except (AssertionError, KeyError) as error:
        told = traceback.TracebackException.from_exception(error, capture_locals=True)
        return [f"{queue}: {type(error).__name__} {error}: {''.join(told.format())[-MOST_TEXT:]}"]
    return []


def _leftovers(raw: redis.Redis) -> list[str]:
    keys: Iterator[Any] = raw.scan_iter(match="jw:*", count=1000)
    names = sorted(key.decode() for key in keys)
    return [name for name in names if not KEPT.match(name) or _OF_A_WORKER.match(name)]
