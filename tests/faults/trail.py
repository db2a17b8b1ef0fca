"""A history put in order: who ran what when, and what was done to whom; pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.faults.history import Event

AFTER_S = 1.0
"""What stood still has so much to catch up with."""


@dataclass(slots=True)
class Run:
    """One start of a handler."""

    begin: Event
    end: Event | None = None
    saved: list[Event] = field(default_factory=list)

    @property
    def job(self) -> str:
        """The job's id."""
        found: str = self.begin["job"]
        return found

    @property
    def token(self) -> int:
        """Of its lease."""
        found: int = self.begin["token"]
        return found

    @property
    def how(self) -> str:
        """How it ended; empty if it never did."""
        return self.end["how"] if self.end is not None else ""


@dataclass(frozen=True, slots=True)
class Span:
    """When something was the matter with somebody."""

    begin: float
    end: float

    def within(self, begin: float, end: float) -> float:
        """How long of that time it was."""
        return max(0.0, min(self.end, end) - max(self.begin, begin))


class Trail:
    """Every event of a run, found by what it is about.

    Args:
        events: In the order of time.
        patience_s: A worker that is stopped or cut off for so long may be taken for lost.
        replicated: The store fails over: what was seen and never answered may be lost.
    """

    def __init__(
        self, events: Iterable[Event], *, patience_s: float = 1.0, replicated: bool = False
    ) -> None:
        self.events = list(events)
        self.patience_s = patience_s
        self.replicated = replicated
        self.by_what: dict[str, list[Event]] = defaultdict(list)
        self.by_job: dict[str, list[Event]] = defaultdict(list)
        self.runs: dict[tuple[str, int], Run] = {}
        self.runs_of: dict[str, list[Run]] = defaultdict(list)
        self.doubled: list[Event] = []
        """Handlers that began with the token of another."""
        self.deaths: dict[int, float] = {}
        """Process -> its end, whatever it was."""
        self.terms: dict[int, float] = {}
        self.stops: dict[int, list[Span]] = defaultdict(list)
        """Process -> when it stood still."""
        self.cuts: dict[str, list[Span]] = defaultdict(list)
        """Participant -> when its links were cut or deaf."""
        self.outages: list[Span] = []
        """When a server or a store was away: nobody heard what it would have told."""
        self.blocks: dict[int, list[Span]] = defaultdict(list)
        """Process -> when a handler held its loop."""
        self.ups: dict[str, list[Event]] = defaultdict(list)
        """Worker id -> the starts of its processes."""
        for event in self.events:
            self.by_what[event["what"]].append(event)
            if "job" in event:
                self.by_job[event["job"]].append(event)
        self._find_runs()
        self._find_faults()

    def _find_runs(self) -> None:
        for event in self.by_what["begin"]:
            key = event["job"], event["token"]
            if key in self.runs:
                self.doubled.append(event)
                continue
            run = self.runs[key] = Run(event)
            self.runs_of[event["job"]].append(run)
        for what in ("saved", "end"):
            for event in self.by_what[what]:
                found = self.runs.get((event["job"], event["token"]))
                if found is None:
                    continue
                if what == "end":
                    found.end = event
                else:
                    found.saved.append(event)
        for runs in self.runs_of.values():
            runs.sort(key=lambda run: run.token)

    def _find_faults(self) -> None:
        open_stops: dict[str, Event] = {}
        open_cuts: dict[str, Event] = {}
        away: dict[str, float] = {}
        for event in self.events:
            what, target = event["what"], event.get("target", "")
            if target.startswith(("server", "store", "primary")):
                if what in ("kill", "stop", "exit", "full", "failover"):
                    away.setdefault(target, event["t"])
                elif what in ("start", "cont", "heal") and target in away:
                    self.outages.append(Span(away.pop(target), event["t"] + AFTER_S))
            if what == "up":
                self.ups[event.get("id", "")].append(event)
            elif what in ("kill", "exit"):
                self.deaths.setdefault(event.get("victim", 0), event["t"])
            elif what == "term":
                self.terms.setdefault(event["victim"], event["t"])
            elif what == "stop":
                open_stops[target] = event
            elif what == "cont" and target in open_stops:
                begun = open_stops.pop(target)
                self.stops[begun["victim"]].append(Span(begun["t"], event["t"]))
            elif what in ("cut", "deaf"):
                open_cuts[target] = event
            elif what == "heal" and target in open_cuts:
                begun = open_cuts.pop(target)
                self.cuts[target.removeprefix("link-")].append(Span(begun["t"], event["t"]))
        self.outages += [Span(begun_at, math.inf) for begun_at in away.values()]
        for begun in open_stops.values():
            end = self.deaths.get(begun["victim"], math.inf)
            self.stops[begun["victim"]].append(Span(begun["t"], end))
        for target, begun in open_cuts.items():
            self.cuts[target.removeprefix("link-")].append(Span(begun["t"], math.inf))
        for run in self.runs.values():
            if run.begin["kind"] == "block":
                end = run.end["t"] if run.end is not None else run.begin["t"] + 10.0
                self.blocks[run.begin["pid"]].append(Span(run.begin["t"], end))

    # What a worker's process is to blame for.

    def died(self, pid: int, begin: float, end: float) -> bool:
        """The process ended in that time."""
        return begin <= self.deaths.get(pid, math.inf) <= end

    def stood_still_s(self, pid: int, begin: float, end: float) -> float:
        """How long of that time the process was stopped."""
        return sum(span.within(begin, end) for span in self.stops[pid])

    def cut_off_s(self, who: str, begin: float, end: float) -> float:
        """How long of that time a participant's links were cut or deaf."""
        return sum(span.within(begin, end) for span in self.cuts[who])

    def blocked_s(self, pid: int, begin: float, end: float) -> float:
        """How long of that time a handler held the process's loop."""
        return sum(span.within(begin, end) for span in self.blocks[pid])

    def unknown(self, who: str, begin: float, end: float) -> bool:
        """What happened to a participant in that time may not have become known by its end."""
        return self.cut_off_s(who, begin, end) > 0 or any(
            span.within(begin, end) > 0 for span in self.outages
        )

    def to_blame(self, pid: int, who: str, begin: float, end: float) -> bool:
        """The process died, stood still, or was cut off, so that it may be taken for lost."""
        return (
            self.died(pid, begin, end)
            or self.stood_still_s(pid, begin, end) >= self.patience_s
            or self.cut_off_s(who, begin, end) >= self.patience_s
        )

    def end_of(self, run: Run) -> float:
        """When a handler ended, with its process if not before; infinite if neither did."""
        died = self.deaths.get(run.begin["pid"], math.inf)
        return min(died, run.end["t"]) if run.end is not None else died

    def processes_of(self, worker_id: str, begin: float, end: float) -> list[Event]:
        """The starts of a worker's processes that lived in that time."""
        return [
            up
            for up in self.ups[worker_id]
            if up["t"] <= end and self.deaths.get(up["pid"], math.inf) >= begin
        ]
