"""Selects jobs of a queue for an action or a listing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from jobwire_server.domain.decisions.queue_patterns import is_pattern
from jobwire_server.domain.model import FailureOrigin, Job, JobState, RecordFacts
from jobwire_server.domain.records import RecordCodec


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Conditions on jobs. Unset ones do not narrow; moments are Unix ms."""

    queue: str
    """Its name, or a pattern."""
    states: tuple[JobState, ...] = ()
    """In the order of the search."""
    operation: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    """All of these."""
    failure_type: str = ""
    failure_origin: FailureOrigin = FailureOrigin.UNKNOWN
    """Who found the failure; UNKNOWN: whoever."""
    submitted_after_ms: int = 0
    """At this moment or later; 0: whenever."""
    submitted_before_ms: int = 0
    """Before this moment; 0: whenever."""
    finished_after_ms: int = 0
    """At this moment or later; 0: whenever, and the unfinished as well."""
    finished_before_ms: int = 0
    """Before this moment; 0: whenever, and the unfinished as well."""
    ulids: tuple[str, ...] = ()
    """These jobs only; empty: all of the queue."""
    named: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The same for a pattern: ULIDs by queue."""

    @property
    def is_pattern(self) -> bool:
        """True if the jobs may lie in several queues."""
        return is_pattern(self.queue)

    def in_queue(self, queue: str) -> JobFilter:
        """Return the filter for one of the queues that it means."""
        if not self.is_pattern:
            return self
        return replace(self, queue=queue, ulids=self.named.get(queue, ()), named={})

    def scope(self) -> tuple[str, ...]:
        """Return all that it says, for the tokens of a method that has this filter."""
        return (
            self.queue,
            self.operation,
            self.failure_type,
            str(int(self.failure_origin)),
            " ".join(str(int(state)) for state in self.states),
            f"{self.submitted_after_ms} {self.submitted_before_ms}",
            f"{self.finished_after_ms} {self.finished_before_ms}",
            " ".join(self.ulids),
            *(f"{queue} {' '.join(ulids)}" for queue, ulids in sorted(self.named.items())),
            *(part for pair in sorted(self.labels.items()) for part in pair),
        )

    @property
    def narrows(self) -> bool:
        """True if more than the state decides whether a job of the queue is meant."""
        return bool(
            self.reads_records
            or self.failure_type
            or self.failure_origin
            or self.finished_after_ms
            or self.finished_before_ms
        )

    @property
    def reads_records(self) -> bool:
        """True if what the producer wrote decides, so that the record has to be read."""
        return bool(
            self.operation or self.labels or self.submitted_after_ms or self.submitted_before_ms
        )

    def keeps(self, job: Job, records: RecordCodec) -> bool:
        """Return whether a job is meant; read its record only where that decides."""
        return self.match(job, records.facts(job.record) if self.reads_records else None)

    def match(self, job: Job, facts: RecordFacts | None) -> bool:
        """Return whether a job is meant.

        Args:
            job: As it stands, `states` and all.
            facts: What its record says; may be None if `reads_records` is False.
        """
        return self._matches_course(job) and (
            not self.reads_records or (facts is not None and self._matches_record(facts))
        )

    def _matches_course(self, job: Job) -> bool:
        if self.states and job.state not in self.states:
            return False
        if (self.failure_type or self.failure_origin) and not self._matches_failure(job):
            return False
        if self.finished_after_ms or self.finished_before_ms:
            return job.state.terminal and _within(
                job.finished_at_ms, self.finished_after_ms, self.finished_before_ms
            )
        return True

    def _matches_failure(self, job: Job) -> bool:
        # The failure of an attempt before the one that succeeded is history.
        failure = None if job.state is JobState.SUCCEEDED else job.failure
        return (
            failure is not None
            and (not self.failure_type or failure.type == self.failure_type)
            and (not self.failure_origin or failure.origin is self.failure_origin)
        )

    def _matches_record(self, facts: RecordFacts) -> bool:
        return (
            (not self.operation or facts.operation == self.operation)
            and all(facts.labels.get(key) == value for key, value in self.labels.items())
            and _within(facts.created_at_ms, self.submitted_after_ms, self.submitted_before_ms)
        )


def _within(moment_ms: int, after_ms: int, before_ms: int) -> bool:
    return moment_ms >= after_ms and (not before_ms or moment_ms < before_ms)


class Pace:
    """Spreads jobs over time, so that at most so many become ready in a second.

    Args:
        per_second: Above 0.
        begin_ms: The first moment that is given out.
    """

    def __init__(self, per_second: float, begin_ms: int) -> None:
        self._step_ms = 1000 / per_second
        self._next_ms = float(begin_ms)

    def catch_up(self, now_ms: int) -> None:
        """Drop moments that passed unused; given out late they would make a burst."""
        self._next_ms = max(self._next_ms, now_ms)

    def take(self) -> int:
        """Return the next moment, Unix ms."""
        moment = self._next_ms
        self._next_ms += self._step_ms
        return int(moment)
