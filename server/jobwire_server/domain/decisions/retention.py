"""How long the ended jobs of a queue are kept that have no retention of their own."""

from __future__ import annotations

from jobwire_server.domain.model import QueueSettings
from jobwire_server.domain.options import BrokerOptions


def retain_succeeded_ms(settings: QueueSettings, options: BrokerOptions) -> int:
    """Return how long a SUCCEEDED job is kept: as the queue says, or else the server."""
    chosen = settings.retain_succeeded_ms
    return options.retain_succeeded_ms if chosen is None else chosen


def retain_ended_ms(settings: QueueSettings, options: BrokerOptions) -> int:
    """Return how long a FAILED, CANCELLED or EXPIRED job is kept: as the queue says, or else the
    server.
    """
    chosen = settings.retain_ended_ms
    return options.retain_ended_ms if chosen is None else chosen
