"""Which queues somebody writes to, as their clocks know, for those who wait for jobs there."""

from __future__ import annotations

from collections.abc import Callable


class QueuesInUse:
    """Knows the queues that are in use, and wakes who waits for jobs of one that is looked at."""

    def __init__(self) -> None:
        self._in_use: set[str] = set()
        self._waiting: dict[str, Callable[[], None]] = {}

    def __contains__(self, queue: str) -> bool:
        return queue in self._in_use

    def __len__(self) -> int:
        return len(self._in_use)

    def begin(self, queue: str) -> None:
        """Somebody writes to a queue, or may have."""
        if queue not in self._in_use:
            self._in_use.add(queue)
            self.look(queue)

    def end(self, queue: str) -> None:
        """Nobody writes to a queue any more."""
        self._in_use.discard(queue)

    def look(self, queue: str) -> None:
        """Something may have happened in a queue."""
        wake = self._waiting.get(queue)
        if wake is not None:
            wake()

    def wait(self, queue: str, wake: Callable[[], None]) -> None:
        """Have somebody woken."""
        self._waiting[queue] = wake

    def leave(self, queue: str) -> None:
        """Wake nobody any more."""
        self._waiting.pop(queue, None)
