"""What the tests of the worker share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from jobwire import Context, Worker
from jobwire.v1 import job_pb2, worker_service_pb2

from tests.client.broker import Broker


def worker_of(broker: Broker, **handlers: Callable[[Context], Any]) -> Worker:
    """A worker with a handler for each operation named."""
    worker = Worker(broker.target, concurrency=4, shutdown_grace_s=10)
    for name, handler in handlers.items():
        worker.operation(name)(handler)
    return worker


async def completion(broker: Broker, job: job_pb2.Job) -> worker_service_pb2.Completion:
    """Waits for the worker's word about a job."""

    def said() -> list[worker_service_pb2.Completion]:
        calls = broker.calls["CompleteJob"]
        return [call.completion for call in calls if call.completion.job_id == job.id]

    await broker.until(said)
    return said()[-1]


async def cancel(broker: Broker, job: job_pb2.Job) -> None:
    """Lets the next heartbeat bring a cancellation."""
    broker.notices.append(
        worker_service_pb2.CancelNotice(
            job_id=job.id, fencing_token=job.fencing_token, reason="changed my mind"
        )
    )


def waiting_for(gate: asyncio.Event) -> Callable[[Context], Any]:
    """A handler that says that it has started and waits for the gate."""

    async def wait(context: Context) -> str:
        context.progress(None, "started")
        await gate.wait()
        return "waited"

    return wait


async def started(broker: Broker, job: job_pb2.Job) -> None:
    """Waits until the handler of a job has said so."""
    await broker.until(lambda: job.progress.message == "started")
