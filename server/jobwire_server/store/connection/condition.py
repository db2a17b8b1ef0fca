"""What this server knows of the store at the moment."""

from __future__ import annotations

from math import inf
from time import monotonic

from jobwire_server.domain.errors import StoreUnfit


class StoreCondition:
    """Whether the store answers, and whether it may get new jobs.

    The monitor writes it; whoever accepts jobs, or tells how the server is, reads it.

    Args:
        address: Where the store is, for people.
    """

    def __init__(self, address: str = "the store") -> None:
        self.address = address
        self.away = ""
        """Why the store can't be used at all; "" while it answers."""
        self.unfit = ""
        """Why no new jobs are accepted, with the remedy; "" while they are."""
        self._answered_at = monotonic()
        self.back_at = -inf
        """When it last came back, of the monotonic clock; calls that failed before say nothing."""

    def answered(self) -> None:
        """Note that the store has just answered."""
        self._answered_at = monotonic()
        if self.away:
            self.back_at = self._answered_at
        self.away = ""

    def missed(self, cause: str) -> None:
        """Note that the store did not answer."""
        self.away = cause

    def check_fit(self) -> None:
        """Check that new jobs may be accepted.

        Raises:
            StoreUnfit: Not now.
        """
        if self.unfit:
            raise StoreUnfit(self.unfit)

    @property
    def problem(self) -> str:
        """What is wrong, in a sentence; "" if nothing is."""
        if self.away:
            silent = monotonic() - self._answered_at
            return f"{self.address} has not answered for {silent:.0f} s: {self.away}"
        return self.unfit
