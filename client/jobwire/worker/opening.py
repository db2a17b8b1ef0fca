"""How a worker gets its connection to the broker, before its life begins."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import Literal

import grpc
from grpc import aio

from jobwire._connection import ConnectionOptions
from jobwire._repeat import Backoff
from jobwire.errors import CallError
from jobwire.worker.life import Life
from jobwire.worker.processes import ProcessPool
from jobwire.worker.settings import WorkerSettings
from jobwire.worker.transport import START_PATIENCE_S, StreamTransport, UnaryTransport

log = logging.getLogger("jobwire.worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """The way to the broker."""

    connection: ConnectionOptions
    channel: aio.Channel | None
    """An open channel to use in place of any other; it stays the caller's."""
    transport: Literal["stream", "unary"]
    credit_bytes: int
    """The most bytes of jobs that a stream may bring ahead; 0: no limit."""


async def open_life(way: Way, settings: WorkerSettings, processes: ProcessPool) -> Life:
    """Register the worker, in single calls where the broker has no streams.

    Raises:
        CallError: The broker refused the worker.
    """
    if way.transport == "unary":
        return await _open_unary(way, settings, processes)
    backoff = Backoff(max_s=2.0)
    doubtful_until = asyncio.get_running_loop().time() + START_PATIENCE_S
    while True:
        stream = StreamTransport(way.connection, way.channel, way.credit_bytes)
        try:
            return await Life.open(settings, stream, processes)
        except CallError as error:
            if error.code is not grpc.StatusCode.UNIMPLEMENTED:
                raise
        try:
            life = await _open_unary(way, settings, processes, patience_s=0)
        except CallError as neither:
            # No broker says this; it may be a proxy's word, and pass.
            late = asyncio.get_running_loop().time() > doubtful_until
            if neither.code is not grpc.StatusCode.UNIMPLEMENTED or late:
                raise
            log.warning("%s does not seem to be a broker: %s", way.connection.address, neither)
            await asyncio.sleep(backoff.next_s(neither.retry_after_s))
        else:
            log.warning("the broker has no worker streams; making single calls instead")
            return life


async def _open_unary(
    way: Way,
    settings: WorkerSettings,
    processes: ProcessPool,
    patience_s: float = START_PATIENCE_S,
) -> Life:
    unary = UnaryTransport(way.connection, way.channel, patience_s)
    return await Life.open(replace(settings, prefetch=0), unary, processes)
