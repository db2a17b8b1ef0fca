"""One life of a worker, from its registration to its departure."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Literal

from jobwire.v1.worker_service_pb2 import StatusMetadata
from jobwire.worker.core import Core
from jobwire.worker.held import WorkerStats
from jobwire.worker.processes import ProcessPool
from jobwire.worker.settings import WorkerSettings
from jobwire.worker.transport import Transport
from jobwire.worker.watch import Watch

log = logging.getLogger("jobwire.worker")


class Life:
    """A core and its transport; made by `open`."""

    def __init__(self, core: Core, transport: Transport, watch: Watch) -> None:
        self._core = core
        self._transport = transport
        self._watch = watch
        self._conversation = asyncio.create_task(transport.run(), name="conversation")
        self.closing = False

    @classmethod
    async def open(
        cls,
        settings: WorkerSettings,
        transport: Transport,
        processes: ProcessPool,
    ) -> Life:
        """Register the worker.

        Args:
            settings: What it is and serves.
            transport: How it talks to the broker.
            processes: For handlers in processes.

        Raises:
            CallError: The broker refused it.
        """
        core = Core(settings, transport, processes)
        watch = Watch(
            settings, leases=core.leases, stuck=lambda: core.stuck, heard=transport.heard_beside
        )
        try:
            terms = await transport.open(core)
        except BaseException:
            await transport.close()
            raise
        watch.start(terms.heartbeat_interval_s)
        return cls(core, transport, watch)

    @property
    def worker_id(self) -> str:
        """The worker's id."""
        return self._core.spec.worker_id

    @property
    def stats(self) -> WorkerStats:
        """Its counters."""
        return self._core.stats

    def tell(self, metadata: StatusMetadata) -> None:
        """Tell the broker of the worker."""
        self._transport.tell(metadata)

    async def wait_for_end(self, stopping: asyncio.Task[Literal[True]]) -> None:
        """Wait until it is to stop, by our wish or the broker's, or the conversation ends.

        If the broker asked for it, jobs are finished first.

        Raises:
            CallError: The broker refused the worker.
        """
        core = self._core
        ends: set[asyncio.Task[Any]] = {self._conversation, stopping}
        draining = asyncio.create_task(core.draining.wait())
        await _first_of({*ends, draining}, None, draining)
        if draining.done() and not stopping.done():
            log.info("draining: %s", core.drain_reason)
            idle = asyncio.create_task(core.wait_until_idle())
            await _first_of({*ends, idle}, core.drain_within_s, idle)
        if self._conversation.done() and not self._conversation.cancelled():
            error = self._conversation.exception()
            if isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            if error is not None:
                raise error

    async def close(self, grace_s: float | None, hurry: asyncio.Event) -> None:
        """Let running jobs finish, give back the rest, and leave."""
        self.closing = True
        try:
            self._core.drain("the worker stops")
            await self._transport.stop_claiming()
            await self._core.finish(grace_s, hurry, answers=not self._conversation.done())
        finally:
            self._watch.stop()
            self._conversation.cancel()
            await asyncio.wait({self._conversation})
            if not self._conversation.cancelled():
                self._conversation.exception()
            await self._transport.close()


async def _first_of(
    tasks: set[asyncio.Task[Any]], timeout_s: float | None, own: asyncio.Task[Any]
) -> None:
    """Wait for the first of some tasks, and cancel the one that only serves this wait."""
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        own.cancel()
