"""Requests that jobs end."""

from __future__ import annotations

from jobwire_server.broker.alarms import Alarms
from jobwire_server.broker.lanes import QueueLanes
from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.model import JobState
from jobwire_server.domain.options import BrokerOptions


class Cancellations:
    """Asks for the ends of jobs.

    Args:
        lanes: Where requests are gathered.
        alarms: Told when a worker's time to confirm is over.
        options: How long that is.
    """

    def __init__(self, lanes: QueueLanes, alarms: Alarms, options: BrokerOptions) -> None:
        self._lanes = lanes
        self._alarms = alarms
        self._options = options

    async def cancel(self, queue: str, ulid: str, reason: str) -> JobState:
        """Ask for the end of a job; return its state then: CANCELLED, or CANCELLING if a worker has
        it.

        Raises:
            JobNotFound: There is none.
            WrongState: It has finished otherwise.
        """
        outcome = await self._lanes.of(queue).cancel.one((ulid, reason))
        if isinstance(outcome, JobwireError):
            raise outcome
        if outcome is JobState.CANCELLING:
            self._alarms.due_in(queue, self._options.cancel_grace_ms)
        return outcome
