"""What must hold of the life of each job: its attempts, states, budgets and output; pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

from jobwire_server.domain.decisions.lifecycle import TRANSITIONS
from jobwire_server.domain.model import JobState

from tests.faults.checks import TERMINAL, Found, Rule, Violation
from tests.faults.final import Final
from tests.faults.history import Event
from tests.faults.trail import Run, Trail

NEXT: dict[str, set[str]] = defaultdict(set)
for (_before, _), _after in TRANSITIONS.items():
    NEXT[_before.name].add(_after.name)
FREE_DELIVERIES = 3
BARE = "bare-"
"""How the ids of workers without an SDK begin."""
KEPT_ATTEMPTS = 100
SHOWN = 8


def reachable(state: str, steps: int) -> set[str]:
    """The states that a job may be in after so many changes."""
    found = {state}
    # Within as many steps as there are states, everything is reached that ever is.
    for _ in range(min(steps, 2 * len(JobState) + steps % 2)):
        found = {after for before in found for after in NEXT[before]}
    return found


def states_follow_the_table(trail: Trail, final: Final) -> Found:
    """A watcher sees only steps of the table, and no step back."""
    watches: dict[tuple[str, int, int, str], list[Event]] = defaultdict(list)
    for event in trail.by_what["seen"]:
        if event["watch"] >= 0:
            watches[event["who"], event["pid"], event["watch"], event["job"]].append(event)
    for seen in watches.values():
        for before, after in pairwise(seen):
            steps = after["revision"] - before["revision"]
            if steps < 0 and trail.replicated:
                continue
            if steps < 1 or after["state"] not in reachable(before["state"], steps):
                yield Violation(
                    "states are only as in the table",
                    "docs/states.md, Every step",
                    f"{before['job']} went from {before['state']} to {after['state']} in"
                    f" {steps} changes",
                    before["job"],
                    (before, after),
                )


def a_job_ends_once(trail: Trail, final: Final) -> Found:
    """Whoever sees a job's end sees the same one, and it stays."""
    ends: dict[tuple[str, int], Event] = {}
    for event in trail.by_what["seen"]:
        if event["state"] not in TERMINAL:
            continue
        life = event["job"], event["redrives"]
        before = ends.setdefault(life, event)
        job = final.jobs.get(event["job"])
        others = [before]
        if job is not None and job["redrives"] == event["redrives"] and not trail.replicated:
            others.append(job)
        for other in others:
            if (other["state"], other["token"]) != (event["state"], event["token"]):
                yield Violation(
                    "a job has one recorded end",
                    "docs/promises.md, Leases",
                    f"{event['job']} ended as {event['state']} under token {event['token']}, and as"
                    f" {other['state']} under {other['token']}",
                    event["job"],
                    (before, event),
                )


def the_end_has_the_highest_token(trail: Trail, final: Final) -> Found:
    """No lease has a token above the job's, none is given twice, and the last one won."""
    for event in trail.doubled:
        yield Violation(
            "a token is given once",
            "docs/states.md, Leases and fencing tokens",
            f"two handlers of {event['job']} began with token {event['token']}",
            event["job"],
            (trail.runs[event["job"], event["token"]].begin, event),
        )
    for job_id, job in final.jobs.items():
        runs = trail.runs_of.get(job_id, [])
        if runs and runs[-1].token > job["token"]:
            yield _token(job, runs[-1], f"a handler had token {runs[-1].token}")
        if job["state"] != "SUCCEEDED":
            continue
        run = trail.runs.get((job_id, job["token"]))
        if run is None or run.how != "ok":
            yield _token(job, run, "no handler returned under it")
        elif isinstance(job["result"], dict) and job["result"].get("token") != job["token"]:
            yield _token(job, run, f"the result is {job['result']}")


def _token(job: dict[str, Any], run: Run | None, found: str) -> Violation:
    return Violation(
        "the end has the highest token",
        "docs/states.md, Leases and fencing tokens",
        f"{job['id']} is {job['state']} under token {job['token']}, and {found}",
        job["id"],
        (run.begin,) if run is not None else (),
    )


def ends_have_their_cause(trail: Trail, final: Final) -> Found:
    """CANCELLED only where somebody cancelled, EXPIRED and the deadline only in their time."""
    for job in final.jobs.values():
        if job["redrives"]:
            continue
        wrong = ""
        if job["state"] == "CANCELLED":
            asked = any(event["what"] == "cancel" for event in trail.by_job[job["id"]])
            wrong = "" if asked else "nobody cancelled it"
        elif job["state"] == "EXPIRED":
            late = 0 < job["expires_at"] <= job["finished_at"]
            # A delivery that nobody acknowledged is none, though a handler may have begun.
            started = any(each["outcome"] != "UNDELIVERED" for each in job["attempts"])
            wrong = "" if late and not started else "it was started, or early"
        elif job["failure"] == "DEADLINE_EXCEEDED":
            wrong = "" if 0 < job["deadline"] <= job["finished_at"] + 0.001 else "it was early"
        if wrong:
            yield Violation(
                "an end has its cause",
                "docs/states.md, Every step",
                f"{job['id']} is {job['state']} {job['failure']}: {wrong}: {job}",
                job["id"],
                tuple(trail.by_job[job["id"]][-10:]),
            )


def budgets_are_charged_for_the_worker_s_doing(trail: Trail, final: Final) -> Found:
    """A crash is one of a worker's process, a failure one of a handler, a release one asked for."""
    for job in final.jobs.values():
        undelivered = 0
        for attempt in job["attempts"]:
            outcome = attempt["outcome"]
            if outcome == "UNDELIVERED":
                undelivered += 1
            wrong = _wrongly_charged(trail, final, job, attempt, undelivered)
            if wrong:
                run = trail.runs.get((job["id"], attempt["token"]))
                lines = [*((run.begin,) if run else ()), *((run.end,) if run and run.end else ())]
                yield Violation(
                    "budgets are charged for the worker's doing",
                    "docs/states.md, Three budgets",
                    f"{job['id']}: {outcome} under token {attempt['token']} at"
                    f" {attempt['worker']}: {wrong}: {attempt}",
                    job["id"],
                    (*lines, *_around(trail, final, attempt)),
                )
        yield from _counted(job)


def _wrongly_charged(
    trail: Trail, final: Final, job: dict[str, Any], attempt: dict[str, Any], undelivered: int
) -> str:
    run = trail.runs.get((job["id"], attempt["token"]))
    outcome = attempt["outcome"]
    begin, end = (attempt[name] - final.wall_s for name in ("started_at", "ended_at"))
    if outcome == "FAILED":
        took_s = attempt["ended_at"] - attempt["started_at"]
        over = {
            "DEADLINE_EXCEEDED": (job["deadline"] or 0) > attempt["started_at"],
            "EXECUTION_TIMEOUT": 0 < job["timeout_s"] <= took_s + 0.1,
        }
        if run is None and over.get(attempt.get("failure", "")):
            return ""  # its process had not got as far as the handler when its time was over
        if run is None or run.how not in ("failed", "fatal", "raised", "stopped"):
            return f"its handler ended as {run.how!r}" if run else "no handler began"
    elif outcome == "TIMED_OUT":
        limits = [job["timeout_s"]] if job["timeout_s"] else []
        if job["deadline"]:
            limits.append(job["deadline"] - attempt["started_at"])
        if not limits or attempt["ended_at"] - attempt["started_at"] < min(limits) - 0.1:
            return "it has no such limit"
    elif outcome == "CRASHED" and run is not None:
        who, pid = run.begin["who"], run.begin["pid"]
        blame = trail.to_blame(pid, who, min(begin, run.begin["t"]) - 1, end + 0.5)
        if not blame and undelivered < FREE_DELIVERIES:
            return "its worker lived, ran and was in reach"
    elif outcome == "CRASHED":
        # It may have had the job, which waited for a place or for its process.
        ups = trail.processes_of(attempt["worker"], begin - 1, end + 0.5)
        blame = any(trail.to_blame(up["pid"], up["who"], begin - 1, end + 0.5) for up in ups)
        if attempt["worker"].startswith(BARE):
            # Without an SDK it stays with a server that hangs, and nobody hears of it.
            blame = blame or trail.unknown("", begin - 1, end + 0.5)
        if ups and not blame and undelivered < FREE_DELIVERIES:
            return "it never reached its worker, which lived"
    # One that is told to end while no server answers may end with a result that nobody has.
    elif outcome == "RELEASED" and run is not None and trail.terms.get(run.begin["pid"]) is None:
        pid, who = run.begin["pid"], run.begin["who"]
        # Its next process took the id before anybody could tell that this one had died.
        if not (trail.died(pid, begin, end) and trail.unknown(who, trail.deaths[pid], end)):
            return f"its handler ended as {run.how!r}, and its worker was not told to end"
    return ""


def _counted(job: dict[str, Any]) -> Found:
    if job["redrives"] or len(job["attempts"]) >= KEPT_ATTEMPTS:
        return
    ended = Counter(attempt["outcome"] for attempt in job["attempts"])
    free = max(0, ended["UNDELIVERED"] - FREE_DELIVERIES)
    fits = (
        job["failures"] == ended["FAILED"] + ended["TIMED_OUT"]
        # The deadline ends a job and is no failure of its handler.
        or (job["failure"] == "DEADLINE_EXCEEDED" and job["failures"] <= ended["FAILED"])
    )
    if (
        not fits
        or not ended["CRASHED"] <= job["crashes"] <= ended["CRASHED"] + free
        or (job["interruptions"] > ended["RELEASED"])
    ):
        yield Violation(
            "budgets count what happened",
            "docs/states.md, Three budgets",
            f"{job['id']} counts {job['failures']} failures, {job['crashes']} crashes,"
            f" {job['interruptions']} interruptions; its attempts ended as {dict(ended)}",
            job["id"],
        )


def _around(trail: Trail, final: Final, attempt: dict[str, Any]) -> list[Event]:
    """What was done to anybody while an attempt was held; the last of it."""
    begin, end = attempt["started_at"] - final.wall_s - 5, attempt["ended_at"] - final.wall_s + 1
    whats = ("kill", "stop", "cont", "term", "cut", "deaf", "slow", "heal", "full", "failover")
    found = [
        event
        for event in trail.events
        if event["who"] == "runner" and event["what"] in whats and begin <= event["t"] <= end
    ]
    return found[-SHOWN:]


LIFE_RULES: tuple[Rule, ...] = (
    states_follow_the_table,
    a_job_ends_once,
    the_end_has_the_highest_token,
    ends_have_their_cause,
    budgets_are_charged_for_the_worker_s_doing,
)
