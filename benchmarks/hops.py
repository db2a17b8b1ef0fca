"""hops: where a lone job waits on its way, hop by hop, so that they add up to the whole.

Size: `jobs` jobs in each round, submitted with pauses, and as many calls one after the other.
"""

from __future__ import annotations

import json
import re
import tempfile
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from benchmarks.done import Done
from benchmarks.end_to_end import CONCURRENCY, PREFETCH
from benchmarks.figures import Figure, Goal, compared, measured
from benchmarks.frame import Benchmark, Plan, Size, check
from benchmarks.parts import Part, module, open_part
from benchmarks.servers import open_broker
from benchmarks.stores import open_store

PAUSE_S = 0.02
"""Between submissions, so that the next one does not come before the last one's handler runs."""
WARM_UP = 30
LEAST_SHARE = 0.25
"""So many of the jobs must be seen to go the same way; on a machine that does other things as well,
moments come in another order now and then."""
GOAL = Goal("at most", 1.25)
"""For a call that is traced, against one that is not: else the trace tells of itself."""
PRODUCER, SERVER, WORKER = "producer", "server", "worker"


@dataclass(frozen=True, slots=True)
class Hop:
    """A way from the moment before to the next one.

    Attributes:
        name: For people.
        where: The process in which the next moment is.
        moment: What it is called there; a pattern.
        optional: True if the way may lead past it; then it belongs to the hop behind it.
    """

    name: str
    where: str
    moment: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Way:
    """The hops from a first moment to the last."""

    name: str
    begins: str
    """The moment in the producer; a pattern."""
    hops: tuple[Hop, ...]


_STORE = (
    Hop("server: on its way to the store", SERVER, "sent$", optional=True),
    Hop("store: the script", SERVER, "arrived$", optional=True),
)
_TO_STORE = (
    Hop("SDK: the request is made", PRODUCER, "out "),
    Hop("gRPC to the server", SERVER, "in (ProduceRequest:.*submissions|SubmitJobRequest)"),
    Hop("server: reads and checks it", SERVER, "commit$"),
    Hop("server: gathers for the store", SERVER, "run "),
    *_STORE,
    Hop("server: back from the store", SERVER, "ran "),
)
_TO_HANDLER = (
    Hop("server: claims the job", SERVER, "ran (claim|claim_job)$", optional=True),
    Hop("server: finds the worker", SERVER, "frame$"),
    Hop("server: makes the assignment", SERVER, "out WorkResponse:.*assignments"),
    Hop("gRPC to the worker", WORKER, "in WorkResponse:.*assignments"),
    Hop("SDK: to the handler", WORKER, "handler$"),
)
_OUT = "out (?!WorkResponse)"
"""To a producer; some answers are bytes already."""
WAYS = (
    Way(
        "submit",
        "submit$",
        (
            *_TO_STORE,
            Hop("server: makes the answer", SERVER, _OUT),
            Hop(
                "gRPC to the producer", PRODUCER, "in (ProduceResponse:.*answers|SubmitJobResponse)"
            ),
            Hop("SDK: to its caller", PRODUCER, "submitted$"),
        ),
    ),
    Way("submit to handler", "submit$", (*_TO_STORE, *_TO_HANDLER)),
    Way(
        "call",
        "(call|submit)$",
        (
            *_TO_STORE,
            *_TO_HANDLER,
            Hop("the handler", WORKER, "handled$"),
            Hop("SDK: makes the completion", WORKER, "out WorkRequest:.*completions"),
            Hop("gRPC from the worker", SERVER, "in WorkRequest:.*completions"),
            Hop("server: reads and checks it", SERVER, "commit$"),
            Hop("server: gathers for the store", SERVER, "run "),
            *_STORE,
            Hop("server: back from the store", SERVER, "(ran |notice$)"),
            Hop("server: makes the end", SERVER, _OUT),
            Hop("gRPC to the producer", PRODUCER, "in (ProduceResponse:.*ends|WatchJobResponse)"),
            Hop("SDK: to its caller", PRODUCER, "(called|result)$"),
        ),
    ),
)


class Trace:
    """The moments of one process, in their order."""

    def __init__(self, file: Path) -> None:
        moments = [json.loads(line) for line in file.read_text().splitlines()]
        self.times: list[int] = [at for at, _ in moments]
        self.names: list[str] = [name for _, name in moments]

    def first(self, pattern: re.Pattern[str], since: int, before: int) -> int | None:
        """Returns when such a moment came first."""
        for at in range(bisect_left(self.times, since), len(self.times)):
            if self.times[at] >= before:
                return None
            if pattern.match(self.names[at]):
                return self.times[at]
        return None

    def all(self, pattern: str) -> list[int]:
        """Returns when such moments came."""
        pairs = zip(self.times, self.names, strict=True)
        return [at for at, name in pairs if re.match(pattern, name)]


Traces = dict[str, Trace]


def walk(way: Way, traces: Traces, begins: int, before: int) -> dict[str, int] | None:
    """Returns how long each hop took one job, in ns, None if it did not go this way.

    Args:
        way: The hops.
        traces: Of the processes.
        begins: When the job began.
        before: When the next one did.
    """
    took: dict[str, int] = {}
    now = begins
    hops = [(hop, re.compile(hop.moment)) for hop in way.hops]
    for number, (hop, pattern) in enumerate(hops):
        at = traces[hop.where].first(pattern, now, before)
        if hop.optional and at is not None:
            following, its_pattern = hops[number + 1]
            due = traces[following.where].first(its_pattern, now, before)
            at = None if due is not None and due < at else at
        if at is None:
            if hop.optional:
                continue
            return None
        took[_numbered(hop.name, took)] = at - now
        now = at
    return took


def _numbered(name: str, taken: dict[str, int]) -> str:
    return f"{name}, again" if name in taken else name


def hops_of(way: Way, traces: Traces, since: int, until: int) -> tuple[list[dict[str, int]], int]:
    """Returns the hops of each job that began in between and went the usual way, and how many
    began."""
    begins = [at for at in traces[PRODUCER].all(way.begins) if since <= at < until]
    walks = [
        walk(way, traces, at, before)
        for at, before in zip(begins, [*begins[1:], until], strict=True)
    ]
    whole = [took for took in walks if took is not None]
    ways = Counter(tuple(took) for took in whole).most_common(1)
    return [took for took in whole for usual, _ in ways if tuple(took) == usual], len(begins)


def middle(jobs: Sequence[dict[str, int]]) -> list[dict[str, int]]:
    """Returns those whose whole is in the middle half: a mean of them adds up, and no pause of
    the machine is in it."""
    ordered = sorted(jobs, key=lambda took: sum(took.values()))
    quarter = len(ordered) // 4
    return ordered[quarter : len(ordered) - quarter]


async def run(plan: Plan) -> list[Figure]:
    """Traces jobs, and measures calls that nobody traces by turns with those that are traced."""
    count, rounds = plan.size.jobs, plan.size.rounds
    with tempfile.TemporaryDirectory(prefix="jwb-") as name:
        files = {part: Path(name) / part for part in (PRODUCER, SERVER, WORKER)}
        traced_us: list[float] = []
        plain_us: list[float] = []
        async with AsyncExitStack() as stack:
            plain, plain_done = await _open(stack, plan, lambda part: None)
            traced, traced_done = await _open(stack, plan, files.get)
            for producer, done in ((plain, plain_done), (traced, traced_done)):
                await producer.ask(f"call {WARM_UP} 1")
                await done.all_of(WARM_UP)
            spans: dict[str, list[tuple[int, int]]] = {"submit": [], "call": []}
            for number in range(rounds):
                plan.say(f"round {number + 1} of {rounds}")
                answer = await traced.ask(f"spaced {count} {PAUSE_S}")
                spans["submit"].append((answer["began"], answer["ended"]))
                await traced_done.all_of(count)
                plain_us.append((await plain.ask(f"call {count} 1"))["p50_us"])
                await plain_done.all_of(count)
                answer = await traced.ask(f"call {count} 1")
                spans["call"].append((answer["began"], answer["ended"]))
                traced_us.append(answer["p50_us"])
                await traced_done.all_of(count)
            for done in (plain_done, traced_done):
                await done.check()
        # Each process writes its moments as it ends.
        traces = {part: Trace(file) for part, file in files.items()}
    figures = [
        compared(
            *("call, traced, p50", traced_us, "us"),
            against="the same without a trace",
            base=plain_us,
            goal=GOAL,
        )
    ]
    for way in WAYS:
        jobs: list[dict[str, int]] = []
        begun = 0
        for since, until in spans["call" if way.name == "call" else "submit"]:
            found, number = hops_of(way, traces, since, until)
            jobs += found
            begun += number
        check(begun == rounds * count, f"{way.name}: {begun} of {rounds * count} jobs are seen")
        enough = len(jobs) >= LEAST_SHARE * begun
        check(enough, f"{way.name}: {len(jobs)} of {begun} jobs are seen to go the usual way")
        figures += _figures(way, jobs)
        for row in _table(way, jobs):
            plan.say(row)
    return figures


async def _open(
    stack: AsyncExitStack, plan: Plan, trace: Callable[[str], Path | None]
) -> tuple[Part, Done]:
    store = await stack.enter_async_context(open_store(plan.engine))
    server = await stack.enter_async_context(open_broker(store, trace=trace(SERVER)))
    arguments = (server.address, CONCURRENCY, PREFETCH)
    working = module("benchmarks.working", *arguments, trace=trace(WORKER))
    done = Done(store, await stack.enter_async_context(open_part(working)))
    producing = module("benchmarks.singly", "sdk", server.address, trace=trace(PRODUCER))
    return await stack.enter_async_context(open_part(producing)), done


def _figures(way: Way, jobs: Sequence[dict[str, int]]) -> list[Figure]:
    chosen = middle(jobs)
    means = {name: fmean(took[name] for took in chosen) / 1e3 for name in chosen[0]}
    whole = measured(f"{way.name}: the whole", [sum(means.values())], "us")
    return [whole, *(measured(f"{way.name}: {hop}", [us], "us") for hop, us in means.items())]


def _table(way: Way, jobs: Sequence[dict[str, int]]) -> list[str]:
    """Returns the hops as rows of a table for docs/performance.md."""
    chosen = middle(jobs)
    rows = ["", f"| {way.name} | us | so far |", "|---|---|---|"]
    so_far = 0.0
    for name in chosen[0]:
        mean = fmean(took[name] for took in chosen) / 1e3
        so_far += mean
        rows.append(f"| {name} | {mean:,.0f} | {so_far:,.0f} |")
    p50 = median(sum(took.values()) for took in jobs) / 1e3
    return [*rows, f"({len(chosen)} of {len(jobs)} jobs; the median of all is {p50:,.0f} us)"]


BENCHMARK = Benchmark(
    name="hops",
    summary="where a lone job waits: client, wire, server, store and worker, hop by hop",
    run=run,
    full=Size(jobs=300, rounds=3),
    short=Size(jobs=100, rounds=1),
    in_short=False,  # it tells where time goes, not how fast the product is
)
