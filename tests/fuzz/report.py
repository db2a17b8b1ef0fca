"""What a run came to, for people and for programs."""

from __future__ import annotations

from typing import Any

from tests.fuzz.run import Result

WIDE = 4_000
WORK = "jobwire.v1.WorkerService/Work"


def describe(result: Result) -> str:
    """Say what failed, each kind once."""
    lines = []
    for failure in result.failures:
        times = result.counts[failure.signature]
        lines.append(f"FAILED {times} times: {failure.kind} {failure.method}")
        lines.append(f"  {failure.text[:WIDE]}")
    lines.append(f"again with --seed {result.settings.seed}")
    return "\n".join(lines)


def summary(result: Result) -> str:
    """Say what was done, in a few lines."""
    streams = sum(result.streams.values())
    codes = ", ".join(f"{count} {code}" for code, count in result.codes.most_common())
    return (
        f"seed {result.settings.seed}: {result.messages} messages in"
        f" {sum(result.methods.values())} calls of {len(result.methods)} methods,"
        f" {streams} of them streams and {result.streams[WORK]} workers',"
        f" {result.messages / max(result.seconds, 0.001):.0f} messages/s for"
        f" {result.seconds:.0f} s\n"
        f"ended: {codes}\n"
        f"the server took at most {result.memory_mib:.0f} MiB and stalled {result.stalls} times,"
        f" {result.excused} of them for a slow machine\n"
        f"{len(result.failures)} kinds of failures"
    )


def as_json(result: Result) -> dict[str, Any]:
    """The same for programs."""
    return {
        "seed": result.settings.seed,
        "seconds": round(result.seconds, 1),
        "messages": result.messages,
        "calls": sum(result.methods.values()),
        "streams": dict(result.streams),
        "methods": dict(result.methods),
        "codes": dict(result.codes),
        "memory_mib": round(result.memory_mib, 1),
        "stalls": result.stalls,
        "excused": result.excused,
        "failures": [
            {
                "kind": each.kind,
                "method": each.method,
                "text": each.text,
                "times": result.counts[each.signature],
            }
            for each in result.failures
        ],
    }
