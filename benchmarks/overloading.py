"""A crowd of producers: `python -m benchmarks.overloading TARGET CHANNELS`.

It reads two kinds of lines: `best CALLS IN_FLIGHT` makes so many SubmitJob calls, each once another
was answered; `offer CALLS RATE DEADLINE_S` starts them at that rate, whatever becomes of others.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from time import perf_counter
from typing import Any

import grpc
import uvloop

from jobwire.v1 import job_service_pb2_grpc

from benchmarks import jobs
from benchmarks.parts import say
from benchmarks.servers import CHANNEL_OPTIONS

TICK_S = 0.005
# A server that sees the deadline pass before this client does ends the call as cancelled.
UNANSWERED = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
REFUSALS = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}


class Crowd:
    """Calls over many channels, and what came of them.

    Args:
        stubs: SubmitJob on each channel.
    """

    def __init__(self, stubs: list[Any]) -> None:
        self._stubs = stubs
        self._requests = [jobs.request() for _ in range(64)]
        self._outcomes: Counter[str] = Counter()
        self._longest_s = 0.0
        self._last_accepted = 0.0
        self.why = ""
        """What an unexpected error said."""

    async def best(self, calls: int, in_flight: int) -> dict[str, Any]:
        """Makes calls one after the other on each of so many lines."""

        async def call(number: int) -> None:
            await self._call(number, None)

        return await self._counted(jobs.each(calls, in_flight, call))

    async def offer(self, calls: int, rate: float, deadline_s: float) -> dict[str, Any]:
        """Starts calls at a rate, each with a deadline, and waits for the last of them."""

        async def offered() -> None:
            began, started = perf_counter(), 0
            async with asyncio.TaskGroup() as group:
                while started < calls:
                    due = min(calls, int((perf_counter() - began + TICK_S) * rate))
                    for number in range(started, due):
                        group.create_task(self._call(number, deadline_s))
                    started = due
                    self._offering_s = perf_counter() - began
                    await asyncio.sleep(TICK_S)

        return await self._counted(offered())

    async def _counted(self, work: Any) -> dict[str, Any]:
        self._outcomes.clear()
        self._longest_s = self._offering_s = 0.0
        began = perf_counter()
        await work
        took_s = perf_counter() - began
        return {
            **{
                name: self._outcomes[name]
                for name in ("accepted", "refused", "unanswered", "other")
            },
            "why": self.why,
            "longest_s": self._longest_s,
            "offering_s": self._offering_s or took_s,
            "took_s": self._last_accepted - began,
        }

    async def _call(self, number: int, deadline_s: float | None) -> None:
        stub, began = self._stubs[number % len(self._stubs)], perf_counter()
        try:
            await stub(self._requests[number % 64], timeout=deadline_s)
            outcome = "accepted"
            self._last_accepted = perf_counter()
        except grpc.aio.AioRpcError as error:
            if error.code() in REFUSALS:
                outcome = "refused"
            elif error.code() in UNANSWERED:
                outcome = "unanswered"
            else:
                outcome = "other"
                self.why = (
                    f"{error.code().name} after {perf_counter() - began:.3f} s: {error.details()}"
                )
        self._outcomes[outcome] += 1
        self._longest_s = max(self._longest_s, perf_counter() - began)


async def serve(target: str, channels: int) -> None:
    """Does as it is told until its input ends."""
    opened = [grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS) for _ in range(channels)]
    crowd = Crowd([job_service_pb2_grpc.JobServiceStub(one).SubmitJob for one in opened])
    loop = asyncio.get_running_loop()
    say({"ready": True})
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        what, *numbers = line.split()
        if what == "best":
            say(await crowd.best(int(numbers[0]), int(numbers[1])))
        else:
            say(await crowd.offer(int(numbers[0]), float(numbers[1]), float(numbers[2])))
    for one in opened:
        await one.close()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2])))
