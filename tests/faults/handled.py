"""What must hold of what handlers do: one at a time, from the checkpoint on, output exact; pure."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

from tests.faults.checks import Found, Rule, Violation
from tests.faults.final import Final
from tests.faults.history import Event
from tests.faults.trail import Trail
from tests.faults.wishes import row

TOLD_S = 3.0
"""A worker that lost a job may hear of it, and its handler stop, this much later."""


def handlers_do_not_overlap(trail: Trail, final: Final) -> Found:
    """A job has one handler at a time, unless the former one's worker could not be told."""
    for job_id, runs in trail.runs_of.items():
        claims = {
            attempt["token"]: attempt["started_at"] - final.wall_s
            for attempt in final.jobs.get(job_id, {}).get("attempts", ())
        }
        for before, after in pairwise(runs):
            begun = after.begin["t"]
            pid, who = before.begin["pid"], before.begin["who"]
            over_s = trail.end_of(before) - max(begun, before.begin["t"])
            # It may have stood still, or been cut off, before its handler even began.
            begin = min(before.begin["t"], claims.get(before.token, before.begin["t"]))
            end = max(begun, before.begin["t"]) + TOLD_S
            if over_s <= TOLD_S or trail.to_blame(pid, who, begin - 1, end):
                continue
            if trail.blocked_s(pid, begin, end) > 0.1:
                continue
            yield Violation(
                "a job has one handler at a time",
                "docs/states.md, Leases and fencing tokens",
                f"{before.job}: the handler of token {before.token} went on for {over_s:.1f} s"
                f" after that of {after.token} began, and its worker was in reach",
                before.job,
                (before.begin, after.begin, *((before.end,) if before.end else ())),
            )


def checkpoints_are_handed_on(trail: Trail, final: Final) -> Found:
    """The next attempt gets what was saved before."""
    for runs in trail.runs_of.values():
        for at, run in enumerate(runs):
            saved = [
                event
                for before in runs[:at]
                for event in before.saved
                if event["t"] < run.begin["t"]
            ]
            newest = max((event["row"] for event in saved), default=0)
            if run.begin["checkpoint"] < newest:
                yield Violation(
                    "the next attempt gets what was saved",
                    "docs/states.md, Checkpoints",
                    f"{run.job} under token {run.token} began at {run.begin['checkpoint']}, and"
                    f" {newest} was saved before",
                    run.job,
                    (*saved[-1:], run.begin),
                )


def output_is_exact(trail: Trail, final: Final) -> Found:
    """Every byte of output comes once and in order, and all of it where the attempt succeeded."""
    watches: dict[tuple[str, int, int, str, int], list[Event]] = defaultdict(list)
    for event in trail.by_what["output"]:
        who, job = (event["who"], event["pid"], event["watch"]), event["job"]
        watches[(*who, job, event["attempt"])].append(event)
    for (_, _, _, job_id, attempt), pieces in watches.items():
        text = ""
        for event in pieces:
            if event["offset"] != len(text) and not trail.replicated:
                yield _output(job_id, f"a piece at {event['offset']} after {len(text)}", event)
                break
            text = text[: event["offset"]] + event["text"]
        else:
            yield from _compared(trail, job_id, attempt, text, whole=False)
    for job in final.jobs.values():
        if job["output"] is None:
            continue
        for name, text in job["output"].items():
            yield from _compared(trail, job["id"], int(name), text, whole=False)
        run = trail.runs.get((job["id"], job["token"]))
        if job["state"] == "SUCCEEDED" and run is not None:
            last = run.begin["attempt"]
            text = job["output"].get(str(last), "")
            yield from _compared(trail, job["id"], last, text, whole=True)


def _compared(trail: Trail, job_id: str, attempt: int, text: str, *, whole: bool) -> Found:
    runs = [run for run in trail.runs_of[job_id] if run.begin["attempt"] == attempt]
    for run in runs:
        numbers = range(run.begin["checkpoint"], run.begin["rows"])
        expected = "".join(row(job_id, attempt, number) for number in numbers)
        if text == expected or (not whole and expected.startswith(text)):
            return
    yield _output(job_id, f"attempt {attempt} wrote {text!r}", *(run.begin for run in runs))


def _output(job_id: str, found: str, *evidence: Event) -> Violation:
    return Violation(
        "output is exact", "docs/output.md", f"{job_id}: {found}", job_id, tuple(evidence)
    )


HANDLER_RULES: tuple[Rule, ...] = (
    handlers_do_not_overlap,
    checkpoints_are_handed_on,
    output_is_exact,
)
