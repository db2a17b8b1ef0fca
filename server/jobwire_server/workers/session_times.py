"""The clockwork of a session."""

from __future__ import annotations

import random
from dataclasses import dataclass

from jobwire_server.domain.options import BrokerOptions

WORKER_HEARTBEAT_S = 5.0
"""How often a worker says something at least. One that is killed is known by the end of its
connection.
"""
SILENT_INTERVALS = 3
"""A worker may be silent for so many of its heartbeat intervals."""


@dataclass(frozen=True, slots=True)
class SessionTimes:
    """The periods of a session, seconds."""

    heartbeat_s: float
    """This side says something at least so often."""
    worker_heartbeat_s: float
    """The other side is to say something at least so often."""
    silence_s: float
    """A worker that is silent for longer is not taken for alive any more, although its stream
    holds; nor is one that does not read.
    """
    claim_timeout_s: float
    age_s: float
    """When the stream is drained; with its jitter."""
    drain_s: float

    @classmethod
    def of(cls, options: BrokerOptions, lease_ms: int) -> SessionTimes:
        """Return the periods of a session whose jobs have such leases."""
        # Two of them and an attachment go into the part of a lease that is surely left.
        heartbeat_s = min(options.heartbeat_interval_ms, lease_ms / 6) / 1000
        worker_heartbeat_s = max(heartbeat_s, min(WORKER_HEARTBEAT_S, lease_ms / 6000))
        return cls(
            heartbeat_s=heartbeat_s,
            worker_heartbeat_s=worker_heartbeat_s,
            silence_s=SILENT_INTERVALS * worker_heartbeat_s,
            claim_timeout_s=options.claim_timeout_ms / 1000,
            age_s=options.max_stream_age_ms / 1000 * random.uniform(0.9, 1.1),
            drain_s=options.drain_deadline_ms / 1000,
        )
