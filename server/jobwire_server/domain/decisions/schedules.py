"""Schedules: when one is due, and what is to be done about the moments that have passed.

A moment is a time at which a schedule is due, in Unix milliseconds. Each moment is settled once:
by a job, or by being left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b
from itertools import islice, pairwise, takewhile
from typing import NamedTuple

from jobwire_server.domain.decisions.cron import cron_of

LATE_MS = 60_000
"""A moment that passed longer ago than this was missed."""
NEXT_RUNS = 5
FORESEEN_MS = 50 * 366 * 86_400_000
COMPARED_MS = 5 * 366 * 86_400_000
"""How far on distances of moments are compared."""
LOOK_AT = 1_000
"""The most moments of an expression that one decision goes through."""
CATCH_UP = 50
"""The most runs that one decision makes up for."""


class MissedRuns(IntEnum):
    """What happens to moments that passed unseen; the numbers are those of the contract."""

    SKIP = 1
    RUN_LATEST = 2
    RUN_ALL = 3


class Overlap(IntEnum):
    """What happens while an earlier job is not finished; the numbers are those of the contract."""

    SKIP = 1
    ALLOW = 2
    CANCEL_PREVIOUS = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides when a schedule is due. Times are in milliseconds."""

    cron: str = ""
    """An expression that `cron_of` reads; '' for an interval."""
    zone: str = "UTC"
    every_ms: int = 0
    """The distance of two moments; 0 for an expression."""
    anchor_ms: int = 0
    """One of the moments of an interval; 0: the creation."""
    start_ms: int = 0
    """Not due before; 0: at once."""
    end_ms: int = 0
    """Not due after; 0: for ever."""
    missed_runs: MissedRuns = MissedRuns.RUN_LATEST
    catch_up_ms: int = 86_400_000
    overlap: Overlap = Overlap.SKIP
    jitter_ms: int = 0


class Step(NamedTuple):
    """A schedule moves on from the moment that it is due at."""

    due_ms: int
    """Where it stands."""
    next_ms: int
    """Where it will stand; 0: it is over."""
    missed: int
    """Moments before `run_ms`, or all of them where nothing runs, that are left out."""
    run_ms: int
    """The moment that gets a job; 0: none."""
    overlap: Overlap = Overlap.ALLOW


def next_after(plan: Plan, ms: int) -> int:
    """Return the first moment after a time, 0 if there is none."""
    ms = max(ms, plan.start_ms - 1)
    if plan.every_ms:
        found: int | None = ms - (ms - plan.anchor_ms) % plan.every_ms + plan.every_ms
    else:
        found = cron_of(plan.cron, plan.zone).after(ms)
    if found is None or (plan.end_ms and found > plan.end_ms):
        return 0
    return found


def moments(plan: Plan, first_ms: int) -> Iterator[int]:
    """Yield a moment and those that follow it; none for 0."""
    while first_ms:
        yield first_ms
        first_ms = next_after(plan, first_ms)


def next_runs(plan: Plan, due_ms: int) -> tuple[int, ...]:
    """Return the moment that a schedule stands at and a few that follow, at most 50 years on."""
    return tuple(_until(due_ms + FORESEEN_MS, islice(moments(plan, due_ms), NEXT_RUNS)))


def shortest_distance(plan: Plan, after_ms: int) -> int:
    """Return the shortest distance of the next moments, 0 if there is one at most."""
    if plan.every_ms:
        return plan.every_ms
    first = next_after(plan, after_ms)
    following = _until(first + COMPARED_MS, islice(moments(plan, first), 25))
    return min((later - earlier for earlier, later in pairwise(following)), default=0)


def _until(last_ms: int, found: Iterator[int]) -> Iterator[int]:
    return takewhile(lambda moment: moment <= last_ms, found)


def decide(plan: Plan, due_ms: int, now_ms: int) -> list[Step]:
    """Return what a schedule does now, each step beginning where the one before ended.

    It may leave more to be done, where much was missed: then its next moment has passed, too.

    Args:
        plan: The schedule's.
        due_ms: The moment that it stands at; not after `now_ms`.
        now_ms: The store's clock.
    """
    if plan.missed_runs is MissedRuns.RUN_ALL:
        return _all(plan, due_ms, now_ms)
    latest, missed, bounded = _pass_until(plan, due_ms, now_ms)
    if bounded:
        return [Step(due_ms, latest, missed, 0)]
    following = next_after(plan, latest)
    if plan.missed_runs is MissedRuns.SKIP and now_ms - latest > LATE_MS:
        return [Step(due_ms, following, missed + 1, 0)]
    return [Step(due_ms, following, missed, latest, plan.overlap)]


def _all(plan: Plan, due_ms: int, now_ms: int) -> list[Step]:
    oldest = now_ms - plan.catch_up_ms
    first, missed, bounded = due_ms, 0, False
    if due_ms < oldest:
        # Up to the last one that is too old, and over it.
        last, missed, bounded = _pass_until(plan, due_ms, oldest - 1)
        first = last if bounded else next_after(plan, last)
        missed += 0 if bounded else 1
        if bounded or not first or first > now_ms:
            return [Step(due_ms, first, missed, 0)]
    passed: list[int] = []
    for moment in moments(plan, first):
        # One more than the bound: a last one left alone would be taken for one that is not late.
        if moment > now_ms or len(passed) > CATCH_UP + 1:
            break
        passed.append(moment)
    if len(passed) > CATCH_UP + 1:
        passed = passed[:CATCH_UP]
    # Runs that are made up for do not stand in each other's way: each was asked for.
    late = len(passed) > 1 or now_ms - passed[0] > LATE_MS
    overlap = Overlap.ALLOW if late else plan.overlap
    ends = [*passed[1:], next_after(plan, passed[-1])]
    begins = [due_ms, *passed[1:]]
    return [
        Step(begin, end, missed if at == 0 else 0, moment, overlap)
        for at, (begin, end, moment) in enumerate(zip(begins, ends, passed, strict=True))
    ]


def _pass_until(plan: Plan, due_ms: int, until_ms: int) -> tuple[int, int, bool]:
    """Return the last moment up to a time, how many lie before it from `due_ms` on, and True if it
    is not the last because there were too many to go through.
    """
    if plan.every_ms:
        end_ms = min(until_ms, plan.end_ms or until_ms)
        count = (end_ms - due_ms) // plan.every_ms
        return due_ms + count * plan.every_ms, count, False
    last = due_ms
    for count in range(LOOK_AT):
        following = next_after(plan, last)
        if not following or following > until_ms:
            return last, count, False
        last = following
    return last, LOOK_AT, True


def identity_of(queue: str, schedule_id: str, creation_id: str, moment_ms: int) -> bytes:
    """Return 10 bytes that are the same wherever a moment's job is made, and for no other."""
    text = f"{queue}\n{schedule_id}\n{creation_id}\n{moment_ms}"
    return blake2b(text.encode(), digest_size=10).digest()


def jitter_of(plan: Plan, identity: bytes) -> int:
    """Return how much later than its moment a job becomes ready, ms; always the same for one."""
    return int.from_bytes(identity[:8], "big") % (plan.jitter_ms + 1)
