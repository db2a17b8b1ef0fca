"""When an attempt is over by the clock, whatever its handler does.

The broker takes the job back by itself; the worker stops the handler at the same moment, so that it
does not run in vain. Moments are by this machine's clock: a deadline is met as exactly as that is
set, and an execution timeout counts from the arrival of the job.
"""

from __future__ import annotations

from jobwire._stop import StopReason
from jobwire.v1.job_pb2 import JobSpec


def end_of(spec: JobSpec, now_s: float) -> tuple[float, StopReason] | None:
    """Return when an attempt ends at the latest, in Unix seconds, and why; None: never.

    Args:
        spec: What the job says.
        now_s: When it arrived, Unix seconds.
    """
    ends: list[tuple[float, StopReason]] = []
    if spec.HasField("execution_timeout"):
        ends.append((now_s + spec.execution_timeout.ToTimedelta().total_seconds(), "timeout"))
    if spec.HasField("deadline"):
        deadline_s = spec.deadline.ToMicroseconds() / 1e6
        # The broker hands out no job past a deadline that still counts: this one was redriven, or
        # this machine's clock is ahead.
        if deadline_s > now_s:
            ends.append((deadline_s, "deadline"))
    return min(ends, default=None)


def words_for(reason: StopReason, spec: JobSpec) -> str:
    """Return the reason in words for people."""
    if reason == "deadline":
        return f"the job was not finished by its deadline {spec.deadline.ToJsonString()}"
    limit_s = spec.execution_timeout.ToTimedelta().total_seconds()
    return f"the attempt ran past its execution timeout of {limit_s:g} s"
