"""Submissions that wait for a frame, and how frames are cut."""

from __future__ import annotations

from collections import deque

from jobwire._producing.line import Line
from jobwire._producing.parcels import Parcel

MAX_FRAMES = 4
"""How many frames may be unanswered before submissions wait for the next one. Fewer would make a
few callers wait for each other; more would carry fewer jobs each."""
MAX_FRAME_JOBS = 1000
MAX_FRAME_BYTES = 1 << 20
MAX_LOOKED_THROUGH = 2000
"""How many waiting parcels are looked at, at most, for those of queues that answer."""


class Outbox:
    """Parcels in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: deque[Parcel] = deque()
        self._frame_jobs = MAX_FRAME_JOBS

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, parcel: Parcel) -> None:
        """Take one."""
        self._waiting.append(parcel)

    def put_back(self, parcels: list[Parcel]) -> None:
        """Take some that were sent in vain, before all others."""
        self._waiting.extendleft(reversed(parcels))

    def shorten(self) -> None:
        """Make frames of half as many jobs: perhaps this server takes shorter lists."""
        self._frame_jobs = max(1, self._frame_jobs // 2)

    def empty(self) -> list[Parcel]:
        """Take all of them out."""
        waiting, self._waiting = self._waiting, deque()
        return [*waiting]

    def overdue(self, now: float) -> list[Parcel]:
        """Take out those at the front whose time is over, or for which nobody waits."""
        found: list[Parcel] = []
        while self._waiting and (self._waiting[0].left or self._waiting[0].ends_at <= now):
            found.append(self._waiting.popleft())
        return found

    def take(self, line: Line, now: float) -> list[Parcel]:
        """Take what goes into one frame; empty: nothing may go now."""
        waiting = self._waiting
        if line.sent:
            late = line.late_queues(now)
            if late:
                return self._take_beside(line, late)
            if len(line.sent) >= MAX_FRAMES:
                return []
        taken: list[Parcel] = []
        jobs = size = 0
        while waiting:
            parcel = waiting[0]
            if not parcel.left:
                if not self._fits(line, parcel, jobs, size):
                    break
                jobs += parcel.count
                size += len(parcel.data)
                taken.append(parcel)
            # Whoever stopped waiting has not been promised anything.
            waiting.popleft()
        return taken

    def _take_beside(self, line: Line, late: dict[str, int]) -> list[Parcel]:
        """Take what goes into one frame while some queues let others wait."""
        if len(line.sent) - sum(late.values()) >= MAX_FRAMES:
            return []
        taken: list[Parcel] = []
        kept: list[Parcel] = []
        only: str | None = None
        jobs = size = 0
        for _ in range(min(len(self._waiting), MAX_LOOKED_THROUGH)):
            parcel = self._waiting.popleft()
            if parcel.left:
                continue
            queue = parcel.queue
            # A frame of a late queue holds nothing else, and takes no more than its share.
            fits = (
                (late.get(queue, 0) < MAX_FRAMES and not taken) or queue == only
                if queue in late
                else only is None
            )
            if not fits or not self._fits(line, parcel, jobs, size):
                kept.append(parcel)
                continue
            if queue in late:
                only = queue
            jobs += parcel.count
            size += len(parcel.data)
            taken.append(parcel)
        self.put_back(kept)
        return taken

    def _fits(self, line: Line, parcel: Parcel, jobs: int, size: int) -> bool:
        if jobs and (
            jobs + parcel.count > self._frame_jobs or size + len(parcel.data) > MAX_FRAME_BYTES
        ):
            return False
        unanswered = line.unanswered + jobs
        return not unanswered or unanswered + parcel.count <= line.max_unanswered
