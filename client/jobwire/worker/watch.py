"""Watches the event loop from a thread: logs what blocks it, and sends heartbeats meanwhile.

A handler that sleeps or computes on the loop keeps the stream from being read and written, and the
broker would count the worker as lost. As long as other threads run (`time.sleep`, most I/O, Python
code), this one sends heartbeats in calls beside the stream. While a call into C holds Python's lock
no thread runs; the broker tolerates that for its `worker_timeout`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from types import FrameType

import grpc

from jobwire._channels import open_sync_channel
from jobwire.v1.worker_service_pb2 import HeartbeatRequest, LeaseRef
from jobwire.v1.worker_service_pb2_grpc import WorkerServiceStub
from jobwire.worker.held import Held
from jobwire.worker.runner import held_in, where
from jobwire.worker.settings import WorkerSettings

log = logging.getLogger("jobwire.worker")

TICK_S = 0.25
# The watch sends heartbeats for a loop that has not run for this long.
SPEAK_AFTER_S = 1.0
# ... and logs what blocks it, again whenever the time has doubled.
NAME_AFTER_S = 2.0
# Blocks that follow one another are logged at most this often.
NAME_EVERY_S = 10.0
# A loop that stands still for this long can take no jobs: all slots count as stuck.
STUCK_AFTER_S = 10.0
CALL_TIMEOUT_S = 5.0
STACK_FRAMES = 12


class Watch:
    """Watches the loop that it is made on. `start` and `stop` are idempotent.

    Args:
        settings: Of the worker: in whose name it speaks, and where the broker is.
        leases: What the worker holds; called from the thread, while the loop stands still.
        stuck: How many of its handlers do not stop; as for `leases`.
        heard: Told, in the thread, when a call was begun that the broker answered.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        leases: Callable[[], Sequence[LeaseRef]],
        stuck: Callable[[], int],
        heard: Callable[[float], None],
    ) -> None:
        self._worker_id = settings.spec.worker_id
        self._concurrency = settings.spec.concurrency
        self._connection = settings.connection
        self._growth = settings.growth
        self._leases = leases
        self._stuck = stuck
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._interval_s = 5.0
        self._ran_at = monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._channel: grpc.Channel | None = None
        self._said_at = self._named_at = float("-inf")
        self._next_name_s = NAME_AFTER_S
        self._unnamed = 0
        self._told_stuck = False

    def start(self, interval_s: float) -> None:
        """Start watching.

        Args:
            interval_s: How often the broker wants to hear of the worker, seconds.
        """
        if self._thread is None:
            self._interval_s = interval_s
            self._tick()
            self._thread = threading.Thread(target=self._watch, name="jobwire-watch", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._ended.set()
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self._ran_at = monotonic()
        self._timer = self._loop.call_later(TICK_S, self._tick)

    # In the thread.

    def _watch(self) -> None:
        still_s = 0.0
        before = monotonic()
        while not self._ended.wait(TICK_S):
            if self._growth is not None:
                self._growth.look()
            now = monotonic()
            late_s, before = now - before - TICK_S, now
            was_s, still_s = still_s, now - self._ran_at
            if late_s > NAME_AFTER_S:
                # Not the loop alone: nobody ran.
                self._name(now, late_s, everybody=True)
            elif still_s > SPEAK_AFTER_S:
                self._speak(now, still_s)
                if still_s > self._next_name_s:
                    self._next_name_s = 2 * still_s
                    self._name(now, still_s, everybody=False)
            elif was_s > SPEAK_AFTER_S:
                self._hand_back(was_s)
        self._close()

    def _speak(self, now: float, still_s: float) -> None:
        """Send a heartbeat when one is due."""
        if self._connection is None or now - self._said_at < self._interval_s / 2:
            return
        self._said_at = now
        self._told_stuck = self._told_stuck or still_s > STUCK_AFTER_S
        self._beat(self._concurrency if self._told_stuck else None)

    def _beat(self, stuck: int | None) -> None:
        began = monotonic()
        try:
            request = HeartbeatRequest(
                worker_id=self._worker_id, leases=self._leases(), stuck=stuck
            )
            if self._channel is None:
                assert self._connection is not None
                self._channel = open_sync_channel(self._connection)
            WorkerServiceStub(self._channel).Heartbeat(
                request,
                timeout=CALL_TIMEOUT_S,
                metadata=tuple(self._connection.metadata.items()) if self._connection else None,
            )
            self._heard(began)
        except (grpc.RpcError, ValueError) as error:
            log.debug("a heartbeat beside the stream failed: %s", error)
        except RuntimeError as error:
            # The loop runs again and changes what was looked at, or the interpreter ends.
            log.debug("no heartbeat: %s", error)

    def _hand_back(self, still_s: float) -> None:
        self._next_name_s = NAME_AFTER_S
        if still_s > NAME_AFTER_S:
            log.info("the event loop runs again, after %.1f s", still_s)
        if self._told_stuck:
            self._told_stuck = False
            self._beat(self._stuck())
        self._said_at = float("-inf")
        self._close()

    def _close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _name(self, now: float, still_s: float, *, everybody: bool) -> None:
        """Log what blocks the loop, not too often."""
        if now - self._named_at < NAME_EVERY_S:
            self._unnamed += 1
            return
        self._named_at = now
        words = _nobody_ran(still_s) if everybody else self._loop_blocked(still_s)
        if self._unnamed:
            words += f"\n({self._unnamed} like it were left out)"
            self._unnamed = 0
        # The loop's thread may hold the lock of a log handler, as one that writes to a full pipe;
        # the heartbeats must not wait for it.
        threading.Thread(target=log.warning, args=("%s", words), daemon=True).start()

    def _loop_blocked(self, still_s: float) -> str:
        frame = sys._current_frames().get(self._loop_thread)
        held, place = _who_and_where(frame)
        who = _named(held) if held is not None else "something"
        return (
            f"the event loop has not run for {still_s:.1f} s: {who} blocks it at {place}; run what"
            " takes long in a thread (run='thread', asyncio.to_thread) or a process"
            f"\n{_stack(frame)}"
        )


def _nobody_ran(still_s: float) -> str:
    found = [held_in(frame) for frame in sys._current_frames().values()]
    running = [_named(held) for held in found if held is not None][:5]
    return (
        f"no thread of this process has run for {still_s:.1f} s: a handler held Python's lock in a"
        " call that does not let go of it, or the process was stopped; running now: "
        + (", ".join(running) or "no handler")
        + ". A handler that does this is to run in a process (run='process')"
    )


def _named(held: Held) -> str:
    return f"the handler of {held.assignment.spec.operation!r}, job {held.job_id},"


def _who_and_where(frame: FrameType | None) -> tuple[Held | None, str]:
    if frame is None:
        return None, "an unknown place"
    held = held_in(frame)
    if held is None:
        return None, f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"
    return held, where(frame).removeprefix("at ")


def _stack(frame: FrameType | None) -> str:
    with suppress(Exception):  # a source file that changed, say; the line above names the place
        return "".join(traceback.format_stack(frame)[-STACK_FRAMES:]).rstrip()
    return ""
