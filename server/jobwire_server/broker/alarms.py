"""Alarms: what brings forward the next look at a queue."""

from __future__ import annotations

from jobwire_server.domain.background import Alarm


class Alarms:
    """The alarms of the queues whose clocks run here.

    They are apart from the clocks because those who announce that something is due are used by the
    clocks themselves.
    """

    def __init__(self) -> None:
        self._alarms: dict[str, Alarm] = {}

    def of(self, queue: str) -> Alarm:
        """Return the alarm of a queue, for its clock."""
        return self._alarms.setdefault(queue, Alarm())

    def drop(self, queue: str) -> None:
        """Forget the alarm of a queue whose clock has ended."""
        self._alarms.pop(queue, None)

    def due_in(self, queue: str, wait_ms: float) -> None:
        """Have the queue looked at in so many milliseconds; nothing where no clock of it runs."""
        alarm = self._alarms.get(queue)
        if alarm is not None:
            alarm.due_in(wait_ms / 1000)
