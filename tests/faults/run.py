"""One run: a world, its load, its faults, the quiet after them, and what the checks say."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from jobwire import Client

from tests.faults import plan
from tests.faults.checks import RULES, Violation
from tests.faults.ending import collect, patiently, purge, settle
from tests.faults.final import Final
from tests.faults.handled import HANDLER_RULES
from tests.faults.history import Event, read
from tests.faults.lives import LIFE_RULES
from tests.faults.measuring import measure
from tests.faults.plan import Fault, Pace
from tests.faults.trail import Trail
from tests.faults.world import World

LOOK_S = 0.02
START_S = 60.0
LATER_S = 0.3
PATIENCE_S = 15.0
DEFECT = re.compile(
    r"Traceback \(most recent call last\)|was never retrieved|was never awaited|SIGSEGV"
    r"|Segmentation fault|Fatal Python error|status=-(?!9\b)\d+"
)
BEGINS = re.compile(r"\d{4}-\d\d-\d\d")
FAILED = re.compile(r"WARNING jobwire\.worker .*failed")
"""A handler's failure, and below it where it was raised."""
MOST_OUTPUTS = 150


@dataclass(frozen=True, slots=True)
class Settings:
    """What to do.

    Args:
        config: One of `shapes.CONFIGS`.
        seconds: How long faults go on.
        seed: Fixes the faults.
        folder: An empty one, for histories and logs.
        pace: How often what happens.
        short: True: short leases and so on, for a short run.
        measured_s: How long single kills are timed after the faults. 0: not at all.
        pause_s: The mean pause of each producer.
        settle_s: How long jobs may take to end once all is well.
    """

    config: str
    seconds: float
    seed: int
    folder: Path
    pace: Pace
    short: bool = False
    measured_s: float = 0.0
    pause_s: float = 0.15
    settle_s: float = 90.0


@dataclass(slots=True)
class Result:
    """What came of a run."""

    settings: Settings
    counts: dict[str, int]
    times: dict[str, list[float]]
    violations: list[Violation]
    skipped: int = 0
    seconds: float = 0.0
    events: list[Event] = field(default_factory=list)


def run(settings: Settings) -> Result:
    """Does what the settings say, and checks it."""
    began = time.monotonic()
    skipped = 0
    times: dict[str, list[float]] = {}
    with World(
        settings.config,
        settings.folder,
        settings.seed,
        short=settings.short,
        pause_s=settings.pause_s,
    ) as world:
        world.start_servers()
        with Client(world.target, timeout_s=5.0, reconnect_s=120.0) as client:
            patiently(client.server_info, world, 60.0)
            world.start_load()
            _wait_until_up(world)
            faults = plan.draw(settings.seed, settings.seconds, world.targets(), settings.pace)
            skipped = _torment(world, faults, settings.seconds)
            world.heal()
            if settings.measured_s:
                times = measure(world, client, settings.measured_s, settings.seed)
                world.heal()
            final = _quiet(world, client, settings)
    events = read(settings.folder)
    trail = Trail(
        events,
        patience_s=1.0 if settings.short else 3.0,
        replicated=settings.config == "sentinel",
    )
    violations = [
        violation
        for rule in (*RULES, *LIFE_RULES, *HANDLER_RULES)
        for violation in rule(trail, final)
    ]
    violations += defects(settings.folder)
    return Result(
        settings,
        _count(events, final),
        times,
        violations,
        skipped,
        time.monotonic() - began,
        events,
    )


def _wait_until_up(world: World) -> None:
    end = time.monotonic() + START_S
    while late := [one.name for one in world.managed if not one.up]:
        world.look()
        if time.monotonic() > end:
            raise TimeoutError(f"{late} did not start; see {world.folder}")
        time.sleep(0.1)


def _torment(world: World, faults: list[Fault], seconds: float) -> int:
    """Lets every fault happen in its time; returns how many could not."""
    start = time.monotonic()
    waiting = sorted(faults, key=lambda fault: fault.at_s)
    planned = {fault.number: fault.at_s for fault in faults}
    under_way: list[Fault] = []
    skipped = 0
    while (now := time.monotonic() - start) < seconds or under_way:
        for fault in [fault for fault in under_way if fault.end_s <= now]:
            world.finish(fault)
            under_way.remove(fault)
        while waiting and waiting[0].at_s <= now:
            fault = waiting.pop(0)
            if world.begin(fault):
                under_way.append(replace(fault, at_s=now))
            elif now < planned[fault.number] + PATIENCE_S:
                # Its victim is not back yet: a little later then.
                waiting.append(replace(fault, at_s=now + LATER_S))
                waiting.sort(key=lambda fault: fault.at_s)
            else:
                skipped += 1
        world.look()
        time.sleep(LOOK_S)
    return skipped + len(waiting)


def _quiet(world: World, client: Client, settings: Settings) -> Final:
    """Ends the load, waits for what is left, and reads everything."""
    for one in world.clients.values():
        one.wanted = False
        one.terminate(0, 0.0)
    live = settle(world, client, settings.settle_s)
    deadline = time.monotonic() + settings.settle_s
    # Those who watch hear of the last end, and leave.
    while any(one.alive for one in world.clients.values()) and time.monotonic() < deadline:
        world.look()
        time.sleep(LOOK_S)
    live = live and settle(world, client, 1.0)
    outputs_of: set[str] = set()
    for event in reversed(read(settings.folder)):
        if event["what"] == "begin" and event.get("rows") and len(outputs_of) < MOST_OUTPUTS:
            outputs_of.add(event["job"])
    final: Final = patiently(lambda: collect(world, client, outputs_of), world, 30.0)
    final.live = live
    final.leftover = patiently(lambda: purge(world, client), world, 30.0)
    return final


def defects(folder: Path) -> list[Violation]:
    """Lines in logs of processes that tell of an error nobody expected."""
    found = []
    for path in sorted(folder.glob("*.log")):
        lines = path.read_text(errors="replace").splitlines()
        of_a_handler = False
        for at, line in enumerate(lines):
            if BEGINS.match(line):
                of_a_handler = FAILED.search(line) is not None
            if DEFECT.search(line) and not of_a_handler:
                text = "\n".join(lines[max(0, at - 2) : at + 30])
                found.append(
                    Violation(
                        "no process tells of a defect",
                        "docs/operations.md",
                        f"{path.name}:{at + 1}: {text}",
                        path.stem,
                    )
                )
    return found


def _count(events: list[Event], final: Final) -> dict[str, int]:
    kinds = Counter(event["what"] for event in events)
    faults = Counter(event["what"] for event in events if event.get("fault"))
    found = {what: faults[what] for what in plan.WHATS if faults[what]}
    found["jobs"] = len(final.jobs)
    found["starts"] = kinds["begin"]
    found["watches"] = kinds["watch-end"]
    found["refused"] = kinds["refused"]
    return found
