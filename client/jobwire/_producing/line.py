"""One stream of a producer, as far as that can be known without I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from jobwire._producing.parcels import Parcel
from jobwire.v1.job_service_pb2 import ProduceResponse, ProducerOpened

# Until the server has said what it allows.
FIRST_UNANSWERED = 1000
FIRST_FOLLOWS = 1000
FIRST_INTERVAL_S = 5.0
OPENING_S = 2.0
"""How long a stream may take to open."""
SILENCE_S = 1.5
"""How long a server that owes an answer may say nothing before it is asked, and then again."""
LATE_S = 0.1
"""After this long without an answer, frames of other queues wait for it no longer."""


class Health(Enum):
    """What is to be done with a stream."""

    WELL = "nothing"
    UNOPENED = "it did not open in time: open another one, or do without"
    SILENT = "its server hangs: open another one on a new connection"


@dataclass(slots=True)
class Sent:
    """A frame without an answer."""

    at: float
    parcels: list[Parcel]


class Line:
    """One stream: what was sent and heard on it.

    Args:
        now: By the conversation's clock.
        opening_s: How long it may take to open.

    Attributes:
        sent: Its unanswered frames by their numbers, oldest first.
        unanswered: How many submissions they hold.
        began: True once its first frame was taken.
        is_open: True once the server said so.
        is_draining: True once the server wants it left.
        worked: True once it was of use.
    """

    def __init__(self, now: float, opening_s: float = OPENING_S) -> None:
        self._opening_s = opening_s
        self.born_at = self.heard_at = self.wrote_at = now
        self.sent: dict[int, Sent] = {}
        self.unanswered = 0
        self.began = self.is_open = self.is_draining = self.worked = False
        self.max_unanswered = FIRST_UNANSWERED
        self.max_follows = FIRST_FOLLOWS
        self.interval_s = FIRST_INTERVAL_S
        self._asked_at: float | None = None
        self._asks = False

    def hear(self, response: ProduceResponse, now: float) -> None:
        """Note that the server said something."""
        self.heard_at = now
        self._asked_at = None
        if response.HasField("opened"):
            self._open(response.opened)
        if response.HasField("drain"):
            self.is_draining = True

    def _open(self, opened: ProducerOpened) -> None:
        self.is_open = True
        # What a server leaves out has no limit that it could name.
        self.max_unanswered = opened.max_unanswered or FIRST_UNANSWERED
        self.max_follows = opened.max_follows or FIRST_FOLLOWS
        if opened.HasField("heartbeat_interval"):
            interval_s = opened.heartbeat_interval.ToTimedelta().total_seconds()
            self.interval_s = max(0.1, interval_s)

    def note_sent(self, sequence: int, parcels: list[Parcel], now: float) -> None:
        """Note a frame that is to be answered."""
        if not self.sent:
            # The server owed nothing until now, so its silence begins here.
            self.heard_at = max(self.heard_at, now)
        self.sent[sequence] = Sent(now, parcels)
        for parcel in parcels:
            self.unanswered += parcel.count

    def note_answered(self, sequence: int) -> list[Parcel]:
        """Return what an answer is for; empty for what is not known."""
        sent = self.sent.pop(sequence, None)
        if sent is None:
            return []
        for parcel in sent.parcels:
            self.unanswered -= parcel.count
        return sent.parcels

    def parcels(self) -> Iterator[Parcel]:
        """Yield what has no answer, in the order in which it was sent."""
        for sent in self.sent.values():
            yield from sent.parcels

    def late_queues(self, now: float) -> dict[str, int]:
        """Return queues whose answers are late, with the number of their frames."""
        late: dict[str, int] = {}
        for sent in self.sent.values():
            if now - sent.at < LATE_S:
                break
            for queue in {parcel.queue for parcel in sent.parcels}:
                late[queue] = late.get(queue, 0) + 1
        return late

    def health(self, now: float) -> Health:
        """Tell whether it is still of use; asks a silent server first."""
        if not self.is_open:
            return Health.UNOPENED if now - self.born_at >= self._opening_s else Health.WELL
        if self._asked_at is not None:
            return Health.SILENT if now - self._asked_at >= SILENCE_S else Health.WELL
        # It owes an answer, or a sign of life.
        patience_s = SILENCE_S if self.sent else self.interval_s + SILENCE_S
        if now - self.heard_at >= patience_s:
            self._asks = True
        return Health.WELL

    def takes_question(self, now: float) -> bool:
        """Tell whether the next frame is to ask for a sign of life."""
        asks, self._asks = self._asks, False
        if asks:
            self._asked_at = now
        return asks

    def owes_heartbeat(self, now: float) -> bool:
        """Tell whether this side has been silent for long."""
        return now - self.wrote_at >= self.interval_s * 0.6
