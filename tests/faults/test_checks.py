"""Each check of a history can fail: a hand-made one with the violation, and one without."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.faults.checks import RULES
from tests.faults.final import Final
from tests.faults.handled import HANDLER_RULES
from tests.faults.history import Event
from tests.faults.lives import LIFE_RULES
from tests.faults.run import defects
from tests.faults.trail import Trail
from tests.faults.wishes import row

JOB = "faults-a-01m8c2k875b73y42mk565ka9t8"
OTHER = "faults-a-01m8c2k875b73y42mk565ka9t9"
PID, OTHER_PID = 100, 200
BEGUN = {"attempt": 1, "kind": "slow", "checkpoint": 0, "rows": 2}


def event(t: float, what: str, who: str = "w", pid: int = PID, **facts: Any) -> Event:
    return {"t": t, "who": who, "pid": pid, "what": what, **facts}


def runner(t: float, what: str, **facts: Any) -> Event:
    return event(t, what, "runner", 1, **facts)


def attempt(token: int, outcome: str, begin: float = 2.0, end: float = 3.0) -> dict[str, Any]:
    times = {"started_at": begin, "ended_at": end}
    return {"number": token, "token": token, "worker": "w", "outcome": outcome, **times}


def a_job(job_id: str = JOB, **changed: Any) -> dict[str, Any]:
    found = {
        "id": job_id,
        "queue": "faults-a",
        "state": "SUCCEEDED",
        "revision": 3,
        "token": 1,
        "failures": 0,
        "crashes": 0,
        "interruptions": 0,
        "result": {"token": 1},
        "failure": "",
        "redrives": 0,
        "unique_key": "",
        "created_at": 1.0,
        "finished_at": 3.0,
        "deadline": 0.0,
        "expires_at": 0.0,
        "timeout_s": 0.0,
        "attempts": [attempt(1, "SUCCEEDED")],
        "output": {"1": row(JOB, 1, 0) + row(JOB, 1, 1)},
    }
    return {**found, **changed}


def seen(t: float, state: str, revision: int, token: int = 1) -> Event:
    about = {"job": JOB, "watch": 1, "redrives": 0}
    return event(t, "seen", "c", state=state, revision=revision, token=token, **about)


def good_events() -> list[Event]:
    """A job that was submitted, watched and done."""
    return [
        event(0.5, "up", id="w"),
        event(1.0, "submit", "c", key=JOB, wish={}),
        event(1.1, "accepted", "c", key=JOB, job=JOB, existed=False),
        seen(1.2, "PENDING", 1, 0),
        event(2.0, "begin", job=JOB, token=1, **BEGUN),
        seen(2.1, "RUNNING", 2),
        event(2.5, "output", "c", job=JOB, watch=1, attempt=1, offset=0, text=row(JOB, 1, 0)),
        event(2.6, "saved", job=JOB, token=1, row=1),
        event(2.9, "end", job=JOB, token=1, how="ok", reason=""),
        seen(3.0, "SUCCEEDED", 3),
        event(3.1, "watch-end", "c", job=JOB, watch=1, error=""),
    ]


def good_final() -> Final:
    return Final(
        jobs={JOB: a_job()},
        counts={"faults-a": {"SUCCEEDED": 1}},
        leftover=["jw:{faults-a}:totals", "jw:{workers}:ids", "jw:{faults-a}:q:r-1"],
    )


def broken(events: list[Event], final: Final, *, replicated: bool = False) -> set[str]:
    """The rules that do not hold."""
    trail = Trail(sorted(events, key=lambda each: each["t"]), replicated=replicated)
    rules = (*RULES, *LIFE_RULES, *HANDLER_RULES)
    return {violation.rule for rule in rules for violation in rule(trail, final)}


def test_a_good_history_breaks_no_rule() -> None:
    assert broken(good_events(), good_final()) == set()


def test_a_repeat_may_overtake_a_submission_that_comes_too_late() -> None:
    refused = event(5.0, "refused", "c", key=OTHER, code="INVALID_ARGUMENT", reason="", text="late")
    late = a_job(id=OTHER, state="FAILED", failure="DEADLINE_EXCEEDED", attempts=[], token=0)
    final = good_final()
    final.jobs[OTHER] = {**late, "deadline": 2.5}
    rule = "a repeat gets the first answer"
    assert rule not in broken([*good_events(), refused], final)
    final.jobs[OTHER] = a_job(id=OTHER, deadline=2.5)
    assert rule in broken([*good_events(), refused], final)


LEASES = {"job": JOB, "attempt": 2, "kind": "slow", "checkpoint": 1, "rows": 2}
WRONG_EVENTS: dict[str, tuple[str, list[Event]]] = {
    "an accepted job is missing": (
        "nothing accepted is lost",
        [event(1.0, "accepted", "c", key=OTHER, job=OTHER, existed=False)],
    ),
    "a repeat gets another job": (
        "a repeat gets the first answer",
        [
            event(1.0, "accepted", "c", key="request:faults-a:r", job=JOB, existed=False),
            event(5.0, "accepted", "c", key="request:faults-a:r", job=OTHER, existed=True),
        ],
    ),
    "a repeat after the deadline is refused": (
        "a repeat gets the first answer",
        [event(5.0, "refused", "c", key=JOB, code="INVALID_ARGUMENT", reason="", text="late")],
    ),
    "a submission fails in an unknown way": (
        "a repeat gets the first answer",
        [event(5.0, "refused", "c", key=OTHER, code="INTERNAL", reason="", text="")],
    ),
    "a failure said again has lost its lease": (
        "a recorded completion may be repeated",
        [event(5.0, "repeated", job=JOB, token=1, found="LEASE_LOST", what_ended="failure")],
    ),
    "a watch breaks": (
        "a watch goes on to the end of its job",
        [event(5.0, "watch-end", "c", job=JOB, watch=2, error="INTERNAL")],
    ),
    "a cancellation is refused oddly": (
        "calls are refused for a reason",
        [event(5.0, "cancel-refused", job=JOB, code="UNKNOWN", reason="", text="")],
    ),
    "a worker leaves by itself": (
        "no process ends by itself",
        [runner(5.0, "exit", target="w", victim=PID, code=1, asked=False)],
    ),
    "a worker that is told to end fails": (
        "a process that is told to end does so with 0",
        [runner(5.0, "exit", target="w", victim=PID, code=70, asked=True)],
    ),
    "a worker does not end": (
        "a process that is told to end does",
        [runner(50.0, "hung", target="w", victim=PID, after_s=45.0)],
    ),
    "a state comes that can't follow": (
        "states are only as in the table",
        [seen(2.2, "SCHEDULED", 3, 1), seen(2.3, "RUNNING", 4, 1)],
    ),
    "a watcher goes back": ("states are only as in the table", [seen(2.2, "PENDING", 1, 1)]),
    "a second end is seen": ("a job has one recorded end", [seen(3.2, "FAILED", 4)]),
    "a token is given twice": (
        "a token is given once",
        [event(2.2, "begin", "v", OTHER_PID, job=JOB, token=1, **BEGUN)],
    ),
    "a handler has a higher token than the job": (
        "the end has the highest token",
        [event(3.5, "begin", "v", OTHER_PID, token=2, **LEASES)],
    ),
    "a handler begins while another runs": (
        "a job has one handler at a time",
        [
            event(4.0, "begin", "v", OTHER_PID, token=2, **LEASES),
            event(9.0, "end", job=JOB, token=1, how="ok", reason=""),
        ],
    ),
    "a checkpoint is forgotten": (
        "the next attempt gets what was saved",
        [event(4.0, "begin", "v", OTHER_PID, token=2, **{**LEASES, "checkpoint": 0})],
    ),
    "a piece of output comes twice": (
        "output is exact",
        [event(2.7, "output", "c", job=JOB, watch=1, attempt=1, offset=0, text=row(JOB, 1, 0))],
    ),
    "a piece of output is another": (
        "output is exact",
        [event(2.7, "output", "c", job=JOB, watch=2, attempt=1, offset=0, text="what?")],
    ),
}


@pytest.mark.parametrize("case", WRONG_EVENTS)
def test_a_history_with_a_wrong_event_breaks_its_rule(case: str) -> None:
    rule, events = WRONG_EVENTS[case]
    assert rule in broken([*good_events(), *events], good_final())


CHARGED = "budgets are charged for the worker's doing"
CRASHED = {"attempts": [attempt(1, "CRASHED")], "crashes": 1, "state": "FAILED"}
CAUSE = "an end has its cause"
WRONG_JOBS: dict[str, tuple[str, dict[str, Any]]] = {
    "it succeeded under a token that no handler had": (
        "the end has the highest token",
        {"token": 2, "result": {"token": 2}},
    ),
    "its result is that of another lease": (
        "the end has the highest token",
        {"result": {"token": 7}},
    ),
    "it is cancelled and nobody asked": (CAUSE, {"state": "CANCELLED"}),
    "it expired after its start": (CAUSE, {"state": "EXPIRED", "expires_at": 2.5}),
    "its deadline came early": (
        CAUSE,
        {"state": "FAILED", "failure": "DEADLINE_EXCEEDED", "deadline": 9.0},
    ),
    "a crash is charged to a worker that lived": (CHARGED, CRASHED),
    "a crash is charged to a worker that never had it": (
        CHARGED,
        {**CRASHED, "attempts": [attempt(3, "CRASHED")]},
    ),
    "a failure is charged that no handler had": (CHARGED, {"attempts": [attempt(1, "FAILED")]}),
    "a timeout is charged without a limit": (CHARGED, {"attempts": [attempt(1, "TIMED_OUT")]}),
    "a release is charged that nobody asked for": (CHARGED, {"attempts": [attempt(1, "RELEASED")]}),
    "failures are miscounted": ("budgets count what happened", {"failures": 1}),
    "crashes are miscounted": ("budgets count what happened", {"crashes": 2}),
    "interruptions are miscounted": ("budgets count what happened", {"interruptions": 1}),
    "its output lacks the end": ("output is exact", {"output": {"1": row(JOB, 1, 0)}}),
}


@pytest.mark.parametrize("case", WRONG_JOBS)
def test_a_job_that_ended_wrongly_breaks_its_rule(case: str) -> None:
    rule, changed = WRONG_JOBS[case]
    final = good_final()
    final.jobs[JOB] = a_job(**changed)
    assert rule in broken(good_events(), final)


def _with(**changed: Any) -> Final:
    final = deepcopy(good_final())
    for name, value in changed.items():
        setattr(final, name, value)
    return final


@pytest.mark.parametrize(
    ("rule", "changed"),
    [
        ("every job ends", {"live": [JOB]}),
        ("counts are equal to reality", {"counts": {"faults-a": {"SUCCEEDED": 2}}}),
        ("the structures of a queue tell one story", {"broken": ["faults-a: done:5"]}),
        ("what is forgotten leaves no key", {"leftover": ["jw:{faults-a}:j:x"]}),
        ("what is forgotten leaves no key", {"leftover": ["jw:{faults-a}:leases"]}),
    ],
)
def test_what_is_wrong_in_the_end_breaks_its_rule(rule: str, changed: dict[str, Any]) -> None:
    assert broken(good_events(), _with(**changed)) == {rule}


@pytest.mark.parametrize(
    "excuse",
    [
        [runner(2.5, "kill", target="w", victim=PID, fault=1)],
        [
            runner(1.5, "stop", target="w", victim=PID, fault=1),
            runner(2.9, "cont", target="w", victim=PID),
        ],
        [
            runner(1.5, "cut", target="link-w", fault=1),
            runner(2.9, "heal", target="link-w"),
        ],
    ],
    ids=["killed", "stopped", "cut off"],
)
def test_a_crash_is_charged_to_a_worker_that_was_killed_stopped_or_cut_off(
    excuse: list[Event],
) -> None:
    final = good_final()
    final.jobs[JOB] = a_job(**CRASHED)
    assert CHARGED not in broken([*good_events(), *excuse], final)


def test_a_stopped_server_is_no_reason_for_a_crash() -> None:
    final = good_final()
    final.jobs[JOB] = a_job(**CRASHED)
    stopped = [runner(0.5, "stop", target="server-0", victim=7, fault=1)]
    assert CHARGED in broken([*good_events(), *stopped], final)


def test_what_an_answer_calls_not_accepted_must_not_exist() -> None:
    final = good_final()
    final.jobs[OTHER] = a_job(OTHER, output=None, result=None, state="FAILED", attempts=[])
    final.counts = {"faults-a": {"SUCCEEDED": 1, "FAILED": 1}}
    said = {"code": "UNAVAILABLE", "reason": "", "text": "the store is away: none was accepted"}
    refused = event(1.0, "refused", "c", key=OTHER, bare=True, **said)
    assert broken([*good_events(), refused], final) == {"what is refused does not exist"}


def test_a_unique_key_that_two_jobs_hold_is_found() -> None:
    final = good_final()
    final.jobs[JOB]["unique_key"] = "k"
    final.jobs[OTHER] = a_job(
        OTHER, unique_key="k", output=None, state="FAILED", attempts=[], finished_at=5.0
    )
    final.counts = {"faults-a": {"SUCCEEDED": 1, "FAILED": 1}}

    def accepted(at: float) -> list[Event]:
        return [
            event(at, "submit", "c", key=OTHER, wish={}),
            event(at + 0.1, "accepted", "c", key=OTHER, job=OTHER, existed=False),
        ]

    assert broken([*good_events(), *accepted(2.0)], final) == {"a unique key is held by one"}
    assert broken([*good_events(), *accepted(4.0)], final) == set()


def test_after_a_failover_a_watcher_may_see_what_was_lost() -> None:
    back = [seen(2.2, "PENDING", 1, 1), seen(2.3, "RUNNING", 2)]
    assert broken([*good_events(), *back], good_final(), replicated=True) == set()


@pytest.mark.parametrize(
    "line",
    [
        "Traceback (most recent call last):",
        "ERROR asyncio Task exception was never retrieved",
        "[error] the store process has died, starting it again status=-11",
        "Fatal Python error: Segmentation fault",
    ],
)
def test_a_defect_in_a_log_is_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "server-0.log").write_text(f"all is well\n{line}\nmore\n")
    (found,) = defects(tmp_path)
    assert found.about == "server-0"
    assert line in found.text


def test_where_a_handler_failed_is_no_defect_and_what_follows_may_be_one(tmp_path: Path) -> None:
    failed = "2026-01-01 09:00:00,000 WARNING jobwire.worker x failed after 1 s: ValueError: y"
    unheard = "2026-01-01 09:00:01,000 ERROR asyncio Task exception was never retrieved"
    trace = "Traceback (most recent call last):\n  File"
    (tmp_path / "w.log").write_text(f"{failed}\n{trace}\n{unheard}\n{trace}\n")
    assert [found.text.split(": ")[0] for found in defects(tmp_path)] == ["w.log:4", "w.log:5"]


def test_the_store_s_death_by_the_run_s_own_kill_is_no_defect(tmp_path: Path) -> None:
    (tmp_path / "server-0.log").write_text("the store process has died, status=-9 request_id=4\n")
    assert defects(tmp_path) == []
