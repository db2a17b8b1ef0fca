"""What a producer asks for beside the work itself: retries, and how much output is kept."""

from __future__ import annotations

from dataclasses import dataclass

from jobwire._convert import Seconds, span_of, to_duration
from jobwire.v1 import job_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and when a failing job is tried again.

    None takes the queue's default, and where that says nothing the server's.
    """

    max_attempts: int | None = None
    """Failures that end the job, the first attempt included: 1 means no retry. 1 to 1000."""
    initial_backoff: Seconds | None = None
    """The wait before the second attempt. 0 to 24 hours."""
    max_backoff: Seconds | None = None
    """The longest wait between attempts. 0 to 30 days."""
    multiplier: float | None = None
    """The factor from each wait to the next. 1 to 10."""
    jitter: float | None = None
    """The share of each wait that is random. 0 to 1."""

    def to_proto(self) -> job_pb2.RetryPolicy:
        """Return the wire's form."""
        return job_pb2.RetryPolicy(
            max_attempts=self.max_attempts,
            initial_backoff=(
                None
                if self.initial_backoff is None
                else to_duration(self.initial_backoff, "initial_backoff")
            ),
            max_backoff=None
            if self.max_backoff is None
            else to_duration(self.max_backoff, "max_backoff"),
            multiplier=self.multiplier,
            jitter=self.jitter,
        )

    @classmethod
    def from_proto(cls, proto: job_pb2.RetryPolicy) -> RetryPolicy:
        """Read the wire's form."""
        return cls(
            max_attempts=proto.max_attempts if proto.HasField("max_attempts") else None,
            initial_backoff=span_of(proto, "initial_backoff"),
            max_backoff=span_of(proto, "max_backoff"),
            multiplier=proto.multiplier if proto.HasField("multiplier") else None,
            jitter=proto.jitter if proto.HasField("jitter") else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPolicy:
    """How much of a job's output is kept, over all attempts, and what becomes of more."""

    max_bytes: int | None = None
    """None: the server's limit, 16 MiB unless configured otherwise, which is also the most."""
    trim: bool = False
    """True: the oldest output is dropped. False: what is above the limit is refused, and the
    handler told."""

    def to_proto(self) -> job_pb2.OutputPolicy:
        """Return the wire's form."""
        overflow = job_pb2.OUTPUT_OVERFLOW_TRIM if self.trim else job_pb2.OUTPUT_OVERFLOW_REFUSE
        return job_pb2.OutputPolicy(max_bytes=self.max_bytes or 0, overflow=overflow)
