"""Threads for sync handlers.

The threads are daemons, not those of an executor: a handler that does not stop must not keep the
process from ending.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

J = TypeVar("J")
R = TypeVar("R")


class ThreadPool(Generic[J, R]):
    """Runs jobs in up to `limit` threads and hands the outcomes back in batches.

    A thread that takes a job wakes the next one only if more jobs wait, and only one thread is on
    its way at a time. So jobs that block get a thread each as fast as threads can start, while a
    burst of short ones is done by the few that are awake, without a switch for each.

    Source: the rule of the spinning thread in the scheduler of Go (runtime/proc.go).

    Args:
        limit: The most threads. Above 0.
        name: A job's name, given to the thread while it runs the job.
        run: Runs a job, in a thread; what it returns is the outcome. Must not raise.
        done: Takes outcomes, on the event loop.
    """

    def __init__(
        self,
        limit: int,
        name: Callable[[J], str],
        run: Callable[[J], R],
        done: Callable[[Sequence[tuple[J, R]]], None],
    ) -> None:
        self._limit = limit
        self._name = name
        self._run = run
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._jobs: deque[tuple[J, contextvars.Context]] = deque()
        self._outcomes: deque[tuple[J, R]] = deque()
        self._gathering = False
        self._lock = threading.Lock()
        # Guarded by the lock.
        self._threads = 0
        self._parked: list[threading.Lock] = []
        self._waking = False
        self._closed = False

    def submit(self, jobs: Sequence[J]) -> None:
        """Queue jobs; called on the event loop."""
        for job in jobs:
            self._jobs.append((job, contextvars.copy_context()))
        self._wake_one()

    def close(self) -> None:
        """End the threads as they become free; jobs that wait are dropped."""
        self._jobs.clear()
        with self._lock:
            self._closed = True
            for parked in self._parked:
                parked.release()
            self._parked.clear()

    def forget(self) -> None:
        """Drop what waits, in a forked child, where the other threads do not exist."""
        self._jobs.clear()
        self._outcomes.clear()
        # It may have been taken by a thread that is not there.
        self._lock = threading.Lock()
        self._closed = True

    def _wake_one(self) -> None:
        with self._lock:
            if self._waking or self._closed or not self._jobs:
                return
            if self._parked:
                self._waking = True
                # The one that was parked last has the warmest caches.
                self._parked.pop().release()
                return
            if self._threads == self._limit:
                return
            self._waking = True
            self._threads += 1
        try:
            threading.Thread(target=self._serve, name="jobwire-handler", daemon=True).start()
        except RuntimeError:
            # The system gives no more threads; the existing ones will take the jobs.
            with self._lock:
                self._waking = False
                self._threads -= 1
                if not self._threads:
                    raise

    def _serve(self) -> None:
        me = threading.current_thread()
        parked = threading.Lock()
        parked.acquire()
        while True:
            with self._lock:
                self._waking = False
            self._take_jobs(me)
            with self._lock:
                if self._closed:
                    return
                if self._jobs:
                    # Queued after the last look, when this thread still counted as awake.
                    continue
                self._parked.append(parked)
            me.name = "jobwire-idle"
            parked.acquire()

    def _take_jobs(self, me: threading.Thread) -> None:
        while True:
            try:
                job, variables = self._jobs.popleft()
            except IndexError:
                return
            if self._jobs and not self._waking:
                self._wake_one()
            me.name = self._name(job)
            self._outcomes.append((job, variables.run(self._run, job)))
            if not self._gathering:
                self._gathering = True
                try:
                    self._loop.call_soon_threadsafe(self._gather)
                except RuntimeError:
                    return  # the loop is closed: the worker has given the job back and is gone

    def _gather(self) -> None:
        # Cleared first: what is appended from here on asks for another round.
        self._gathering = False
        batch = [self._outcomes.popleft() for _ in range(len(self._outcomes))]
        if batch:
            self._done(batch)
