"""What the tests of the worker share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from jobwire import Context, ProcessOptions, Worker, to_payload
from jobwire.v1 import job_pb2, worker_service_pb2

from tests.client.broker import Broker
from tests.support import warm
from tests.support.stores import free_port


def worker_at(
    address: str, transport: Literal["stream", "unary"], **handlers: Callable[[Context], Any]
) -> Worker:
    """Make a worker with a handler for each operation named."""
    worker = Worker(address, concurrency=4, shutdown_grace_s=10, transport=transport)
    for name, handler in handlers.items():
        worker.operation(name)(handler)
    return worker


def worker_of(broker: Broker, **handlers: Callable[[Context], Any]) -> Worker:
    """Make a worker of that broker, on a stream where it has one."""
    return worker_at(broker.target, "stream", **handlers)


def process_worker(
    broker: Broker,
    *handlers: Callable[[Context], Any],
    options: ProcessOptions | None = None,
    grace_s: float = 10,
) -> Worker:
    """Make a worker that runs handlers in processes, under their own names."""
    worker = Worker(broker.target, concurrency=2, shutdown_grace_s=grace_s, processes=options)
    for handler in handlers:
        worker.operation(handler.__name__, run="process")(handler)
    return worker


async def completion(broker: Broker, job: job_pb2.Job) -> worker_service_pb2.Completion:
    """Return a job's completion, once the worker has sent it."""

    def said() -> list[worker_service_pb2.Completion]:
        calls = broker.calls["CompleteJob"]
        return [call.completion for call in calls if call.completion.job_id == job.job_id]

    await broker.until(said)
    return said()[-1]


async def result(broker: Broker, operation: str, payload: object = None) -> Any:
    """Submit a job and return its result."""
    said = await completion(broker, await broker.add(operation, to_payload(payload)))
    assert said.HasField("success"), said
    return json.loads(said.success.result.json)


async def failure(broker: Broker, operation: str, payload: object = None) -> job_pb2.Failure:
    """Submit a job and return its failure."""
    said = await completion(broker, await broker.add(operation, to_payload(payload)))
    assert said.HasField("failure"), said
    return said.failure


async def cancel(broker: Broker, job: job_pb2.Job) -> None:
    """Cancel a job with the next heartbeat."""
    broker.notices.append(
        worker_service_pb2.CancelNotice(
            job_id=job.job_id, fencing_token=job.fencing_token, reason="changed my mind"
        )
    )


def waiting_for(gate: asyncio.Event) -> Callable[[Context], Any]:
    """Make a handler that reports that it has started and waits for the gate."""

    async def wait(context: Context) -> str:
        context.progress(None, "started")
        await gate.wait()
        return "waited"

    return wait


async def started(broker: Broker, job: job_pb2.Job) -> None:
    """Wait until the handler of a job has reported that."""
    await broker.until(lambda: job.progress.message == "started")


class Server:
    """A broker on a data directory, to kill and start again."""

    def __init__(self, folder: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._serve = ["serve", "--listen", self.address, "--http-listen", "", "--data-dir", folder]
        self._folder = Path(folder)
        self.start()

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self.process = warm.start("jobwire.cli", self._serve, output=log.fileno())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
