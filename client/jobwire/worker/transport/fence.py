"""The moment from which a worker's leases may be somebody else's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from jobwire.v1.worker_service_pb2 import LeaseRef
from jobwire.worker.transport.base import Host

log = logging.getLogger("jobwire.worker")


class Fence:
    """Gives up all leases when no server has been heard of for too long.

    From then on others may have the jobs, so their handlers are stopped.

    Args:
        host: Holds the leases.
        given_up: Takes the leases that are given up.
    """

    def __init__(self, host: Host, given_up: Callable[[Sequence[LeaseRef]], None]) -> None:
        self._host = host
        self._given_up = given_up
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._heard_beside_at = float("-inf")
        self.fallen = 0
        """How often all leases were given up."""

    @property
    def is_set(self) -> bool:
        """True while it waits for the moment, and after that until it is lifted."""
        return self._timer is not None

    def set(self, heard_at: float, contact_s: float) -> None:
        """Give up the leases `contact_s` after a server was heard, in place of any earlier moment.

        Args:
            heard_at: By the loop's clock.
            contact_s: How long the leases are this worker's after a server was heard, seconds.
        """
        self.lift()
        self._timer = self._loop.call_at(heard_at + contact_s, self._fall, contact_s)

    def lift(self) -> None:
        """Keep the leases; does nothing unless it is set."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def heard_beside(self, at: float) -> None:
        """Note a call beside the transport that a server answered.

        Called from another thread, while the loop stands still.

        Args:
            at: When the call began, by the loop's clock.
        """
        self._heard_beside_at = at

    def _fall(self, contact_s: float) -> None:
        left_s = self._heard_beside_at + contact_s - self._loop.time()
        if left_s > 0:
            # This loop stood still, and another thread spoke for it.
            self._timer = self._loop.call_later(left_s, self._fall, contact_s)
            return
        self.fallen += 1
        leases = self._host.leases()
        if leases:
            log.warning(
                "no server answered for %g s: its jobs may run elsewhere by now, so their handlers"
                " are stopped",
                contact_s,
            )
        self._given_up(leases)
        self._host.lose_all()
