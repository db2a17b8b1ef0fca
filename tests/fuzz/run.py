"""One run: calls side by side, a watch over the server, small inputs for failures, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import traceback
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from tests.fuzz import ending
from tests.fuzz.calling import Caller
from tests.fuzz.cases import Case
from tests.fuzz.inputs import Entry, Input, to_text
from tests.fuzz.judging import Failure, judge
from tests.fuzz.learnt import Learnt
from tests.fuzz.pace import Pace
from tests.fuzz.shrinking import shrink
from tests.fuzz.surface import methods
from tests.fuzz.world import MOST_MEMORY_MIB, World
from tests.support.waiting import eventually

LOOK_S = 0.5
TELL_S = 60.0
SHOWN = 300
SUSPECTED_S = 1.5
"""What was called in so long before a stall may have made it."""
TOGETHER = 20
"""Suspects that are tried at once."""
TICK_S = 0.12
"""After so long the server has counted a stall."""
STALL_MS = 100
"""No loop computes for longer in one go, on the machine at its best."""
MOST_SHRUNK = 12
"""To make more of them small is left to the next run."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What to do.

    Args:
        seed: Fixes the calls.
        seconds: How long to go on.
        calls: The most calls.
        lanes: Calls at one time.
        cpu_s: The most processor time of this process and the server's together. 0: any.
        corpus: Where to put small inputs that fail. None: nowhere.
    """

    seed: int
    seconds: float
    calls: int = 10**9
    lanes: int = 16
    cpu_s: float = 0.0
    corpus: Path | None = None


@dataclass(slots=True)
class Result:
    """What came of a run."""

    settings: Settings
    messages: int = 0
    streams: Counter[str] = field(default_factory=Counter)
    """Long ones by the method."""
    codes: Counter[str] = field(default_factory=Counter)
    methods: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Failures by their signature."""
    seconds: float = 0.0
    memory_mib: float = 0.0
    """The most of the server."""
    stalls: int = 0
    """Of the server, by its own count."""
    excused: int = 0
    """Those among them that the machine made, which computed more slowly than at other times."""


def run(settings: Settings, tell: Callable[[str], None] = lambda text: None) -> Result:
    """Does what the settings say, and checks it.

    Args:
        tell: Gets a line about the run now and then, and one for each kind of failure.
    """
    with World() as world:
        fuzzer = Fuzzer(settings, world, tell)
        asyncio.run(fuzzer.run())
        if world.ended is None:
            for text in _left_in(world):
                fuzzer.note(Failure("orphan", "", text))
            fuzzer.look_at_log(quiet=True)
        return fuzzer.result


def _left_in(world: World) -> list[str]:
    """What a run left behind; also if a client can't make out what the server says of it."""
    try:
        return ending.end(world)
    except Exception:
        return [f"the end can't be looked at: {traceback.format_exc()}"]


class Fuzzer:
    """Calls a server for a while.

    Args:
        settings: What to do.
        world: The server.
        tell: Gets lines about it.
    """

    def __init__(self, settings: Settings, world: World, tell: Callable[[str], None]) -> None:
        self.settings = settings
        self._tell = tell
        self._told_at = time.monotonic()
        self.result = Result(settings)
        self._world = world
        self._known = methods()
        self._learnt = Learnt()
        self._numbers: Iterator[int] = iter(range(settings.calls))
        self._caller: Caller
        self._over = False
        self._cpu_before_s = time.process_time()
        self._go = asyncio.Event()
        self._under_way = 0
        self._latest: deque[tuple[float, Input]] = deque(maxlen=1_000)
        self._shrinking: set[asyncio.Task[None]] = set()
        self._shrunk = 0
        self._pace = Pace()

    async def run(self) -> None:
        """Call until it is over."""
        self._caller = Caller(self._world.server.address)
        self._go.set()
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            lanes = [tasks.create_task(self._lane(n)) for n in range(self.settings.lanes)]
            tasks.create_task(self._watch(began))
            await asyncio.wait(lanes)
            self._over = True
            self.result.seconds = time.monotonic() - began
        while self._shrinking:
            await asyncio.wait(self._shrinking)
        await self._caller.close()

    def note(self, failure: Failure) -> bool:
        """Keep a failure; tell whether it is the first of its kind."""
        self.result.counts[failure.signature] += 1
        first = self.result.counts[failure.signature] == 1
        if first:
            self.result.failures.append(failure)
            self._tell(f"FAILED: {failure.kind} {failure.method} {failure.text[:SHOWN]}")
        return first

    def look_at_log(self, *, quiet: bool = False) -> None:
        """Keep what the server's log tells."""
        for text in self._world.new_defects(quiet=quiet):
            last = text.rstrip().splitlines()[-1]
            self.note(Failure("log", last[:200], text))

    async def _lane(self, lane: int) -> None:
        for number in self._numbers:
            await self._go.wait()
            if self._over:
                return
            self._under_way += 1
            try:
                await self._one(number, lane)
            finally:
                self._under_way -= 1

    async def _one(self, number: int, lane: int) -> None:
        case = Case(self.settings.seed, number, self._known, self._learnt)
        outcome = await self._caller.call(case.input, case.frame, lane, case.hear)
        what = replace(case.input, frames=tuple(outcome.sent))
        self._latest.append((time.monotonic(), what))
        result, method = self.result, case.input.method
        result.messages += len(outcome.sent)
        result.methods[method.name] += 1
        result.codes["gone" if outcome.gone else outcome.code.name] += 1
        if method.streams_in or method.streams_out:
            result.streams[method.name] += 1
        for failure in judge(what, outcome):
            if failure.kind == "hang" and not await self._fails(failure, what):
                # This side did not come to hear the answer.
                continue
            if self.note(failure):
                task = asyncio.ensure_future(self._shrink(failure, what))
                self._shrinking.add(task)
                task.add_done_callback(self._shrinking.discard)

    async def _fails(self, failure: Failure, what: Input) -> bool:
        """Makes a call; tells whether it fails in the same way."""
        outcome = await self._caller.make(what)
        return any(each.kind == failure.kind for each in judge(what, outcome))

    async def _shrink(self, failure: Failure, what: Input) -> None:
        """Makes the input of a failed call small, and keeps it."""
        self._shrunk += 1
        if self._shrunk > MOST_SHRUNK or self.settings.corpus is None:
            return
        fails = partial(self._fails, failure)
        small = await shrink(what, fails) if await fails(what) else what
        self._keep(replace(failure, input=small))

    def _keep(self, failure: Failure) -> None:
        assert failure.input is not None
        if self.settings.corpus is None:
            return
        self.settings.corpus.mkdir(parents=True, exist_ok=True)
        name = f"{failure.input.method.short}-{failure.kind}-{self.settings.seed}-{self._shrunk}"
        text = to_text(Entry(failure.text[:300].replace("\r", ""), (failure.input,)))
        (self.settings.corpus / f"{name}.txt").write_text(text, encoding="utf-8")

    async def _watch(self, began: float) -> None:
        """Looks at the server until the run is over."""
        stalls = 0
        while not self._over:
            await asyncio.sleep(LOOK_S)
            if self._world.ended is not None:
                await self._came_down()
                stalls = 0
                continue
            # A server that ends meanwhile is looked at next time.
            with contextlib.suppress(OSError, StopIteration):
                stalls = await self._look(stalls)
            if time.monotonic() - began > self.settings.seconds or self._out_of_cpu():
                self._over = True
            if time.monotonic() - self._told_at > TELL_S:
                self._told_at = time.monotonic()
                self._tell(f"{self.result.messages} messages after {self._told_at - began:.0f} s")
        self._go.set()

    async def _look(self, stalls: int) -> int:
        """Looks at the server's memory, log and loop; returns its stalls so far."""
        memory = self._world.memory_mib
        if memory > self.result.memory_mib:
            self.result.memory_mib = memory
            if memory > MOST_MEMORY_MIB:
                self.note(Failure("memory", "", f"the server takes {memory:.0f} MiB"))
        self.look_at_log()
        now = await asyncio.to_thread(lambda: self._world.stalls)
        if now <= stalls:
            return now
        self.result.stalls += now - stalls
        if self._longest_ms(stalls) <= STALL_MS:
            self.result.excused += now - stalls
            return now
        return await self._find_stall(stalls)

    def _longest_ms(self, since: int) -> float:
        """Return the longest stall after so many, as long as on the machine at its best."""
        # One that the log does not tell of is not excused.
        return max(self._world.stalls_ms(since), default=math.inf) / self._pace.slowness()

    def _out_of_cpu(self) -> bool:
        if not self.settings.cpu_s:
            return False
        used = time.process_time() - self._cpu_before_s + self._world.cpu_s
        return used > self.settings.cpu_s

    async def _came_down(self) -> None:
        text = self._world.server.log[-3_000:]
        self.note(Failure("end", "", f"the server ended with {self._world.ended}: {text}"))
        await self._caller.close()
        self._world.restart()
        self._caller = Caller(self._world.server.address)

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Keeps the lanes from calling."""
        self._go.clear()
        try:
            await eventually(lambda: not self._under_way, "the lanes stand", timeout_s=60)
            yield
        finally:
            self._go.set()

    async def _find_stall(self, stalls: int) -> int:
        """Notes a stall, with the input that makes it if one does; returns the stalls so far."""
        since = time.monotonic() - SUSPECTED_S - LOOK_S
        stall = f"{max(self._world.stalls_ms(stalls), default=0)} ms of processor time"
        async with self._alone():
            # Those under way are over now, and stand here too. Large ones first: most work is made
            # by what there is much of.
            suspects = [what for at, what in self._latest if at > since]
            suspects.sort(key=lambda what: -what.size)
            culprit = await self._culprit(suspects)
            if culprit is None:
                text = f"one that no call makes again: {stall}"
                self.note(Failure("stall", "", text))
                return self._world.stalls
            text = f"the event loop stands for more than 100 ms: {stall}"
            failure = Failure("stall", culprit.method.name, text, culprit)
            if self.note(failure):
                self._shrunk += 1
                self._keep(replace(failure, input=await shrink(culprit, self._stalls, 40)))
            return self._world.stalls

    async def _culprit(self, suspects: list[Input]) -> Input | None:
        for at in range(0, len(suspects), TOGETHER):
            some = suspects[at : at + TOGETHER]
            if await self._stalls(*some):
                for what in some:
                    if await self._stalls(what) and await self._stalls(what):
                        return what
        return None

    async def _stalls(self, *calls: Input) -> bool:
        """Makes calls one after the other; tells whether the server stalls, not the machine."""
        before = self._world.stalls
        for what in calls:
            await self._caller.make(what)
        await asyncio.sleep(TICK_S)
        return self._world.stalls > before and self._longest_ms(before) > STALL_MS
