"""The producer's streams of an asyncio client."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from grpc import aio

from jobwire._connection import ConnectionOptions
from jobwire._producing.loop_stream import LoopChanges, LoopFollower, LoopParcel
from jobwire._producing.on_loop import LoopProducer
from jobwire._producing.parcels import EXACT_BELOW_S, HandedBack, News, Outcome
from jobwire._surroundings import expect_several_loops, forks, leave_behind
from jobwire.errors import CallError, ClientClosed, DeadlineExceeded


class AsyncProducer:
    """The streams of a client: one for each event loop that uses it.

    Args:
        options: Where the servers are.
        channel: An open channel to use in place of others; it stays the caller's.
        timeout_s: How long a submission may take; None: no limit.
        reconnect_s: How long followers wait while no server answers; None: no limit.
        evidence: Asks for a job without a stream; returns True if a server answered.
    """

    def __init__(
        self,
        options: ConnectionOptions,
        channel: aio.Channel | None,
        timeout_s: float | None,
        reconnect_s: float | None,
        evidence: Callable[[str], Awaitable[bool]],
    ) -> None:
        self._options = options
        self._channel = channel
        self._timeout_s = timeout_s
        self._reconnect_s = reconnect_s
        self._evidence = evidence
        self._by_loop: dict[asyncio.AbstractEventLoop, LoopProducer] = {}
        self._making = threading.Lock()
        self._forks = forks()

    def _mine(self) -> LoopProducer:
        loop = asyncio.get_running_loop()
        mine = self._by_loop.get(loop)
        if mine is None or mine.is_over or self._forks != forks():
            mine = self._make(loop)
        return mine

    def _make(self, loop: asyncio.AbstractEventLoop) -> LoopProducer:
        if self._forks != forks():
            leave_behind(self._by_loop)
            self._making = threading.Lock()
            self._by_loop = {}
            self._forks = forks()
        mine = LoopProducer(
            self._options,
            self._channel,
            self._timeout_s,
            self._reconnect_s,
            self._evidence,
        )
        with self._making:
            if self._by_loop.keys() - {loop}:
                expect_several_loops()
            kept = {each: of for each, of in self._by_loop.items() if not each.is_closed()}
            self._by_loop = {**kept, loop: mine}
        return mine

    async def send(self, data: bytes, queue: str, **kind: Any) -> Outcome:
        """Send submissions and wait for what becomes of them.

        Args:
            data: A frame with them alone.
            queue: Theirs.
            kind: What else a `Parcel` takes.
        """
        mine = self._mine()
        if not mine.reach.is_fine and mine.reach.is_doubtful:
            return mine.without()
        loop, allowed_s = mine.loop, self._timeout_s
        parcel = LoopParcel(loop.create_future(), data, queue, **kind)
        if allowed_s is None:
            mine.submit(parcel)
            return await parcel.future
        parcel.ends_at = loop.time() + allowed_s
        mine.submit(parcel)
        if allowed_s > EXACT_BELOW_S:
            return await parcel.future
        timer = loop.call_later(allowed_s, mine.talk.give_up, parcel)
        try:
            return await parcel.future
        finally:
            timer.cancel()

    async def call(self, data: bytes, queue: str, timeout_s: float | None) -> tuple[Outcome, str]:
        """Send one submission that follows, and wait for the job's end.

        Args:
            data: A frame with it alone.
            queue: Its queue.
            timeout_s: For all of it; None: as long as the job takes.

        Returns:
            The end, or why there is none; and the job, if it was accepted.

        Raises:
            DeadlineExceeded: There was no end within `timeout_s`.
        """
        mine = self._mine()
        if not mine.reach.is_fine and mine.reach.is_doubtful:
            return mine.without(), ""
        loop = mine.loop
        parcel = LoopParcel(loop.create_future(), data, queue, follows=True)
        if self._timeout_s is not None:
            parcel.ends_at = loop.time() + self._timeout_s
        timer = None
        if timeout_s is not None:
            timer = loop.call_later(timeout_s, _end_in_vain, parcel, timeout_s)
        outcome: Outcome | None = None
        try:
            mine.submit(parcel)
            outcome = await parcel.future
        finally:
            if timer is not None:
                timer.cancel()
            if parcel.job_id and (outcome is None or isinstance(outcome, CallError)):
                mine.unfollow(parcel.job_id, parcel)
        return outcome, parcel.job_id

    async def end_of(self, job_id: str, timeout_s: float | None) -> News:
        """Wait for the end of a job.

        Args:
            job_id: The job.
            timeout_s: None: as long as it takes.
        """
        mine = self._mine()
        if mine.reach.is_resting:
            return HandedBack()
        loop = mine.loop
        follower = LoopFollower(loop.create_future())
        timer = None
        if timeout_s is not None:
            timer = loop.call_later(timeout_s, _end_in_vain, follower, timeout_s, job_id)
        news: News | None = None
        try:
            mine.follow(job_id, follower)
            news = await follower.future
        finally:
            if timer is not None:
                timer.cancel()
            if news is None or isinstance(news, CallError):
                mine.unfollow(job_id, follower)
        return news

    def changes(self, job_id: str, full: bool) -> LoopChanges | None:
        """Follow the changes of a job; None: that can't be done on a stream now.

        Args:
            job_id: The job.
            full: True: in the FULL view.
        """
        mine = self._mine()
        if mine.reach.is_resting:
            return None
        changes = LoopChanges(full)
        mine.follow(job_id, changes)
        return changes

    def leave(self, job_id: str, changes: LoopChanges) -> None:
        """Follow them no longer."""
        mine = self._by_loop.get(asyncio.get_running_loop())
        if mine is not None:
            mine.unfollow(job_id, changes)

    def answered(self) -> None:
        """Note that a call was answered."""
        mine = self._by_loop.get(asyncio.get_running_loop())
        if mine is not None:
            mine.reach.answered()

    async def close(self) -> None:
        """End all streams; those who wait are told that the client was closed."""
        with self._making:
            by_loop, self._by_loop = self._by_loop, {}
        if self._forks != forks():
            leave_behind(by_loop)
            return
        here = asyncio.get_running_loop()
        for loop, producer in by_loop.items():
            if loop is here:
                if ends := producer.close(ClientClosed()):
                    await asyncio.wait(ends)
            elif not loop.is_closed():
                loop.call_soon_threadsafe(producer.close, ClientClosed())


def _end_in_vain(follower: LoopParcel | LoopFollower, timeout_s: float, job_id: str = "") -> None:
    if isinstance(follower, LoopParcel):
        job_id = follower.job_id
    what = f"job {job_id}" if job_id else "the job"
    follower.hear(DeadlineExceeded(f"{what} did not end within {round(timeout_s, 2):g} s"))
