"""A worker's conversation on one stream at a time, over whichever server answers."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import grpc
from grpc import aio

from jobwire._channels import open_async_channel
from jobwire._connection import ConnectionOptions
from jobwire._repeat import Backoff, Doubt, doubt_of
from jobwire.errors import CallError, ResourceExhausted
from jobwire.output import OutputLog
from jobwire.v1.job_pb2 import Payload, Progress
from jobwire.v1.worker_service_pb2 import (
    WORKER_STATUS_DRAINING,
    Attach,
    Completion,
    LeaseRef,
    StatusMetadata,
)
from jobwire.v1.worker_service_pb2_grpc import WorkerServiceStub
from jobwire.worker.transport.base import (
    FEATURES,
    MAX_LEASES,
    START_PATIENCE_S,
    STEADY_S,
    Host,
    Terms,
    left_s,
)
from jobwire.worker.transport.fence import Fence
from jobwire.worker.transport.outbox import Outbox
from jobwire.worker.transport.session import Session

log = logging.getLogger("jobwire.worker")

# How long one server may take to answer an attachment; a dead one must not use up the window within
# which the worker keeps its leases. Doubled after each round over the servers, in case they are
# slow rather than dead.
FIRST_PATIENCE_S = 1.0
MOST_PATIENCE_S = 6.0
# The longest wait between two rounds over the servers. Shorter than what a server that has just
# come back gives its workers before it takes their jobs.
MOST_BACKOFF_S = 2.0
# How often the log repeats that no server takes the worker.
SAY_AGAIN_S = 30.0
# How long the worker waits for the server to end the stream after its goodbye.
GOODBYE_S = 5.0


class StreamTransport:
    """Talks on a stream; see `Transport`.

    Each attachment makes a connection of its own, so that a worker which is asked to move gets to
    another server even where all of them are behind one address.

    Args:
        options: Where the servers are.
        channel: An open channel to use in place of those of its own; it stays the caller's.
        credit_bytes: The most bytes of jobs that it may be sent ahead; 0: no limit.
    """

    def __init__(
        self,
        options: ConnectionOptions,
        channel: aio.Channel | None = None,
        credit_bytes: int = 0,
    ) -> None:
        self._options = options
        self._channel = channel
        self._credit_bytes = credit_bytes
        self._metadata = tuple(options.metadata.items())
        self._instance_id = secrets.token_hex(8)
        addresses = [part.strip() for part in options.address.split(",") if part.strip()]
        # Workers that were started together spread over the servers.
        self._addresses = random.sample(addresses, len(addresses))
        self._session: Session | None = None
        self._ending: asyncio.Task[None] | None = None
        self._attempts = 0
        # One for refused attachments and for streams that end soon: they may alternate.
        self._again = Backoff(initial_s=0.05, max_s=MOST_BACKOFF_S)
        self._leaving = False

    async def open(self, host: Host) -> Terms:
        """Attach for the first time, and keep trying while no server answers."""
        self._host = host
        self._outbox = Outbox(host)
        # Where an attachment names the leases, the broker takes back what it does not name.
        self._fence = Fence(host, lambda leases: None)
        session = await self._attach()
        self._go_on_with(session)
        return Terms(
            heartbeat_interval_s=session.interval_s,
            lease_s=session.lease_s,
            server_id=session.attached.server_id,
        )

    async def run(self) -> None:
        """Keep a stream until cancelled, over restarts of servers.

        Raises:
            CallError: The broker refused the worker for good.
        """
        while True:
            session, ending = self._session, self._ending
            assert session is not None
            assert ending is not None
            either: set[asyncio.Future[Any]] = {ending, session.drain}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                self._after_end(session, ending)
            elif (drain := session.drain.result()).leave:
                self._host.drain(drain.reason or "the broker asked for it", left_s(drain))
                await asyncio.wait({ending})
                self._after_end(session, ending)
            else:
                log.info("moving to another stream: %s", drain.reason)
            if self._leaving:
                return
            if session.was_silent:
                # What hangs there may take connections and answer nothing.
                self._addresses.append(self._addresses.pop(0))
            if session.lasted_s >= STEADY_S:
                self._again.reset()
            else:
                await asyncio.sleep(self._again.next_s())
            # Beside the old stream, if that one is to be left; in its place otherwise.
            following = await self._attach(beside=session)
            self._go_on_with(following)
            ending.cancel()
            # How it ended does not matter any more; most likely as superseded by its follower.
            await asyncio.gather(ending, return_exceptions=True)

    def _after_end(self, session: Session, ending: asyncio.Task[None]) -> None:
        """Log why a stream ended.

        Raises:
            CallError: It must not be followed by another one.
        """
        error = ending.exception()
        if self._leaving:
            return
        if isinstance(error, ResourceExhausted) and not error.reason:
            # Not the broker's word but the transport's: a frame was too large for it.
            self._outbox.refuse_oversized()
        elif isinstance(error, CallError) and _is_final(error):
            log.error("the broker ended the stream for good: %s", error)
            # Somebody else has the leases, or will have them when the window is over.
            self._host.lose_all()
            raise error
        elif error is not None and not isinstance(error, CallError):
            raise error
        log.warning("the stream is lost, attaching again: %s", error or "the server ended it")

    def _fence_after(self, session: Session) -> None:
        """Set the fence when a stream has ended, unless another one follows it already."""
        if self._session is session and not self._fence.is_set and not self._leaving:
            self._fence.set(session.heard_at, session.contact_s)

    def heard_beside(self, at: float) -> None:
        """Note a call beside the transport that the broker answered; called from any thread."""
        self._fence.heard_beside(at)

    def _go_on_with(self, session: Session) -> None:
        self._fence.lift()
        self._session = session
        self._ending = asyncio.create_task(
            session.run(self._host, self._outbox), name="work-stream"
        )
        self._ending.add_done_callback(lambda ending: self._fence_after(session))

    async def _attach(self, beside: Session | None = None) -> Session:
        """Attach to any server, however long it takes; take over the outbox of the last stream.

        Raises:
            CallError: The broker refuses the worker for good.
        """
        loop = asyncio.get_running_loop()
        began, say_at, patience_s = loop.time(), loop.time(), FIRST_PATIENCE_S
        while True:
            retry_after_s: float | None = None
            for _ in range(len(self._addresses)):
                address, fallen = self._addresses[0], self._fence.fallen
                try:
                    session = await self._attach_to(address, patience_s, beside)
                    if fallen == self._fence.fallen:
                        return session
                    # It has just named leases that were given up meanwhile.
                    await session.close()
                    continue
                except CallError as error:
                    if self._gives_up(error, loop.time() - began):
                        raise
                    if loop.time() >= say_at:
                        say_at = loop.time() + SAY_AGAIN_S
                        log.warning("%s does not take the worker, still trying: %s", address, error)
                    retry_after_s = error.retry_after_s
                self._addresses.append(self._addresses.pop(0))
            patience_s = min(2 * patience_s, MOST_PATIENCE_S)
            await asyncio.sleep(self._again.next_s(retry_after_s))

    def _gives_up(self, error: CallError, tried_s: float) -> bool:
        if doubt_of(error) is Doubt.PROXY and self._session is None:
            # Whoever chose this transport may know another one.
            return error.code is grpc.StatusCode.UNIMPLEMENTED or tried_s > START_PATIENCE_S
        return _is_final(error)

    async def _attach_to(self, address: str, patience_s: float, beside: Session | None) -> Session:
        channel = self._channel or open_async_channel(replace(self._options, target=address))
        self._attempts += 1
        attach = Attach(
            worker=self._host.spec,
            instance_id=self._instance_id,
            leases=self._host.leases()[:MAX_LEASES],
            credits=self._host.capacity,
            credit_bytes=self._credit_bytes,
            attempt=self._attempts,
            features=FEATURES,
        )
        # What the old stream brings from here on is not among the leases just named, so the
        # server takes it back.
        if beside is not None:
            beside.refuse_jobs()
        try:
            session = await Session.attach(
                WorkerServiceStub(channel),
                attach,
                self._metadata,
                patience_s,
                channel,
                self._channel is None,
            )
        except BaseException:
            if self._channel is None:
                await channel.close()
            raise
        if beside is not None:
            beside.hush()
        self._outbox.attach(attach.credits, session.attached.features)
        log.debug("attached to %s at %s", session.attached.server_id, address)
        return session

    async def stop_claiming(self) -> None:
        """Take no more jobs; the host gives back those that still arrive."""
        self._outbox.tell_status(WORKER_STATUS_DRAINING)

    def tell(self, metadata: StatusMetadata) -> None:
        """Tell the broker of the worker."""
        self._outbox.tell(metadata)

    def capacity_changed(self) -> None:
        """Note that `Host.capacity` has changed."""
        self._outbox.tell_credits()

    def report(
        self,
        lease: LeaseRef,
        progress: Progress | None,
        output: OutputLog | None = None,
        checkpoint: Payload | None = None,
    ) -> None:
        """Report a job's progress, output and checkpoint."""
        self._outbox.report(lease, progress, output, checkpoint)

    def complete(self, completions: Sequence[Completion]) -> None:
        """Report the ends of attempts."""
        self._outbox.complete(completions)

    async def close(self) -> None:
        """Say goodbye if there is a stream, and close the connection."""
        self._leaving = True
        ending = self._ending
        if ending is None:
            return
        self._fence.lift()
        if not ending.done():
            self._outbox.detach()
            await asyncio.wait({ending}, timeout=GOODBYE_S)
        if not ending.done():
            log.info("the server did not answer the goodbye")
            ending.cancel()
            await asyncio.wait({ending})
        if not ending.cancelled() and (error := ending.exception()) is not None:
            log.info("the stream broke while it was closed: %s", error)
        self._outbox.close()


def _is_final(error: CallError) -> bool:
    """Tell whether another attachment would be refused as well."""
    if error.reason == "SUPERSEDED":
        # By a stream of this very process it can only be a misunderstanding.
        return error.metadata.get("same_process") == "false"
    return error.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ABORTED)
