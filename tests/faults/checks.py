"""What must hold of every run, whatever was done to it; pure. docs/faults.md lists the rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.faults.final import Final, real_counts
from tests.faults.history import Event
from tests.faults.trail import Trail

BUSY = ("DEADLINE_EXCEEDED", "UNAVAILABLE", "CANCELLED", "RESOURCE_EXHAUSTED")
"""What calls may be refused with under faults."""
NONE_ACCEPTED = re.compile(r"none (of .*)?was accepted|nothing was (accepted|written)")
KEPT = re.compile(
    r"jw:\{(workers|queues)\}:|"
    r"jw:\{[^}]+\}:(routes|counts|totals|samples|config|usage|ready|q:|u:|claimed:|log$)"
)
"""Keys that may stay after the last job: docs/schema.md."""
TERMINAL = ("SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED")
CLOCK_S = 0.05


@dataclass(frozen=True, slots=True)
class Violation:
    """One rule that did not hold, once.

    Attributes:
        rule: Its name.
        page: Where it is promised.
        text: What was found.
        about: The job, or whatever else it is about.
        evidence: The lines of the history that say so.
    """

    rule: str
    page: str
    text: str
    about: str = ""
    evidence: tuple[Event, ...] = ()


Found = Iterator[Violation]
Rule = Callable[[Trail, Final], Found]


def accepted_jobs_are_there(trail: Trail, final: Final) -> Found:
    """Nothing that was accepted is lost."""
    for event in trail.by_what["accepted"]:
        if event["job"] not in final.jobs:
            yield Violation(
                "nothing accepted is lost",
                "docs/promises.md, Acceptance",
                f"{event['job']} was accepted and does not exist",
                event["job"],
                (event, *trail.by_job[event["job"]][-5:]),
            )


def jobs_come_to_an_end(trail: Trail, final: Final) -> Found:
    """Nothing hangs once all is well again."""
    for job_id in final.live:
        job = final.jobs.get(job_id, {})
        yield Violation(
            "every job ends",
            "docs/states.md, Who moves a job out of each state",
            f"{job_id} has not ended: {job}",
            job_id,
            tuple(trail.by_job[job_id][-10:]),
        )


def repeats_get_the_first_answer(trail: Trail, final: Final) -> Found:
    """The same submission again is answered as the first time, whatever time has passed."""
    first: dict[str, Event] = {}
    for event in sorted(
        trail.by_what["accepted"] + trail.by_what["refused"], key=lambda each: each["t"]
    ):
        key = event["key"]
        before = first.get(key)
        if event["what"] == "accepted":
            if before is None:
                first[key] = event
            elif before["job"] != event["job"] and _holds_its_answer(key, before):
                yield Violation(
                    "a repeat gets the first answer",
                    "docs/identity.md",
                    f"{key} was answered with {before['job']}, and then with {event['job']}",
                    key,
                    (before, event),
                )
        elif event["code"] not in BUSY:
            # Nothing is known by an id that gave way, once the holder of the key has ended.
            answered = before is not None and _holds_its_answer(key, before)
            exists = answered or (key in final.jobs and not _was_overtaken(before, final.jobs[key]))
            if exists or event["code"] != "INVALID_ARGUMENT":
                yield Violation(
                    "a repeat gets the first answer",
                    "docs/identity.md",
                    f"{key} is refused with {event['code']}: {event['text']}",
                    key,
                    (*((before,) if before else ()), event),
                )


def _was_overtaken(before: Event | None, job: dict[str, Any]) -> bool:
    """Tell whether a job was written after its repeat was refused, and too late to be started.

    A server that stood still goes on with what it had taken up. Meanwhile the submission was sent
    to another, which found nothing to repeat, and its moment passed.
    """
    return before is None and not job["attempts"] and bool(job["deadline"] or job["expires_at"])


def _holds_its_answer(key: str, before: Event) -> bool:
    # A job's id that gave way to the holder of a unique key was not written.
    return key.startswith("request:") or before["job"] == key


def refused_jobs_do_not_exist(trail: Trail, final: Final) -> Found:
    """Where an answer says that nothing was accepted, nothing was."""
    accepted = {event["key"] for event in trail.by_what["accepted"]}
    for event in trail.by_what["refused"]:
        says_so = event["code"] == "RESOURCE_EXHAUSTED" or NONE_ACCEPTED.search(event["text"])
        if event.get("bare") and says_so and event["key"] in final.jobs.keys() - accepted:
            yield Violation(
                "what is refused does not exist",
                "protos/jobwire/v1/job_service.proto, SubmitJobs",
                f"{event['key']} exists, and was refused: {event['text']}",
                event["key"],
                (event,),
            )


def completions_repeat(trail: Trail, final: Final) -> Found:
    """A recorded completion is answered as recorded, also after the next claim."""
    for event in trail.by_what["repeated"]:
        if event["found"] != "same":
            yield Violation(
                "a recorded completion may be repeated",
                "docs/promises.md, Leases",
                f"the recorded {event['what_ended']} of {event['job']} under token"
                f" {event['token']}, said again, gets {event['found']}",
                event["job"],
                (event,),
            )


def calls_fail_in_known_ways(trail: Trail, final: Final) -> Found:
    """Watches outlive everything; other calls are refused for want of a server only."""
    for what in ("watch-end", "wait-end"):
        for event in trail.by_what[what]:
            if event["error"]:
                yield Violation(
                    "a watch goes on to the end of its job",
                    "docs/promises.md, Failover",
                    f"a watch of {event['job']} ended with {event['error']}",
                    event["job"],
                    (event,),
                )
    for what in ("cancel-refused", "redrive-refused"):
        for event in trail.by_what[what]:
            if event["code"] not in BUSY:
                yield Violation(
                    "calls are refused for a reason",
                    "docs/errors.md",
                    f"{what.removesuffix('-refused')} of {event['job']}: {event['code']}"
                    f" {event['text']}",
                    event["job"],
                    (event,),
                )


def unique_keys_are_held_by_one(trail: Trail, final: Final) -> Found:
    """No job is accepted under a key that an unfinished one holds."""
    asked = {event["key"]: event["t"] for event in reversed(trail.by_what["submit"])}
    holders: dict[tuple[str, str], list[tuple[float, float, float, dict[str, Any], Event]]] = {}
    for event in trail.by_what["accepted"]:
        job = final.jobs.get(event["job"])
        # A redrive takes the key again, at a moment that is not told.
        if job is None or event["existed"] or not job["unique_key"] or job["redrives"]:
            continue
        ended = job["finished_at"] - final.wall_s
        key = job["queue"], job["unique_key"]
        times = asked.get(event["key"], event["t"]), event["t"], ended
        holders.setdefault(key, []).append((*times, job, event))
    for (_, name), jobs in holders.items():
        jobs.sort(key=lambda each: each[1])
        for at, (_, there, ended, job, event) in enumerate(jobs):
            for began, came, _, other, later in jobs[at + 1 :]:
                if there < began and came < ended - CLOCK_S:
                    yield Violation(
                        "a unique key is held by one",
                        "docs/identity.md, Unique keys",
                        f"{other['id']} was accepted under {name!r} while {job['id']} held it",
                        other["id"],
                        (event, later),
                    )


def counts_are_real(trail: Trail, final: Final) -> Found:
    """Queues count what there is, and the structures of the store tell one story."""
    real = real_counts(final)
    for queue, counts in final.counts.items():
        if counts != real.get(queue, {}):
            yield Violation(
                "counts are equal to reality",
                "docs/schema.md, counts",
                f"{queue} is said to have {counts}, and has {real.get(queue, {})}",
                queue,
            )
    for line in final.broken:
        yield Violation(
            "the structures of a queue tell one story", "docs/schema.md", line, line.split(":")[0]
        )


def nothing_is_left_over(trail: Trail, final: Final) -> Found:
    """What is forgotten leaves no key behind."""
    for key in final.leftover:
        if not KEPT.match(key):
            yield Violation(
                "what is forgotten leaves no key",
                "docs/schema.md, What goes away",
                f"{key} stays after everything was purged",
                key,
            )


def processes_live_on(trail: Trail, final: Final) -> Found:
    """No process ends by itself, and each that is told to end does."""
    for event in trail.by_what["exit"]:
        if not event["asked"]:
            yield Violation(
                "no process ends by itself",
                "docs/operations.md",
                f"{event['target']} ended with {event['code']}",
                event["target"],
                (event,),
            )
        # Python dies of a signal that comes before it has begun with the program.
        elif event.get("code", 0) not in (0, -9, 3) and not event.get("early"):
            yield Violation(
                "a process that is told to end does so with 0",
                "docs/operations.md",
                f"{event['target']} ended with {event['code']}",
                event["target"],
                (event,),
            )
    for event in trail.by_what["hung"]:
        begin, end = event["t"] - event["after_s"], event["t"]
        is_client = event["target"].startswith("client-")
        frozen = any(
            span.within(begin, end) > 1 for spans in trail.stops.values() for span in spans
        )
        if not is_client and not frozen:
            yield Violation(
                "a process that is told to end does",
                "docs/operations.md",
                f"{event['target']} had not ended {event['after_s']} s after SIGTERM",
                event["target"],
                (event,),
            )


RULES: tuple[Rule, ...] = (
    accepted_jobs_are_there,
    jobs_come_to_an_end,
    repeats_get_the_first_answer,
    refused_jobs_do_not_exist,
    completions_repeat,
    calls_fail_in_known_ways,
    unique_keys_are_held_by_one,
    counts_are_real,
    nothing_is_left_over,
    processes_live_on,
)
