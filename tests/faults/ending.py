"""The quiet after the faults: waits for what is left, and reads what everybody says there is."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import redis

from jobwire import CallError, Client, Job, JobState, NotFound, OutputChunk

from tests.faults.bare import QUEUE
from tests.faults.final import Final
from tests.faults.wishes import QUEUES
from tests.faults.world import World
from tests.support.dump import check_invariants

ALL_QUEUES = (*QUEUES, QUEUE)
NO_WORKER = ("faults.nobody", "bare")
"""Operations of jobs that nobody may take any more: of a client that is gone, or put back."""
LIVE = tuple(state for state in JobState if not state.is_terminal)[1:]


def plain(job: Job, output: dict[str, str] | None = None) -> dict[str, Any]:
    """A job as the checks take it."""
    return {
        "id": job.id,
        "queue": job.queue,
        "operation": job.operation,
        "state": job.state.value,
        "revision": job.revision,
        "token": job.fencing_token,
        "attempt": job.attempt,
        "failures": job.failures,
        "crashes": job.crashes,
        "interruptions": job.interruptions,
        "result": job.result,
        "failure": job.failure.type if job.failure else "",
        "redrives": job.last_redrive.number if job.last_redrive else 0,
        "redriven_at": _unix(job.last_redrive.redriven_at) if job.last_redrive else 0.0,
        "unique_key": job.unique_key.key if job.unique_key else "",
        "created_at": _unix(job.created_at),
        "finished_at": _unix(job.finished_at),
        "deadline": _unix(job.deadline),
        "expires_at": _unix(job.expires_at),
        "timeout_s": job.execution_timeout.total_seconds() if job.execution_timeout else 0.0,
        "attempts": [
            {
                "number": attempt.number,
                "token": attempt.fencing_token,
                "worker": attempt.worker_id,
                "outcome": attempt.outcome.value,
                "started_at": _unix(attempt.started_at),
                "ended_at": _unix(attempt.ended_at),
                "failure": attempt.failure.type if attempt.failure else "",
            }
            for attempt in job.attempts
        ],
        "output": output,
    }


def _unix(moment: Any) -> float:
    return moment.timestamp() if moment is not None else 0.0


def settle(world: World, client: Client, within_s: float) -> list[str]:
    """Waits until every job has ended; returns the ids of those that have not within the time."""
    end = time.monotonic() + within_s
    left: list[str] = []
    while True:
        world.look()
        try:
            jobs = [job for queue in ALL_QUEUES for job in _listed(client, queue, LIVE)]
            left = [job.id for job in jobs]
            if not left:
                return []
            if all(job.operation in NO_WORKER for job in jobs):
                for job in jobs:
                    world.journal.write("cancel", job=job.id)
                    client.cancel(job.id)
        except CallError:
            if time.monotonic() > end:
                raise
        if time.monotonic() > end:
            return left
        time.sleep(0.2)


def patiently(call: Callable[[], Any], world: World, within_s: float) -> Any:
    """Calls until it goes well.

    Raises:
        CallError: It did not within the time.
    """
    end = time.monotonic() + within_s
    while True:
        try:
            return call()
        except (CallError, redis.RedisError):
            if time.monotonic() > end:
                raise
        world.look()
        time.sleep(0.1)


def collect(world: World, client: Client, outputs_of: set[str]) -> Final:
    """Reads every job, every count and every key.

    Args:
        world: With everything healed and nothing under way.
        client: Of any server.
        outputs_of: Jobs whose output is read too.
    """
    final = Final(wall_s=time.time() - time.monotonic())
    for queue in ALL_QUEUES:
        for job in _listed(client, queue, (), full=True):
            output = _output(client, job.id) if job.id in outputs_of else None
            final.jobs[job.id] = plain(job, output)
        with suppress(NotFound):
            depth = client.queue(queue).counts
            final.counts[queue] = {state.value: count for state, count in depth.items() if count}
        with _store(world).client() as raw:
            try:
                check_invariants(raw, queue)
            except (AssertionError, KeyError) as error:
                final.broken.append(f"{queue}: {type(error).__name__} {error}"[:2000])
    return final


def purge(world: World, client: Client) -> list[str]:
    """Forgets every job; returns the keys that stay."""
    for queue in ALL_QUEUES:
        with suppress(NotFound):
            client.purge_jobs(queue).wait()
    with _store(world).client() as raw:
        return sorted(key.decode() for key in raw.scan_iter(match="jw:*", count=1000))


def _store(world: World) -> Any:
    if world.replicas is not None:
        return world.replicas.all.primary
    return world.stores["store"]


def _listed(
    client: Client, queue: str, states: tuple[JobState, ...], *, full: bool = False
) -> list[Job]:
    with suppress(NotFound):
        return [*client.list_jobs(queue, states=states, page_size=500, full=full)]
    return []


def _output(client: Client, job_id: str) -> dict[str, str]:
    """Attempt -> all that it wrote, as kept."""
    found: dict[str, str] = {}
    for event in client.job(job_id).watch(output=True, timeout=60):
        if isinstance(event, OutputChunk):
            attempt = str(event.attempt)
            found[attempt] = found.get(attempt, "") + event.text
    return found
