"""The producer's stream of a client for threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import grpc

from jobwire._connection import ConnectionOptions
from jobwire._producing.in_threads import ThreadProducer
from jobwire._producing.parcels import HandedBack, News, Outcome
from jobwire._producing.thread_stream import ThreadChanges, ThreadFollower, ThreadParcel
from jobwire._surroundings import has_gevent, leave_behind
from jobwire.errors import CallError, ClientClosed, DeadlineExceeded

_producers: WeakSet[Producer] = WeakSet()


def _before_fork() -> None:
    for producer in [*_producers]:
        producer.before_fork()


def _after_fork() -> None:
    for producer in [*_producers]:
        producer.after_fork()


def _begin_anew() -> None:
    # Before any thread of the child runs: each of them must find the same new state.
    for producer in [*_producers]:
        producer.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_begin_anew
    )


class Producer:
    """The stream of a client: one in each process that uses it.

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
        channel: grpc.Channel | None,
        timeout_s: float | None,
        reconnect_s: float | None,
        evidence: Callable[[str], bool],
    ) -> None:
        self._options = options
        self._channel = channel
        self._timeout_s = timeout_s
        self._reconnect_s = reconnect_s
        self._evidence = evidence
        self._producer: ThreadProducer | None = None
        self._making = threading.Lock()
        self._is_usable = True
        _producers.add(self)

    def _mine(self) -> ThreadProducer | None:
        mine = self._producer
        return self._make() if mine is None or mine.is_over else mine

    def _make(self) -> ThreadProducer | None:
        # Green threads can't be joined before a fork, nor read without a thread of their own.
        if has_gevent() or not self._is_usable:
            return None
        with self._making:
            mine = self._producer
            if mine is None or mine.is_over:
                mine = self._producer = ThreadProducer(
                    self._options,
                    self._channel,
                    self._timeout_s,
                    self._reconnect_s,
                    self._evidence,
                )
            return mine

    def before_fork(self) -> None:
        """End the stream."""
        if self._producer is not None:
            self._producer.before_fork()

    def after_fork(self) -> None:
        """Go on, in the parent."""
        if self._producer is not None:
            self._producer.after_fork()

    def begin_anew(self) -> None:
        """Forget the parent's stream, in a forked child."""
        leave_behind(self._producer)
        self._producer = None
        self._making = threading.Lock()
        # A channel does not outlive a fork; a call tells its caller.
        self._is_usable = self._channel is None

    def send(self, data: bytes, queue: str, **kind: Any) -> Outcome:
        """Send submissions and wait for what becomes of them.

        Args:
            data: A frame with them alone.
            queue: Theirs.
            kind: What else a `Parcel` takes.
        """
        mine = self._mine()
        if mine is None:
            return HandedBack()
        parcel = ThreadParcel(data, queue, **kind)
        if self._timeout_s is not None:
            parcel.ends_at = time.monotonic() + self._timeout_s
        try:
            mine.submit(parcel)
            if not mine.wait(parcel.box, self._timeout_s):
                mine.give_up(parcel)
        finally:
            parcel.is_left = True
        outcome: Outcome = parcel.box.content
        return outcome

    def call(self, data: bytes, queue: str, timeout_s: float | None) -> tuple[Outcome, str]:
        """Send one submission that follows, and wait for the job's end.

        Args:
            data: A frame with it alone.
            queue: Its queue.
            timeout_s: For all of it; None: as long as the job takes.

        Returns:
            The end, or why there is none; and the job, if it was accepted.
        """
        mine = self._mine()
        if mine is None:
            return HandedBack(), ""
        parcel = ThreadParcel(data, queue, follows=True)
        if self._timeout_s is not None:
            parcel.ends_at = time.monotonic() + self._timeout_s
        outcome: Outcome | None = None
        try:
            mine.submit(parcel)
            if not mine.wait(parcel.box, timeout_s):
                mine.say(parcel, _late(parcel.job_id, timeout_s))
            outcome = parcel.box.content
        finally:
            parcel.is_left = True
            if parcel.job_id and (outcome is None or isinstance(outcome, CallError)):
                mine.unfollow(parcel.job_id, parcel)
        assert outcome is not None
        return outcome, parcel.job_id

    def end_of(self, job_id: str, timeout_s: float | None) -> News:
        """Wait for the end of a job.

        Args:
            job_id: The job.
            timeout_s: None: as long as it takes.
        """
        mine = self._mine()
        if mine is None:
            return HandedBack()
        follower = ThreadFollower()
        news: News | None = None
        try:
            mine.follow(job_id, follower)
            if not mine.wait(follower.box, timeout_s):
                mine.say(follower, _late(job_id, timeout_s))
            news = follower.box.content
        finally:
            if news is None or isinstance(news, CallError):
                mine.unfollow(job_id, follower)
        assert news is not None
        return news

    def changes(self, job_id: str, full: bool) -> ThreadChanges | None:
        """Follow the changes of a job; None: that can't be done on a stream now.

        Args:
            job_id: The job.
            full: True: in the FULL view.
        """
        mine = self._mine()
        if mine is None:
            return None
        changes = ThreadChanges(full, mine.tick)
        mine.follow(job_id, changes)
        return changes

    def leave(self, job_id: str, changes: ThreadChanges) -> None:
        """Follow them no longer."""
        if self._producer is not None:
            self._producer.unfollow(job_id, changes)

    def answered(self) -> None:
        """Note that a call was answered."""
        if self._producer is not None:
            self._producer.answered()

    def close(self) -> None:
        """End the stream; those who wait are told that the client was closed."""
        mine, self._producer = self._producer, None
        if mine is not None:
            mine.close(ClientClosed())


def _late(job_id: str, timeout_s: float | None) -> DeadlineExceeded:
    what = f"job {job_id}" if job_id else "the job"
    return DeadlineExceeded(f"{what} did not end within {round(timeout_s or 0, 2):g} s")
