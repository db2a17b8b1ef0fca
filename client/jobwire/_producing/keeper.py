"""What keeps a producer's streams, on a loop or in threads, has in common."""

from __future__ import annotations

import random
from collections.abc import Callable

import grpc

from jobwire._producing.conversation import Conversation
from jobwire._producing.line import Line
from jobwire._producing.parcels import STEADY_S
from jobwire._producing.reach import Reach
from jobwire._repeat import worth_repeating
from jobwire.errors import CallError


class Keeper:
    """What was said, how streams went, and where the next one goes.

    Args:
        now: The clock, in seconds.
        address: Of the servers: one, or several separated by commas.
        timeout_s: How long a submission may take; None: no limit.
        reconnect_s: How long followers wait while no server answers; None: no limit.

    Attributes:
        talk: The conversation.
        reach: Whether streams can be had.
        is_over: True once it was closed.
    """

    def __init__(
        self,
        now: Callable[[], float],
        address: str,
        timeout_s: float | None,
        reconnect_s: float | None,
    ) -> None:
        self.talk = Conversation(now, timeout_s, reconnect_s)
        self.reach = Reach(now)
        self.is_over = False
        self._now = now
        addresses = [part.strip() for part in address.split(",") if part.strip()]
        # Producers that start together spread over the servers.
        self._addresses = random.sample(addresses, len(addresses))
        self._used_at = now()

    @property
    def address(self) -> str:
        """Where the next stream goes."""
        return self._addresses[0]

    def _note_move(self, line: Line) -> None:
        """Note a stream that is to be left."""
        if self._now() - line.born_at < STEADY_S:
            self.reach.pause()
        else:
            self.reach.worked()

    def _note_failure(self, line: Line, error: CallError | None, *, silent: bool = False) -> bool:
        """Note a stream that ended, and hand back what does not wait for another.

        Args:
            line: The stream.
            error: What it ended with.
            silent: True: it never opened.

        Returns:
            Whether it is to be found out if calls work where streams don't.
        """
        reach = self.reach
        if line.worked or (line.is_open and self._now() - line.born_at > STEADY_S):
            reach.worked()
        self._addresses.append(self._addresses.pop(0))
        # Whatever else a server refuses a stream for, a call will tell.
        refused = error is not None and not (
            worth_repeating(error) or error.code is grpc.StatusCode.INVALID_ARGUMENT
        )
        reach.failed(error, silent=silent or refused)
        if reach.is_doubtful:
            self.talk.hand_back(error, follows=reach.is_resting)
        return reach.wants_evidence and len(self.talk.follows) > 0

    def _note_defect(self) -> None:
        """Note that no stream can be opened here; a call meets the same, and tells its caller."""
        self.reach.failed(None, silent=True)
        self.talk.hand_back(None, follows=True)

    def _is_idle_for(self, idle_s: float) -> bool:
        """Tell whether nobody has waited for anything for so long; asked now and then."""
        now = self._now()
        if not self.talk.is_idle:
            self._used_at = now
        return now - self._used_at >= idle_s
